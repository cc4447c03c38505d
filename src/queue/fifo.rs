//! `Queue`: values from many processes to many.

use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::core::Core;
use super::error::{MOST, QueueError};
use super::message::Outgoing;
use crate::sync::wait_policy::WaitPolicy;
use crate::transfer::record::TypeTag;

/// A queue of values, from many producers to many consumers in any processes: Python's `multiprocessing.Queue`.
///
/// A value whose [`put`](Self::put) has returned is in the queue, also if its producer is killed in the next instant: there is no
/// thread that would still have to send it. Values come out in the order of their puts: if one `put` returned before another
/// one began, its value comes first. Each value goes to one consumer.
///
/// Values are any serde type; tensors, descriptors, queues and locks in them are shared, not copied. A value that is too large
/// for the ring (more than 16 KiB in a small queue, 64 KiB in a large one) travels in a memfd.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Options, Queue, Tensor, start_processes};
///
/// fn work(_rank: usize, (tasks, results): (Queue<Tensor<f32>>, Queue<f32>)) -> anyhow::Result<()> {
///     for tensor in tasks {
///         results.put(tensor?.to_vec().iter().sum::<f32>())?;
///     }
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let (tasks, results) = (Queue::bounded(8)?, Queue::bounded(8)?);
/// let context = start_processes(work, (tasks.clone(), results.clone()), Options::new(2))?;
/// for n in 0..100 {
///     tasks.put(Tensor::from_slice(&[n as f32, 1.0], &[2])?)?;
///     if n >= 8 {
///         results.get()?;
///     }
/// }
/// tasks.close()?; // each worker ends when all was taken out
/// context.join()?;
/// assert_eq!(results.len(), 8);
/// # Ok(())
/// # }
/// ```
///
/// # When a process dies
///
/// | a process is killed | what becomes of the value |
/// |---|---|
/// | before its `put` has returned | it is in the queue as a whole, or not at all |
/// | after that | it is in the queue |
/// | before its `get` has returned | it is still in the queue, or gone with the process |
/// | while it waits for room or for a value | nothing: the kernel lets the next one wait in its place |
///
/// No value comes twice. A process that is *stopped* (SIGSTOP) in the middle of a call keeps the others on its side waiting;
/// their timeouts hold.
///
/// No death closes a queue, which does not know its producers. Where all of them may be dead, a launcher waits for its context
/// as well ([`wait`](crate::wait()), [`values_from`](crate::ProcessContext::values_from)), and a worker lets
/// [`Options::abort_on_failure`](crate::Options::abort_on_failure) end its wait. A
/// [`JoinableQueue`](crate::JoinableQueue) tells how many tasks died with their takers.
///
/// # Processes, threads and forks
///
/// A queue comes into another process in the arguments or the result of a worker, or through another queue or a pipe, at any
/// time. It is `Send` and `Sync` whatever `T` is: threads may share one handle, or have a clone each, which shares its three
/// descriptors. In a worker that has it only by its fork every call that puts, takes or closes is [`QueueError::Gone`]: give it
/// to the worker in its arguments. The memory, with the values in it, is freed with the last handle in any process.
///
/// # Timeouts
///
/// Their clock is CLOCK_MONOTONIC, and they cover the whole wait. `Duration::ZERO` looks once; `Duration::MAX` has no end.
pub struct Queue<T> {
    // Clones share the handle: three descriptors for each process, not for each clone.
    core: Arc<Core>,
    // A queue has no `T` in it, only bytes: with a function's type it is `Send` and `Sync` whatever `T` is, and invariant in it.
    values: PhantomData<fn(T) -> T>,
}

const KIND: &str = "Queue";

