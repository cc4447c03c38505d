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

/// A [`Queue`] of tasks: a consumer calls [`task_done`](Self::task_done) for each task that it has done, and
/// [`join`](Self::join) waits until all are done. Python's `multiprocessing.JoinableQueue`.
///
/// What [`Queue`] says of processes that die, of handles, threads and timeouts holds here too.
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
/// # When a process dies with a task
///
/// A task that a thread has taken is in its hands until a thread of the same process calls `task_done`. When the thread ends,
/// or its process is killed, with tasks in its hands, these will never be done. `join` then returns
/// [`QueueError::TasksLost`] with their number and the processes; Python's `join` waits for ever. The lost tasks count as done
/// from then on, so that the next `join` waits for the others alone. The values are not put back.
///
/// Up to 256 threads can hold tasks of a queue at a time. Once more have tried, the queue works on, but reports no losses.
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
    /// Makes a queue for at most `capacity` tasks that no thread has taken yet. As [`Queue::bounded`].
    ///
    /// # Errors
    /// As [`Queue::bounded`].
    pub fn bounded(capacity: usize) -> Result<Self, QueueError> {
        Ok(Self { queue: Queue::bounded(capacity)?, tasks: Tasks::new()? })
    }

    pub(super) fn core(&self) -> &Core {
        self.queue.core()
    }

    /// Says that one task that was taken out is done, and wakes the callers of [`join`](Self::join) if it was the last one.
    ///
    /// Call it once for each task, in the process that has taken it. Another thread of that process may do so. What the caller
    /// has written to shared memory before is visible after `join`.
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
    /// [`QueueError::TooManyDone`] when all tasks that were put are done already (Python's `ValueError`).
    pub fn task_done(&self) -> Result<(), QueueError> {
        self.tasks.task_done(self.core())
    }

    /// How many tasks were put and are not done yet, both those in the queue and those in the hands of consumers.
    ///
    /// The number may be out of date when it arrives. Lost tasks count until a `join` has reported them.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.tasks.unfinished(self.core()) as usize
    }

    /// Waits until all tasks that were put are done. It returns at once where none is open.
    ///
    /// Any number of threads of any processes may wait. It does not wait for the consumers to end, nor close the queue.
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
    /// - [`QueueError::TasksLost`] when threads ended, or were killed, with tasks in their hands. One caller is told, once;
    ///   the tasks count as done from then on
    /// - [`QueueError::Aborted`] when the wait is ended because another worker has failed
    /// - [`QueueError::System`] when the system refuses the wait
    pub fn join(&self) -> Result<(), QueueError> {
        self.tasks.join(self.core(), &WaitPolicy::Forever)
    }

    /// As [`join`](Self::join), but waits no longer than `timeout`, by CLOCK_MONOTONIC.
    ///
    /// # Errors
    /// - [`QueueError::TimedOut`] when the time was up and tasks are open. It names the processes that hold some
    /// - the others of [`join`](Self::join)
    pub fn join_timeout(&self, timeout: Duration) -> Result<(), QueueError> {
        self.tasks.join(self.core(), &WaitPolicy::of(timeout))
    }

    /// How many tasks are in the queue, not taken yet. As [`Queue::len`].
    #[must_use]
    #[doc(alias = "qsize")]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether all tasks were taken. They may not be done. As [`Queue::is_empty`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether there is no room for one more task. As [`Queue::is_full`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.queue.is_full()
    }

    /// Closes it, in all processes: no more tasks can be put. As [`Queue::close`].
    ///
    /// [`join`](Self::join) and [`task_done`](Self::task_done) work on.
    ///
    /// # Errors
    /// As [`Queue::close`].
    pub fn close(&self) -> Result<(), QueueError> {
        self.queue.close()
    }

    /// Whether some process has closed it. As [`Queue::is_closed`].
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }
}

impl<T: Serialize> JoinableQueue<T> {
    /// Puts a task in, and waits as long as there is no room for it. As [`Queue::put`].
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub fn put(&self, value: impl Borrow<T>) -> Result<(), QueueError> {
        self.queue.put(value)
    }

    /// Puts a task in if there is room. As [`Queue::try_put`].
    ///
    /// # Errors
    /// As [`Queue::try_put`].
    #[doc(alias = "put_nowait")]
    pub fn try_put(&self, value: impl Borrow<T>) -> Result<(), QueueError> {
        self.queue.try_put(value)
    }

    /// Puts a task in, and waits for room no longer than `timeout`. As [`Queue::put_timeout`].
    ///
    /// # Errors
    /// As [`Queue::put_timeout`].
    pub fn put_timeout(&self, value: impl Borrow<T>, timeout: Duration) -> Result<(), QueueError> {
        self.queue.put_timeout(value, timeout)
    }
}

