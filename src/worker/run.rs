//! What a worker does from its first instruction to its last.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use super::entry::Entry;
use super::{crash, entry, report};
use crate::shm::passing::Arrivals;
use crate::shm::segment;
use crate::shm::tree::{self, Place};
use crate::sys::clock::Moment;
use crate::sys::fd::{self, Inherited};
use crate::sys::global::Global;
use crate::sys::image::Image;
use crate::sys::socket::Socket;
use crate::sys::{prctl, process, signal};
use crate::wire::job::OpenJob;
use crate::wire::marker::Marker;
use crate::wire::message::Job;
use crate::wire::names::{EXIT_RAISED, EXIT_REFUSED};
use crate::wire::returns;
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
    let ready = settle(marker, origin, slot).and_then(|desk| {
        let entry = entry::find(&desk.open.job, Image::main()?).map_err(io::Error::other)?;
        Ok((desk, entry))
    });
    let (desk, entry) = match ready {
        Ok(ready) => ready,
        Err(error) => return refuse(slot, &error),
    };
    slot.set_state(State::Running);
    match report::call_and_report(slot, || desk.call(marker.rank, entry)) {
        Ok(true) => 0,
        Ok(false) => EXIT_RAISED,
        Err(error) => {
            slot.set_note(&format!("its report could not be written: {error}"));
            EXIT_RAISED
        }
    }
}

/// What a worker needs for its call.
struct Desk {
    open: OpenJob,
    arrivals: Arrivals,
    outbox: Socket,
    /// In the launcher's tree of named memory.
    place: Option<Arc<Place>>,
}

impl Desk {
    /// Calls the function and sends what goes beside its result; returns the result's bytes.
    fn call(self, rank: usize, entry: &Entry) -> anyhow::Result<Vec<u8>> {
        let result = entry.call(rank, self.open.arguments(), self.arrivals)?;
        returns::send(rank, result, &self.outbox, self.place.as_deref()).map_err(anyhow::Error::msg)
    }
}

fn refuse(slot: &SlotWriter, error: &io::Error) -> i32 {
    slot.set_failed_at(Moment::now());
    slot.set_note(&error.to_string());
    slot.set_state(State::Refused);
    EXIT_REFUSED
}

/// Makes the process what a worker's function may expect to find.
fn settle(marker: &Marker, origin: Origin, slot: &'static SlotWriter) -> io::Result<Desk> {
    let job = fd::adopt(marker.job)?;
    let open = OpenJob::read(job.as_fd())?;
    let own: Vec<_> = open.descriptors().chain([job.as_raw_fd(), marker.report]).collect();
    match origin {
        Origin::Exec => {
            fd::close_inherited(Inherited::ThroughExec, &own)?;
            // As any Rust main does; but init may run before main.
            signal::ignore(signal::Signal::PIPE)?;
        }
        Origin::Fork => {
            process::lead_own_group(0)?;
            fd::close_inherited(Inherited::ThroughFork, &own)?;
            segment::close_all();
            signal::reset_all()?;
        }
    }
    fd::settle_stdio()?;
    prctl::set_name(&comm(&open.job, marker.rank))?;
    crash::watch(slot)?;
    watch_exit(slot)?;
    share_as_launcher(marker, &open.job)?;
    let (place, outbox) = (tree::place_in_use(), Socket::from_descriptor(fd::adopt(open.job.returns)?));
    let arrivals = open.arrivals(place.as_deref())?;
    Ok(Desk { open, arrivals, outbox, place })
}

/// Takes over the launcher's way of sharing memory, and the place that it has made.
fn share_as_launcher(marker: &Marker, job: &Job) -> io::Result<()> {
    job.sharing.clone().take_on();
    match (&job.place, marker.nest) {
        (Some((tree, launchers)), Some(nest)) => tree::take_place(fd::adopt(*tree)?, launchers, nest),
        _ => Ok(()),
    }
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
            tree::leave();
            process::exit_at_once(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::strategy::Choice;
    use crate::wire::message::Manifest;

    fn comm_of(name: &str, rank: usize) -> String {
        let job = Job {
            image: vec![],
            entry: 0,
            function: String::new(),
            name: name.into(),
            sharing: Choice::of_this_process(),
            place: None,
            returns: 0,
            manifest: Manifest::default(),
        };
        comm(&job, rank)
    }

    #[test]
    fn comm_keeps_the_whole_rank() {
        assert_eq!(comm_of("train", 3), "train:3");
        assert_eq!(comm_of("a-very-long-job-name", 1234), "a-very-lon:1234");
        assert_eq!(comm_of("ääääääääää", 1), "ääääää:1");
    }
}
