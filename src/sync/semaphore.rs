//! `Semaphore`: at most a number of holders at a time.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::error::SyncError;
use super::permits::Permits;
use super::robust_mutex::OfThread;
use super::wait_policy::WaitPolicy;
use crate::error::MemoryError;

/// A number of permits, which threads of any process take and give back: Python's `multiprocessing.Semaphore`.
///
/// A holder that dies, by SIGKILL too, gives its permit back. Clones, and what arrives in another process, are the same
/// semaphore. It is `Send` and `Sync`. Timeouts are by CLOCK_MONOTONIC.
///
/// As many permits can be held at a time as the semaphore has at first, but at least 64 and at most 1024. With more
/// than 124 holders the death of one may be noticed 50 ms late. One thread can hold 1000 permits, locks and the like.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::sync::{Semaphore, Value};
///
/// fn work(_rank: usize, (doors, inside): (Semaphore, Value<u32>)) -> anyhow::Result<()> {
///     let _permit = doors.acquire()?;
///     anyhow::ensure!(inside.fetch_add(1) < 2);
///     inside.fetch_update(|inside| Some(inside - 1)).expect("it is not refused");
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let doors = Semaphore::new(2)?;
/// phalanx::spawn(work, (doors.clone(), Value::new(0)?), 4)?;
/// assert_eq!(doors.value(), 2);
/// # Ok(())
/// # }
/// ```
///
/// # When a holder dies
///
/// The kernel frees the permits of a process that ends, whatever ends it, and wakes a waiter. No process is told: what the
/// holder did with its permit may be half done. Where that matters, use a [`Lock`](super::Lock). A permit that was
/// [forgotten](Permit::forget) is not freed by any death.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct Semaphore {
    permits: Permits,
}

/// A [`Semaphore`] that never has more permits than it had at first: Python's `multiprocessing.BoundedSemaphore`.
///
/// To give back more permits than were taken is an error. A [`Permit`] gives itself back, so that concerns only a
/// program that [`forget`](Permit::forget)s permits and [`release`](Self::release)s them elsewhere. What [`Semaphore`]
/// says of holders that die holds here too.
///
/// ```
/// use phalanx::sync::{BoundedSemaphore, SyncError};
///
/// let doors = BoundedSemaphore::new(2)?;
/// doors.acquire()?.forget();
/// assert_eq!(doors.value(), 1);
/// doors.release(1)?;
/// assert!(matches!(doors.release(1), Err(SyncError::TooMany { value: 2, limit: 2 })));
/// # Ok::<(), SyncError>(())
/// ```
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct BoundedSemaphore {
    permits: Permits,
}

/// What both kinds have.
macro_rules! semaphore {
    ($name:ident, $most:expr, $release_fails:literal) => {
        impl $name {
            /// Makes a semaphore with that number of permits, which may be 0.
            ///
            /// # Errors
            /// [`MemoryError`] when there is no shared memory for it.
            pub fn new(permits: u32) -> Result<Self, MemoryError> {
                let most: fn(u32) -> u32 = $most;
                // The name is in the record's tag: a plain semaphore that arrives where a bounded one is expected is
                // refused.
                Ok(Self { permits: Permits::new(stringify!($name), permits, most(permits))? })
            }

            /// Takes a permit, and waits as long as none is free. Python's `acquire()`.
            ///
            /// One thread waits for a permit at a time, and the others wait behind it. A thread may take several
            /// permits, and no deadlock is found: a thread that waits for a permit while it holds all of them waits for
            /// ever.
            ///
            /// # Errors
            /// - [`SyncError::Full`] when there are permits, but too many are held to note one more holder
            /// - [`SyncError::Aborted`] when the wait is ended because another worker has failed
            /// - [`SyncError::System`] when this thread holds 1000 locks, permits and the like already, or the system
            ///   refuses the wait
            pub fn acquire(&self) -> Result<Permit<'_>, SyncError> {
                self.take(&WaitPolicy::Forever)
            }

            /// Takes a permit if one is free. Python's `acquire(block=False)`.
            ///
            /// # Errors
            /// - [`SyncError::WouldBlock`] when none is free
            /// - [`SyncError::TimedOut`] when one seems to be free, but another thread has been in the middle of taking
            ///   it for a second, as in a process that is stopped (SIGSTOP) there
            /// - the others of [`acquire`](Self::acquire)
            pub fn try_acquire(&self) -> Result<Permit<'_>, SyncError> {
                self.take(&WaitPolicy::Never)
            }

            /// Takes a permit, and waits for it no longer than `timeout`. Python's `acquire(timeout=seconds)`.
            ///
            /// # Errors
            /// - [`SyncError::TimedOut`] when none was free in that time; it names the processes that hold permits
            /// - the others of [`acquire`](Self::acquire)
            pub fn acquire_timeout(&self, timeout: Duration) -> Result<Permit<'_>, SyncError> {
                self.take(&WaitPolicy::of(timeout))
            }

            /// Adds permits that no thread holds. A [`Permit`] gives itself back: this is for more of them, and for those
            /// that were [forgotten](Permit::forget).
            ///
            /// # Errors
            #[doc = $release_fails]
            pub fn release(&self, permits: u32) -> Result<(), SyncError> {
                self.permits.add(permits)
            }

            /// How many permits are free at this moment. Python's `get_value()`.
            ///
            /// The answer may be out of date when it arrives: use `try_acquire` to take what is free.
            #[must_use]
            pub fn value(&self) -> u32 {
                self.permits.free()
            }

            fn take(&self, policy: &WaitPolicy) -> Result<Permit<'_>, SyncError> {
                // The slot's number, not a reference: the permit borrows the semaphore, which keeps the memory mapped.
                // From here on the kernel gives the permit back if this thread dies, also before the caller has heard
                // of it: the thread owns a slot, and the slot's word is on its robust list.
                let place = self.permits.take(policy)?;
                Ok(Permit { permits: &self.permits, place, of_thread: PhantomData })
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let Self { permits } = self;
                f.debug_struct(stringify!($name)).field("at", permits).field("value", &self.value()).finish()
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(Self { permits: Permits::receive(stringify!($name), deserializer)? })
            }
        }
    };
}

