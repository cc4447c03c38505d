//! What sending and receiving can fail with.
//!
//! Errors of waits that another process was to end are noted beside the error (`error::consequence`): a worker that fails with
//! one of them is not blamed for the failure, the process that it waited for is.

use std::io;
use std::time::Duration;

use super::ring::Corrupt;
use crate::error::{MemoryError, consequence, with_hint};
use crate::sync::abort::AbortedBy;
use crate::sync::awaited::{Awaited, named};
use crate::sync::wait_policy::Interrupted;

/// The most messages that a queue may have.
pub(super) const MOST: u32 = 1 << 28;
/// Why something is gone in a worker that was forked.
pub(super) const CUT_OFF: &str =
    "it came into this worker by its fork, which closed it; give it to the worker in its arguments";

/// Everything that sending and receiving values can fail with.
///
/// An error that names processes names workers of the same context by their ranks in its text, other processes by their pids.
///
/// [`Full`](Self::Full), [`Empty`](Self::Empty) and [`TimedOut`](Self::TimedOut) pass by themselves, and the call may
/// be tried again. After [`Decode`](Self::Decode) and [`TasksLost`](Self::TasksLost) the queue goes on, without what
/// was lost. [`Closed`](Self::Closed), [`Disconnected`](Self::Disconnected), [`Gone`](Self::Gone) and
/// [`Corrupt`](Self::Corrupt) stay. After [`Aborted`](Self::Aborted) a worker does best to end.
///
/// Python has `queue.Full` and `queue.Empty` for calls that do not wait and for timeouts alike; here a timeout is
/// [`TimedOut`](Self::TimedOut). Its `EOFError` is [`Disconnected`](Self::Disconnected).
///
/// A worker may return any of these from its function. [`TimedOut`](Self::TimedOut), [`Aborted`](Self::Aborted),
/// [`Disconnected`](Self::Disconnected) and [`TasksLost`](Self::TasksLost) are taken for the consequence of what another
/// process did, so the launcher reports the failure of that process first if there is one.
///
/// ```
/// use phalanx::{Queue, QueueError};
///
/// fn next(queue: &Queue<String>) -> Result<Option<String>, QueueError> {
///     match queue.try_get() {
///         Ok(value) => Ok(Some(value)),
///         Err(QueueError::Empty | QueueError::Closed) => Ok(None),
///         Err(error) => Err(error),
///     }
/// }
///
/// assert_eq!(next(&Queue::bounded(4)?)?, None);
/// # Ok::<(), QueueError>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// There is no room at the moment, and a `try_` call does not wait.
    #[error("there is no room at the moment: try again later, or use the call that waits (put, send)")]
    Full,

    /// There is no value at the moment, and a `try_` call does not wait.
    #[error("there is no value at the moment: try again later, or use the call that waits (get, recv)")]
    Empty,

    /// The time that the call might take was up. Nothing was sent or received, and the call may be repeated.
    ///
    /// A call named `try_…` gives up with this error too, after a second, when another thread does not finish what it is in
    /// the middle of: its process is stopped, say by SIGSTOP or a debugger.
    #[error("timed out after {waited:?}{awaited}")]
    TimedOut {
        /// The time that the call was given, or one second of a `try_` call.
        waited: Duration,
        /// What it waited for, and which processes were to end the wait, as far as they are known.
        awaited: Awaited,
    },

    /// Some process has closed the queue: it takes no more values, and gives none once it is empty. For a consumer this is the
    /// regular end, at which iterators end too.
    #[error("the queue was closed by close(): it takes no more values, and gives none once it is empty")]
    Closed,

    /// This worker is to wait no more: another worker of its context has failed or the context is being ended, and
    /// [`Options::abort_on_failure`](crate::Options::abort_on_failure) says so; or the task of a [`Pool`](crate::pool::Pool) that it
    /// runs was asked to end.
    ///
    /// Each later wait of the worker, or of the task, ends in the same way. What a call can do without waiting it still does, so that
    /// it can clean up.
    #[error("the wait was aborted: {by}")]
    Aborted {
        /// Why.
        by: AbortedBy,
    },

    /// The other end of a pipe is gone: it was dropped, or its process has ended, by whatever signal. A call that receives
    /// returns this after all that was sent before.
    #[error("the other end of the pipe is gone: it was dropped, or its process has ended")]
    Disconnected,

    /// The connection or queue is not in this process: the connection was sent to another process, or the handle came into this
    /// worker by its fork alone, and not in its arguments. Nothing was sent or received.
    #[error("this connection or queue is not in this process: {reason}")]
    Gone {
        /// Where it is, as a part of a sentence.
        reason: &'static str,
    },

    /// The value could not be serialised. Nothing was sent, and shards and connections in the value are still here.
    #[error("cannot serialise the value, which was not sent: {reason}")]
    Encode {
        /// What serde or the type said.
        reason: String,
    },

    /// A message could not be made a value: its type refuses what was written, or its descriptors did not arrive because this
    /// process has no room for them. The message is gone, and the next one can be received.
    #[error("cannot deserialise a message, which is lost; the next one can be received: {reason}")]
    Decode {
        /// What serde or the type said, or what of it did not arrive.
        reason: String,
    },

    /// What was received is no message: some process has written to the queue's memory or the pipe's descriptor by other
    /// means. A queue may stay unusable after that.
    #[error("received what is no message of this program: {reason}")]
    Corrupt {
        /// What was wrong with it.
        reason: String,
    },

    /// [`JoinableQueue::task_done`](crate::JoinableQueue::task_done) was called more often than tasks had been put. The count
    /// stays as it was.
    #[error(
        "task_done() was called more often than tasks were put: call it once for each task that was taken"
    )]
    TooManyDone,

    /// Threads that had taken tasks ended, or were killed, before they said that these were done.
    /// [`JoinableQueue::join`](crate::JoinableQueue::join) returns this once; the tasks then count as done.
    #[error("{count} {} lost: {} ended before it said that they were done", tasks(*.count), named(.pids))]
    TasksLost {
        /// How many tasks were lost.
        count: usize,
        /// The processes that these threads belonged to. They may live on, where only a thread has ended.
        pids: Vec<u32>,
    },

    /// A queue cannot be made for that number of values: it can be for 1 to 2^28.
    #[error("cannot make a queue for {capacity} values: it can be for 1 to {MOST}")]
    Bound {
        /// How many were asked for.
        capacity: usize,
    },

    /// The shared memory of a new queue could not be made.
    #[error(transparent)]
    Memory(#[from] MemoryError),

    /// The system refused something, as for want of memory or descriptors. The text says what limit was met, where that is
    /// known.
    #[error("cannot {doing}: {}", with_hint(.os))]
    System {
        /// What was being done, as in "make a pipe (socketpair)".
        doing: &'static str,
        /// What the system said.
        os: io::Error,
    },
}

