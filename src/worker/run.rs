//! What a worker does from its first instruction to its last.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use super::entry::Called;
use super::info::WorkerInfo;
use super::{crash, entry, hooks, info, late_init, report, setup};
use crate::error::with_limit;
use crate::injection;
use crate::memory::named;
use crate::memory::segment;
use crate::point::point;
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::fd::{self, Inherited};
use crate::sys::global::Global;
use crate::sys::image::Image;
use crate::sys::limits::Limits;
use crate::sys::socket::Socket;
use crate::sys::thread_state::ThreadState;
use crate::sys::{fork, memory, pidfd, prctl, signal, stdio, wait};
use crate::transfer::received::Received;
use crate::wire::job::OpenJob;
use crate::wire::ledger::Ledger;
use crate::wire::lifecycle::State;
use crate::wire::lifeline;
use crate::wire::marker::Marker;
use crate::wire::message::{Job, Shared};
use crate::wire::names::{EXIT_RAISED, EXIT_REFUSED};
use crate::wire::setup::Setup;
use crate::wire::slot::SlotWriter;
use crate::wire::{result_channel, roster, running_task, stop_pipe, stop_word};

/// How long a worker waits for the guardian: to make room in the socket for the request, and to join the worker's process group.
const ASKING: Duration = Duration::from_secs(10);

/// How this process was started.
#[derive(Debug)]
pub(crate) enum Origin<'a> {
    /// By posix_spawn of the executable: the process has exit handlers of its own.
    Exec,
    /// By fork of the launcher: a copy with the launcher's exit handlers and dispositions.
    Fork { output: Output<'a> },
    /// By fork of the fork server: a copy of a process with one thread.
    Served(Served<'a>),
}

/// What is to be the stdout and the stderr of a forked worker; `None`: what the process before the fork has.
pub(crate) type Output<'a> = [Option<BorrowedFd<'a>>; 2];

/// What a worker gets from the fork server.
#[derive(Debug)]
pub(crate) struct Served<'a> {
    /// The number of each descriptor in this process, by its number in the launcher, by which the job names it.
    pub(crate) numbers: &'a HashMap<RawFd, RawFd>,
    pub(crate) ledger: &'a Ledger,
    pub(crate) changes: &'a Changes,
    pub(crate) output: Output<'a>,
    /// The pid of the server, this worker's parent.
    pub(crate) server: u32,
}

/// The limits and the scheduling state of the thread that asked for a worker, as far as the fork server's differ.
#[derive(Debug)]
pub(crate) struct Changes {
    pub(crate) limits: Limits,
    pub(crate) thread: ThreadState,
}

impl Changes {
    fn apply(&self) -> io::Result<()> {
        // Limits first: one may be what allows the rest, as RLIMIT_NICE allows a lower nice value (getrlimit(2)).
        self.limits.apply().and_then(|()| self.thread.apply()).map_err(|error| {
            io::Error::other(format!(
                "{error}. The fork server is not as the thread that asked for this worker, and may not become so: use \
                 StartMethod::Spawn, or give the server what it lacks"
            ))
        })
    }
}

impl Origin<'_> {
    /// The function that returns the most memory that this process has had resident, in KiB. Through an exec the count of getrusage(2)
    /// goes on from the process before; after a fork it begins anew, and asking it is much cheaper than reading /proc.
    fn peak(&self) -> report::Peak {
        match self {
            Self::Exec => || memory::peak_resident_kib().unwrap_or(0),
            Self::Fork { .. } | Self::Served(_) => wait::max_rss_kib,
        }
    }

    /// The number that a descriptor of the job has in this process.
    fn local(&self, number: RawFd) -> RawFd {
        match self {
            Self::Exec | Self::Fork { .. } => number,
            // A descriptor that did not arrive: -1 is none, so its use fails (EBADF).
            Self::Served(served) => served.numbers.get(&number).copied().unwrap_or(-1),
        }
    }
}

