//! Summary: what became of a job, as data.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::error_file::ErrorReport;
use super::faults::PlannedFault;
use crate::error::{Cause, ResourceUsage};
use crate::sys::signal::Signal;

/// By this exit code a worker says that another attempt would fail too, as with NVIDIA's ft_launcher; so does a launcher that has
/// given up for that reason.
pub(super) const POINTLESS: i32 = 93;

/// How a worker's process ended: its exit status, or that there is none.
///
/// As text it is the end of a sentence about the worker: `exited with code 7`.
///
/// ```
/// use phalanx::Signal;
/// use phalanx::launch::{Command, Ending, Launch};
///
/// let summary = Launch::new(Command::new("sh").args(["-c", "kill -9 $$"])).run()?;
/// let ending = summary.attempts[0].workers[0].ending;
/// assert!(matches!(ending, Ending::Signaled { signal: Signal::KILL, .. }));
/// assert_eq!(ending.to_string(), "was ended by SIGKILL");
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Ending {
    /// It exited with code 0.
    Succeeded,
    /// It exited with another code; or with 0, but before it had run the function of [`Launch::function`](super::Launch::function).
    Exited {
        /// The exit code, from 0 to 255.
        code: i32,
    },
    /// A signal ended it, whoever sent that: the launcher, another process, the kernel, or the worker itself.
    Signaled {
        /// The signal.
        signal: Signal,
        /// Whether the kernel has written a core file, as core(5) says it.
        core_dumped: bool,
    },
    /// It is gone, but its exit status was taken by other code of this process, as by a `waitpid(-1)` or by ignoring SIGCHLD.
    Lost,
    /// It still runs: SIGKILL has not ended it within 10 s, as when it hangs in the kernel, or this process may not send it signals
    /// (it has changed its user). The launcher has left it behind.
    LeftBehind,
}

impl Ending {
    /// The exit code that stands for it in a shell: the worker's own, 128 + n for signal n, and 1 where there is no status, or 0 is
    /// no success.
    ///
    /// ```
    /// use phalanx::Signal;
    /// use phalanx::launch::Ending;
    ///
    /// assert_eq!(Ending::Exited { code: 7 }.exit_code(), 7);
    /// assert_eq!(Ending::Signaled { signal: Signal::KILL, core_dumped: false }.exit_code(), 137);
    /// ```
    #[must_use]
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Succeeded => 0,
            Self::Exited { code } => code.max(1),
            Self::Signaled { signal, .. } => 128 + signal.number(),
            Self::Lost | Self::LeftBehind => 1,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Succeeded => f.write_str("succeeded"),
            Self::Exited { code } => write!(f, "exited with code {code}"),
            Self::Signaled { signal, core_dumped } => {
                let core = if *core_dumped { " (core dumped)" } else { "" };
                write!(f, "was ended by {signal}{core}")
            }
            Self::Lost => f.write_str("is gone, and other code of the launcher has taken its exit status"),
            Self::LeftBehind => f.write_str("could not be ended and was left behind"),
        }
    }
}

/// What a worker that did not succeed has to do with the failure of its attempt.
///
/// The order is that of one monotonic clock: a worker fails at the moment when its error file appears, or else when it ends.
///
/// ```
/// use phalanx::launch::{Command, Launch, Nproc, Role};
///
/// let script = "[ $RANK = 0 ] && exit 7; exec sleep 600";
/// let summary = Launch::new(Command::new("sh").args(["-c", script])).nproc(Nproc::Count(2)).run()?;
/// let roles = summary.attempts[0].workers.iter().map(|worker| worker.role);
/// assert!(roles.eq([Some(Role::RootCause), Some(Role::Stopped)]));
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Role {
    /// Its failure came first in time: the attempt failed because of it. An attempt has at most one.
    RootCause,
    /// It failed by itself, but later, perhaps because the root cause was gone: a peer that no longer answers.
    FailedLater,
    /// The launcher ended it, after another worker's failure or because the launcher was told to stop by a signal. That is no
    /// failure of its own.
    Stopped,
}

