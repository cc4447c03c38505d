//! `RLock`: a lock that its holder can take again.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::awaited::Awaited;
use super::error::SyncError;
use super::record_with;
use super::robust_mutex::{self, Acquired, OfThread};
use super::wait_policy::{Interrupted, WaitPolicy};
use crate::error::MemoryError;
use crate::sys::atomic_record::atomic_record;
use crate::sys::robust::RobustWord;
use crate::transfer::record::{Record, TypeTag};

atomic_record! {
    struct RLockFields {
        mutex: RobustWord,
        /// The process that left in disorder what the lock guards; 0: none.
        poisoned_by: AtomicU32,
        /// How many times its holder has taken it.
        depth: AtomicU32,
    }
}

/// A lock that the thread which holds it can take again, and which is free when it has been given back as often:
/// Python's `multiprocessing.RLock`.
///
/// It guards no value of its own, since two guards in one thread would be two `&mut` of one value. Change a
/// [`Value`](super::Value), an [`Array`](super::Array) or a tensor under it. A holder that dies, by SIGKILL too, frees
/// it, and the next one learns of it, as with a [`Lock`](super::Lock). Clones, and what arrives in another process, are
/// the same lock; it is `Send` and `Sync`. Times are those of CLOCK_MONOTONIC.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::sync::{RLock, Value};
///
/// fn add(lock: &RLock, sum: &Value<u64>) -> anyhow::Result<()> {
///     let _guard = lock.lock()?;
///     sum.set(sum.get() + 1);
///     Ok(())
/// }
///
/// fn work(_rank: usize, (lock, sum): (RLock, Value<u64>)) -> anyhow::Result<()> {
///     let _guard = lock.lock()?; // nobody else comes between the two
///     add(&lock, &sum)?;
///     add(&lock, &sum)
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let (lock, sum) = (RLock::new()?, Value::new(0)?);
/// phalanx::spawn(work, (lock, sum.clone()), 3)?;
/// assert_eq!(sum.get(), 6);
/// # Ok(())
/// # }
/// ```
///
/// # When the holder dies
///
/// When the process of the holder ends, the lock is free, however often the holder had taken it. The next call gets
/// [`SyncError::Poisoned`], until some process calls [`recover`](Self::recover): what the lock guards may be half
/// changed. A holder that panics poisons it in the same way.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct RLock {
    shared: Record<RLockFields>,
}

const KIND: &str = "RLock";

impl RLock {
    /// Makes a lock that is free.
    ///
    /// # Errors
    /// [`MemoryError`] when there is no shared memory for it.
    pub fn new() -> Result<Self, MemoryError> {
        Ok(Self { shared: Record::new(TypeTag::of::<()>(KIND), 0)? })
    }

