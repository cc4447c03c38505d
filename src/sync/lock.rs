//! `Lock`: a value that one thread at a time can reach.

#![expect(unsafe_code, reason = "a guard is a reference to the value in shared memory")]

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytemuck::Pod;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::awaited::Awaited;
use super::error::SyncError;
use super::record_with::RecordWith;
use super::robust_mutex::{self, Acquired, OfThread};
use super::wait_policy::{Interrupted, WaitPolicy};
use crate::error::MemoryError;
use crate::sys::atomic_record::atomic_record;
use crate::sys::robust::RobustWord;

atomic_record! {
    struct LockFields {
        mutex: RobustWord,
        /// The process that left the value in disorder; 0: none.
        poisoned_by: AtomicU32,
    }
}

/// A value in shared memory that one thread of one process at a time can reach: Python's `multiprocessing.Lock`, with
/// what it guards.
///
/// A holder that dies, by SIGKILL too, frees it, and the next one learns of it: [`SyncError::Poisoned`]. A lock is
/// given to other processes in arguments, results, queues and pipes; clones are the same lock. It is `Send` and `Sync`.
/// Only the thread that took it can give it back, where Python lets any process release a lock. `Lock::new(())` is a
/// lock that guards no value of its own.
///
/// The value is plain data ([`bytemuck::Pod`]: numbers, arrays, and structs of them that derive it), since a process
/// that dies in the middle of a change leaves any bytes.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::sync::Lock;
///
/// fn count(_rank: usize, total: Lock<u64>) -> anyhow::Result<()> {
///     for _ in 0..1000 {
///         *total.lock()? += 1;
///     }
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let total = Lock::new(0)?;
/// phalanx::spawn(count, total.clone(), 4)?;
/// assert_eq!(*total.lock()?, 4000);
/// # Ok(())
/// # }
/// ```
///
/// # When the holder dies
///
/// When the process of a holder ends, whether by SIGKILL, by a fatal signal or by `exit` in another thread, or when it
/// calls exec, the kernel frees the lock and wakes a waiter at once. The value is then as the holder has left it, in
/// the middle of a change perhaps. So the next call gets [`SyncError::Poisoned`] with the holder's process, and so does
/// every later call in any process, until [`recover`](Self::recover) has given a caller the lock to put the value
/// right. A holder that panics poisons it in the same way.
///
/// A holder that is only *stopped* (SIGSTOP) keeps the lock. [`lock_timeout`](Self::lock_timeout) ends in time all the
/// same and names its process.
pub struct Lock<T: Pod> {
    shared: RecordWith<LockFields, T>,
}

impl<T: Pod> Lock<T> {
    /// Makes a lock that is free, with a copy of `value` in shared memory.
    ///
    /// # Errors
    /// [`MemoryError`] when there is no shared memory for it.
    pub fn new(value: T) -> Result<Self, MemoryError> {
        Ok(Self { shared: RecordWith::new(KIND, value)? })
    }

