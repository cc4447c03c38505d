//! `Once`: something that one process does for all.

use std::fmt;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::awaited::Awaited;
use super::error::SyncError;
use super::record_with;
use super::robust_mutex::{self, Locked};
use super::wait_policy::{Interrupted, WaitPolicy};
use crate::error::MemoryError;
use crate::sys::atomic_record::atomic_record;
use crate::sys::robust::{self, RobustWord};
use crate::transfer::record::{Record, TypeTag};

atomic_record! {
    struct OnceFields {
        /// The thread that runs the function owns it.
        mutex: RobustWord,
        /// The process that began and did not end; 0: none.
        poisoned_by: AtomicU32,
        /// The process that runs.
        running: AtomicU32,
        done: AtomicU32,
    }
}

/// Something that one thread of one process does once, while the others wait for it: [`std::sync::Once`] for processes.
///
/// A thread that finds it done sees what the function has written to shared memory. If the process that does it dies or
/// panics, all later calls are [`SyncError::Poisoned`] until [`call_once_force`](Self::call_once_force) has made it
/// good. Clones, and what arrives in another process, are the same `Once`. It is `Send` and `Sync`. Python has no
/// counterpart.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::sync::{Once, Value};
///
/// fn work(_rank: usize, (once, made): (Once, Value<u32>)) -> anyhow::Result<u32> {
///     once.call_once(|| made.set(made.get() + 1))?;
///     Ok(made.get())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let (once, made) = (Once::new()?, Value::new(0)?);
/// assert_eq!(phalanx::spawn(work, (once.clone(), made), 3)?, [1, 1, 1]);
/// assert!(once.is_completed());
/// # Ok(())
/// # }
/// ```
///
/// # When the process that does it dies
///
/// The kernel wakes a waiter. The function may have run up to any point, so [`call_once`](Self::call_once) is
/// [`SyncError::Poisoned`] in all processes, and does not try again by itself.
/// [`call_once_force`](Self::call_once_force) does.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct Once {
    shared: Record<OnceFields>,
}

const KIND: &str = "Once";

impl Once {
    /// Makes one that is not done yet.
    ///
    /// # Errors
    /// [`MemoryError`] when there is no shared memory for it.
    pub fn new() -> Result<Self, MemoryError> {
        Ok(Self { shared: Record::new(TypeTag::of::<()>(KIND), 0)? })
    }

    /// Runs `f` if it is not done yet; waits as long as another thread is doing it.
    ///
    /// When the call returns `Ok`, it has been done, by this thread or another one.
    ///
    /// ```
    /// use phalanx::sync::Once;
    ///
    /// let (once, mut times) = (Once::new()?, 0);
    /// once.call_once(|| times += 1)?;
    /// once.call_once(|| times += 1)?;
    /// assert_eq!(times, 1);
    /// # Ok::<(), phalanx::sync::SyncError>(())
    /// ```
    ///
    /// # Errors
    /// - [`SyncError::Poisoned`] when a process died or panicked in the middle of it
    /// - [`SyncError::Deadlock`] when `f` of this thread calls it again
    /// - [`SyncError::Aborted`] when the wait is ended because another worker has failed
    /// - [`SyncError::System`] when this thread holds 1000 locks, permits and the like already, or the system refuses
    ///   the wait
    ///
    /// # Panics
    /// When `f` panics, which leaves it poisoned.
    pub fn call_once(&self, f: impl FnOnce()) -> Result<(), SyncError> {
        self.call(f, &WaitPolicy::Forever)
    }

    /// As [`call_once`](Self::call_once), but waits no longer than `timeout`, by CLOCK_MONOTONIC, for another thread
    /// that is doing it.
    ///
    /// The time is that of the wait: `f` itself may run longer.
    ///
    /// ```
    /// use std::time::Duration;
    /// use phalanx::sync::{Once, SyncError};
    ///
    /// let once = Once::new()?;
    /// once.call_once(|| {
    ///     let other = std::thread::scope(|scope| {
    ///         scope.spawn(|| once.call_once_timeout(Duration::from_millis(5), || ())).join()
    ///     });
    ///     assert!(matches!(other, Ok(Err(SyncError::TimedOut { .. }))), "this thread is doing it");
    /// })?;
    /// once.call_once_timeout(Duration::ZERO, || unreachable!("it has been done"))?;
    /// # Ok::<(), SyncError>(())
    /// ```
    ///
    /// # Errors
    /// - [`SyncError::TimedOut`] when the other thread had not done it in that time; it names the process of that
    ///   thread
    /// - the others of [`call_once`](Self::call_once)
    ///
    /// # Panics
    /// As [`call_once`](Self::call_once).
    pub fn call_once_timeout(&self, timeout: Duration, f: impl FnOnce()) -> Result<(), SyncError> {
        self.call(f, &WaitPolicy::of(timeout))
    }

