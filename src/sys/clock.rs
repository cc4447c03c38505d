//! clock_gettime(2): one monotonic clock that all processes of a machine share.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A reading of CLOCK_MONOTONIC. Unlike `Instant` it can be sent to another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Moment(u64);

impl Moment {
    /// The present moment. Async-signal-safe.
    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .expect("every Linux has CLOCK_MONOTONIC and the timespec is ours");
        Self(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
    }

    pub(crate) const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub(crate) const fn as_nanos(self) -> u64 {
        self.0
    }

    /// `None` when the sum lies beyond the clock's end, which a caller takes as "never".
    pub(crate) fn checked_add(self, by: Duration) -> Option<Self> {
        let nanos = u64::try_from(by.as_nanos()).ok()?;
        self.0.checked_add(nanos).map(Self)
    }

    /// Time from `earlier` to this moment; zero when `earlier` is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moment_since_later_is_zero() {
        let early = Moment::from_nanos(5);
        let late = Moment::from_nanos(9);
        assert_eq!(late.since(early), Duration::from_nanos(4));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(early.checked_add(Duration::MAX), None);
    }
}
