//! `Condvar`: waiting until what a lock guards is as one wants it.

use std::fmt;
use std::time::Duration;

use bytemuck::Pod;
use serde::{Deserialize, Deserializer, Serialize};

use super::error::SyncError;
use super::event_count::EventCount;
use super::lock::LockGuard;
use super::record_with;
use super::wait_policy::{Interrupted, WaitPolicy};
use crate::error::MemoryError;
use crate::transfer::record::{Record, TypeTag};

/// Waits, without the lock, until another thread has changed what a [`Lock`](super::Lock) guards: Python's
/// `multiprocessing.Condition`.
///
/// A waiter may be woken spuriously, and has to look again: [`wait_while`](Self::wait_while) does. Clones, and what
/// arrives in another process, are the same condition. It is `Send` and `Sync`, and may be used with several locks: the
/// lock comes with each wait. Python's condition has one lock of its own, which its `notify` must hold.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::sync::{Condvar, Lock};
///
/// /// Each takes its turn.
/// fn work(rank: usize, (turn, changed): (Lock<u64>, Condvar)) -> anyhow::Result<()> {
///     let mut turn = changed.wait_while(turn.lock()?, |turn| *turn != rank as u64)?;
///     *turn += 1;
///     drop(turn);
///     changed.notify_all();
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let (turn, changed) = (Lock::new(0)?, Condvar::new()?);
/// phalanx::spawn(work, (turn.clone(), changed), 3)?;
/// assert_eq!(*turn.lock()?, 3);
/// # Ok(())
/// # }
/// ```
///
/// # When a waiter or a notifier dies
///
/// A waiter that is killed takes no notification with it, whenever that happens: pthread's condition variables hang
/// then. A notifier that is killed in the middle of [`notify_all`](Self::notify_all) has either not begun, or all
/// waiters are woken. A process that dies with the lock held poisons the lock, and the waiters get
/// [`SyncError::Poisoned`] when they take it again. They are not woken by that death: they sleep until a notification,
/// which may never come if the dead process was to send it.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct Condvar {
    // No list of waiters: whoever was on it could die. A waiter compares an epoch, which every notification
    // advances.
    shared: Record<EventCount>,
}

const KIND: &str = "Condvar";

impl Condvar {
    /// Makes a condition without waiters.
    ///
    /// # Errors
    /// [`MemoryError`] when there is no shared memory for it.
    pub fn new() -> Result<Self, MemoryError> {
        Ok(Self { shared: Record::new(TypeTag::of::<()>(KIND), 0)? })
    }

