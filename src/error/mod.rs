//! What the user sees when something did not work: [`Error`], the two exceptions, [`Outcome`], [`Traceback`].

pub(crate) mod consequence;
mod exceptions;
mod failure_kind;
mod failure_report;
mod frames;
mod limit;
mod memory;
mod outcome;
mod peer;
mod raised;
mod traceback;
mod usage;
mod worker_error;

use std::io;

pub use exceptions::{ProcessExitedException, ProcessRaisedException};
pub use failure_kind::{Culprit, FailureKind, Standing};
pub(crate) use failure_report::FailureReport;
pub use frames::Frame;
pub(crate) use frames::{Callee, Captured};
pub(crate) use limit::{limit_met, with_limit};
pub use memory::MemoryError;
pub(crate) use memory::with_hint;
pub(crate) use outcome::Ended;
pub use outcome::{Cause, OomScope, Outcome, Status};
pub use peer::Peer;
pub(crate) use peer::listed;
pub(crate) use raised::Raised;
pub use raised::RaisedError;
pub use traceback::Traceback;
pub use usage::ResourceUsage;
pub use worker_error::WorkerError;

use limit::InBrackets;

use crate::sys::signal::Signal;

/// Everything that a call of this crate can fail with.
///
/// The first two are failures of the workers' own code; the rest say what the library was doing to what.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Error, spawn};
///
/// fn work(rank: usize, _: ()) -> anyhow::Result<()> {
///     match rank {
///         0 => anyhow::bail!("no such file"),
///         _ => Ok(()),
///     }
/// }
///
/// # fn main() {
/// match spawn(work, (), 2) {
///     Err(Error::ProcessRaised(exception)) => assert_eq!(exception.error_index(), 0),
///     Err(Error::ProcessExited(exception)) => panic!("killed, or gone by exit: {exception}"),
///     Err(other) => panic!("the workers could not be started: {other}"),
///     Ok(_) => unreachable!("rank 0 fails"),
/// }
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A worker's function returned `Err` or panicked.
    #[error(transparent)]
    ProcessRaised(Box<ProcessRaisedException>),

    /// A worker ended without handing in a result or an error.
    #[error(transparent)]
    ProcessExited(Box<ProcessExitedException>),

    /// [`init`](crate::init) has not run in this process, so a worker could not find its function.
    #[error(
        "phalanx::init() has not run in this process: call it first in main, on the main thread, or put \
         `phalanx::auto_init!();` into a test crate (pid {pid})"
    )]
    InitNotCalled {
        /// The pid of this process.
        pid: u32,
    },

    /// This process was itself started as a worker, but [`init`](crate::init) has not run in it: without this
    /// error it would start workers of its own, and they theirs, for ever.
    #[error(
        "this process (pid {pid}) was started as a phalanx worker, but came here without phalanx::init(): call it \
         first in main, before anything else, or put `phalanx::auto_init!();` into a test crate"
    )]
    InitSkipped {
        /// The pid of this process.
        pid: u32,
    },

    /// The executable cannot be run again: /proc/self/exe is another file, as where an emulator runs this program.
    #[error(
        "cannot start workers by running this program again: /proc/self/exe{} is not its file; run it directly, not by \
         a loader or an emulator, or use StartMethod::Fork",
        .exe.as_ref().map(|exe| format!(" ({})", exe.display())).unwrap_or_default()
    )]
    OtherExecutable {
        /// The path that /proc/self/exe leads to, where that can be read.
        exe: Option<std::path::PathBuf>,
    },

    /// The children of the calling thread are in another namespace than it is, after unshare(2) or setns(2).
    #[error(
        "cannot start workers: the children of this thread go into another {kind} namespace than its own, where process \
         and thread ids or clocks differ; start workers from a process inside of it, as by `unshare --fork`"
    )]
    ForeignNamespace {
        /// "PID" or "time".
        kind: &'static str,
    },

    /// The function does not lie in the executable, but in a shared object, where a worker would not find it.
    #[error(
        "`{function}` does not lie in the executable: functions of shared objects cannot be run in workers"
    )]
    FunctionElsewhere {
        /// Its name as the compiler has it.
        function: &'static str,
    },

    /// An option has a value that cannot be used.
    #[error("cannot start workers: {0}")]
    InvalidOption(String),

    /// The preload function of the fork server failed. No worker was started.
    #[error("the fork server's preload function failed: {0}")]
    Preload(Box<RaisedError>),

    /// A preload function was given when the fork server had been started already.
    #[error(
        "the fork server (pid {pid}) runs already: give it its preload function before the first start that needs it"
    )]
    ForkServerRuns {
        /// The pid of the fork server.
        pid: u32,
    },

    /// The fork server cannot be started, has died, or does not answer: the next start begins a new one. Or it cannot start
    /// workers for this thread, which differs from it in what a process cannot take on; see
    /// [`StartMethod::ForkServer`](crate::StartMethod).
    #[error("cannot start workers by the fork server: {reason}")]
    ForkServer {
        /// What happened to it.
        reason: String,
    },

    /// `Fork` was asked for in a process that has other threads, whose locks the child would inherit locked.
    #[error(
        "cannot fork: this process has {threads} threads, and a fork copies only one of them; use StartMethod::Spawn"
    )]
    ForkWithThreads {
        /// How many threads there are, this one included.
        threads: usize,
    },

    /// SIGCHLD is ignored (or has SA_NOCLDWAIT), so the kernel would throw the workers' exit statuses away.
    #[error(
        "cannot supervise workers: SIGCHLD is ignored in this process, so the kernel discards exit statuses; set it to SIG_DFL"
    )]
    SigchldIgnored,

    /// The arguments of a rank could not be serialised. No worker was started.
    #[error("cannot serialise the arguments of rank {rank}: {reason}")]
    Arguments {
        /// The rank whose arguments they are.
        rank: usize,
        /// What serde or the type said.
        reason: String,
    },

    /// A rank could not be started. Those before it are dead and reaped.
    #[error("cannot start rank {rank} of {nprocs}: {call}: {os}{}", InBrackets(.limit.as_deref()))]
    Start {
        /// The first rank that could not be started.
        rank: usize,
        /// The number of workers that were asked for.
        nprocs: usize,
        /// The step of the start that failed, as a verb: `fork`, `posix_spawn of the executable`.
        call: &'static str,
        /// The limit that it probably met, with its numbers.
        limit: Option<String>,
        /// The system's error.
        os: io::Error,
    },

    /// A rank ended well, but what it returned could not be read back.
    #[error("cannot read the result of rank {rank}: {reason}")]
    Result {
        /// The rank whose result it is.
        rank: usize,
        /// What was wrong with it.
        reason: String,
    },

    /// Results were asked for before all workers had ended.
    #[error("{running} of {nprocs} workers still run: join them before taking their results")]
    StillRunning {
        /// The number of workers that have not ended.
        running: usize,
        /// The number of all workers of the context.
        nprocs: usize,
    },

    /// There is no such rank.
    #[error("there is no rank {rank}: this context has {nprocs} workers")]
    NoSuchRank {
        /// The number that was given.
        rank: usize,
        /// How many there are, counted from zero.
        nprocs: usize,
    },

    /// A signal could not be sent.
    #[error("cannot send {signal} to rank {rank} (pid {pid}): {os}")]
    Signal {
        /// The signal that was to be sent.
        signal: Signal,
        /// The worker that it was to be sent to.
        rank: usize,
        /// The pid of that worker.
        pid: u32,
        /// The system's error.
        os: io::Error,
    },

    /// The context came into this process by a fork of the launcher: its workers are not this process's children.
    #[error(
        "this context belongs to process {owner}, which started its workers; this is process {pid}, a fork of it"
    )]
    ForeignContext {
        /// The pid of the process that started the workers.
        owner: u32,
        /// The pid of this process.
        pid: u32,
    },

    /// Shared memory could not be made or mapped, or an access to it was out of its bounds.
    #[error(transparent)]
    Memory(#[from] MemoryError),

    /// The system refused something that supervising workers needs.
    #[error("cannot {doing}: {os}{}", InBrackets(.limit.as_deref()))]
    System {
        /// What was being done to what.
        doing: &'static str,
        /// The limit that it met, with its numbers.
        limit: Option<String>,
        /// The system's error.
        os: io::Error,
    },
}

impl Error {
    /// For `map_err`: names what was being done when the system refused.
    pub(crate) fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |os| Self::System { doing, limit: limit_met(&os), os }
    }
}
