//! `RwLock`: a value that many read at a time, or one writes.

#![expect(unsafe_code, reason = "a guard is a reference to the value in shared memory")]

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use bytemuck::Pod;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::SyncError;
use super::readers::{self, ReaderSlot, RwFields};
use super::record_with::RecordWith;
use super::robust_mutex::{Locked, OfThread};
use super::wait_policy::WaitPolicy;
use crate::error::MemoryError;
use crate::sys::robust::{self, Me};

/// A value in shared memory that many threads of any process can read at a time, or one can write.
///
/// While a writer waits, new readers wait behind it; a thread that reads already can always read once more. At most 120
/// threads read at a time, and further ones wait until one of these has ended. Clones, and what arrives in another
/// process, are the same lock. It is `Send` and `Sync`. The value is plain data ([`bytemuck::Pod`]), as in a
/// [`Lock`](super::Lock). Timeouts are by CLOCK_MONOTONIC. Python has no counterpart.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::sync::RwLock;
///
/// fn work(rank: usize, pair: RwLock<[u64; 2]>) -> anyhow::Result<()> {
///     for _ in 0..100 {
///         if rank == 0 {
///             pair.write()?.iter_mut().for_each(|half| *half += 1);
///         } else {
///             let [one, other] = *pair.read()?;
///             anyhow::ensure!(one == other);
///         }
///     }
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let pair = RwLock::new([0, 0])?;
/// phalanx::spawn(work, pair.clone(), 3)?;
/// assert_eq!(*pair.read()?, [100, 100]);
/// # Ok(())
/// # }
/// ```
///
/// # When a reader or the writer dies
///
/// A reader only looks, so when its process ends the kernel frees its place, and a writer that waited for it goes on. A
/// writer leaves the value as it is at that moment: from then on [`read`](Self::read) and [`write`](Self::write) are
/// [`SyncError::Poisoned`] in all processes, until [`recover`](Self::recover). A writer that panics does the same. A
/// writer that still waited for readers has changed nothing, and its death poisons nothing.
pub struct RwLock<T: Pod> {
    table: RecordWith<RwFields, T>,
}

const KIND: &str = "RwLock";

impl<T: Pod> RwLock<T> {
    /// Makes a lock that is free, with a copy of `value` in shared memory.
    ///
    /// # Errors
    /// [`MemoryError`] when there is no shared memory for it.
    pub fn new(value: T) -> Result<Self, MemoryError> {
        Ok(Self { table: RecordWith::new(KIND, value)? })
    }

