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

/// A flag that one process sets and others wait for.
///
/// Setting it lets all pass that wait at that moment, though it be cleared at once, and all that come until it is
/// cleared. What was done before [`set`](Self::set) is seen by who finds it set. Neither the death of one that waits
/// nor of one that is just setting it keeps any other waiting. Clones, and what arrives in another process, are the
/// same event.
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
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct Event {
    /// It is set when the count is odd.
    shared: Record<EventCount>,
}

const KIND: &str = "Event";

impl Event {
    /// An event that is not set.
    ///
    /// # Errors
    /// [`MemoryError`] when there is no memory for it.
    pub fn new() -> Result<Self, MemoryError> {
        Ok(Self { shared: Record::new(TypeTag::of::<()>(KIND), 0)? })
    }

    /// Sets it, and lets all pass that wait.
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

    /// Clears it: who comes now waits.
    ///
    /// Those who waited when it was set pass all the same.
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
    /// Who finds it set sees what was done before [`set`](Self::set).
    #[must_use]
    #[inline]
    pub fn is_set(&self) -> bool {
        // By the epoch itself: the flag and what waiters sleep on are one word, so none of them can see one without the
        // other.
        is_odd(self.changed().epoch())
    }

    /// Waits until it is set.
    ///
    /// # Errors
    /// - [`SyncError::Aborted`] when the wait is ended because another worker has failed
    /// - [`SyncError::System`] when the system refuses the wait
    pub fn wait(&self) -> Result<(), SyncError> {
        self.wait_for(&WaitPolicy::Forever)
    }

    /// Waits until it is set, at most so long.
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
    /// - [`SyncError::TimedOut`], else as [`wait`](Self::wait)
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
