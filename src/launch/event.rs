//! Event: what a job tells while it runs.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::summary::Ending;
use crate::sys::signal::Signal;

/// What has happened. [`Launch::on_event`](super::Launch::on_event) is told each, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// All workers of an attempt have been started.
    Started {
        /// Which attempt, from 0 on.
        attempt: usize,
        /// The workers' processes, by rank.
        pids: Vec<u32>,
        /// Where their logs go, if there are any.
        log_dir: Option<PathBuf>,
    },
    /// A worker has ended.
    Ended {
        /// Its rank.
        rank: usize,
        /// How.
        ending: Ending,
    },
    /// A worker has written an error file, or a timer of its has expired.
    Failed {
        /// Its rank.
        rank: usize,
    },
    /// The launcher was told to stop, and has passed the signal on.
    Stopping {
        /// The signal.
        signal: Signal,
    },
    /// Another attempt follows.
    Restarting {
        /// Its number.
        attempt: usize,
        /// How long the launcher waits before.
        pause: Duration,
    },
    /// Something that a person should know.
    Note(String),
}

impl fmt::Display for Event {
    /// A sentence for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { attempt, pids, log_dir } => {
                write!(f, "attempt {attempt}: {} worker(s) run", pids.len())?;
                log_dir.iter().try_for_each(|dir| write!(f, "; their logs go to {}", dir.display()))
            }
            Self::Ended { rank, ending } => write!(f, "rank {rank} {ending}"),
            Self::Failed { rank } => write!(f, "rank {rank} has failed"),
            Self::Stopping { signal } => {
                write!(f, "{signal}: the workers are told to stop; a second signal kills them")
            }
            Self::Restarting { attempt, pause } => {
                write!(f, "attempt {attempt} follows in {:.1} s", pause.as_secs_f64())
            }
            Self::Note(text) => f.write_str(text),
        }
    }
}

impl Event {
    /// Whether somebody at the console wants to know it at once: not what every job tells, nor what its report tells.
    pub(super) fn is_announced(&self) -> bool {
        match self {
            Self::Started { log_dir, .. } => log_dir.is_some(),
            Self::Ended { .. } | Self::Failed { .. } => false,
            Self::Stopping { .. } | Self::Restarting { .. } | Self::Note(_) => true,
        }
    }
}