/// Runs a worker from its first instruction to its exit. Never returns.
pub(crate) fn run(marker: &Marker, origin: &Origin<'_>) -> ! {
    let _no_way_back = fork::AbortOnUnwind;
    stop_pipe::forget_variables();
    let code = match die_with_launcher(marker) {
        // The launcher is dead, so no process would read a message.
        Ok(false) => EXIT_REFUSED,
        Ok(true) => report_slot(marker)
            .map_or_else(|error| report_on_stderr(marker, &error), |slot| work(marker, origin, slot)),
        Err(error) => report_on_stderr(marker, &error),
    };
    point!("worker.exit", deaths);
    exit(code, origin)
}

/// Writes why the worker cannot begin to stderr, as long as there is no slot to write it into. If stderr is closed, the exit code
/// alone tells it.
fn report_on_stderr(marker: &Marker, error: &io::Error) -> i32 {
    let _ = writeln!(io::stderr(), "phalanx: worker {} cannot begin: {error}", marker.rank);
    EXIT_REFUSED
}

/// Arms the parent-death signal first, then looks whether the launcher was dead already: in this order it
/// cannot die unnoticed in between (prctl(2), PR_SET_PDEATHSIG). Says whether it lives.
fn die_with_launcher(marker: &Marker) -> io::Result<bool> {
    prctl::set_death_signal(marker.death_signal)?;
    Ok(marker.death_signal.is_none() || fork::parent_id() == marker.launcher)
}

fn report_slot(marker: &Marker) -> io::Result<&'static SlotWriter> {
    let slot = told("mapping the memory for its report", SlotWriter::new(fd::adopt(marker.report)?))?;
    slot.advance(State::Begun);
    Ok(Box::leak(Box::new(slot)))
}

fn work(marker: &Marker, origin: &Origin<'_>, slot: &'static SlotWriter) -> i32 {
    let ready = prepare(marker, origin, slot).and_then(|context| {
        let called = entry::find(&context.open.job, Image::main()?).map_err(io::Error::other)?;
        await_start(origin)?;
        Ok((context, called))
    });
    let (context, called) = match ready {
        Ok(ready) => ready,
        Err(error) => return refuse(slot, &error),
    };
    point!("worker.ready", deaths);
    slot.advance(State::Running);
    match report::call_and_report(slot, origin.peak(), || context.call(marker.rank, called)) {
        Ok(true) => 0,
        Ok(false) => EXIT_RAISED,
        Err(error) => {
            slot.set_note(&format!("its report could not be written: {}", with_limit(&error)));
            EXIT_RAISED
        }
    }
}

/// What a worker needs to call its function: the job, what came beside the arguments, and the socket for what goes beside the result.
struct CallContext {
    open: OpenJob,
    received: Received,
    sender: Socket,
}

impl CallContext {
    /// Calls the hook and the function, and sends what goes beside its result; returns the result's bytes.
    fn call(self, mut rank: usize, Called { hook, entry }: Called) -> anyhow::Result<Vec<u8>> {
        let Self { open, received, sender } = self;
        // Leaked, and so never closed. If the function has closed such a descriptor already, std's debug builds would abort the
        // process at a second close, and what the function has returned would be lost.
        let (open, sender) = (report::keep(open), report::keep(sender));
        point!("start", |injected| return Err(injected.into()));
        if let Some(hook) = hook {
            hook.call(&mut (), &[], Received::default(), Vec::new())?;
        }
        let result = entry.call(&mut rank, open.arguments(), received, Vec::new())?;
        point!("end", |injected| return Err(injected.into()));
        // Asked for after the function: meanwhile the directory may have been removed, and a new one made.
        let process_dir = named::process_dir_in_use();
        result_channel::send(rank, result, sender, process_dir.as_deref()).map_err(anyhow::Error::msg)
    }
}

/// The last steps before the function: a forked worker runs the `after_fork` hooks, and one of the fork server waits at the gate,
/// which the launcher opens when it watches all workers.
fn await_start(origin: &Origin<'_>) -> io::Result<()> {
    match origin {
        Origin::Exec => Ok(()),
        Origin::Fork { .. } => hooks::run().map_err(io::Error::other),
        Origin::Served(served) => {
            hooks::run().map_err(io::Error::other)?;
            let open = served.ledger.await_gate(|| fork::parent_id() == served.server)?;
            if open {
                Ok(())
            } else {
                Err(io::Error::other("the launcher or its fork server was gone before the start"))
            }
        }
    }
}

