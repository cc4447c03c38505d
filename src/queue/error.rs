//! What sending and receiving can fail with.

use std::io;
use std::time::Duration;

use crate::error::{MemoryError, with_hint};

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

    /// It was closed.
    #[error("it was closed")]
    Closed,

    /// The other end of a pipe is gone: it was dropped, or its process has ended. What was sent before has been received.
    #[error("the other end is gone: it was dropped, or its process has ended")]
    Disconnected,

    /// The connection is not in this process any more. Nothing was sent or received.
    #[error("this connection is not here: {reason}")]
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

impl QueueError {
    /// For `map_err`: names what was being done when the system refused.
    pub(super) fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |os| Self::System { doing, os }
    }
}