    /// Takes the lock to read, and waits as long as another thread writes or is waiting to write.
    ///
    /// A thread may have several guards to read at a time.
    ///
    /// ```
    /// use phalanx::sync::RwLock;
    ///
    /// let lock = RwLock::new(5_u64)?;
    /// let (one, other) = (lock.read()?, lock.read()?);
    /// assert_eq!(*one + *other, 10);
    /// # Ok::<(), phalanx::sync::SyncError>(())
    /// ```
    ///
    /// # Errors
    /// - [`SyncError::Poisoned`] when a writer died or panicked, and [`recover`](Self::recover) was not called since
    /// - [`SyncError::Deadlock`] when this thread holds the lock to write
    /// - [`SyncError::Full`] when this thread has 4 294 967 295 guards to read
    /// - [`SyncError::Aborted`] when the wait is ended because another worker has failed
    /// - [`SyncError::System`] when this thread holds 1000 locks, permits and the like already, or the system refuses
    ///   the wait
    pub fn read(&self) -> Result<RwLockReadGuard<'_, T>, SyncError> {
        self.enter_to_read(&WaitPolicy::Forever)
    }

    /// Takes the lock to read if no thread writes or waits to write.
    ///
    /// # Errors
    /// - [`SyncError::WouldBlock`] when another thread writes or is waiting to, or 120 threads read
    /// - [`SyncError::TimedOut`] when another reader has been in the middle of taking it for a second, as in a process
    ///   that is stopped (SIGSTOP) there
    /// - the others of [`read`](Self::read)
    pub fn try_read(&self) -> Result<RwLockReadGuard<'_, T>, SyncError> {
        self.enter_to_read(&WaitPolicy::Never)
    }

    /// As [`read`](Self::read), but waits for the lock no longer than `timeout`.
    ///
    /// # Errors
    /// - [`SyncError::TimedOut`] when the time was up before the lock was free; it names the process that had it
    /// - the others of [`read`](Self::read)
    pub fn read_timeout(&self, timeout: Duration) -> Result<RwLockReadGuard<'_, T>, SyncError> {
        self.enter_to_read(&WaitPolicy::of(timeout))
    }

    /// Takes the lock to write, and waits as long as other threads read or write.
    ///
    /// New readers wait from the moment at which this call begins to wait. A thread that reads must drop its guards
    /// first: two readers that both wanted to write would wait for each other.
    ///
    /// ```
    /// use phalanx::sync::{RwLock, SyncError};
    ///
    /// let lock = RwLock::new(5_u64)?;
    /// *lock.write()? += 1;
    /// let reader = lock.read()?;
    /// assert!(matches!(lock.write(), Err(SyncError::Deadlock)));
    /// assert_eq!(*reader, 6);
    /// # Ok::<(), SyncError>(())
    /// ```
    ///
    /// # Errors
    /// - [`SyncError::Poisoned`] when a writer died or panicked, and [`recover`](Self::recover) was not called since
    /// - [`SyncError::Deadlock`] when this thread holds the lock, to read or to write
    /// - [`SyncError::Aborted`] when the wait is ended because another worker has failed
    /// - [`SyncError::System`] when this thread holds 1000 locks, permits and the like already, or the system refuses
    ///   the wait
    pub fn write(&self) -> Result<RwLockWriteGuard<'_, T>, SyncError> {
        self.enter_to_write(&WaitPolicy::Forever)
    }

    /// Takes the lock to write if no other thread reads or writes.
    ///
    /// # Errors
    /// - [`SyncError::WouldBlock`] when another thread reads or writes
    /// - [`SyncError::TimedOut`] when a reader has been in the middle of taking it for a second, as in
    ///   [`try_read`](Self::try_read)
    /// - the others of [`write`](Self::write)
    pub fn try_write(&self) -> Result<RwLockWriteGuard<'_, T>, SyncError> {
        self.enter_to_write(&WaitPolicy::Never)
    }

    /// As [`write`](Self::write), but waits for the lock no longer than `timeout`.
    ///
    /// Readers that came before go on reading; new ones wait until this call has ended or its guard is dropped.
    ///
    /// # Errors
    /// - [`SyncError::TimedOut`] when the time was up before the lock was free; it names the processes that had it
    /// - the others of [`write`](Self::write)
    pub fn write_timeout(&self, timeout: Duration) -> Result<RwLockWriteGuard<'_, T>, SyncError> {
        self.enter_to_write(&WaitPolicy::of(timeout))
    }

    /// Takes the lock to write though it is poisoned, and clears the poison: for a caller that can put the value right.
    ///
    /// With the guard comes the process that died or panicked, `None` if the lock was not poisoned.
    ///
    /// ```
    /// use phalanx::sync::RwLock;
    ///
    /// let lock = RwLock::new(5_u64)?;
    /// let panicked = std::thread::scope(|scope| scope.spawn(|| {
    ///     let mut value = lock.write().unwrap();
    ///     *value = 0;
    ///     panic!("the value is not right yet");
    /// }).join());
    /// assert!(panicked.is_err() && lock.read().is_err());
    /// let (mut value, dead) = lock.recover()?;
    /// assert_eq!((*value, dead), (0, Some(std::process::id())));
    /// *value = 6;
    /// drop(value);
    /// assert_eq!(*lock.read()?, 6);
    /// # Ok::<(), phalanx::sync::SyncError>(())
    /// ```
    ///
    /// # Errors
    /// - [`SyncError::Deadlock`] when this thread reads or writes
    /// - [`SyncError::Aborted`] when the wait is ended because another worker has failed
    /// - [`SyncError::System`] when this thread holds 1000 locks, permits and the like already, or the system refuses
    ///   the wait
    pub fn recover(&self) -> Result<(RwLockWriteGuard<'_, T>, Option<u32>), SyncError> {
        self.recover_for(&WaitPolicy::Forever)
    }

    /// As [`recover`](Self::recover), if no other thread reads or writes.
    ///
    /// # Errors
    /// As [`try_write`](Self::try_write), but never [`SyncError::Poisoned`].
    pub fn try_recover(&self) -> Result<(RwLockWriteGuard<'_, T>, Option<u32>), SyncError> {
        self.recover_for(&WaitPolicy::Never)
    }

    /// As [`recover`](Self::recover), but waits for the lock no longer than `timeout`.
    ///
    /// # Errors
    /// - [`SyncError::TimedOut`] when the time was up before the lock was free
    /// - the others of [`recover`](Self::recover)
    pub fn recover_timeout(
        &self,
        timeout: Duration,
    ) -> Result<(RwLockWriteGuard<'_, T>, Option<u32>), SyncError> {
        self.recover_for(&WaitPolicy::of(timeout))
    }

    /// The process that died or panicked while it wrote, unless the value was recovered since.
    ///
    /// A death is noted by the next call that takes the lock, so this may be `None` until then.
    #[must_use]
    pub fn poisoned(&self) -> Option<u32> {
        self.fields().poisoned()
    }

    #[inline]
    fn fields(&self) -> &RwFields {
        self.table.fields()
    }

    fn enter_to_read(&self, policy: &WaitPolicy) -> Result<RwLockReadGuard<'_, T>, SyncError> {
        // The place, not the lock, is what the guard gives back: a thread may read by several guards of one place. A
        // guard that is forgotten leaves its word on the list that the kernel follows when the thread ends, so the pin
        // keeps the memory mapped after the handle is dropped.
        let place = self.fields().read(|| self.table.map_pin(), policy)?;
        Ok(RwLockReadGuard { lock: self, place, of_thread: PhantomData })
    }

    fn enter_to_write(&self, policy: &WaitPolicy) -> Result<RwLockWriteGuard<'_, T>, SyncError> {
        // The guard exists before the readers are gone, so that an error on the way, or a panic, lets new readers in
        // again. It gives no reference before this function returns it.
        let guard = self.begin_to_write(policy)?;
        // Before the wait for readers: they cannot change the answer, since only a writer poisons or recovers, and this
        // thread owns the writers' mutex.
        self.fields().check_order()?;
        self.fields().await_readers(guard.me, policy)?;
        Ok(guard)
    }

    fn recover_for(&self, policy: &WaitPolicy) -> Result<(RwLockWriteGuard<'_, T>, Option<u32>), SyncError> {
        // Readers are there only if the value is in order: a writer that poisoned it was alone, and `check_order` has
        // refused every reader since. But this may be called on a lock in order.
        let guard = self.begin_to_write(policy)?;
        self.fields().await_readers(guard.me, policy)?;
        // After `await_readers`, which has noted that this writer is alone: if it dies from here on, that poisons the
        // value anew. Cleared before that note, the poison would be lost with a writer that dies between the two, and
        // the next reader would take a half-written value for whole.
        let poison = self.poisoned();
        self.fields().clear_poison();
        Ok((guard, poison))
    }

    /// Comes in as a writer. No new reader does from now on.
    fn begin_to_write(&self, policy: &WaitPolicy) -> Result<RwLockWriteGuard<'_, T>, SyncError> {
        let me = robust::me()?;
        let inside = self.fields().begin_to_write(me, || self.table.map_pin(), policy)?;
        // Now, not only at the drop: a destructor that runs in a panic may take the lock, write and drop the guard in
        // order, and has left nothing in disorder then.
        let panicking = std::thread::panicking();
        Ok(RwLockWriteGuard { lock: self, inside, me, panicking, of_thread: PhantomData })
    }
}