    /// As [`call_once`](Self::call_once), but runs `f` also when a process died or panicked in the middle of it.
    ///
    /// `f` gets that process, or `None` if no process had begun, and is to put right what was left. If it succeeds, nothing
    /// is poisoned any more.
    ///
    /// ```
    /// use phalanx::sync::{Once, SyncError};
    ///
    /// let once = Once::new()?;
    /// let panicked = std::thread::scope(|scope| {
    ///     scope.spawn(|| once.call_once(|| panic!("half way"))).join()
    /// });
    /// assert!(panicked.is_err());
    /// assert!(matches!(once.call_once(|| ()), Err(SyncError::Poisoned { .. })));
    ///
    /// once.call_once_force(|dead| assert_eq!(dead, Some(std::process::id())))?;
    /// assert!(once.is_completed() && once.poisoned().is_none());
    /// # Ok::<(), SyncError>(())
    /// ```
    ///
    /// # Errors
    /// - [`SyncError::Deadlock`] when `f` of this thread calls it again
    /// - [`SyncError::Aborted`] when the wait is ended because another worker has failed
    /// - [`SyncError::System`] when this thread holds 1000 locks, permits and the like already, or the system refuses
    ///   the wait
    ///
    /// # Panics
    /// As [`call_once`](Self::call_once).
    pub fn call_once_force(&self, f: impl FnOnce(Option<u32>)) -> Result<(), SyncError> {
        if self.is_completed() {
            return Ok(());
        }
        // Inside, only one at a time is asked to make good what another has begun. Poison is looked at inside too: the
        // runner may have died while this thread waited for it.
        let _inside = self.enter(&WaitPolicy::Forever)?;
        // Looked at once more under the mutex: another may have run it while this thread waited.
        if !self.is_completed() {
            self.run(|| f(self.poisoned()))?;
        }
        Ok(())
    }

    /// Whether it has been done.
    ///
    /// A thread that finds it done sees what the function has written to shared memory.
    #[must_use]
    #[inline]
    pub fn is_completed(&self) -> bool {
        // Acquire, with the Release in `run`: a thread that finds it done sees what the function has done.
        self.fields().done.load(Acquire) != 0
    }

    /// The process that died or panicked in the middle of it, unless it has been made good. A death is noted by the
    /// next call that runs or waits.
    #[must_use]
    pub fn poisoned(&self) -> Option<u32> {
        // Relaxed: the owner of the mutex sees what earlier owners stored, by the Acquire with which it took the word.
        // For any other thread it is a snapshot.
        Some(self.fields().poisoned_by.load(Relaxed)).filter(|&pid| pid != 0)
    }

    #[inline]
    fn fields(&self) -> &OnceFields {
        self.shared.fields()
    }

    #[inline]
    fn call(&self, f: impl FnOnce(), policy: &WaitPolicy) -> Result<(), SyncError> {
        // Without the mutex: this is the way of all calls but the first ones.
        if self.is_completed() {
            return Ok(());
        }
        let runner = || Awaited::holders("the Once is", [robust_mutex::owner_pid(&self.fields().mutex)]);
        let _inside = self.enter(policy).map_err(|stop| stop.awaiting(runner))?;
        // Again: another thread may have done it while this one waited.
        match (self.is_completed(), self.poisoned()) {
            // Done counts more than poison: somebody has forced it since, or the runner died after it had stored
            // `done` and before it cleared `running`, which `enter` then takes for poison.
            (true, _) => Ok(()),
            (false, Some(pid)) => Err(SyncError::poisoned(pid)),
            (false, None) => Ok(self.run(f)?),
        }
    }

