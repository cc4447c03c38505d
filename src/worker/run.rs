//! What a worker does from its first instruction to its last.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::{crash, entry, report};
use crate::sys::clock::Moment;
use crate::sys::fd::{self, Inherited};
use crate::sys::global::Global;
use crate::sys::image::Image;
use crate::sys::{prctl, process, signal};
use crate::wire::job::OpenJob;
use crate::wire::marker::Marker;
use crate::wire::message::Job;
use crate::wire::names::{EXIT_RAISED, EXIT_REFUSED};
use crate::wire::slot::{SlotWriter, State};

/// How this process came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// By exec: a fresh image, whose exit handlers are its own.
    Exec,
    /// By fork: a copy, whose exit handlers and dispositions are its parent's.
    Fork,
}

/// Lives the life of a worker.
pub(crate) fn run(marker: &Marker, origin: Origin) -> ! {
    let _no_way_back = process::AbortOnUnwind;
    let code = match die_with_launcher(marker) {
        // Whoever wanted to know about this worker is gone: it says nothing.
        Ok(false) => EXIT_REFUSED,
        Ok(true) => report_slot(marker)
            .map_or_else(|error| complain(marker, &error), |slot| work(marker, origin, slot)),
        Err(error) => complain(marker, &error),
    };
    leave(code, origin)
}

/// Without a slot there is only stderr to tell it to; if that fails too, the exit code is left.
fn complain(marker: &Marker, error: &io::Error) -> i32 {
    let _ = writeln!(io::stderr(), "phalanx: worker {} cannot begin: {error}", marker.rank);
    EXIT_REFUSED
}

/// Arms the parent-death signal first, then looks whether the launcher was dead already: in this order it
/// cannot die unnoticed in between (prctl(2), PR_SET_PDEATHSIG). Says whether it lives.
fn die_with_launcher(marker: &Marker) -> io::Result<bool> {
    prctl::set_death_signal(marker.death_signal)?;
    Ok(marker.death_signal.is_none() || process::parent_id() == marker.launcher)
}

fn report_slot(marker: &Marker) -> io::Result<&'static SlotWriter> {
    let slot = SlotWriter::new(fd::adopt(marker.report)?)?;
    slot.set_state(State::Begun);
    Ok(Box::leak(Box::new(slot)))
}

fn work(marker: &Marker, origin: Origin, slot: &'static SlotWriter) -> i32 {
    let ready = settle(marker, origin, slot).and_then(|(open, storages)| {
        let image = Image::main()?;
        let entry = entry::find(&open.job, image).map_err(io::Error::other)?;
        Ok((open, storages, entry))
    });
    let (open, storages, entry) = match ready {
        Ok(ready) => ready,
        Err(error) => return refuse(slot, &error),
    };
    slot.set_state(State::Running);
    let done = report::call_and_report(slot, || entry.call(marker.rank, open.arguments(), storages));
    match done {
        Ok(true) => 0,
        Ok(false) => EXIT_RAISED,
        Err(error) => {
            slot.set_note(&format!("its report could not be written: {error}"));
            EXIT_RAISED
        }
    }
}

fn refuse(slot: &SlotWriter, error: &io::Error) -> i32 {
    slot.set_failed_at(Moment::now());
    slot.set_note(&error.to_string());
    slot.set_state(State::Refused);
    EXIT_REFUSED
}

/// Makes the process what a worker's function may expect to find.
fn settle(marker: &Marker, origin: Origin, slot: &'static SlotWriter) -> io::Result<(OpenJob, Vec<OwnedFd>)> {
    let job = fd::adopt(marker.job)?;
    let open = OpenJob::read(job.as_fd())?;
    let storages = open.job.storages.iter().map(|&raw| fd::adopt(raw)).collect::<io::Result<Vec<_>>>()?;
    let own: Vec<_> = storages.iter().chain([&job]).map(AsRawFd::as_raw_fd).chain([marker.report]).collect();
    match origin {
        Origin::Exec => {
            fd::close_inherited(Inherited::ThroughExec, &own)?;
            // As any Rust main does; but init may run before main.
            signal::ignore(signal::Signal::PIPE)?;
        }
        Origin::Fork => {
            process::lead_own_group(0)?;
            fd::close_inherited(Inherited::ThroughFork, &own)?;
            signal::reset_all()?;
        }
    }
    fd::settle_stdio()?;
    prctl::set_name(&comm(&open.job, marker.rank))?;
    crash::watch(slot)?;
    watch_exit(slot)?;
    Ok((open, storages))
}

/// `job:rank`, of whose 15 bytes the rank has its whole.
fn comm(job: &Job, rank: usize) -> String {
    const KEPT: usize = 15;
    let rank = format!(":{rank}");
    let room = KEPT.saturating_sub(rank.len());
    format!("{}{rank}", &job.name[..job.name.floor_char_boundary(room)])
}

/// Stamps the moment at which something exits while the user's function still runs.
fn watch_exit(slot: &'static SlotWriter) -> io::Result<()> {
    static SLOT: Global<SlotWriter> = Global::new();
    extern "C" fn at_exit() {
        if let Some(slot) = SLOT.get().filter(|slot| slot.is_own() && slot.state() == State::Running) {
            slot.set_failed_at(Moment::now());
        }
    }
    SLOT.set(slot);
    process::at_exit(at_exit)
}

/// Ends the process with what it has written flushed.
#[expect(clippy::exit, clippy::disallowed_methods, reason = "this is where a worker ends")]
fn leave(code: i32, origin: Origin) -> ! {
    match origin {
        Origin::Exec => std::process::exit(code),
        Origin::Fork => {
            // A stdout that is closed loses what is left in the buffer, as at any exit.
            let _ = io::stdout().flush();
            process::exit_at_once(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comm_of(name: &str, rank: usize) -> String {
        let job =
            Job { image: vec![], entry: 0, function: String::new(), name: name.into(), storages: vec![] };
        comm(&job, rank)
    }

    #[test]
    fn comm_keeps_the_whole_rank() {
        assert_eq!(comm_of("train", 3), "train:3");
        assert_eq!(comm_of("a-very-long-job-name", 1234), "a-very-lon:1234");
        assert_eq!(comm_of("ääääääääää", 1), "ääääää:1");
    }
}