semaphore!(
    Semaphore,
    // As many as the total in shared memory can count. It must not wrap around: it would then say
    // fewer than are held.
    |_| u32::MAX,
    "[`SyncError::TooMany`] when there would be more than a `u32` can count."
);
semaphore!(
    BoundedSemaphore,
    // Held permits are part of the total, so the total is at its first value again when all that were forgotten have
    // been released. Whatever goes beyond that was never taken.
    |permits| permits,
    "[`SyncError::TooMany`] when there would be more than there were at first."
);

/// Holds a permit of a [`Semaphore`] or a [`BoundedSemaphore`].
///
/// ```
/// use std::time::Duration;
/// use phalanx::sync::{Semaphore, SyncError};
///
/// let doors = Semaphore::new(1)?;
/// let permit = doors.acquire()?;
/// assert!(matches!(doors.try_acquire(), Err(SyncError::WouldBlock)));
/// let Err(SyncError::TimedOut { awaited, .. }) = doors.acquire_timeout(Duration::from_millis(5)) else {
///     panic!("the permit is taken")
/// };
/// assert_eq!(awaited.pids(), [std::process::id()]); // the holder's process
/// drop(permit);
/// drop(doors.try_acquire()?);
/// # Ok::<(), SyncError>(())
/// ```
///
/// Its drop gives the permit back and wakes a waiter. It belongs to the thread that took it: it is `Sync`, but not
/// `Send`. If it is leaked, the permit comes back when that thread ends. In a child that the holder forks, its copy
/// gives nothing back.
#[must_use = "dropping it gives the permit back"]
#[derive(Debug)]
pub struct Permit<'a> {
    permits: &'a Permits,
    place: usize,
    // On another thread the drop would not find the slot's word on the list of that thread, and would free nothing.
    of_thread: OfThread,
}

impl Permit<'_> {
    /// Keeps the permit taken for good, also when this thread ends, until some process
    /// [releases](Semaphore::release) it.
    ///
    /// That is how one process takes a permit and another one gives it back, as with Python's semaphores.
    ///
    /// ```
    /// let doors = phalanx::sync::Semaphore::new(2)?;
    /// doors.acquire()?.forget();
    /// assert_eq!(doors.value(), 1);
    /// doors.release(1)?; // by any thread of any process
    /// assert_eq!(doors.value(), 2);
    /// # Ok::<(), phalanx::sync::SyncError>(())
    /// ```
    pub fn forget(self) {
        // The drop that follows frees the slot; the total is one less, so no permit becomes free by that. A death
        // between the two steps ends the same way: the kernel frees the slot, and the total stays one less.
        self.permits.remove(self.place);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        // A fork of the holder has a copy of this, and does not own the slot: nothing happens there.
        self.permits.give_back(self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_counted() {
        let doors = Semaphore::new(2).unwrap();
        let one = doors.acquire().unwrap();
        let two = doors.try_acquire().unwrap();
        assert_eq!(doors.value(), 0);
        assert!(matches!(doors.try_acquire(), Err(SyncError::WouldBlock)));
        let timeout = Duration::from_millis(2);
        assert!(matches!(doors.acquire_timeout(timeout), Err(SyncError::TimedOut { .. })));
        drop(one);
        assert_eq!(doors.value(), 1);
        two.forget();
        assert_eq!(doors.value(), 1);
        doors.release(3).unwrap();
        assert_eq!(doors.value(), 4);
        let error = doors.release(u32::MAX - 3).unwrap_err();
        assert!(matches!(error, SyncError::TooMany { value: 4, limit: u32::MAX }), "{error}");
    }

    #[test]
    fn bounded_semaphore_refuses_what_was_not_taken() {
        let doors = BoundedSemaphore::new(1).unwrap();
        let permit = doors.acquire().unwrap();
        assert!(matches!(doors.release(1), Err(SyncError::TooMany { .. })), "it is held, not lost");
        permit.forget();
        doors.release(1).unwrap();
        assert!(matches!(doors.release(1), Err(SyncError::TooMany { value: 1, limit: 1 })));
    }

    #[test]
    fn more_holders_than_places_are_told() {
        let doors = Semaphore::new(u32::MAX).unwrap();
        let work = || -> Vec<_> { std::iter::repeat_with(|| doors.acquire()).take(900).collect() };
        let first = work();
        let full =
            |taken: &Result<Permit<'_>, _>| matches!(taken, Err(SyncError::Full { capacity: 1024, .. }));
        let refused = || work().iter().filter(|taken| full(taken)).count();
        let refused = std::thread::scope(|scope| scope.spawn(refused).join().unwrap());
        assert!(first.iter().all(Result::is_ok));
        assert_eq!(refused, 900 - 124);
        drop(first);
        assert_eq!(doors.value(), u32::MAX);
    }

    #[test]
    fn one_that_waits_gets_what_another_gives_back_or_adds() {
        let doors = Semaphore::new(1).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..50 {
                let permit = doors.acquire().unwrap();
                let others = [(); 2].map(|()| scope.spawn(|| doors.acquire().map(Permit::forget).unwrap()));
                drop(permit);
                doors.release(2).unwrap();
                others.into_iter().for_each(|other| other.join().unwrap());
            }
        });
        assert_eq!(doors.value(), 1);
    }
}
