//! `JoinableQueue`: a queue of tasks, of which it is known how many are not done yet. `SimpleQueue`: the plain one.

use std::borrow::Borrow;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::core::Core;
use super::error::QueueError;
use super::fifo::{Queue, until_closed, until_empty};
use super::tasks::{Seat, Tasks};
use crate::sync::wait_policy::WaitPolicy;

/// A [`Queue`] of tasks: whoever takes one says by [`task_done`](Self::task_done) that it is done, and
/// [`join`](Self::join) waits until all are.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{JoinableQueue, Options, start_processes};
///
/// fn work(_rank: usize, tasks: JoinableQueue<u32>) -> anyhow::Result<u32> {
///     let mut sum = 0;
///     for task in &tasks {
///         sum += task?;
///         tasks.task_done()?;
///     }
///     Ok(sum)
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let tasks = JoinableQueue::bounded(10)?;
/// let workers = start_processes(work, tasks.clone(), Options::new(2))?;
/// for task in 1..=100 {
///     tasks.put(task)?;
/// }
/// tasks.join()?; // all are done
/// tasks.close()?;
/// assert_eq!(workers.join()?.iter().sum::<u32>(), 5050);
/// # Ok(())
/// # }
/// ```
///
/// A task that a thread has taken is in its hands until somebody in its process has said that one is done. When it dies, or ends,
/// with tasks in its hands, `join` says how many: [`QueueError::TasksLost`]. (That works for up to 256 threads that take
/// tasks.)
#[derive(Debug, Serialize, Deserialize)]
// Only handles travel, of which `T` is no part: the derived bounds would ask for `T: Serialize` where a worker only takes tasks.
#[serde(bound = "")]
pub struct JoinableQueue<T> {
    // Two records: a plain queue does not pay for places, and `Tasks` takes the counts of tasks put and taken from the queue's
    // positions.
    queue: Queue<T>,
    tasks: Tasks,
}

impl<T> Clone for JoinableQueue<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), tasks: self.tasks.clone() }
    }
}

impl<T> JoinableQueue<T> {
    /// As [`Queue::bounded`].
    ///
    /// # Errors
    /// As [`Queue::bounded`].
    pub fn bounded(capacity: usize) -> Result<Self, QueueError> {
        Ok(Self { queue: Queue::bounded(capacity)?, tasks: Tasks::new()? })
    }

    pub(super) fn core(&self) -> &Core {
        self.queue.core()
    }

    /// Says that one task that was taken out is done.
    ///
    /// Any thread of the process that took the task may say so.
    ///
    /// ```
    /// use phalanx::{JoinableQueue, QueueError};
    ///
    /// let tasks = JoinableQueue::bounded(8)?;
    /// tasks.put(1_u8)?;
    /// tasks.get()?;
    /// assert_eq!((tasks.len(), tasks.unfinished()), (0, 1));
    /// tasks.task_done()?;
    /// assert_eq!(tasks.unfinished(), 0);
    /// assert!(matches!(tasks.task_done(), Err(QueueError::TooManyDone)));
    /// # Ok::<(), QueueError>(())
    /// ```
    ///
    /// # Errors
    /// [`QueueError::TooManyDone`] when all that were put are done already.
    pub fn task_done(&self) -> Result<(), QueueError> {
        self.tasks.task_done(self.core())
    }

    /// How many tasks were put and are not done yet.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.tasks.unfinished(self.core()) as usize
    }

    /// Waits until all tasks that were put are done.
    ///
    /// A thread that ends with a task in its hands, in this process or another one, ends the wait:
    ///
    /// ```
    /// use phalanx::{JoinableQueue, QueueError};
    ///
    /// let tasks = JoinableQueue::bounded(8)?;
    /// tasks.put(1_u8)?;
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| tasks.get()); // and no task_done
    /// });
    /// assert!(matches!(tasks.join(), Err(QueueError::TasksLost { count: 1, .. })));
    /// tasks.join()?; // it is told once
    /// # Ok::<(), QueueError>(())
    /// ```
    ///
    /// # Errors
    /// - [`QueueError::TasksLost`] when somebody died with tasks. They count as done from then on, and it is told once
    /// - [`QueueError::Aborted`] when the wait is ended because another worker has failed
    /// - [`QueueError::System`] when the system refuses
    pub fn join(&self) -> Result<(), QueueError> {
        self.tasks.join(self.core(), &WaitPolicy::Forever)
    }

    /// As [`join`](Self::join), but waits no longer than `timeout`.
    ///
    /// The error names the processes that have the unfinished tasks.
    ///
    /// # Errors
    /// As [`join`](Self::join), and [`QueueError::TimedOut`].
    pub fn join_timeout(&self, timeout: Duration) -> Result<(), QueueError> {
        self.tasks.join(self.core(), &WaitPolicy::of(timeout))
    }

    /// As [`Queue::len`]: how many tasks nobody has taken yet.
    #[must_use]
    #[doc(alias = "qsize")]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// As [`Queue::is_empty`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// As [`Queue::is_full`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.queue.is_full()
    }

    /// As [`Queue::close`].
    ///
    /// # Errors
    /// As [`Queue::close`].
    pub fn close(&self) -> Result<(), QueueError> {
        self.queue.close()
    }

    /// As [`Queue::is_closed`].
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }
}