/// How one worker of an attempt ended, and with which evidence.
///
/// ```
/// use phalanx::launch::{Command, Launch};
///
/// let script = "echo the disk is full >&2; exit 7";
/// let summary = Launch::new(Command::new("sh").args(["-c", script])).run()?;
/// let worker = &summary.attempts[0].workers[0];
/// assert_eq!(worker.exit_code(), 7);
/// assert_eq!(worker.stderr_tail, ["the disk is full"]);
/// assert!(worker.lifetime <= summary.attempts[0].lasted);
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerSummary {
    /// The worker's rank, from 0 on: its index in [`Attempt::workers`] too.
    pub rank: usize,
    /// The pid that its process had. It may be another process's by now.
    pub pid: u32,
    /// How its process ended.
    pub ending: Ending,
    /// Whether a signal that the launcher had sent ended it: because another worker had failed, because the launcher was told to
    /// stop, or because this worker had failed (by an error file or a timer) and did not end.
    pub ended_by_launcher: bool,
    /// The scope of the torch file timer (`timer.expires(after=…, scope=…)`) that had expired, for which the launcher ended it.
    pub expired_timer: Option<String>,
    /// What it has to do with the attempt's failure; `None`: it succeeded.
    pub role: Option<Role>,
    /// What probably ended it, where there is evidence: a kill for want of memory that the kernel has counted in its control group, or an
    /// exit before [`init`](crate::init), and so before the function that it was to run.
    pub cause: Option<Cause>,
    /// The time from its start to its failure (its error file, a timer), or to its end if it has not failed before. By
    /// CLOCK_MONOTONIC.
    pub lifetime: Duration,
    /// The time from its start to the first byte that it printed, for the program that is slow to start: its imports, its rendezvous.
    /// `None`: it printed nothing, or to the terminal or a file itself.
    pub first_output: Option<Duration>,
    /// The moment of its failure or its end by the wall clock: the attempt's start by that clock and the time since, so it does not jump when the clock
    /// is set.
    pub at: SystemTime,
    /// The processor time and the memory that its process had used.
    pub usage: ResourceUsage,
    /// What it has written to its error file; `None`: nothing, or nothing that could be read.
    pub error: Option<ErrorReport>,
    /// Why its error file could not be read, as when it is no JSON; `None`: nothing is wrong with it.
    pub error_file_problem: Option<String>,
    /// The last lines of its stderr: at most 100, out of the last 64 KiB. Empty if it succeeded, and if it wrote to the terminal
    /// itself.
    pub stderr_tail: Vec<String>,
}

impl WorkerSummary {
    /// The exit code that stands for its failure: that of its [`ending`](Self::ending).
    ///
    /// A worker that had written an error file and was then ended by the launcher has the code that its error file asks for, or 1: the
    /// launcher's signal is not what it failed by.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match &self.error {
            Some(error) if self.ended_by_launcher => error.error_code.filter(|&code| code != 0).unwrap_or(1),
            _ => self.ending.exit_code(),
        }
    }

    /// Whether it exited with code 0.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.role.is_none()
    }
}

/// One attempt: all workers from their start to the last one's end. A job without restarts has one.
///
/// ```
/// use phalanx::launch::{Command, Launch, Nproc};
///
/// let script = "[ $RANK = 1 ] && exit 7; exec sleep 600";
/// let summary = Launch::new(Command::new("sh").args(["-c", script])).nproc(Nproc::Count(2)).run()?;
/// let attempt = &summary.attempts[0];
/// assert_eq!((attempt.number, attempt.workers.len()), (0, 2));
/// assert!(!attempt.succeeded());
/// assert_eq!(attempt.root_cause().unwrap().rank, 1);
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Attempt {
    /// Its number, from 0 on: what its workers have as `TORCHELASTIC_RESTART_COUNT`.
    pub number: usize,
    /// When its first worker was started, by the wall clock.
    pub started: SystemTime,
    /// The time from then until the last of its workers was its program: the launcher's own share of a slow start.
    pub starting: Duration,
    /// The time from its start until none of its processes was left, by CLOCK_MONOTONIC.
    pub lasted: Duration,
    /// The directory with the logs of its workers, `0/stdout.log` and so on; `None`: no option has sent output to files.
    pub log_dir: Option<PathBuf>,
    /// The workers, by rank: as many as the job has.
    pub workers: Vec<WorkerSummary>,
    /// The pids of descendants that had left their worker's process group, as daemons do, and were killed.
    pub stray: Vec<u32>,
}

