//! `Event`: a flag that can be waited for.

use std::fmt;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::awaited::Awaited;
use super::error::SyncError;
use super::event_count::EventCount;
use super::record_with;
use super::wait_policy::WaitPolicy;
use crate::error::MemoryError;
use crate::transfer::record::{Record, TypeTag};

/// A flag that one process sets and others wait for: Python's `multiprocessing.Event`.
///
/// To set it lets all waiters go on, even if it is cleared at once, and all that come until it is cleared. A thread
/// that finds it set sees what the setter had written before [`set`](Self::set). Clones, and what arrives in another
/// process, are the same event. It is `Send` and `Sync`.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::sync::Event;
///
/// fn run(rank: usize, start: Event) -> anyhow::Result<()> {
///     if rank == 0 {
///         start.set();
///     }
///     Ok(start.wait()?)
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let start = Event::new()?;
/// phalanx::spawn(run, start.clone(), 3)?;
/// assert!(start.is_set());
/// # Ok(())
/// # }
/// ```
///
/// # When a process dies
///
/// An event has no owner, so nothing is freed or poisoned: the flag stays as it is. A waiter that is killed keeps no
/// other one waiting, and `set` waits for no waiter. If the setter is killed in the middle of `set`, the event either
/// is not set, or is set and the kernel wakes the waiters. If no process is left to set it, the waiters wait on: use
/// [`wait_timeout`](Self::wait_timeout) or [`Options::abort_on_failure`](crate::Options::abort_on_failure).
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct Event {
    /// It is set when the count is odd.
    shared: Record<EventCount>,
}

const KIND: &str = "Event";

impl Event {
    /// Makes an event that is not set.
    ///
    /// # Errors
    /// [`MemoryError`] when there is no shared memory for it.
    pub fn new() -> Result<Self, MemoryError> {
        Ok(Self { shared: Record::new(TypeTag::of::<()>(KIND), 0)? })
    }

    /// Sets it, and wakes all waiters. It waits for nothing, and setting it again changes nothing.
    ///
    /// ```
    /// let event = phalanx::sync::Event::new()?;
    /// let other = event.clone();
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| event.set());
    ///     other.wait()
    /// })?;
    /// # Ok::<(), phalanx::sync::SyncError>(())
    /// ```
    pub fn set(&self) {
        // Also when it is set already: waiters shall see what was done before this call too.
        // Release, with the Acquire of `epoch`.
        self.changed().notify_if(|count| !is_odd(count.fetch_or(1, Release)));
    }

    /// Clears it: from now on [`wait`](Self::wait) waits for the next [`set`](Self::set).
    ///
    /// A thread that waited when the event was set goes on all the same, where one of Python's may get `False`.
    ///
    /// ```
    /// let event = phalanx::sync::Event::new()?;
    /// event.set();
    /// event.clear();
    /// assert!(!event.is_set());
    /// # Ok::<(), phalanx::sync::SyncError>(())
    /// ```
    pub fn clear(&self) {
        // Nobody waits for that, so nobody is woken (`false`).
        self.changed().notify_if(|count| {
            // Up, not back: a fetch_and would restore the even count that was there before the set, and a waiter that
            // had read it would sleep through the set and the clear. The largest u32 is odd, so that the count wraps
            // around to an even one.
            let _ =
                count.fetch_update(Relaxed, Relaxed, |count| is_odd(count).then(|| count.wrapping_add(1)));
            false
        });
    }

    /// Whether it is set.
    ///
    /// A thread that finds it set sees what the setter had written before [`set`](Self::set).
    #[must_use]
    #[inline]
    pub fn is_set(&self) -> bool {
        // By the epoch itself: the flag and what waiters sleep on are one word, so none of them can see one without the
        // other.
        is_odd(self.changed().epoch())
    }

    /// Waits until it is set; returns at once if it is.
    ///
    /// # Errors
    /// - [`SyncError::Aborted`] when the wait is ended because another worker has failed
    /// - [`SyncError::System`] when the system refuses the wait
    pub fn wait(&self) -> Result<(), SyncError> {
        self.wait_for(&WaitPolicy::Forever)
    }

    /// Waits until it is set, but no longer than `timeout`, by CLOCK_MONOTONIC.
    ///
    /// Python's `wait(timeout)` returns `False` when the time is up; this is an error, so that `?` does not pass over
    /// it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use phalanx::sync::{Event, SyncError};
    ///
    /// let event = Event::new()?;
    /// let waited = event.wait_timeout(Duration::from_millis(5));
    /// assert!(matches!(waited, Err(SyncError::TimedOut { .. })));
    /// event.set();
    /// event.wait_timeout(Duration::ZERO)?;
    /// # Ok::<(), SyncError>(())
    /// ```
    ///
    /// # Errors
    /// - [`SyncError::TimedOut`] when it was not set in that time; the error names no process, since any may set it
    /// - the others of [`wait`](Self::wait)
    pub fn wait_timeout(&self, timeout: Duration) -> Result<(), SyncError> {
        self.wait_for(&WaitPolicy::of(timeout))
    }

    fn wait_for(&self, policy: &WaitPolicy) -> Result<(), SyncError> {
        // Read once. Were the flag looked at first and the epoch after it, a set and a clear between the two
        // would be missed.
        let seen = self.changed().epoch();
        // From an even count on, the next change is that it is set.
        if is_odd(seen) {
            return Ok(());
        }
        // Returns as soon as the epoch is another one, so also when the event was set and cleared again
        // meanwhile.
        let waited = self.changed().wait(seen, policy);
        waited.map_err(|stop| stop.awaiting(|| Awaited::Anybody { what: "nobody set the event" }))
    }

    #[inline]
    fn changed(&self) -> &EventCount {
        self.shared.fields()
    }
}

fn is_odd(count: u32) -> bool {
    count & 1 == 1
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("at", &self.shared).field("set", &self.is_set()).finish()
    }
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { shared: record_with::receive(KIND, deserializer)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_lets_pass_until_it_is_cleared() {
        let event = Event::new().unwrap();
        let soon = Duration::from_millis(2);
        assert!(
            matches!(event.wait_timeout(soon), Err(SyncError::TimedOut { waited, .. }) if waited == soon)
        );
        event.set();
        event.set();
        assert!(event.is_set() && event.wait().is_ok() && event.wait_timeout(Duration::ZERO).is_ok());
        event.clear();
        event.clear();
        assert!(!event.is_set() && event.wait_timeout(soon).is_err());
        event.set();
        assert!(event.clone().is_set());
    }

    #[test]
    fn who_waited_passes_though_it_is_cleared_at_once() {
        let event = Event::new().unwrap();
        let seen = event.changed().epoch();
        event.set();
        event.clear();
        assert!(!event.is_set() && event.changed().wait(seen, &WaitPolicy::Never).is_ok());
    }
}
