//! How one worker ended.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::failure_kind::FailureKind;
use super::raised::RaisedError;
use super::traceback::Traceback;
use super::usage::ResourceUsage;
use crate::sys::signal::Signal;

/// The state of a worker, in one word.
///
/// What it says is what the launcher has seen when it last looked, by a call that joins or asks.
///
/// ```
/// use phalanx::{Signal, Status};
///
/// let killed = Status::Signaled { signal: Signal::KILL, core_dumped: false };
/// assert_eq!(killed.to_string(), "terminated with signal SIGKILL");
/// // As Python and torch write it.
/// assert_eq!((killed.exit_code(), Status::Exited { code: 3 }.exit_code()), (Some(-9), Some(3)));
/// assert!(Status::Running.is_alive() && !Status::Lost.is_alive());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Status {
    /// It has not ended, or its end has not been seen yet. A worker that is stopped, as by SIGSTOP or a debugger, has not
    /// ended either: `/proc/PID/stat` tells the two apart ([lifecycle](crate::guide::lifecycle#stopped-workers)).
    Running,
    /// Its function has returned, failed or panicked and its report is whole, but the process has not ended: it runs
    /// exit handlers, or flushes its output.
    Exiting,
    /// Its function returned a result, and the process then exited with 0.
    Succeeded,
    /// Its function returned `Err` or panicked.
    Raised,
    /// It exited without handing in a result or an error.
    Exited {
        /// The exit code, 0 included.
        code: i32,
    },
    /// A signal ended it.
    Signaled {
        /// The signal that ended it.
        signal: Signal,
        /// Whether it left a core file.
        core_dumped: bool,
    },
    /// It is gone, but other code of the launcher took its exit status (a `waitpid(-1)`), SIGCHLD was ignored, or the fork
    /// server died, which alone could read it.
    Lost,
    /// SIGKILL did not end it in time, as when it hangs in the kernel. It is left alone.
    Survived,
    /// The system did not let the launcher send it the signal that was to end it, as when the launcher has given up
    /// root since and the worker has another death signal than SIGKILL. It runs on and is left alone; [`Cause::SignalRefused`] has the signal and the error.
    Abandoned,
}

impl Status {
    /// Whether it has not ended, and is watched: it runs or exits.
    #[must_use]
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Exiting)
    }

    /// The exit code, or the negative number of the signal; `None` when there is neither.
    #[must_use]
    pub fn exit_code(self) -> Option<i32> {
        match self {
            Self::Succeeded => Some(0),
            Self::Exited { code } => Some(code),
            Self::Signaled { signal, .. } => Some(-signal.number()),
            Self::Running | Self::Exiting | Self::Raised | Self::Lost | Self::Survived | Self::Abandoned => {
                None
            }
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("still runs"),
            Self::Exiting => f.write_str("has left its function, but its process still exits"),
            Self::Succeeded => f.write_str("succeeded"),
            Self::Raised => f.write_str("raised an error"),
            Self::Exited { code } => write!(f, "terminated with exit code {code}"),
            Self::Signaled { signal, core_dumped } => {
                let core = if *core_dumped { " (core dumped)" } else { "" };
                match signal.name() {
                    Some(name) => write!(f, "terminated with signal {name}{core}"),
                    None => write!(f, "terminated with {signal}{core}"),
                }
            }
            Self::Lost => f.write_str(
                "ended, but its exit status was lost: other code of the launcher took it, or the fork server died",
            ),
            Self::Survived => f.write_str("survived SIGKILL and was left behind"),
            Self::Abandoned => f.write_str("was left running"),
        }
    }
}