impl<T: Pod> Clone for RwLock<T> {
    fn clone(&self) -> Self {
        Self { table: self.table.clone() }
    }
}

impl<T: Pod> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the value: to read it takes a place, for which a text would wait as long as a writer likes.
        let mut shown = f.debug_struct("RwLock");
        shown.field("at", &self.table).field("readers", &self.fields().count());
        shown.finish_non_exhaustive()
    }
}

impl<T: Pod> Serialize for RwLock<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.table.serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for RwLock<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        RecordWith::deserialize(KIND, deserializer).map(|table| Self { table })
    }
}

/// Holds an [`RwLock`] to read, and derefs to its value. A panic that drops it poisons nothing.
///
/// It belongs to the thread that took it: it is `Sync`, but not `Send`. A guard that is leaked keeps writers out as
/// long as the process lives.
#[must_use = "dropping it gives the lock back"]
pub struct RwLockReadGuard<'a, T: Pod> {
    lock: &'a RwLock<T>,
    place: &'a ReaderSlot,
    of_thread: OfThread,
}

impl<T: Pod> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this thread has a place among the readers, which every writer waits for, so nobody writes to the
        // value as long as the guard lives; any bytes are a T.
        unsafe { &*self.lock.table.value() }
    }
}

impl<T: Pod> Drop for RwLockReadGuard<'_, T> {
    fn drop(&mut self) {
        // A panic while one reads leaves the value as it is, so nothing is poisoned. In a fork of the reader the place
        // is the parent's, and this does nothing.
        readers::end_to_read(self.place);
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Holds an [`RwLock`] to write, and derefs to its value. A panic that drops it leaves the lock poisoned.
///
/// It belongs to the thread that took it: it is `Sync`, but not `Send`. A guard that is leaked keeps the lock taken as
/// long as the process lives.
#[must_use = "dropping it gives the lock back"]
pub struct RwLockWriteGuard<'a, T: Pod> {
    lock: &'a RwLock<T>,
    me: Me,
    /// Whether the thread was unwinding already when it took it.
    panicking: bool,
    of_thread: OfThread,
    /// Left last.
    #[expect(dead_code, reason = "it is there to be dropped")]
    inside: Locked<'a>,
}

impl<T: Pod> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this thread is inside the mutex and has waited for all readers, so nobody writes to the value as long
        // as the guard lives; any bytes are a T.
        unsafe { &*self.lock.table.value() }
    }
}

impl<T: Pod> DerefMut for RwLockWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and nobody else has its guard, so nobody else reaches the value.
        unsafe { &mut *self.lock.table.value() }
    }
}

impl<T: Pod> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        // `inside` is dropped after this, and frees the mutex: whoever takes it finds the field in order. Were the
        // mutex freed first, the next owner would find this writer in the field, and take it for one that died.
        self.lock.fields().end_to_write(std::thread::panicking() && !self.panicking);
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests;