impl Attempt {
    /// The worker whose failure came first; `None`: all succeeded, or the launcher stopped the job before any worker failed.
    #[must_use]
    pub fn root_cause(&self) -> Option<&WorkerSummary> {
        self.workers.iter().find(|worker| worker.role == Some(Role::RootCause))
    }

    /// Whether all its workers exited with code 0.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.workers.iter().all(WorkerSummary::succeeded)
    }
}

/// What became of a job, as data for programs. As text it is the report for people: the root cause with its evidence, then the
/// others.
///
/// It is what [`Launch::run`](super::Launch::run) returns and, as JSON, what
/// [`Launch::summary_file`](super::Launch::summary_file) writes. torchrun has no counterpart: it prints a table, and of several
/// failures shows that with the least time in whole seconds.
///
/// ```
/// use phalanx::launch::{Command, Launch};
///
/// let summary = Launch::new(Command::new("sh").args(["-c", "exit 7"])).run_id("demo").run()?;
/// assert!(!summary.succeeded());
/// assert_eq!(summary.exit_code(), 7);
/// let report = summary.to_string();
/// assert!(report.starts_with("job demo failed: sh -c 'exit 7'\nroot cause: rank 0 (pid "), "{report}");
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Summary {
    /// The job's id: [`Launch::run_id`](super::Launch::run_id), or four random letters.
    pub run_id: String,
    /// The name of this machine, up to its first dot.
    pub hostname: String,
    /// The program and its arguments, in quotes where a shell needs them; or the path of the function.
    pub command: String,
    /// All attempts in their order, at least one. The last one decides whether the job succeeded.
    pub attempts: Vec<Attempt>,
    /// The signal by which the launcher was told to stop; `None`: it was not told to.
    pub stopped_by: Option<Signal>,
    /// Why there was no further attempt though [`Launch::max_restarts`](super::Launch::max_restarts) allowed one; `None`: that was not
    /// so.
    pub no_restart: Option<String>,
    /// Whether another attempt would fail too: a worker has said so by exit code 93, or three attempts in a row have failed at once
    /// and in the same way.
    pub is_pointless: bool,
    /// The files and streams of the launcher that could not be written any more while the job ran (a full disk, a closed pipe), each
    /// with its error. Such a loss ends no job.
    pub lost_output: Vec<String>,
    /// What has come of each fault that [`Launch::faults`](super::Launch::faults) has planned, in the plan's order.
    #[serde(default)]
    pub faults: Vec<PlannedFault>,
}

impl Summary {
    /// Whether the last attempt succeeded, and the launcher was not told to stop.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.stopped_by.is_none() && self.attempts.last().is_some_and(Attempt::succeeded)
    }

    /// The exit code that a launcher of this job should end with.
    ///
    /// - 128 + n, if it was told to stop by signal n (better: by [`die_of`](super::die_of), so that its parent sees the signal)
    /// - 93, if another attempt would fail too: see [`is_pointless`](Self::is_pointless)
    /// - the [root cause's](WorkerSummary::exit_code) of the last attempt
    /// - 1, if that has succeeded, but a fault that was planned has not happened: what was to be tried was not
    /// - 0, if that has succeeded
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        if let Some(signal) = self.stopped_by {
            return 128 + signal.number();
        }
        if self.is_pointless {
            return POINTLESS;
        }
        let root = self.attempts.last().and_then(Attempt::root_cause);
        let is_in_vain = self.faults.iter().any(|fault| fault.happened.is_empty());
        root.map_or(i32::from(!self.succeeded() || is_in_vain), WorkerSummary::exit_code)
    }
}
