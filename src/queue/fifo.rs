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

/// A queue of values, from many producers to many consumers in any processes.
///
/// A value whose [`put`](Self::put) has returned is in the queue, also if its producer is killed in the next instant: there is no
/// thread that would still have to send it. What a process that is killed can take along is a value whose `put` has not
/// returned, and one that it has taken out. Nobody else waits for it, and nothing is damaged or comes twice. Values of one
/// producer come in its order.
///
/// Values are any serde type; tensors, descriptors, queues and locks in them are shared, not copied. A large value goes in a
/// memfd. A queue is given to workers in their arguments, or through another queue or pipe; clones are the same queue.
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
/// | it is killed | what becomes of the value |
/// |---|---|
/// | before its `put` has returned | it is in the queue as a whole, or not at all |
/// | after that | it is in the queue |
/// | before its `get` has returned | it is still in the queue, or gone with the process |
/// | while it waits for room or for a value | nothing: the kernel lets the next one wait in its place |
///
/// No death closes a queue. A launcher that takes the values of workers waits for their context as well
/// ([`wait`](crate::wait())), and a worker lets [`Options::abort_on_failure`](crate::Options::abort_on_failure) end its
/// wait. A [`JoinableQueue`](crate::JoinableQueue) tells how many tasks died with their takers.
///
/// # Threads and forks
///
/// A queue is `Send` and `Sync`: threads may share one handle, or have a clone each. In a worker that has it only by
/// its fork every call that puts, takes or closes is [`QueueError::Gone`]: give it to the worker in its arguments.
pub struct Queue<T> {
    // Clones share the handle: three descriptors for each process, not for each clone.
    core: Arc<Core>,
    // A queue has no `T` in it, only bytes: with a function's type it is `Send` and `Sync` whatever `T` is, and invariant in it.
    values: PhantomData<fn(T) -> T>,
}

const KIND: &str = "Queue";

impl<T> Queue<T> {
    /// A queue for at most `capacity` values, or at most as many as there is room for in its memory: 64 bytes for each, 64 KiB at
    /// the least and 4 MiB at the most. Of values with tensors or other things that travel beside them, and of those that are
    /// too large for that memory, some 270 can be in it at a time (what a socket holds: net.core.wmem_default).
    ///
    /// ```
    /// use phalanx::{Queue, QueueError};
    ///
    /// let queue = Queue::<u64>::bounded(100)?;
    /// assert_eq!((queue.capacity(), queue.len()), (100, 0));
    /// assert!(matches!(Queue::<u64>::bounded(0), Err(QueueError::Bound { capacity: 0 })));
    /// # Ok::<(), QueueError>(())
    /// ```
    ///
    /// # Errors
    /// [`QueueError::Memory`] and [`QueueError::System`] when there is no memory for it or no descriptor (it needs three);
    /// [`QueueError::Bound`] when `capacity` is 0 or more than 2^28.
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

    /// How many values are in it.
    #[must_use]
    #[doc(alias = "qsize")]
    pub fn len(&self) -> usize {
        self.core.len() as usize
    }

    /// The most that can be.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.core.most() as usize
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.core.len() == 0
    }

    /// Whether there are as many values in it as there can be, or its memory has no room for a small one more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.core.is_full()
    }

    /// Closes it, in all processes: nothing can be put into it any more. What is in it can be taken out, and then
    /// [`get`](Self::get) says [`Closed`](QueueError::Closed), at which iterators end.
    ///
    /// Those who wait in [`put`](Self::put) or [`get`](Self::get) are woken. A closed queue cannot be opened again.
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
    /// [`QueueError::System`] when the system refuses to let others know.
    pub fn close(&self) -> Result<(), QueueError> {
        self.core.close()
    }

    /// Whether it was closed. There may still be values in it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.core.is_closed()
    }

    pub(super) fn core(&self) -> &Core {
        &self.core
    }
}