    /// Takes the lock, and waits as long as another thread holds it. Python's `acquire()`.
    ///
    /// The guard derefs to the value, and its drop gives the lock back. The order in which waiters get the lock is not
    /// defined.
    ///
    /// ```
    /// use phalanx::sync::{Lock, SyncError};
    ///
    /// let lock = Lock::new(1_u64)?;
    /// let mut value = lock.lock()?;
    /// *value += 1;
    /// assert!(matches!(lock.lock(), Err(SyncError::Deadlock)), "this thread holds it");
    /// drop(value);
    /// assert_eq!(*lock.lock()?, 2);
    /// # Ok::<(), SyncError>(())
    /// ```
    ///
    /// # Errors
    /// - [`SyncError::Poisoned`] when a holder died or panicked, and [`recover`](Self::recover) was not called since
    /// - [`SyncError::Deadlock`] when this thread holds it
    /// - [`SyncError::Aborted`] when the wait is ended because another worker has failed
    /// - [`SyncError::System`] when this thread holds 1000 locks, permits and the like already, or the system refuses
    ///   the wait
    pub fn lock(&self) -> Result<LockGuard<'_, T>, SyncError> {
        self.take(&WaitPolicy::Forever)
    }

    /// Takes the lock if it is free. Python's `acquire(block=False)`.
    ///
    /// ```
    /// use phalanx::sync::{Lock, SyncError};
    ///
    /// let lock = Lock::new(0_u8)?;
    /// let _guard = lock.lock()?;
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| assert!(matches!(lock.try_lock(), Err(SyncError::WouldBlock))));
    /// });
    /// # Ok::<(), SyncError>(())
    /// ```
    ///
    /// # Errors
    /// - [`SyncError::WouldBlock`] when another thread holds it
    /// - the others of [`lock`](Self::lock); [`SyncError::Deadlock`] too, when this thread holds it
    pub fn try_lock(&self) -> Result<LockGuard<'_, T>, SyncError> {
        self.take(&WaitPolicy::Never)
    }

    /// Takes the lock, and waits for it no longer than `timeout`, by CLOCK_MONOTONIC. Python's
    /// `acquire(timeout=seconds)`.
    ///
    /// A holder that dies meanwhile ends the wait with [`SyncError::Poisoned`], unless it had only just taken the lock
    /// or was about to give it back: then nothing is in disorder, and this call has the lock.
    ///
    /// ```
    /// use std::time::Duration;
    /// use phalanx::sync::{Lock, SyncError};
    ///
    /// let lock = Lock::new(0_u8)?;
    /// let _guard = lock.lock()?;
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| {
    ///         let Err(SyncError::TimedOut { awaited, .. }) = lock.lock_timeout(Duration::from_millis(5)) else {
    ///             panic!("it is held")
    ///         };
    ///         assert_eq!(awaited.pids(), [std::process::id()]); // the holder's process
    ///     });
    /// });
    /// # Ok::<(), SyncError>(())
    /// ```
    ///
    /// # Errors
    /// - [`SyncError::TimedOut`] when another thread held it all the while; it names the process of that thread
    /// - the others of [`lock`](Self::lock)
    pub fn lock_timeout(&self, timeout: Duration) -> Result<LockGuard<'_, T>, SyncError> {
        self.take(&WaitPolicy::of(timeout))
    }

    /// Takes the lock though it is poisoned, and clears the poison: for a caller that can put the value right.
    ///
    /// With the guard comes the process that died or panicked, `None` if the lock was not poisoned. If the caller dies
    /// or panics before it has dropped the guard, the lock is poisoned anew, by the caller's process.
    ///
    /// ```
    /// use phalanx::sync::{Lock, SyncError};
    ///
    /// let lock = Lock::new([1_u32, 1])?; // both are to be equal
    /// let panicked = std::thread::scope(|scope| scope.spawn(|| {
    ///     let mut pair = lock.lock().unwrap();
    ///     pair[0] = 2;
    ///     panic!("in the middle of the change");
    /// }).join());
    /// assert!(panicked.is_err());
    /// assert!(matches!(lock.lock(), Err(SyncError::Poisoned { .. })));
    ///
    /// let (mut pair, dead) = lock.recover()?;
    /// assert_eq!((*pair, dead), ([2, 1], Some(std::process::id())));
    /// *pair = [2, 2];
    /// drop(pair);
    /// assert_eq!(*lock.lock()?, [2, 2]);
    /// # Ok::<(), SyncError>(())
    /// ```
    ///
    /// # Errors
    /// - [`SyncError::Deadlock`] when this thread holds it
    /// - [`SyncError::Aborted`] when the wait is ended because another worker has failed
    /// - [`SyncError::System`] when this thread holds 1000 locks, permits and the like already, or the system refuses
    ///   the wait
    pub fn recover(&self) -> Result<(LockGuard<'_, T>, Option<u32>), SyncError> {
        self.recover_for(&WaitPolicy::Forever)
    }

    /// As [`recover`](Self::recover), if the lock is free.
    ///
    /// # Errors
    /// - [`SyncError::WouldBlock`] when another thread holds it
    /// - the others of [`recover`](Self::recover)
    pub fn try_recover(&self) -> Result<(LockGuard<'_, T>, Option<u32>), SyncError> {
        self.recover_for(&WaitPolicy::Never)
    }

    /// As [`recover`](Self::recover), but waits for the lock no longer than `timeout`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use phalanx::sync::Lock;
    ///
    /// let lock = Lock::new(7_u32)?;
    /// let (mut value, dead) = lock.recover_timeout(Duration::from_secs(1))?;
    /// if dead.is_some() {
    ///     *value = 0;
    /// }
    /// # Ok::<(), phalanx::sync::SyncError>(())
    /// ```
    ///
    /// # Errors
    /// - [`SyncError::TimedOut`] when another thread held it all the while
    /// - the others of [`recover`](Self::recover)
    pub fn recover_timeout(&self, timeout: Duration) -> Result<(LockGuard<'_, T>, Option<u32>), SyncError> {
        self.recover_for(&WaitPolicy::of(timeout))
    }

    /// The process that died or panicked while it held this, unless it was recovered since.
    ///
    /// The call waits for nothing and clears nothing, so this can be asked while another thread holds the lock. A death
    /// is noted by the next call that takes the lock, so this may be `None` until then.
    #[must_use]
    pub fn poisoned(&self) -> Option<u32> {
        // Relaxed: a thread that owns the mutex sees what earlier owners stored, by the Acquire with which it took the
        // word. To any other thread this is a snapshot, from which nothing follows for the value.
        Some(self.fields().poisoned_by.load(Relaxed)).filter(|&pid| pid != 0)
    }

    /// Whether a thread of any process holds it at this moment. Python's `locked()`.
    ///
    /// The answer may be out of date when it arrives: it is for a log or a test. Use [`try_lock`](Self::try_lock) to
    /// take what is free.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        robust_mutex::is_locked(&self.fields().mutex.word)
    }

    #[inline]
    fn fields(&self) -> &LockFields {
        self.shared.fields()
    }

    #[inline]
    fn take(&self, policy: &WaitPolicy) -> Result<LockGuard<'_, T>, SyncError> {
        let guard = self.enter(policy)?;
        match self.poisoned() {
            None => Ok(guard),
            // This arm drops the guard, so the lock is free for `recover`. The poison stays in the record: the lock was
            // given back in order, and the mutex alone would tell the next owner nothing.
            Some(pid) => Err(SyncError::poisoned(pid)),
        }
    }

    fn recover_for(&self, policy: &WaitPolicy) -> Result<(LockGuard<'_, T>, Option<u32>), SyncError> {
        // Cleared when the lock is held: the caller puts the value right before anybody else sees it. If it dies first,
        // that poisons it anew: a death before the store leaves the old poison, and one after it is an EOWNERDEAD for
        // the next owner.
        let guard = self.enter(policy)?;
        let poison = self.poisoned();
        self.fields().poisoned_by.store(0, Relaxed);
        Ok((guard, poison))
    }

    /// Takes it; [`poisoned`](Self::poisoned) then says which process left it in disorder.
    #[inline]
    fn enter(&self, policy: &WaitPolicy) -> Result<LockGuard<'_, T>, SyncError> {
        let LockFields { mutex, poisoned_by } = self.fields();
        match robust_mutex::lock(mutex, || self.shared.map_pin(), policy) {
            Ok(Acquired::Clean) => {}
            // Into the record, at once: to take the word has cleared FUTEX_OWNER_DIED, so nothing else tells of that death
            // any more. If this thread dies before the store, it dies as the owner, and the next one blames its process.
            Ok(Acquired::OwnerDied { pid }) => poisoned_by.store(pid, Relaxed),
            Err(stop) => return Err(not_entered(mutex, stop)),
        }
        // The guard exists before the poison is looked at, and frees the lock whatever comes of it.
        let panicking = std::thread::panicking();
        Ok(LockGuard { lock: self, panicking, of_thread: PhantomData })
    }
}

