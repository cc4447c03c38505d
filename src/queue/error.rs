//! What sending and receiving can fail with.

use std::io;
use std::time::Duration;

use super::core::MOST;
use super::ring::Corrupt;
use crate::error::{MemoryError, with_hint};
use crate::sync::blame;
use crate::sync::patience::Stop;

/// Why something is gone in a worker that was forked.
pub(super) const CUT_OFF: &str =
    "it came into this worker by its fork, which closed it; give it to the worker in its arguments";

/// Everything that sending and receiving values can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// There is no room at the moment, and nothing was to be waited for.
    #[error("there is no room at the moment: send again later, or wait for room by `send` or `put`")]
    Full,

    /// There is nothing at the moment, and nothing was to be waited for.
    #[error("there is nothing at the moment: ask again later, or wait for it by `recv` or `get`")]
    Empty,

    /// The time that the call might take was up. Nothing was sent or received.
    #[error("timed out after {waited:?}")]
    TimedOut {
        /// How long it waited.
        waited: Duration,
    },

    /// It was closed, and all that was in it has been taken out.
    #[error("it was closed")]
    Closed,

    /// A worker of the same context has failed or the context is being ended, and
    /// [`Options::abort_on_failure`](crate::Options::abort_on_failure) says that nobody is to wait any more.
    #[error("the wait was aborted: {}", blame(*rank))]
    Aborted {
        /// Who has failed; `None`: the program ends its workers.
        rank: Option<usize>,
    },

    /// The other end of a pipe is gone: it was dropped, or its process has ended. What was sent before has been received.
    #[error("the other end is gone: it was dropped, or its process has ended")]
    Disconnected,

    /// The connection or queue is not in this process, or not any more. Nothing was sent or received.
    #[error("this connection or queue is not here: {reason}")]
    Gone {
        /// Where it is.
        reason: &'static str,
    },

    /// The value could not be serialised. Nothing was sent.
    #[error("cannot serialise the value: {reason}")]
    Encode {
        /// What serde or the type said.
        reason: String,
    },

    /// A message could not be made a value. It is gone, and the next one can be received.
    #[error("cannot deserialise a message, which is lost: {reason}")]
    Decode {
        /// What serde or the type said, or what of it did not arrive.
        reason: String,
    },

    /// What was received does not come from this library, or from another version of the program.
    #[error("what was received is no message of this program: {reason}")]
    Corrupt {
        /// What was wrong with it.
        reason: String,
    },

    /// More tasks were said to be done than had been put.
    #[error("all tasks that were put are done already")]
    TooManyDone,

    /// Threads that had taken tasks ended, or were killed, before they said that these were done.
    #[error("{count} tasks were in the hands of those who have ended (pid {})", listed(.pids))]
    TasksLost {
        /// How many tasks.
        count: usize,
        /// Whose processes these were.
        pids: Vec<u32>,
    },

    /// A queue cannot have room for so many values.
    #[error("a queue can be for 1 to {MOST} values, not for {most}")]
    Bound {
        /// How many were asked for.
        most: usize,
    },

    /// Shared memory could not be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),

    /// The system refused something.
    #[error("cannot {doing}: {}", with_hint(.os))]
    System {
        /// What was being done to what.
        doing: &'static str,
        /// What the system said.
        os: io::Error,
    },
}

impl From<Corrupt> for QueueError {
    fn from(Corrupt(reason): Corrupt) -> Self {
        Self::Corrupt { reason }
    }
}

impl QueueError {
    /// For `map_err`: names what was being done when the system refused.
    pub(super) fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |os| Self::System { doing, os }
    }

    /// Why there was no room.
    pub(super) fn not_put(stop: Stop) -> Self {
        match stop {
            Stop::WouldBlock => Self::Full,
            other => Self::stopped(other),
        }
    }

    /// Why there was nothing.
    pub(super) fn not_got(stop: Stop) -> Self {
        match stop {
            Stop::WouldBlock => Self::Empty,
            other => Self::stopped(other),
        }
    }

    fn stopped(stop: Stop) -> Self {
        let doing = "wait for a queue or pipe";
        match stop {
            Stop::TimedOut(waited) => Self::TimedOut { waited },
            Stop::Aborted(rank) => Self::Aborted { rank },
            Stop::System(os) => Self::System { doing, os },
            Stop::WouldBlock | Stop::Deadlock => Self::System { doing, os: io::ErrorKind::Deadlock.into() },
        }
    }
}

fn listed(pids: &[u32]) -> String {
    pids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}