    /// Takes the lock once more, and waits as long as another thread holds it. Python's `acquire()`.
    ///
    /// A thread that holds it already never waits. The lock is free when all guards of the thread are dropped.
    ///
    /// # Errors
    /// - [`SyncError::Poisoned`] when a holder died or panicked, and [`recover`](Self::recover) was not called since
    /// - [`SyncError::Full`] when this thread has taken it 4 294 967 295 times
    /// - [`SyncError::Deadlock`] when this thread holds it by another mapping: a forked worker has one handle from the
    ///   fork and another, no clone of it, from its arguments
    /// - [`SyncError::Aborted`] when the wait is ended because another worker has failed
    /// - [`SyncError::System`] when this thread holds 1000 locks, permits and the like already, or the system refuses
    ///   the wait
    pub fn lock(&self) -> Result<RLockGuard<'_>, SyncError> {
        self.take(&WaitPolicy::Forever)
    }

    /// Takes the lock once more if no other thread holds it. Python's `acquire(block=False)`.
    ///
    /// ```
    /// use phalanx::sync::{RLock, SyncError};
    ///
    /// let lock = RLock::new()?;
    /// let _outer = lock.lock()?;
    /// let _inner = lock.try_lock()?; // the thread that holds it need not wait
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| assert!(matches!(lock.try_lock(), Err(SyncError::WouldBlock))));
    /// });
    /// # Ok::<(), SyncError>(())
    /// ```
    ///
    /// # Errors
    /// - [`SyncError::WouldBlock`] when another thread holds it
    /// - the others of [`lock`](Self::lock)
    pub fn try_lock(&self) -> Result<RLockGuard<'_>, SyncError> {
        self.take(&WaitPolicy::Never)
    }

    /// Takes the lock once more, and waits for it no longer than `timeout`. Python's `acquire(timeout=seconds)`.
    ///
    /// # Errors
    /// - [`SyncError::TimedOut`] when another thread held it all the while; it names the process of that thread
    /// - the others of [`lock`](Self::lock)
    pub fn lock_timeout(&self, timeout: Duration) -> Result<RLockGuard<'_>, SyncError> {
        self.take(&WaitPolicy::of(timeout))
    }

    /// Takes the lock though it is poisoned, and clears the poison: for a caller that can put right what it guards.
    ///
    /// With the guard comes the process that died or panicked, `None` if the lock was not poisoned.
    ///
    /// ```
    /// use phalanx::sync::{RLock, SyncError};
    ///
    /// let lock = RLock::new()?;
    /// let panicked = std::thread::scope(|scope| scope.spawn(|| {
    ///     let _guard = lock.lock().unwrap();
    ///     panic!("in the middle of a change");
    /// }).join());
    /// assert!(panicked.is_err() && lock.lock().is_err());
    /// let (_guard, dead) = lock.recover()?;
    /// assert_eq!(dead, Some(std::process::id()));
    /// # Ok::<(), SyncError>(())
    /// ```
    ///
    /// # Errors
    /// - [`SyncError::Full`] and [`SyncError::Deadlock`] as [`lock`](Self::lock)
    /// - [`SyncError::Aborted`] when the wait is ended because another worker has failed
    /// - [`SyncError::System`] when this thread holds 1000 locks, permits and the like already, or the system refuses
    ///   the wait
    pub fn recover(&self) -> Result<(RLockGuard<'_>, Option<u32>), SyncError> {
        self.recover_for(&WaitPolicy::Forever)
    }

    /// As [`recover`](Self::recover), if no other thread holds the lock.
    ///
    /// # Errors
    /// - [`SyncError::WouldBlock`] when another thread holds it
    /// - the others of [`recover`](Self::recover)
    pub fn try_recover(&self) -> Result<(RLockGuard<'_>, Option<u32>), SyncError> {
        self.recover_for(&WaitPolicy::Never)
    }

    /// As [`recover`](Self::recover), but waits for the lock no longer than `timeout`.
    ///
    /// # Errors
    /// - [`SyncError::TimedOut`] when another thread held it all the while
    /// - the others of [`recover`](Self::recover)
    pub fn recover_timeout(&self, timeout: Duration) -> Result<(RLockGuard<'_>, Option<u32>), SyncError> {
        self.recover_for(&WaitPolicy::of(timeout))
    }

    /// The process that died or panicked while it held this, unless it was recovered since.
    ///
    /// A death is noted by the next call that takes the lock, so this may be `None` until then.
    #[must_use]
    pub fn poisoned(&self) -> Option<u32> {
        // Relaxed: the owner of the mutex sees what earlier owners stored, by the Acquire with which it took the word.
        // For any other thread it is a snapshot.
        Some(self.fields().poisoned_by.load(Relaxed)).filter(|&pid| pid != 0)
    }

    /// Whether a thread of any process holds it at this moment. The answer may be out of date when it arrives.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        robust_mutex::is_locked(&self.mutex().word)
    }

    /// How many times this thread holds it: 0 when it does not, whoever else does.
    ///
    /// ```
    /// let lock = phalanx::sync::RLock::new()?;
    /// let _one = lock.lock()?;
    /// let two = lock.lock()?;
    /// assert_eq!(lock.depth(), 2);
    /// drop(two);
    /// assert_eq!(lock.depth(), 1);
    /// # Ok::<(), phalanx::sync::SyncError>(())
    /// ```
    #[must_use]
    pub fn depth(&self) -> u32 {
        // The list of this thread first: in memory there may be another holder's count, or that of a dead one. Relaxed:
        // only the owner of the mutex writes it, and only the owner reads it.
        if robust_mutex::is_locked_here(self.mutex()) { self.fields().depth.load(Relaxed) } else { 0 }
    }

    fn fields(&self) -> &RLockFields {
        self.shared.fields()
    }

    fn mutex(&self) -> &RobustWord {
        &self.fields().mutex
    }

    fn take(&self, policy: &WaitPolicy) -> Result<RLockGuard<'_>, SyncError> {
        let guard = self.enter(policy)?;
        // With the lock held: the poison that counts is what the last holder left, not what was there before the wait.
        match self.poisoned() {
            // This drops the guard, so that `recover` finds the lock free. The record stays poisoned.
            Some(pid) => Err(SyncError::poisoned(pid)),
            None => Ok(guard),
        }
    }

    fn recover_for(&self, policy: &WaitPolicy) -> Result<(RLockGuard<'_>, Option<u32>), SyncError> {
        let guard = self.enter(policy)?;
        // Inside the mutex, as is every write to it. A death before the store leaves the poison for the next holder. A
        // death after it poisons anew, since this thread dies as the owner.
        let poison = self.poisoned();
        self.fields().poisoned_by.store(0, Relaxed);
        Ok((guard, poison))
    }

    fn enter(&self, policy: &WaitPolicy) -> Result<RLockGuard<'_>, SyncError> {
        // What a dead owner has counted is not read: a thread that does not own the mutex begins at 0.
        let depth = self.depth();
        if depth == 0 {
            // A thread that owns the word through another mapping comes here as well, since its list has that address.
            // `robust_mutex::lock` knows it by its id and nonce (Deadlock), so it does not wait for itself.
            let holder = || Awaited::holders("the lock is", [robust_mutex::owner_pid(self.mutex())]);
            self.come_in(policy).map_err(|stop| stop.awaiting(holder))?;
        }
        let full =
            SyncError::Full { what: "the times that a thread holds a lock", capacity: u32::MAX as usize };
        // 1 for the first time, whatever the last owner has left. If the count is full the lock stays held, by the
        // guards that there are.
        self.fields().depth.store(depth.checked_add(1).ok_or(full)?, Relaxed);
        Ok(RLockGuard { lock: self, panicking: std::thread::panicking(), of_thread: PhantomData })
    }

    fn come_in(&self, policy: &WaitPolicy) -> Result<(), Interrupted> {
        // Noted at once: to take the word has cleared FUTEX_OWNER_DIED, so nothing else tells of that death any more.
        // If this thread dies before the store, it dies as the owner, and the next one blames its process.
        if let Acquired::OwnerDied { pid } =
            robust_mutex::lock(self.mutex(), || self.shared.map_pin(), policy)?
        {
            self.fields().poisoned_by.store(pid, Relaxed);
        }
        Ok(())
    }
}

