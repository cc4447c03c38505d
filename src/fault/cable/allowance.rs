//! Pure: how many bytes may pass a cable now.

use std::time::Duration;

use super::order::End;
use crate::sys::clock::Moment;

/// How long a cable that is slow saves up what was not used.
const SAVED: Duration = Duration::from_millis(20);

/// What may pass: a rate, and a number of bytes after which the cable is cut.
#[derive(Debug)]
pub(super) struct Allowance {
    /// In bytes a second.
    rate: Option<u64>,
    /// What the rate allows now, in bytes, and when that was so.
    saved: (u64, Moment),
    cut: Option<(End, u64)>,
}

impl Allowance {
    pub(super) fn new(now: Moment) -> Self {
        Self { rate: None, saved: (0, now), cut: None }
    }

    pub(super) fn set_rate(&mut self, rate: Option<u64>, now: Moment) {
        (self.rate, self.saved) = (rate, (0, now));
    }

    pub(super) fn set_cut(&mut self, cut: (End, u64)) {
        self.cut = Some(cut);
    }

    /// How many bytes may pass to an end at this moment.
    pub(super) fn of(&mut self, to: End, now: Moment) -> usize {
        let until_cut = self.cut.filter(|(end, _)| *end == to).map(|(_, bytes)| bytes);
        let by_rate = self.rate.map(|rate| self.save(rate, now));
        let least = until_cut.into_iter().chain(by_rate).min();
        least.map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// Adds what the rate has allowed since the last time.
    fn save(&mut self, rate: u64, now: Moment) -> u64 {
        let (saved, since) = self.saved;
        let in_time = |time: Duration| u128::from(rate) * time.as_nanos() / 1_000_000_000;
        let more = in_time(now.since(since));
        // The moment stays as long as not a whole byte has been allowed: many short waits are to give what a long one does.
        if more > 0 {
            let most = in_time(SAVED).max(1);
            let total = (u128::from(saved) + more).min(most);
            self.saved = (u64::try_from(total).unwrap_or(u64::MAX), now);
        }
        self.saved.0
    }

    /// Notes that bytes have passed.
    pub(super) fn pass(&mut self, to: End, bytes: usize) {
        let bytes = bytes as u64;
        self.saved.0 = self.saved.0.saturating_sub(bytes);
        if let Some((end, left)) = &mut self.cut
            && *end == to
        {
            *left = left.saturating_sub(bytes);
        }
    }

    /// Whether the cable is to be cut now: true once.
    pub(super) fn take_cut(&mut self) -> bool {
        self.cut.take_if(|(_, left)| *left == 0).is_some()
    }

    /// When something may pass again, if a rate holds it up now.
    pub(super) fn next(&self, now: Moment) -> Option<Moment> {
        let rate = self.rate.filter(|_| self.saved.0 == 0)?;
        now.checked_add(
            Duration::from_nanos(1_000_000_000 / rate)
                .clamp(Duration::from_millis(1), Duration::from_secs(1)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn rate_allows_as_much_as_time_has_passed_and_saves_little() {
        let mut allowance = Allowance::new(at(0));
        assert_eq!(allowance.of(End::Server, at(0)), usize::MAX);
        allowance.set_rate(Some(10_000), at(0));
        assert_eq!(allowance.of(End::Server, at(0)), 0);
        assert_eq!(allowance.of(End::Client, at(10)), 100);
        allowance.pass(End::Client, 60);
        // Both directions share it.
        assert_eq!(allowance.of(End::Server, at(10)), 40);
        assert_eq!(allowance.of(End::Server, at(5_000)), 200);
        allowance.pass(End::Server, 200);
        assert_eq!(allowance.next(at(5_000)), Some(at(5_001)));
        allowance.set_rate(None, at(5_001));
        assert_eq!((allowance.of(End::Server, at(5_001)), allowance.next(at(5_001))), (usize::MAX, None));
    }

    #[test]
    fn slow_rate_comes_to_a_byte_by_many_short_waits() {
        let mut allowance = Allowance::new(at(0));
        allowance.set_rate(Some(1), at(0));
        assert!((1..1000).all(|millis| allowance.of(End::Server, at(millis)) == 0));
        assert_eq!(allowance.of(End::Server, at(1000)), 1);
    }

    #[test]
    fn cut_comes_once_after_the_bytes_of_its_direction() {
        let mut allowance = Allowance::new(at(0));
        allowance.set_cut((End::Server, 5));
        assert_eq!((allowance.of(End::Server, at(0)), allowance.of(End::Client, at(0))), (5, usize::MAX));
        allowance.pass(End::Client, 100);
        allowance.pass(End::Server, 4);
        assert!(!allowance.take_cut());
        allowance.pass(End::Server, 1);
        assert!(allowance.take_cut() && !allowance.take_cut());
        assert_eq!(allowance.of(End::Server, at(0)), usize::MAX);
    }
}