fn refuse(slot: &SlotWriter, error: &io::Error) -> i32 {
    slot.set_failed_at(Moment::now());
    slot.set_note(&with_limit(error));
    slot.advance(State::Refused);
    EXIT_REFUSED
}

/// What a step of the set-up was to do, before the system's error and the limit that it means.
fn told<T>(doing: &str, done: io::Result<T>) -> io::Result<T> {
    done.map_err(|error| io::Error::other(format!("{doing}: {}", with_limit(&error))))
}

/// Sets the process up: descriptors, dispositions, the rank's options, name, crash handler, and what the worker shares with its
/// launcher.
fn prepare(marker: &Marker, origin: &Origin<'_>, slot: &'static SlotWriter) -> io::Result<CallContext> {
    let job = fd::adopt(marker.job)?;
    let open = told("reading its job", OpenJob::read(job.as_fd()))?;
    let named = open.descriptors().map(|number| origin.local(number));
    let own: Vec<_> = named.chain([job.as_raw_fd(), marker.report]).chain(marker.lifeline).collect();
    match origin {
        Origin::Exec => {
            late_init::refuse_inside_of_a_runtime()?;
            told("closing descriptors", fd::close_inherited(Inherited::ThroughExec, &own))?;
            // std ignores SIGPIPE before main; `auto_init!` runs earlier than that, from .init_array.
            signal::ignore(signal::Signal::PIPE)?;
        }
        Origin::Fork { output } => {
            clean_up_after_fork(&own, *output)?;
            signal::reset_all()?;
        }
        Origin::Served(served) => {
            served.changes.apply()?;
            clean_up_after_fork(&own, served.output)?;
            // The server has reset the dispositions before the fork; only the mask is left.
            signal::unblock_all()?;
        }
    }
    if let Some(end) = marker.lifeline {
        lifeline::hold(fd::adopt(end)?)?;
    }
    if let Some(own) = open.job.setup.of_rank(marker.rank) {
        setup::apply(own, marker.rank)?;
    }
    told("opening /dev/null", fd::open_stdio_on_null())?;
    info::set(info_of(&open.job, marker.rank));
    // The name is shown by `ps` and `top`. Nothing depends on it, so an error is ignored.
    let _ = prctl::set_name(&comm(&open.job, marker.rank));
    match origin {
        Origin::Served(_) => crash::watch_prepared(slot),
        Origin::Exec | Origin::Fork { .. } => told("handling fatal signals", crash::watch(slot))?,
    }
    watch_exit(slot)?;
    let adopt = |number| fd::adopt(origin.local(number));
    let shared =
        open.job.shared.as_ref().ok_or_else(|| io::Error::other("its job is that of a launched function"))?;
    let sender = share(shared, (marker, open.job.setup.nprocs), adopt)?;
    point!("worker.set-up", deaths);
    let process_dir = named::process_dir_in_use();
    let received = open.received(process_dir.as_deref(), adopt)?;
    Ok(CallContext { open, received, sender })
}

/// Takes over what the workers of the context share; returns the socket for what goes beside the result.
fn share(
    shared: &Shared,
    (marker, nprocs): (&Marker, usize),
    adopt: impl Fn(RawFd) -> io::Result<OwnedFd>,
) -> io::Result<Socket> {
    if let Some((page, plan)) = &shared.faults {
        let armed = injection::arm(plan, adopt(*page)?, (marker.rank, nprocs));
        told("putting the plan of faults in force", armed)?;
    }
    shared.sharing.clone().apply();
    if let (Some((tree, launchers)), Some(worker_dir)) = (&shared.process_dir, marker.worker_dir) {
        let adopted = named::adopt_process_dir(adopt(*tree)?, launchers, worker_dir);
        told("taking over the directory of named tensors", adopted)?;
    }
    told("mapping the names of the ranks", roster::apply(adopt(shared.roster)?.as_fd(), marker.rank))?;
    told("mapping the word that tells of a stop", stop_word::apply(adopt(shared.stop)?, shared.aborts))?;
    // A guard ends a worker's children when the launcher is killed. A worker that may outlive its launcher is not to be ended by it.
    if let Some(guards) = shared.guards.filter(|_| marker.death_signal == Some(signal::Signal::KILL)) {
        let asked = ask_for_guard(&Socket::from_descriptor(adopt(guards)?));
        told("asking for the guard of the fork server", asked)?;
    }
    Ok(Socket::from_descriptor(adopt(shared.result_channel)?))
}