/// Why a lock could not be taken. It names the holder: a lock that is free costs no text.
#[cold]
fn not_entered(mutex: &RobustWord, stop: Interrupted) -> SyncError {
    stop.awaiting(|| Awaited::holders("the lock is", [robust_mutex::owner_pid(mutex)]))
}

const KIND: &str = "Lock";

impl<T: Pod> Clone for Lock<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<T: Pod> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shared } = self;
        f.debug_struct("Lock").field("at", shared).field("locked", &self.is_locked()).finish_non_exhaustive()
    }
}

impl<T: Pod> Serialize for Lock<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.shared.serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for Lock<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        RecordWith::deserialize(KIND, deserializer).map(|shared| Self { shared })
    }
}

/// Holds a [`Lock`], and derefs to its value. Its drop gives the lock back and wakes a waiter.
///
/// A guard that is dropped by a panic leaves the lock poisoned; one that was taken while the thread was unwinding
/// already does not.
///
/// It belongs to the thread that took it: it is `Sync`, but not `Send`. A guard that is leaked
/// ([`mem::forget`](std::mem::forget)) keeps the lock taken as long as the process lives, even when the thread has
/// ended.
///
/// In a child that the holder forks, its copy gives nothing back when it is dropped.
#[must_use = "dropping it gives the lock back"]
pub struct LockGuard<'a, T: Pod> {
    lock: &'a Lock<T>,
    /// Whether the thread was unwinding already when it took it.
    panicking: bool,
    of_thread: OfThread,
}

impl<'a, T: Pod> LockGuard<'a, T> {
    pub(super) fn lock(&self) -> &'a Lock<T> {
        // For as long as the lock lives, not the guard: a condition variable drops the guard and takes the lock again.
        self.lock
    }
}

impl<T: Pod> Deref for LockGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this thread holds the lock, so nobody writes to the value as long as the guard lives; any bytes are a
        // T.
        unsafe { &*self.lock.shared.value() }
    }
}

impl<T: Pod> DerefMut for LockGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this thread holds the lock, and nobody else has its guard, so nobody else reaches the value.
        unsafe { &mut *self.lock.shared.value() }
    }
}

impl<T: Pod> Drop for LockGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        let LockFields { mutex, poisoned_by } = self.lock.fields();
        // A lock that was taken while the thread was unwinding already is not in the middle of that panic. In a fork of
        // the holder the lock is the parent's, and a panic of the child says nothing of the value.
        if std::thread::panicking() && !self.panicking && robust_mutex::is_locked_here(mutex) {
            // Before the unlock, whose Release publishes it: after it the next owner could read the value and find no
            // poison. A death between the two is an EOWNERDEAD, and poisons as well.
            poisoned_by.store(robust_mutex::owner_pid(mutex), Relaxed);
        }
        robust_mutex::unlock(mutex);
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for LockGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