    #[cold]
    fn enter(&self, policy: &WaitPolicy) -> Result<Locked<'_>, Interrupted> {
        let fields = self.fields();
        let (inside, _) = Locked::lock(&fields.mutex, || self.shared.map_pin(), policy)?;
        // This field is asked, not EOWNERDEAD: an owner that died when it had only looked whether it was done has left
        // 0 here, and has done no harm.
        let running = fields.running.load(Relaxed);
        // One that died after `done` has left nothing half done.
        if running != 0 && !self.is_completed() {
            // Before `running` is cleared: if this thread is killed between the two, the next one inside finds it still set.
            // The other way round it would find neither, and run the function a second time.
            fields.poisoned_by.store(running, Relaxed);
        }
        fields.running.store(0, Relaxed);
        Ok(inside)
    }

    /// Runs it, inside the mutex.
    fn run(&self, f: impl FnOnce()) -> Result<(), Interrupted> {
        let fields = self.fields();
        // Before the function begins. A death from here on leaves it set, and the next one inside knows that it was
        // begun (`enter`). Relaxed: that one has taken the word after the kernel took this owner out, which is a full
        // barrier.
        fields.running.store(robust::me()?.pid, Relaxed);
        // A guard, since the function may unwind: the mutex is freed by the caller's, after this one is dropped.
        let running = Running(fields);
        f();
        // A process that was forked in there is not the one that runs it.
        if robust_mutex::is_locked_here(&fields.mutex) {
            // Before `done`, whose Release publishes it: a process that finds it done finds no poison either. A death
            // between the two leaves `running`, which poisons it anew.
            fields.poisoned_by.store(0, Relaxed);
            // Release, with the Acquire of `is_completed`: most callers look there alone, and never take the mutex.
            fields.done.store(1, Release);
        }
        drop(running);
        Ok(())
    }
}

/// Sees to what the function leaves, be it by a panic.
struct Running<'a>(&'a OnceFields);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Self(fields) = self;
        // A process that the function forked unwinds through here too. Its parent still runs the function, and must not
        // be called dead.
        if !robust_mutex::is_locked_here(&fields.mutex) {
            return;
        }
        // The function has unwound. Poisoned before `running` is cleared: a death in between says the same.
        if fields.done.load(Relaxed) == 0 {
            fields.poisoned_by.store(fields.running.load(Relaxed), Relaxed);
        }
        fields.running.store(0, Relaxed);
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once").field("at", &self.shared).field("done", &self.is_completed()).finish()
    }
}

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { shared: record_with::receive(KIND, deserializer)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_poisons_until_it_is_made_good() {
        let (once, own) = (Once::new().unwrap(), std::process::id());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            once.call_once(|| panic!("inside")).unwrap();
        }));
        assert!(panicked.is_err());
        assert!(matches!(once.call_once(|| ()), Err(SyncError::Poisoned { pid }) if pid == own));
        let mut blamed = None;
        once.call_once_force(|pid| blamed = pid).unwrap();
        assert_eq!((blamed, once.poisoned(), once.is_completed()), (Some(own), None, true));
        once.call_once(|| unreachable!("it is done")).unwrap();
        once.call_once_force(|_| unreachable!("it is done")).unwrap();
    }

    #[test]
    fn death_while_it_runs_poisons_and_death_after_it_is_done_does_not() {
        for (done, poison) in [(0, Some(7)), (1, None)] {
            let once = Once::new().unwrap();
            // As a process has left it that was killed inside.
            once.fields().running.store(7, Relaxed);
            once.fields().done.store(done, Relaxed);
            drop(once.enter(&WaitPolicy::Forever).unwrap());
            assert_eq!((once.poisoned(), once.fields().running.load(Relaxed)), (poison, 0));
        }
    }

    #[test]
    fn who_does_it_does_not_wait_for_itself_and_others_only_so_long() {
        let once = Once::new().unwrap();
        let outer = once.call_once(|| {
            assert!(matches!(once.call_once(|| ()), Err(SyncError::Deadlock)));
            let wait = || once.call_once_timeout(Duration::from_millis(5), || ());
            std::thread::scope(|scope| {
                let other = scope.spawn(wait).join().unwrap();
                assert!(matches!(other, Err(SyncError::TimedOut { .. })));
            });
        });
        assert!(outer.is_ok() && once.is_completed());
    }
}