    /// Gives the lock up, waits for a notification, and takes the lock again.
    ///
    /// The wait begins before the lock is free, so no notification is lost that comes from a later holder. It may end
    /// without one: look at the value in a loop.
    ///
    /// ```
    /// use phalanx::sync::{Condvar, Lock};
    ///
    /// let (ready, changed) = (Lock::new(0_u8)?, Condvar::new()?);
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| {
    ///         *ready.lock().unwrap() = 1;
    ///         changed.notify_all();
    ///     });
    ///     let mut guard = ready.lock()?;
    ///     while *guard == 0 {
    ///         guard = changed.wait(guard)?; // it may return for nothing
    ///     }
    ///     assert_eq!(*guard, 1);
    ///     Ok::<(), phalanx::sync::SyncError>(())
    /// })?;
    /// # Ok::<(), phalanx::sync::SyncError>(())
    /// ```
    ///
    /// # Errors
    /// - [`SyncError::Aborted`] when the wait is ended because another worker has failed
    /// - as [`Lock::lock`](super::Lock::lock), when it takes the lock again: [`SyncError::Poisoned`] if a holder died
    ///   meanwhile
    ///
    /// With an error the lock is not held any more.
    pub fn wait<'a, T: Pod>(&self, guard: LockGuard<'a, T>) -> Result<LockGuard<'a, T>, SyncError> {
        self.wait_for(guard, &WaitPolicy::Forever).map(|(guard, _)| guard)
    }

    /// Waits as long as `condition` returns `true`. Python's `wait_for`, in the opposite sense.
    ///
    /// `condition` runs with the lock held, at first before any wait and then after each notification. The lock is held
    /// when the call returns `Ok`. A panic of `condition` poisons the lock.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_while<'a, T: Pod>(
        &self,
        guard: LockGuard<'a, T>,
        condition: impl FnMut(&mut T) -> bool,
    ) -> Result<LockGuard<'a, T>, SyncError> {
        self.wait_while_for(guard, condition, &WaitPolicy::Forever).map(|(guard, _)| guard)
    }

    /// As [`wait`](Self::wait), but waits for a notification no longer than `timeout`, by CLOCK_MONOTONIC. To take the
    /// lock again it then waits as long as that takes.
    ///
    /// The `bool` is `true` when the time was up without a notification: the opposite of what Python's `wait` returns.
    ///
    /// ```
    /// use std::time::Duration;
    /// use phalanx::sync::{Condvar, Lock};
    ///
    /// let (lock, changed) = (Lock::new(0_u8)?, Condvar::new()?);
    /// let (guard, is_over) = changed.wait_timeout(lock.lock()?, Duration::from_millis(5))?;
    /// assert!(is_over && *guard == 0);
    /// # Ok::<(), phalanx::sync::SyncError>(())
    /// ```
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout<'a, T: Pod>(
        &self,
        guard: LockGuard<'a, T>,
        timeout: Duration,
    ) -> Result<(LockGuard<'a, T>, bool), SyncError> {
        self.wait_for(guard, &WaitPolicy::of(timeout))
    }

    /// As [`wait_while`](Self::wait_while), but waits for notifications no longer than `timeout` in all, by
    /// CLOCK_MONOTONIC. To take the lock again it then waits as long as that takes.
    ///
    /// The `bool` is `true` when the time was up and `condition` still returned `true`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use phalanx::sync::{Condvar, Lock};
    ///
    /// let (turn, changed) = (Lock::new(3_u8)?, Condvar::new()?);
    /// let time = Duration::from_millis(5);
    /// let (turn, is_over) = changed.wait_timeout_while(turn.lock()?, time, |turn| *turn != 3)?;
    /// assert!(!is_over && *turn == 3, "there was nothing to wait for");
    /// # Ok::<(), phalanx::sync::SyncError>(())
    /// ```
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout_while<'a, T: Pod>(
        &self,
        guard: LockGuard<'a, T>,
        timeout: Duration,
        condition: impl FnMut(&mut T) -> bool,
    ) -> Result<(LockGuard<'a, T>, bool), SyncError> {
        self.wait_while_for(guard, condition, &WaitPolicy::of(timeout))
    }

    /// Wakes the waiters, so that at least one of them goes on. Python's `notify()`.
    ///
    /// It wakes all, as [`notify_all`](Self::notify_all) does. If it woke only one, and that one were killed in the
    /// instant it is woken, the notification would die with it and the others would wait for ever. A waiter that finds
    /// nothing to do waits again.
    pub fn notify_one(&self) {
        // One that is woken alone could be killed before it looks, and take the notification along. So all are
        // woken, and look.
        self.notify_all();
    }

    /// Wakes all waiters, and waits for none of them.
    ///
    /// The caller may hold the lock or not. A notification is not kept: it is lost when no thread waits. So change what
    /// the lock guards first, and let each waiter look at that.
    pub fn notify_all(&self) {
        // With the lock held or not: a waiter reads the epoch before it gives the lock up.
        self.shared.fields().notify_all();
    }

    fn wait_while_for<'a, T: Pod>(
        &self,
        mut guard: LockGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
        policy: &WaitPolicy,
    ) -> Result<(LockGuard<'a, T>, bool), SyncError> {
        // Asked with the lock held, so that nobody changes the value between the answer and the epoch that `wait_for`
        // reads.
        while condition(&mut guard) {
            let (again, is_over) = self.wait_for(guard, policy)?;
            guard = again;
            if is_over {
                // The condition may have changed while this thread waited for the lock again.
                let still = condition(&mut guard);
                return Ok((guard, still));
            }
        }
        Ok((guard, false))
    }

    fn wait_for<'a, T: Pod>(
        &self,
        guard: LockGuard<'a, T>,
        policy: &WaitPolicy,
    ) -> Result<(LockGuard<'a, T>, bool), SyncError> {
        let (lock, changed) = (guard.lock(), self.shared.fields());
        // While the lock is held: whoever changes what it guards notifies later, and so changes this.
        let seen = changed.epoch();
        // The waiter sleeps without the lock. Whoever takes it now, changes the value and notifies advances the epoch
        // from `seen`.
        drop(guard);
        let is_over = match changed.wait(seen, policy) {
            Ok(()) => false,
            // No error: the caller gets the lock back, and looks for itself whether the condition holds by now.
            Err(Interrupted::TimedOut(_)) => true,
            // Without the lock: to wait for it could take as long as its holder likes, and the worker is to end.
            Err(stop) => return Err(stop.into()),
        };
        // However long it takes: the guard is what the caller goes on with, in time or not.
        Ok((lock.lock()?, is_over))
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Condvar").field(&self.shared).finish()
    }
}

impl<'de> Deserialize<'de> for Condvar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { shared: record_with::receive(KIND, deserializer)? })
    }
}

#[cfg(test)]
mod tests {
    use super::super::lock::Lock;
    use super::*;

    #[test]
    fn waiting_ends_by_a_change_or_in_time_with_the_lock_held() {
        let (lock, changed) = (Lock::new(0_u64).unwrap(), Condvar::new().unwrap());
        let soon = Duration::from_millis(2);
        let (guard, is_over) = changed.wait_timeout(lock.lock().unwrap(), soon).unwrap();
        assert!(is_over && lock.is_locked());
        let (guard, is_over) = changed.wait_timeout_while(guard, soon, |value| *value == 0).unwrap();
        assert!(is_over && *guard == 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                *lock.lock().unwrap() = 1;
                changed.notify_one();
            });
            let guard = changed.wait_while(guard, |value| *value == 0).unwrap();
            assert_eq!(*guard, 1);
            let (guard, is_over) =
                changed.wait_timeout_while(guard, Duration::ZERO, |value| *value == 0).unwrap();
            assert!(!is_over && *guard == 1);
        });
    }

    #[test]
    fn what_was_said_before_the_sleep_is_heard() {
        let (lock, changed) = (Lock::new(0_u64).unwrap(), Condvar::new().unwrap());
        std::thread::scope(|scope| {
            for side in 0..2 {
                let (lock, changed) = (&lock, &changed);
                scope.spawn(move || {
                    for _ in 0..500 {
                        let mut turn =
                            changed.wait_while(lock.lock().unwrap(), |turn| *turn % 2 != side).unwrap();
                        *turn += 1;
                        drop(turn);
                        changed.notify_one();
                    }
                });
            }
        });
        assert_eq!(*lock.lock().unwrap(), 1000);
    }
}
