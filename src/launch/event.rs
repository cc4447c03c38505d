//! Event: what a job tells while it runs.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::summary::Ending;
use crate::sys::signal::Signal;

/// What has happened in a job. [`Launch::on_event`](super::Launch::on_event) is called with each, in their order. As text it is a
/// sentence for people.
///
/// An attempt has [`Started`](Self::Started) once, then [`Ended`](Self::Ended) once for each rank, in the order of their ends.
///
/// ```
/// use std::cell::RefCell;
/// use std::rc::Rc;
/// use phalanx::launch::{Command, Launch};
///
/// let told = Rc::new(RefCell::new(Vec::new()));
/// let events = Rc::clone(&told);
/// let launch = Launch::new(Command::new("sh").args(["-c", "exit 4"]));
/// launch.on_event(move |event| events.borrow_mut().push(event.to_string())).run()?;
/// assert_eq!(*told.borrow(), ["attempt 0: 1 worker(s) run", "rank 0 exited with code 4"]);
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// All workers of an attempt run their program. None of them has been reaped yet.
    Started {
        /// The number of the attempt, from 0 on.
        attempt: usize,
        /// The pids of the workers, by rank.
        pids: Vec<u32>,
        /// The directory of their logs; `None`: no option has sent output to files.
        log_dir: Option<PathBuf>,
    },
    /// A worker has ended and was reaped, or was left behind.
    Ended {
        /// The worker's rank.
        rank: usize,
        /// How it ended.
        ending: Ending,
    },
    /// A worker has written an error file, or a torch file timer of its has expired. Its end follows: the launcher ends it if it does
    /// not end by itself.
    Failed {
        /// The worker's rank.
        rank: usize,
    },
    /// The launcher was told to stop, and has passed the signal on to the workers.
    Stopping {
        /// The signal that this process was sent.
        signal: Signal,
    },
    /// An attempt has failed, and another one follows.
    Restarting {
        /// The number of the attempt that follows, from 1 on.
        attempt: usize,
        /// How long the launcher waits before it; zero, unless the failure came within 5 s.
        pause: Duration,
    },
    /// Something that a person should know, in a sentence: an output that is lost, a worker that was left behind.
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
    /// Whether [`Launch::announce`](super::Launch::announce) writes it: not what every job tells, nor what its report tells.
    pub(super) fn is_announced(&self) -> bool {
        match self {
            Self::Started { log_dir, .. } => log_dir.is_some(),
            Self::Ended { .. } | Self::Failed { .. } => false,
            Self::Stopping { .. } | Self::Restarting { .. } | Self::Note(_) => true,
        }
    }
}