impl fmt::Debug for RLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RLock").field("at", &self.shared).field("locked", &self.is_locked()).finish()
    }
}

impl<'de> Deserialize<'de> for RLock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { shared: record_with::receive(KIND, deserializer)? })
    }
}

/// Holds an [`RLock`] once. Its drop gives the lock back once.
///
/// A guard that is dropped by a panic leaves the lock poisoned. Guards of one thread may be dropped in any order: the
/// lock is free when the last one is gone.
///
/// It belongs to the thread that took it: it is `Sync`, but not `Send`. A guard that is leaked keeps the lock taken as
/// long as the process lives. In a child that the holder forks, its copy gives nothing back.
#[must_use = "dropping it gives the lock back"]
#[derive(Debug)]
pub struct RLockGuard<'a> {
    lock: &'a RLock,
    /// Whether the thread was unwinding already when it took it.
    panicking: bool,
    of_thread: OfThread,
}

impl Drop for RLockGuard<'_> {
    fn drop(&mut self) {
        let RLockFields { mutex, poisoned_by, depth } = self.lock.fields();
        // A fork of the holder has a copy of the guard, which means nothing.
        if !robust_mutex::is_locked_here(mutex) {
            return;
        }
        // One that was taken while the thread was unwinding already, by a destructor, says nothing of what it guards.
        if std::thread::panicking() && !self.panicking {
            // An inner guard poisons at once, though outer ones still hold the lock: what it guards is half changed for
            // this thread too. The unlock by the last guard publishes it to other threads (Release).
            poisoned_by.store(robust_mutex::owner_pid(mutex), Relaxed);
        }
        // Not below 0: any process may have written there, and the lock must become free all the same.
        match depth.load(Relaxed).saturating_sub(1) {
            // The depth stays 1 in memory: the next holder stores its own before anybody reads it.
            0 => robust_mutex::unlock(mutex),
            less => depth.store(less, Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_is_free_when_it_was_given_back_as_often_as_it_was_taken() {
        let lock = RLock::new().unwrap();
        let one = lock.lock().unwrap();
        let two = lock.try_lock().unwrap();
        assert_eq!(lock.depth(), 2);
        let elsewhere = |lock: &RLock| {
            std::thread::scope(|scope| {
                scope.spawn(|| (lock.depth(), lock.try_lock().map(drop))).join().unwrap()
            })
        };
        drop(one);
        assert!(matches!(elsewhere(&lock), (0, Err(SyncError::WouldBlock))));
        drop(two);
        assert!(matches!(elsewhere(&lock), (0, Ok(()))) && !lock.is_locked());
    }

    #[test]
    fn panic_poisons_until_somebody_recovers() {
        let lock = RLock::new().unwrap();
        let outer = lock.lock().unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _inner = lock.lock().unwrap();
            panic!("inside");
        }));
        assert!(panicked.is_err());
        assert!(matches!(lock.lock(), Err(SyncError::Poisoned { pid }) if pid == std::process::id()));
        assert_eq!(lock.depth(), 1);
        let (_guard, poison) = lock.recover().unwrap();
        assert_eq!((poison, lock.poisoned(), lock.depth()), (Some(std::process::id()), None, 2));
        drop(outer);
    }
}