impl<T> Queue<T> {
    /// Makes a queue for at most `capacity` values, and at most as many as its memory has room for.
    ///
    /// The memory has 64 bytes for each value, rounded up to a power of two, 64 KiB at the least and 4 MiB at the most. Values
    /// that need more than 64 bytes fill it before there are `capacity` of them. Of values with tensors or other things that
    /// travel beside them, and of those that travel in a memfd, some 270 can be in it at a time (what a socket holds:
    /// net.core.wmem_default).
    ///
    /// Every queue has a bound: Python's `maxsize=0` has no counterpart. Name the type, as in `Queue::<u64>::bounded(8)`,
    /// where the compiler cannot tell it: [`put`](Self::put) takes a value or a reference.
    ///
    /// # Errors
    /// - [`QueueError::Bound`] when `capacity` is 0 or more than 2^28
    /// - [`QueueError::Memory`] when there is no shared memory for it
    /// - [`QueueError::System`] when this process has no descriptors left: a queue needs three, or four for more than 2048 values
    pub fn bounded(capacity: usize) -> Result<Self, QueueError> {
        // Positions count messages modulo 2^32, and `messages_since` needs the difference to be far below that.
        let bound = u32::try_from(capacity).ok().filter(|bound| (1..=MOST).contains(bound));
        // The tag stands in shared memory, so that a queue that arrives as another type, or as a lock, is refused
        // (`Core::deserialize`).
        let core = Core::new(TypeTag::of::<T>(KIND), bound.ok_or(QueueError::Bound { capacity })?)?;
        Ok(Self::over(core))
    }

    fn over(core: Core) -> Self {
        Self { core: Arc::new(core), values: PhantomData }
    }

    /// How many values are in it: Python's `qsize()`.
    ///
    /// The number is exact for one moment. Other processes go on, so it may be out of date when it arrives.
    #[must_use]
    #[doc(alias = "qsize")]
    pub fn len(&self) -> usize {
        self.core.len() as usize
    }

    /// The most values that can be in it: the `capacity` that was given to [`bounded`](Self::bounded).
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.core.most() as usize
    }

    /// Whether nothing is in it at this moment: Python's `empty()`. Use [`try_get`](Self::try_get) to take what is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.core.len() == 0
    }

    /// Whether there are as many values in it as there can be, or its memory has no room for one more of 64 bytes: Python's
    /// `full()`.
    ///
    /// A put of a larger value, or of one with tensors or descriptors, may have to wait although this is `false`.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.core.is_full()
    }

    /// Closes it, in all processes: nothing can be put into it any more.
    ///
    /// A put that waits for room ends with [`QueueError::Closed`], as each later one does. What is in the queue can be taken
    /// out; after the last value [`get`](Self::get) is `Closed` too, at which iterators end. A closed queue stays closed.
    /// Dropping a handle does not close it. One step closes the queue and wakes the waiters, also if this process is killed.
    ///
    /// Python's `close()` concerns the calling process alone, so there each consumer needs a value that says "the end".
    ///
    /// ```
    /// use phalanx::{Queue, QueueError};
    ///
    /// let queue = Queue::<String>::bounded(8)?;
    /// queue.put("last".to_owned())?;
    /// queue.close()?;
    /// assert!(matches!(queue.put("too late".to_owned()), Err(QueueError::Closed)));
    /// assert_eq!(queue.get()?, "last");
    /// assert!(matches!(queue.get(), Err(QueueError::Closed)));
    /// # Ok::<(), QueueError>(())
    /// ```
    ///
    /// # Errors
    /// - [`QueueError::Gone`] in a forked worker that has the queue from the fork alone
    /// - [`QueueError::System`] when the system refuses to wake the waiters
    pub fn close(&self) -> Result<(), QueueError> {
        self.core.close()
    }

    /// Whether some process has closed it. There may still be values in it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.core.is_closed()
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }
}