/// What probably ended a worker that left without a result, or did not exit by itself.
///
/// Each cause has evidence: a count of the kernel's, a record that the worker's signal handler has made, or what the launcher itself
/// has done. Where there is none, there is no cause: an end by SIGKILL is not called out of memory because it could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Cause {
    /// SIGKILL, while the kernel counted kills for want of memory.
    OutOfMemory {
        /// How many kills the kernel counted since the workers were started.
        kills: u64,
        /// Whether they were counted in the worker's cgroup or on the whole machine.
        scope: OomScope,
    },
    /// The stack was full: the address that could not be used lies beside the stack pointer.
    StackOverflow,
    /// It used memory that is not there, or not for that use (SIGSEGV, SIGBUS).
    InvalidAccess {
        /// The address that it used, as the processor reports it.
        address: u64,
    },
    /// It ended while it was writing its report: the function had ended, and how is not known.
    ReportCutShort,
    /// It ended before `init()`, or came through main without calling it.
    NeverReachedInit,
    /// Something called exit before the function had returned.
    ExitedBeforeReturning,
    /// The function had returned, but the process failed while it was exiting.
    FailedAfterReturning,
    /// The function had returned or failed and its report was whole, but the process had not exited when the launcher
    /// ended it by a signal: in a teardown, or since it did not exit in time. What it returned stands.
    EndedWhileExiting,
    /// The program itself sent it that signal through its context.
    SignaledByLauncher,
    /// The launcher was not allowed to send it the signal that was to end it.
    SignalRefused {
        /// The signal that was refused.
        signal: Signal,
        /// The system's error (errno(3)), such as EPERM.
        errno: i32,
    },
    /// It could not be set up: the status and the note say more.
    CouldNotBegin,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory { kills, scope } => {
                write!(f, "out of memory: since the start the kernel counted {kills} out-of-memory kill(s) {scope}")
            }
            Self::StackOverflow => f.write_str("stack overflow (only its innermost calls are kept)"),
            Self::InvalidAccess { address } => write!(f, "invalid access to address {address:#x}"),
            Self::ReportCutShort => f.write_str("it ended while it was writing its report"),
            Self::NeverReachedInit => f.write_str(
                "it never reached phalanx::init(): is that the first call in main, or auto_init!() in the test crate?",
            ),
            Self::ExitedBeforeReturning => f.write_str("it exited before its function had returned"),
            Self::FailedAfterReturning => f.write_str("its function had returned, but the process failed while exiting"),
            Self::EndedWhileExiting => {
                f.write_str("its function had ended, but the process had not exited when the launcher ended it")
            }
            Self::SignalRefused { signal, errno } => {
                let os = io::Error::from_raw_os_error(*errno);
                write!(f, "the launcher could not send it {signal}: {os}")
            }
            Self::SignaledByLauncher => f.write_str("the launcher sent it that signal"),
            Self::CouldNotBegin => f.write_str("it could not be set up as a worker"),
        }
    }
}

/// Where the kernel counted kills for want of memory: the narrower, the surer is the cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum OomScope {
    /// In the worker's own cgroup.
    Cgroup,
    /// In the worker's own cgroup, which the kernel killed as a whole (`memory.oom.group`). Its processes failed in the same
    /// moment: the one that is said to be the first is the one that had the most memory.
    WholeCgroup,
    /// On the whole machine, since the worker was in no cgroup that counts them.
    Machine,
}

impl fmt::Display for OomScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cgroup => "in its cgroup",
            Self::WholeCgroup => "in its cgroup, which was killed as a whole",
            Self::Machine => "on this machine",
        })
    }
}

/// An `Arc` in a record: serde has it only behind its feature `rc`, which would let the arguments of every program have one too,
/// though what arrives in another process shares nothing.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &Option<Arc<T>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_deref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Arc<T>>, D::Error> {
        Ok(Option::deserialize(deserializer)?.map(Arc::new))
    }
}

/// What is known of a worker that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) status: Status,
    /// Of one that failed.
    pub(crate) kind: Option<FailureKind>,
    pub(crate) cause: Option<Cause>,
    /// Shared, since every outcome that is handed out is a copy, and a message may be large.
    #[serde(with = "shared")]
    pub(crate) error: Option<Arc<RaisedError>>,
    pub(crate) traceback: Option<Traceback>,
    pub(crate) note: Option<String>,
    /// Whether the worker itself recorded the moment; otherwise it is that at which it was seen dead.
    pub(crate) recorded: bool,
    pub(crate) lifetime: Duration,
    /// The same moment, from the start of the first worker of its context.
    pub(crate) since_start: Duration,
    pub(crate) at: SystemTime,
    pub(crate) usage: ResourceUsage,
}

/// How one worker ended, or that it still runs or exits.
///
/// [`ProcessContext::outcomes`](crate::ProcessContext::outcomes) has one for each rank, and so have both exceptions. As text it is one
/// line. It is plain data: it can be sent, kept, and written as JSON.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Error, Status};
///
/// fn work(rank: usize, _: ()) -> anyhow::Result<()> {
///     anyhow::ensure!(rank != 1, "no data");
///     Ok(())
/// }
///
/// # fn main() {
/// let Err(Error::ProcessRaised(exception)) = phalanx::spawn(work, (), 2) else { panic!("rank 1 fails") };
/// let outcome = &exception.outcomes()[1];
/// assert_eq!((outcome.rank(), outcome.status()), (1, Status::Raised));
/// assert_eq!(outcome.error().unwrap().message(), "no data");
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub(crate) rank: usize,
    pub(crate) pid: u32,
    /// Whether its report is whole, though it has not ended.
    pub(crate) exiting: bool,
    /// Empty where it is not kept.
    pub(crate) stderr_tail: Vec<String>,
    pub(crate) ended: Option<Ended>,
}