fn clean_up_after_fork(own: &[RawFd], output: Output<'_>) -> io::Result<()> {
    fork::lead_own_group(0)?;
    for (fd, place) in output.into_iter().zip(1..).filter_map(|(fd, place)| Some((fd?, place))) {
        fd::put_at(fd, place)?;
    }
    fd::close_inherited(Inherited::ThroughFork, own)?;
    segment::close_all();
    stop_word::forget();
    running_task::forget();
    roster::forget();
    injection::disarm();
    Ok(())
}

/// Asks the guardian to watch this worker, before the worker can have children: the request is in the socket, and the guardian finds
/// it there whatever becomes of the launcher.
///
/// Before Linux 6.9 a pidfd cannot signal a process group (pidfd_send_signal(2), PIDFD_SIGNAL_PROCESS_GROUP). The guardian then keeps
/// a process in the group, and this function waits until it is there: later both the launcher and this worker may be gone, and the
/// group's number be another's. The guardian closes the second descriptor when it has joined; if the guardian dies, the kernel does.
fn ask_for_guard(guards: &Socket) -> io::Result<()> {
    let own = std::process::id();
    let pidfd = pidfd::open(own)?;
    let until = Moment::now().checked_add(ASKING);
    let ask = |descriptors: &[_]| guards.send(&u64::from(own).to_ne_bytes(), descriptors, until);
    if pidfd::means_group(pidfd.as_fd()) {
        return ask(&[pidfd.as_fd()]);
    }
    let (held, answer) = Socket::pair()?;
    ask(&[pidfd.as_fd(), answer.as_fd()])?;
    drop(answer);
    if wait_readable(held.as_fd(), until)? { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}

fn info_of(job: &Job, rank: usize) -> WorkerInfo {
    let Setup { nprocs, launcher, .. } = job.setup;
    WorkerInfo { rank, nprocs, name: job.name.clone(), launcher }
}

/// The comm name `job:rank`. The kernel keeps 15 bytes (prctl(2), PR_SET_NAME): the job's name is cut, the rank never.
fn comm(job: &Job, rank: usize) -> String {
    const KEPT: usize = 15;
    let rank = format!(":{rank}");
    let room = KEPT.saturating_sub(rank.len());
    format!("{}{rank}", &job.name[..job.name.floor_char_boundary(room)])
}

/// Registers an exit handler that stamps the moment when something calls exit(3) while the user's function still runs.
fn watch_exit(slot: &'static SlotWriter) -> io::Result<()> {
    static SLOT: Global<SlotWriter> = Global::new();
    extern "C" fn at_exit() {
        if let Some(slot) = SLOT.get().filter(|slot| slot.is_own() && slot.state() == State::Running) {
            slot.set_failed_at(Moment::now());
        }
    }
    SLOT.set(slot);
    fork::at_exit(at_exit)
}

/// Ends the process after flushing what it has written. A forked worker runs no exit handlers: they are its parent's, and would undo
/// there what the parent still uses, such as temporary files.
#[expect(clippy::exit, clippy::disallowed_methods, reason = "this is where a worker ends")]
fn exit(code: i32, origin: &Origin<'_>) -> ! {
    match origin {
        Origin::Exec => std::process::exit(code),
        Origin::Fork { .. } | Origin::Served(_) => {
            // An error means that stdout is closed: the rest of the buffer is lost, as at every exit.
            let _ = io::stdout().flush();
            stdio::flush();
            stdio::write_profiles();
            named::leave();
            fork::exit_at_once(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comm_of(name: &str, rank: usize) -> String {
        comm(&Job { name: name.into(), ..Job::default() }, rank)
    }

    #[test]
    fn comm_keeps_the_whole_rank() {
        assert_eq!(comm_of("train", 3), "train:3");
        assert_eq!(comm_of("a-very-long-job-name", 1234), "a-very-lon:1234");
        assert_eq!(comm_of("ääääääääää", 1), "ääääää:1");
    }
}
