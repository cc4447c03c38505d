//! Summary: what became of a job, as data.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::error_file::ErrorReport;
use crate::error::{Cause, ResourceUsage};
use crate::sys::signal::Signal;

/// By this exit code a worker says that another attempt would fail too, as with NVIDIA's ft_launcher; so does a launcher that has
/// given up for that reason.
pub(super) const POINTLESS: i32 = 93;

/// How a worker's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Ending {
    /// With exit code 0.
    Succeeded,
    /// With another one.
    Exited {
        /// Which.
        code: i32,
    },
    /// By a signal.
    Signaled {
        /// Which.
        signal: Signal,
        /// Whether it left a core file.
        core_dumped: bool,
    },
    /// It is gone, but somebody else has taken its status.
    Lost,
    /// No signal has ended it, or none could be sent. It was left behind.
    LeftBehind,
}

impl Ending {
    /// The exit code that stands for it in a shell: 128 and the signal's number for a signal, 1 where there is none.
    #[must_use]
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Succeeded => 0,
            Self::Exited { code } => code,
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
            Self::Lost => f.write_str("is gone, and somebody else has taken its exit status"),
            Self::LeftBehind => f.write_str("could not be ended and was left behind"),
        }
    }
}

/// What a failed worker has to do with the failure of its attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Role {
    /// Its failure came first in time: the attempt failed because of it.
    RootCause,
    /// It failed by itself, but later, perhaps as a consequence.
    FailedLater,
    /// The launcher ended it, after another's failure or because it was told to stop.
    Stopped,
}

/// How one worker of an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerSummary {
    /// Its rank.
    pub rank: usize,
    /// Its process.
    pub pid: u32,
    /// How it ended.
    pub ending: Ending,
    /// Whether a signal of the launcher's ended it: in the teardown, or since it had failed and did not end.
    pub ended_by_launcher: bool,
    /// The timer of torch's that had expired, for which the launcher ended it.
    pub expired_timer: Option<String>,
    /// What it has to do with the failure; `None`: it succeeded.
    pub role: Option<Role>,
    /// What probably ended it, where there is evidence.
    pub cause: Option<Cause>,
    /// From its start to its failure, or its end.
    pub lifetime: Duration,
    /// The moment of its failure, or its end, on this machine's clock.
    pub at: SystemTime,
    /// What it had used.
    pub usage: ResourceUsage,
    /// What it has written to its error file.
    pub error: Option<ErrorReport>,
    /// What is wrong with its error file.
    pub error_file_problem: Option<String>,
    /// The last lines of its stderr, where the launcher has seen them.
    pub stderr_tail: Vec<String>,
}

impl WorkerSummary {
    /// The exit code that stands for its failure. That of one which had failed, and was then ended by the launcher, is the one that its
    /// error file asks for, or 1.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match &self.error {
            Some(error) if self.ended_by_launcher => error.error_code.filter(|&code| code != 0).unwrap_or(1),
            _ => self.ending.exit_code(),
        }
    }

    /// Whether it ended as it should.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.role.is_none()
    }
}

/// One attempt: all workers from their start to the last one's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Attempt {
    /// Its number, from 0 on.
    pub number: usize,
    /// When its first worker was started.
    pub started: SystemTime,
    /// How long it took.
    pub lasted: Duration,
    /// Where the logs of its workers lie, if there are any.
    pub log_dir: Option<PathBuf>,
    /// The workers, by rank.
    pub workers: Vec<WorkerSummary>,
    /// Descendants that had left their worker's process group and were killed, by pid.
    pub stray: Vec<u32>,
}

impl Attempt {
    /// The worker whose failure came first.
    #[must_use]
    pub fn root_cause(&self) -> Option<&WorkerSummary> {
        self.workers.iter().find(|worker| worker.role == Some(Role::RootCause))
    }

    /// Whether all its workers succeeded.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.workers.iter().all(WorkerSummary::succeeded)
    }
}

/// What became of a job. As text it is the report of its failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Summary {
    /// The job's id.
    pub run_id: String,
    /// This machine.
    pub hostname: String,
    /// What the workers ran.
    pub command: String,
    /// All attempts, of which the last one decides.
    pub attempts: Vec<Attempt>,
    /// The signal by which the launcher was told to stop.
    pub stopped_by: Option<Signal>,
    /// Why there was no further attempt though some were left.
    pub no_restart: Option<String>,
    /// Whether another attempt would fail too, by all that is known.
    pub is_pointless: bool,
    /// Outputs of the launcher that could not be written any more.
    pub lost_output: Vec<String>,
}

impl Summary {
    /// Whether the last attempt succeeded, and nobody stopped it.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.stopped_by.is_none() && self.attempts.last().is_some_and(Attempt::succeeded)
    }

    /// The exit code of the job: the root cause's; 128 and its number for the signal by which the launcher was told to stop; 93
    /// where another attempt would fail too.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        if let Some(signal) = self.stopped_by {
            return 128 + signal.number();
        }
        if self.is_pointless {
            return POINTLESS;
        }
        let root = self.attempts.last().and_then(Attempt::root_cause);
        root.map_or(i32::from(!self.succeeded()), WorkerSummary::exit_code)
    }
}