impl Outcome {
    /// The worker's number, from 0 on.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The pid of the worker's process. Once the worker has been reaped, the system may give the number to another process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The worker's state in one word, at the moment when the launcher last looked.
    #[must_use]
    pub fn status(&self) -> Status {
        let alive = if self.exiting { Status::Exiting } else { Status::Running };
        self.ended.as_ref().map_or(alive, |ended| ended.status)
    }

    /// Whether the teardown ended the worker after another one's failure. Such a worker has not failed by itself.
    #[must_use]
    pub fn is_victim(&self) -> bool {
        self.failure_kind() == Some(&FailureKind::Teardown)
    }

    /// Why the worker failed: by itself, because it had waited for others, or since the teardown ended it. `None` when it has not
    /// failed, or has not ended.
    #[must_use]
    pub fn failure_kind(&self) -> Option<&FailureKind> {
        self.ended.as_ref()?.kind.as_ref()
    }

    /// What probably ended the worker, if it left without a result or did not exit by itself. Only what there is evidence for is
    /// said: a signal of unknown origin has no cause.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.ended.as_ref().and_then(|ended| ended.cause)
    }

    /// The `Err` that the worker's function returned, or its panic. `None` for every other end.
    #[must_use]
    pub fn error(&self) -> Option<&RaisedError> {
        self.ended.as_ref()?.error.as_deref()
    }

    /// The calls in which a fatal signal, an `Err` or a panic met the worker, innermost first.
    #[must_use]
    pub fn traceback(&self) -> Option<&Traceback> {
        let ended = self.ended.as_ref()?;
        ended.traceback.as_ref().or_else(|| ended.error.as_deref().map(RaisedError::traceback))
    }

    /// The last words of a worker that left without a report: a panic that it did not survive, or what kept it
    /// from beginning.
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.ended.as_ref()?.note.as_deref()
    }

    /// The last lines that it has printed to stderr, if they are kept ([`Options::stderr_tail`](crate::Options::stderr_tail)); of a worker
    /// that runs, as far as they have come.
    #[must_use]
    pub fn stderr_tail(&self) -> &[String] {
        &self.stderr_tail
    }

    /// From its start to the moment of its failure, if it recorded one, or else to that at which the launcher saw
    /// that it had ended.
    #[must_use]
    pub fn lifetime(&self) -> Option<Duration> {
        self.ended.as_ref().map(|ended| ended.lifetime)
    }

    /// The moment of [`lifetime`](Self::lifetime)'s end on the wall clock of this machine. It may jump: [`lifetime`](Self::lifetime)
    /// is measured by the monotonic clock, and failures are put in order by that.
    #[must_use]
    pub fn ended_at(&self) -> Option<SystemTime> {
        self.ended.as_ref().map(|ended| ended.at)
    }

    /// The CPU time and the memory that the worker has used; zeros until it has been reaped.
    #[must_use]
    pub fn usage(&self) -> ResourceUsage {
        self.ended.as_ref().map(|ended| ended.usage).unwrap_or_default()
    }
}

impl Outcome {
    /// How much later than that of another worker its failure was; `None` when it was seen earlier.
    pub(super) fn later_than(&self, other: &Self) -> Option<Duration> {
        let (own, other) = (self.ended.as_ref()?, other.ended.as_ref()?);
        own.since_start.checked_sub(other.since_start)
    }

    /// What happened to it, without when.
    pub(super) fn fmt_what(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} (pid {}) ", self.rank, self.pid)?;
        match (self.error(), self.is_victim()) {
            (Some(error), false) => write!(f, "raised: {}", error.summary())?,
            (Some(error), true) => write!(f, "raised during the teardown: {}", error.summary())?,
            (None, true) => write!(f, "{} by the teardown", self.status())?,
            (None, false) => write!(f, "{}", self.status())?,
        }
        if let Some(cause) = self.cause() {
            write!(f, "; {cause}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Outcome {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_what(f)?;
        self.lifetime().map_or(Ok(()), |lifetime| write!(f, ", after {:.3} s", lifetime.as_secs_f64()))
    }
}
