//! Why something could not be had.

use std::io;
use std::time::Duration;

use crate::error::MemoryError;

/// What a call on a lock, an event, a barrier or the like can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// It would have to be waited for, which a `try_` call does not do.
    #[error("it is not to be had without waiting")]
    WouldBlock,

    /// It was waited for in vain.
    #[error("it was not to be had within {waited:?}")]
    TimedOut {
        /// How long.
        waited: Duration,
    },

    /// Its holder died, or panicked, while it held it: what it guards may be half done. `recover` takes it
    /// nevertheless, and clears this.
    #[error(
        "process {pid} ended or panicked while it held this: what it guards may be half done; take it with recover()"
    )]
    Poisoned {
        /// Whose process it was.
        pid: u32,
    },

    /// A worker of the same context has failed or the context is being ended, and
    /// [`Options::abort_on_failure`](crate::Options::abort_on_failure) says that nobody is to wait any more.
    #[error("the wait was aborted: {}", blame(*rank))]
    Aborted {
        /// Who has failed; `None`: the program ends its workers.
        rank: Option<usize>,
    },

    /// The barrier is broken: somebody who takes part in it died, gave up waiting, or broke it.
    #[error("the barrier is broken{}", .pid.map(|pid| format!(": process {pid} died, gave up waiting, or broke it")).unwrap_or_default())]
    Broken {
        /// Whose process it was.
        pid: Option<u32>,
    },

    /// This thread holds it already, so it would wait for itself for ever.
    #[error("this thread holds it already: it would wait for itself")]
    Deadlock,

    /// More was given back than had been taken.
    #[error("there are {value} of at most {most} already: more is given back than was taken")]
    TooMany {
        /// How many there are.
        value: u32,
        /// How many there can be.
        most: u32,
    },

    /// No place is left to note one more holder.
    #[error("all {places} places for {what} are taken: free some, or make it with more")]
    NoPlace {
        /// Of whom.
        what: &'static str,
        /// How many there are.
        places: usize,
    },

    /// Its memory could not be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),

    /// The system refused something.
    #[error("cannot wait for it or take it: {0}")]
    System(#[from] io::Error),
}

pub(crate) fn blame(rank: Option<usize>) -> String {
    rank.map_or_else(|| "the program ends its workers".to_owned(), |rank| format!("rank {rank} has failed"))
}