fn tasks(count: usize) -> &'static str {
    if count == 1 { "task was" } else { "tasks were" }
}

impl From<Corrupt> for QueueError {
    fn from(Corrupt(reason): Corrupt) -> Self {
        Self::Corrupt { reason }
    }
}

impl QueueError {
    /// For `map_err`: names what was being done when the system refused.
    pub(crate) fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |os| Self::System { doing, os }
    }

    /// For `map_err` of a wait for room: says why it has timed out.
    pub(super) fn not_put(what: &'static str) -> impl FnOnce(Interrupted) -> Self {
        move |stop| Self::stopped(stop, Self::Full, || Awaited::Anybody { what })
    }

    /// As [`not_put`](Self::not_put), of a wait for a value.
    pub(crate) fn not_got(what: &'static str) -> impl FnOnce(Interrupted) -> Self {
        move |stop| Self::stopped(stop, Self::Empty, || Awaited::Anybody { what })
    }

    /// The error of a wait for these, which is `at_once` for a call that does not wait.
    pub(super) fn stopped(stop: Interrupted, at_once: Self, awaited: impl FnOnce() -> Awaited) -> Self {
        let doing = "wait for a queue or pipe";
        match stop {
            Interrupted::TimedOut(waited) => {
                let awaited = awaited();
                let pids = awaited.pids();
                // The processes are noted beside the error. If the worker fails with it, the launcher blames the process that was
                // waited for, and not this one, which only waited.
                Self::TimedOut { waited, awaited }.noted(&pids)
            }
            Interrupted::Aborted(by) => Self::aborted(by),
            Interrupted::System(os) => Self::System { doing, os },
            Interrupted::WouldBlock => at_once,
            // A thread that is in the mutex already: only a signal handler, or a fork that has mapped the queue twice, can come
            // to that.
            Interrupted::Deadlock => Self::System { doing, os: io::ErrorKind::Deadlock.into() },
        }
    }

    pub(crate) fn aborted(by: AbortedBy) -> Self {
        // A consequence too: of another rank's failure, or of what was asked of the task.
        Self::Aborted { by }.noted(&by.pids())
    }

    pub(super) fn disconnected() -> Self {
        // Nobody is named: a socket does not say whose its other end was. But that this worker is a victim is known.
        Self::Disconnected.noted(&[])
    }

    pub(super) fn tasks_lost(count: usize, pids: Vec<u32>) -> Self {
        // The dead are to blame, so that a worker which fails with this error is not taken for the first cause.
        let error = Self::TasksLost { count, pids: pids.clone() };
        error.noted(&pids)
    }

    fn noted(self, pids: &[u32]) -> Self {
        // Kept by its text, since the user may wrap the error in one of their own before the worker returns it.
        consequence::note(&self, pids);
        self
    }
}