impl<T: Serialize> Queue<T> {
    /// Puts a value in, and waits as long as there is no room for it.
    ///
    /// The value is given, or lent, and is serialised before the call waits. Memory, descriptors, queues and locks in it are
    /// shared with the consumer. Shards and connections in it are gone from here once the call has succeeded. After an error
    /// they are still here, and the value is not in the queue.
    ///
    /// ```
    /// let (queue, lent) = (phalanx::Queue::bounded(8)?, "lent".to_owned());
    /// queue.put(&lent)?;
    /// queue.put("given".to_owned())?;
    /// assert_eq!((queue.get()?, queue.get()?), (lent, "given".to_owned()));
    /// # Ok::<(), phalanx::QueueError>(())
    /// ```
    ///
    /// # Errors
    /// - [`QueueError::Closed`] when the queue was closed, before the call or while it waited
    /// - [`QueueError::Encode`] when the value cannot be serialised
    /// - [`QueueError::Aborted`] when the wait is ended because another worker has failed
    /// - [`QueueError::Gone`] in a forked worker that has the queue from the fork alone
    /// - [`QueueError::System`] when the system refuses, as for want of memory or descriptors
    /// - [`QueueError::Corrupt`] when a process has written to the queue's memory
    pub fn put(&self, value: impl Borrow<T>) -> Result<(), QueueError> {
        self.put_by(value.borrow(), &WaitPolicy::Forever)
    }

    /// As [`put`](Self::put), but does not wait for room: Python's `put_nowait`.
    ///
    /// ```
    /// use phalanx::{Queue, QueueError};
    ///
    /// let queue = Queue::bounded(1)?;
    /// queue.try_put(1_u8)?;
    /// assert!(matches!(queue.try_put(2), Err(QueueError::Full)));
    /// # Ok::<(), QueueError>(())
    /// ```
    ///
    /// # Errors
    /// - [`QueueError::Full`] when there is no room at the moment
    /// - [`QueueError::TimedOut`] when there is room, but a thread in the middle of a put keeps others out for a second
    /// - the others of [`put`](Self::put)
    #[doc(alias = "put_nowait")]
    pub fn try_put(&self, value: impl Borrow<T>) -> Result<(), QueueError> {
        self.put_by(value.borrow(), &WaitPolicy::Never)
    }

    /// As [`put`](Self::put), but waits for room no longer than `timeout`: Python's `put(value, timeout=seconds)`.
    ///
    /// # Errors
    /// - [`QueueError::TimedOut`] when the time was up before there was room (where Python raises `Full`)
    /// - the others of [`put`](Self::put)
    pub fn put_timeout(&self, value: impl Borrow<T>, timeout: Duration) -> Result<(), QueueError> {
        self.put_by(value.borrow(), &WaitPolicy::of(timeout))
    }

    fn put_by(&self, value: &T, policy: &WaitPolicy) -> Result<(), QueueError> {
        // The value is serialised before the producers' mutex is taken: nobody waits for the user's code, and no panic leaves it
        // owned.
        self.core.put(Outgoing::of(value, self.core.inline())?, policy)
    }
}

impl<T: DeserializeOwned> Queue<T> {
    /// Takes the next value out, and waits as long as there is none.
    ///
    /// One step takes the message out: a consumer that dies before it leaves the value to the next one, and the value dies with
    /// a consumer that dies after it. The value is deserialised then, while other consumers go on.
    ///
    /// # Errors
    /// - [`QueueError::Closed`] when it was closed and nothing is in it any more
    /// - [`QueueError::Decode`] when the value cannot be deserialised, or did not arrive whole for want of descriptors; it
    ///   is lost, and the next one can be taken
    /// - [`QueueError::Aborted`] when the wait is ended because another worker has failed
    /// - [`QueueError::Gone`] in a forked worker that has the queue from the fork alone
    /// - [`QueueError::Corrupt`] when a process has written to the queue's memory
    /// - [`QueueError::System`] when the system refuses
    pub fn get(&self) -> Result<T, QueueError> {
        // Decoded after the consumers' mutex is freed, so that a type that takes long to build holds up no other consumer.
        self.core.get(&WaitPolicy::Forever)?.decode()
    }

    /// As [`get`](Self::get), but does not wait for a value: Python's `get_nowait`.
    ///
    /// # Errors
    /// - [`QueueError::Empty`] when there is no value at the moment, and the queue is not closed
    /// - [`QueueError::TimedOut`] when there is a value, but a thread in the middle of a get keeps others out for a second
    /// - the others of [`get`](Self::get)
    #[doc(alias = "get_nowait")]
    pub fn try_get(&self) -> Result<T, QueueError> {
        self.core.get(&WaitPolicy::Never)?.decode()
    }