impl<T: DeserializeOwned> JoinableQueue<T> {
    /// Takes the next task out, and waits as long as there is none. As [`Queue::get`].
    ///
    /// The task is in the hands of this thread until [`task_done`](Self::task_done).
    ///
    /// # Errors
    /// As [`Queue::get`]. A task that cannot be read, [`QueueError::Decode`], counts as done: do not call `task_done` for it.
    /// [`QueueError::System`] also when this thread holds 1000 locks, permits and places already.
    pub fn get(&self) -> Result<T, QueueError> {
        self.get_by(&WaitPolicy::Forever)
    }

    /// Takes the next task out if there is one. As [`Queue::try_get`].
    ///
    /// # Errors
    /// As [`Queue::try_get`], and those of [`get`](Self::get).
    #[doc(alias = "get_nowait")]
    pub fn try_get(&self) -> Result<T, QueueError> {
        self.get_by(&WaitPolicy::Never)
    }

    /// Takes the next task out, and waits no longer than `timeout`. As [`Queue::get_timeout`].
    ///
    /// # Errors
    /// As [`Queue::get_timeout`], and those of [`get`](Self::get).
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, QueueError> {
        self.get_by(&WaitPolicy::of(timeout))
    }

    fn get_by(&self, policy: &WaitPolicy) -> Result<T, QueueError> {
        // Before the wait, although that may be long: with a place taken after the task, a thread that dies between the two would
        // lose a task of which no place tells. Where all places are taken the queue works on, and reports no losses any more.
        let seat = self.tasks.sit_down()?;
        // Runs just before the swap that takes the task out, with the mutex owned, so that `join` never sees a task in nobody's
        // hands.
        let hold = |_: &[u8], _| seat.iter().for_each(Seat::hold);
        let task = self.core().get_noted(policy, hold)?.decode();
        if let Err(QueueError::Decode { .. }) = &task {
            // The message is out of the queue and cannot be read, so no thread will ever do the task: uncounted, it would keep
            // `join` waiting for as long as this thread lives.
            self.task_done()?;
        }
        task
    }

    /// The tasks that are there now, taken out one by one by [`try_get`](Self::try_get). As [`Queue::try_iter`].
    pub fn try_iter(&self) -> impl Iterator<Item = Result<T, QueueError>> {
        std::iter::from_fn(|| until_empty(self.try_get()))
    }

    /// The tasks as they come, until the queue was closed and is empty. As [`Queue::iter`].
    pub fn iter(&self) -> TaskIter<T> {
        TaskIter { queue: self.clone() }
    }
}

/// The tasks of a [`JoinableQueue`] as they come; ends when the queue was closed and is empty.
///
/// [`JoinableQueue::iter`] makes it, and so does a `for` loop. It does not call [`task_done`](JoinableQueue::task_done): the
/// loop does, for each task.
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

/// The plain queue: `put` waits for room, `get` for a value. Python's `multiprocessing.SimpleQueue`.
///
/// It is a [`Queue`] for 1024 values, and what is said there of processes that die, of handles and of threads holds here too.
/// It has no timeouts and no calls that do not wait; [`wait`](crate::wait()) takes it, with a timeout.
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
    /// Makes a queue for 1024 values, or as many as fit into 64 KiB.
    ///
    /// # Errors
    /// [`QueueError::Memory`] and [`QueueError::System`], as of [`Queue::bounded`].
    pub fn new() -> Result<Self, QueueError> {
        Queue::bounded(SIMPLE).map(|queue| Self { queue })
    }

    pub(super) fn core(&self) -> &Core {
        self.queue.core()
    }

    /// Whether nothing is in it. As [`Queue::is_empty`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Closes it, in all processes: nothing can be put into it any more. As [`Queue::close`].
    ///
    /// # Errors
    /// As [`Queue::close`].
    pub fn close(&self) -> Result<(), QueueError> {
        self.queue.close()
    }
}

impl<T: Serialize> SimpleQueue<T> {
    /// Puts a value in, and waits as long as there is no room for it. As [`Queue::put`].
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub fn put(&self, value: impl Borrow<T>) -> Result<(), QueueError> {
        self.queue.put(value)
    }
}

impl<T: DeserializeOwned> SimpleQueue<T> {
    /// Takes the next value out, and waits as long as there is none. As [`Queue::get`].
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub fn get(&self) -> Result<T, QueueError> {
        self.queue.get()
    }
}