impl<T: Serialize> JoinableQueue<T> {
    /// As [`Queue::put`].
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub fn put(&self, value: impl Borrow<T>) -> Result<(), QueueError> {
        self.queue.put(value)
    }

    /// As [`Queue::try_put`].
    ///
    /// # Errors
    /// As [`Queue::try_put`].
    #[doc(alias = "put_nowait")]
    pub fn try_put(&self, value: impl Borrow<T>) -> Result<(), QueueError> {
        self.queue.try_put(value)
    }

    /// As [`Queue::put_timeout`].
    ///
    /// # Errors
    /// As [`Queue::put_timeout`].
    pub fn put_timeout(&self, value: impl Borrow<T>, timeout: Duration) -> Result<(), QueueError> {
        self.queue.put_timeout(value, timeout)
    }
}

impl<T: DeserializeOwned> JoinableQueue<T> {
    /// As [`Queue::get`].
    ///
    /// # Errors
    /// As [`Queue::get`]. A task that cannot be read, [`QueueError::Decode`], counts as done.
    pub fn get(&self) -> Result<T, QueueError> {
        self.get_by(&WaitPolicy::Forever)
    }

    /// As [`Queue::try_get`].
    ///
    /// # Errors
    /// As [`Queue::try_get`].
    #[doc(alias = "get_nowait")]
    pub fn try_get(&self) -> Result<T, QueueError> {
        self.get_by(&WaitPolicy::Never)
    }

    /// As [`Queue::get_timeout`].
    ///
    /// # Errors
    /// As [`Queue::get_timeout`].
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, QueueError> {
        self.get_by(&WaitPolicy::of(timeout))
    }

    fn get_by(&self, policy: &WaitPolicy) -> Result<T, QueueError> {
        // Before the wait, although that may be long: with a place taken after the task, a thread that dies between the two would
        // lose a task of which no place tells. Where all places are taken the queue works on, and reports no losses any more.
        let seat = self.tasks.sit_down()?;
        // Runs just before the swap that takes the task out, with the mutex owned, so that `join` never sees a task in nobody's
        // hands.
        let hold = || seat.iter().for_each(Seat::hold);
        let task = self.core().get_noted(policy, hold)?.decode();
        if let Err(QueueError::Decode { .. }) = &task {
            // The message is out of the queue and cannot be read, so no thread will ever do the task: uncounted, it would keep
            // `join` waiting for as long as this thread lives.
            self.task_done()?;
        }
        task
    }

    /// As [`Queue::try_iter`].
    pub fn try_iter(&self) -> impl Iterator<Item = Result<T, QueueError>> {
        std::iter::from_fn(|| until_empty(self.try_get()))
    }

    /// The tasks as they come, until the queue was closed and is empty.
    pub fn iter(&self) -> TaskIter<T> {
        TaskIter { queue: self.clone() }
    }
}

/// The tasks of a [`JoinableQueue`] as they come; ends when it was closed and is empty.
#[derive(Clone, Debug)]
pub struct TaskIter<T> {
    queue: JoinableQueue<T>,
}

impl<T: DeserializeOwned> Iterator for TaskIter<T> {
    type Item = Result<T, QueueError>;

    fn next(&mut self) -> Option<Self::Item> {
        until_closed(self.queue.get())
    }
}

impl<T: DeserializeOwned> IntoIterator for JoinableQueue<T> {
    type Item = Result<T, QueueError>;
    type IntoIter = TaskIter<T>;

    fn into_iter(self) -> TaskIter<T> {
        TaskIter { queue: self }
    }
}

impl<T: DeserializeOwned> IntoIterator for &JoinableQueue<T> {
    type Item = Result<T, QueueError>;
    type IntoIter = TaskIter<T>;

    fn into_iter(self) -> TaskIter<T> {
        self.iter()
    }
}

/// The plain queue: `put` waits for room, `get` for a value. See [`Queue`], which can do more.
///
/// ```
/// let queue = phalanx::SimpleQueue::<String>::new()?;
/// queue.put("hello".to_owned())?;
/// assert_eq!(queue.get()?, "hello");
/// # Ok::<(), phalanx::QueueError>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct SimpleQueue<T> {
    queue: Queue<T>,
}

/// For how many values a simple queue is.
const SIMPLE: usize = 1024;

impl<T> SimpleQueue<T> {
    /// A queue for 1024 values, or as many as fit into 64 KiB.
    ///
    /// # Errors
    /// As [`Queue::bounded`].
    pub fn new() -> Result<Self, QueueError> {
        Queue::bounded(SIMPLE).map(|queue| Self { queue })
    }

    pub(super) fn core(&self) -> &Core {
        self.queue.core()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// As [`Queue::close`].
    ///
    /// # Errors
    /// As [`Queue::close`].
    pub fn close(&self) -> Result<(), QueueError> {
        self.queue.close()
    }
}

impl<T: Serialize> SimpleQueue<T> {
    /// As [`Queue::put`].
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub fn put(&self, value: impl Borrow<T>) -> Result<(), QueueError> {
        self.queue.put(value)
    }
}

impl<T: DeserializeOwned> SimpleQueue<T> {
    /// As [`Queue::get`].
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub fn get(&self) -> Result<T, QueueError> {
        self.queue.get()
    }
}