    /// As [`get`](Self::get), but waits no longer than `timeout`: Python's `get(timeout=seconds)`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use phalanx::{Queue, QueueError};
    ///
    /// let queue = Queue::<u8>::bounded(8)?;
    /// let waited = queue.get_timeout(Duration::from_millis(5));
    /// assert!(matches!(waited, Err(QueueError::TimedOut { .. })));
    /// # Ok::<(), QueueError>(())
    /// ```
    ///
    /// # Errors
    /// - [`QueueError::TimedOut`] when the time was up before there was a value (where Python raises `Empty`)
    /// - the others of [`get`](Self::get)
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, QueueError> {
        self.core.get(&WaitPolicy::of(timeout))?.decode()
    }

    /// The values that are there now, taken out one by one by [`try_get`](Self::try_get).
    ///
    /// It ends when nothing is in the queue, without waiting. Any other error is an item, which
    /// `while let Ok(value) = queue.try_get()` would take for the end.
    ///
    /// ```
    /// let queue = phalanx::Queue::bounded(8)?;
    /// (0..5_u8).try_for_each(|value| queue.put(value))?;
    /// let values = queue.try_iter().collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(values, [0, 1, 2, 3, 4]);
    /// # Ok::<(), phalanx::QueueError>(())
    /// ```
    pub fn try_iter(&self) -> impl Iterator<Item = Result<T, QueueError>> {
        std::iter::from_fn(|| until_empty(self.try_get()))
    }

    /// The values as they come, taken out one by one by [`get`](Self::get), until the queue was closed and is empty.
    ///
    /// An error other than [`QueueError::Closed`] is an item. [`QueueError::Aborted`] comes each time: the loop must end itself.
    pub fn iter(&self) -> QueueIter<T> {
        QueueIter { queue: self.clone() }
    }
}

/// Ends an iterator at a queue that was closed and is empty.
pub(super) fn until_closed<T>(got: Result<T, QueueError>) -> Option<Result<T, QueueError>> {
    match got {
        // Any other error is an item: a loop that took an abort for the end would go on as if all values had come.
        Err(QueueError::Closed) => None,
        other => Some(other),
    }
}

/// Ends an iterator where nothing is in the queue.
pub(super) fn until_empty<T>(got: Result<T, QueueError>) -> Option<Result<T, QueueError>> {
    match got {
        Err(QueueError::Empty) => None,
        other => until_closed(other),
    }
}

/// The values of a [`Queue`] as they come; ends when the queue was closed and is empty.
///
/// [`Queue::iter`] makes it, and so does a `for` loop over a queue. Each step waits as [`Queue::get`] does, with no timeout.
#[derive(Clone, Debug)]
pub struct QueueIter<T> {
    queue: Queue<T>,
}

impl<T: DeserializeOwned> Iterator for QueueIter<T> {
    type Item = Result<T, QueueError>;

    fn next(&mut self) -> Option<Self::Item> {
        until_closed(self.queue.get())
    }
}

impl<T: DeserializeOwned> IntoIterator for Queue<T> {
    type Item = Result<T, QueueError>;
    type IntoIter = QueueIter<T>;

    fn into_iter(self) -> QueueIter<T> {
        QueueIter { queue: self }
    }
}

impl<T: DeserializeOwned> IntoIterator for &Queue<T> {
    type Item = Result<T, QueueError>;
    type IntoIter = QueueIter<T>;

    fn into_iter(self) -> QueueIter<T> {
        self.iter()
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { core: self.core.clone(), values: PhantomData }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { core, values: _ } = self;
        f.debug_struct("Queue")
            .field("len", &core.len())
            .field("capacity", &core.most())
            .field("closed", &core.is_closed())
            .finish()
    }
}

impl<T> Serialize for Queue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.core.serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Queue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Core::deserialize(TypeTag::of::<T>(KIND), deserializer).map(Self::over)
    }
}