impl<T: Serialize> Queue<T> {
    /// Puts a value in, for whose room it waits. The value is given, or lent: shards and connections in it are gone from here.
    ///
    /// ```
    /// let queue = phalanx::Queue::bounded(8)?;
    /// let text = "lent".to_owned();
    /// queue.put(&text)?;
    /// queue.put("given".to_owned())?;
    /// assert_eq!((queue.get()?, queue.get()?), (text, "given".to_owned()));
    /// # Ok::<(), phalanx::QueueError>(())
    /// ```
    ///
    /// # Errors
    /// - [`QueueError::Closed`]
    /// - [`QueueError::Encode`] when the value cannot be serialised
    /// - [`QueueError::Aborted`] when the wait is ended because another worker has failed
    /// - [`QueueError::System`] when the system refuses, as for want of memory or descriptors
    /// - [`QueueError::Corrupt`] when somebody has written to the queue's memory
    pub fn put(&self, value: impl Borrow<T>) -> Result<(), QueueError> {
        self.put_by(value.borrow(), &WaitPolicy::Forever)
    }

    /// As [`put`](Self::put), but does not wait for room.
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
    /// As [`put`](Self::put), and [`QueueError::Full`]; [`QueueError::TimedOut`] when another process has been in the middle of
    /// putting something for a second, as one that is stopped there.
    #[doc(alias = "put_nowait")]
    pub fn try_put(&self, value: impl Borrow<T>) -> Result<(), QueueError> {
        self.put_by(value.borrow(), &WaitPolicy::Never)
    }

    /// As [`put`](Self::put), but waits for room no longer than `timeout`.
    ///
    /// The time is that of CLOCK_MONOTONIC, and includes waiting for other producers. If it is up, nothing was put.
    ///
    /// # Errors
    /// As [`put`](Self::put), and [`QueueError::TimedOut`].
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
    /// Takes the next value out, for which it waits.
    ///
    /// ```
    /// let queue = phalanx::Queue::bounded(8)?;
    /// let waited = std::thread::scope(|scope| {
    ///     let consumer = scope.spawn(|| queue.get());
    ///     queue.put(5_u32)?;
    ///     consumer.join().expect("it does not panic")
    /// })?;
    /// assert_eq!(waited, 5);
    /// # Ok::<(), phalanx::QueueError>(())
    /// ```
    ///
    /// # Errors
    /// - [`QueueError::Closed`] when it was closed and nothing is in it any more
    /// - [`QueueError::Decode`] when the value cannot be deserialised, or did not arrive whole for want of descriptors; it
    ///   is lost, and the next one can be taken
    /// - [`QueueError::Aborted`] when the wait is ended because another worker has failed
    /// - [`QueueError::Corrupt`] when somebody has written to the queue's memory
    /// - [`QueueError::System`] when the system refuses
    pub fn get(&self) -> Result<T, QueueError> {
        // Decoded after the consumers' mutex is freed, so that a type that takes long to build holds up no other consumer.
        self.core.get(&WaitPolicy::Forever)?.decode()
    }

    /// As [`get`](Self::get), but does not wait for a value.
    ///
    /// # Errors
    /// As [`get`](Self::get), and [`QueueError::Empty`]; [`QueueError::TimedOut`] when another process has been in the middle of
    /// taking something for a second, as one that is stopped there.
    #[doc(alias = "get_nowait")]
    pub fn try_get(&self) -> Result<T, QueueError> {
        self.core.get(&WaitPolicy::Never)?.decode()
    }

    /// As [`get`](Self::get), but waits no longer than `timeout`.
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
    /// As [`get`](Self::get), and [`QueueError::TimedOut`].
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, QueueError> {
        self.core.get(&WaitPolicy::of(timeout))?.decode()
    }

    /// The values that are there now: ends when nothing is in it, without waiting. An error in between is an item, which
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

    /// The values as they come, until the queue was closed and is empty.
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

/// The values of a [`Queue`] as they come; ends when it was closed and is empty.
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
