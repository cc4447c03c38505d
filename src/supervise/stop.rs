//! How children are ended, as data: grace → SIGTERM → grace → SIGKILL → a bounded wait.
//!
//! No process and no clock in here: the caller says what time it is and sends what it is told to.

use std::time::Duration;

use crate::sys::clock::Moment;

/// How long a killed child may take to be gone before it is left behind, as one that hangs in the kernel.
pub(super) const DEATH_THROES: Duration = Duration::from_secs(10);
/// The time between SIGTERM and SIGKILL when no grace period was set.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long those for whom a failed child had waited have to fail by themselves. One that panics tells the others so while it unwinds, and
/// reports after that: a few milliseconds.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// How far the ending has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The children may still end by themselves.
    Grace,
    /// They were sent SIGTERM.
    Terminating,
    /// They were sent SIGKILL.
    Killing,
    /// Children that still run are left behind.
    Over,
}

/// What the caller has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Wait for children to end, until the next deadline.
    Wait,
    /// Send SIGTERM to all children that run.
    Terminate,
    /// Send SIGKILL to all children that run.
    Kill,
    /// Wait no longer.
    GiveUp,
}

/// An ending under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    phase: Phase,
    /// When the phase ends; `None`: never, since the sum ran past the clock's end.
    until: Option<Moment>,
    patience: Duration,
}

impl Stop {
    /// After a failure: during the grace period the other children may end by themselves; then SIGTERM, the same time again, SIGKILL.
    pub(crate) fn after_failure(grace: Option<Duration>, now: Moment) -> Self {
        Self::of(grace, Duration::ZERO, now)
    }

    /// After a failure that others have brought about, who have not ended: these have a moment to end by themselves before SIGTERM, and to
    /// say why, unless the grace period is a longer one. [`hurry`](Self::hurry) ends it.
    pub(crate) fn after_consequence(grace: Option<Duration>, now: Moment) -> Self {
        Self::of(grace, LAST_WORDS, now)
    }

    /// `wait`: how long SIGTERM is put off where there is no grace period.
    fn of(grace: Option<Duration>, wait: Duration, now: Moment) -> Self {
        let until = now.checked_add(grace.unwrap_or(wait));
        Self { phase: Phase::Grace, until, patience: grace.unwrap_or(PATIENCE) }
    }

    /// SIGTERM at once, as when the context is dropped.
    pub(crate) fn terminate(grace: Option<Duration>, now: Moment) -> Self {
        Self { phase: Phase::Grace, until: Some(now), patience: grace.unwrap_or(PATIENCE) }
    }

    /// SIGKILL at once.
    pub(crate) fn at_once(now: Moment) -> Self {
        Self { phase: Phase::Terminating, until: Some(now), patience: Duration::ZERO }
    }

    /// After a signal that the caller has sent itself: SIGKILL follows when `patience` is over.
    pub(crate) fn after_signal(patience: Duration, now: Moment) -> Self {
        Self { phase: Phase::Terminating, until: now.checked_add(patience), patience }
    }

    /// Puts off what is to come, as when this process was stopped for a while, and the children with it.
    pub(crate) fn put_off(mut self, by: Duration) -> Self {
        self.until = self.until.and_then(|until| until.checked_add(by));
        self
    }

    /// Ends the grace before SIGTERM, if it still lasts.
    pub(crate) fn hurry(mut self, now: Moment) -> Self {
        if self.phase == Phase::Grace {
            self.until = Some(now);
        }
        self
    }

    /// When to ask again, unless a child ends earlier.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        if self.phase == Phase::Over { None } else { self.until }
    }

    /// Goes one phase on if the present one is over. Ask until it says to wait.
    pub(crate) fn next(&mut self, now: Moment) -> Action {
        if self.until.is_none_or(|until| now < until) && self.phase != Phase::Over {
            return Action::Wait;
        }
        let (phase, lasts, action) = match self.phase {
            Phase::Grace => (Phase::Terminating, self.patience, Action::Terminate),
            Phase::Terminating => (Phase::Killing, DEATH_THROES, Action::Kill),
            Phase::Killing | Phase::Over => (Phase::Over, Duration::ZERO, Action::GiveUp),
        };
        (self.phase, self.until) = (phase, now.checked_add(lasts));
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    /// Steps `stop` through its deadlines, and notes what is done when.
    fn play(mut stop: Stop, start: u64) -> Vec<(u64, Action)> {
        let mut now = at(start);
        let mut done = Vec::new();
        loop {
            match stop.next(now) {
                Action::Wait => now = stop.deadline().unwrap(),
                action => done.push((now.as_nanos() / 1_000_000, action)),
            }
            if done.last().is_some_and(|last| last.1 == Action::GiveUp) {
                return done;
            }
        }
    }

    #[test]
    fn without_grace_term_comes_at_once_and_kill_after_thirty_seconds() {
        let done = play(Stop::after_failure(None, at(5)), 5);
        assert_eq!(done, [(5, Action::Terminate), (30_005, Action::Kill), (40_005, Action::GiveUp)]);
    }

    #[test]
    fn after_a_consequence_there_is_a_moment_before_term_which_can_be_ended() {
        let done = play(Stop::after_consequence(None, at(5)), 5);
        assert_eq!(done, [(105, Action::Terminate), (30_105, Action::Kill), (40_105, Action::GiveUp)]);
        let done = play(Stop::after_consequence(None, at(5)).hurry(at(9)), 9);
        assert_eq!(done[..2], [(9, Action::Terminate), (30_009, Action::Kill)]);
        for grace in [0, 700] {
            let grace = Some(Duration::from_millis(grace));
            assert_eq!(
                play(Stop::after_consequence(grace, at(5)), 5),
                play(Stop::after_failure(grace, at(5)), 5)
            );
        }
    }

    #[test]
    fn grace_is_given_before_and_after_term() {
        let done = play(Stop::after_failure(Some(Duration::from_millis(700)), at(300)), 300);
        assert_eq!(done, [(1000, Action::Terminate), (1700, Action::Kill), (11_700, Action::GiveUp)]);
    }

    #[test]
    fn grace_of_zero_is_term_and_kill_at_once() {
        let done = play(Stop::after_failure(Some(Duration::ZERO), at(9)), 9);
        assert_eq!(done, [(9, Action::Terminate), (9, Action::Kill), (10_009, Action::GiveUp)]);
    }

    #[test]
    fn drop_terminates_at_once_and_daemons_are_killed() {
        let drop = play(Stop::terminate(Some(Duration::from_millis(50)), at(0)), 0);
        assert_eq!(drop, [(0, Action::Terminate), (50, Action::Kill), (10_050, Action::GiveUp)]);
        assert_eq!(play(Stop::at_once(at(3)), 3), [(3, Action::Kill), (10_003, Action::GiveUp)]);
    }

    #[test]
    fn signal_of_the_callers_own_takes_the_place_of_term() {
        let stop = Stop::after_signal(Duration::from_millis(80), at(0));
        assert_eq!(play(stop, 0), [(80, Action::Kill), (10_080, Action::GiveUp)]);
        let stopped = stop.put_off(Duration::from_millis(500));
        assert_eq!(play(stopped, 0), [(580, Action::Kill), (10_580, Action::GiveUp)]);
    }

    #[test]
    fn before_its_deadline_nothing_is_done() {
        let mut stop = Stop::after_failure(Some(Duration::from_secs(1)), at(0));
        assert_eq!(stop.next(at(999)), Action::Wait);
        assert_eq!(stop.next(at(1000)), Action::Terminate);
        assert_eq!(stop.next(at(1000)), Action::Wait);
    }

    #[test]
    fn late_caller_does_not_shorten_the_next_phase() {
        let mut stop = Stop::after_failure(Some(Duration::from_secs(1)), at(0));
        assert_eq!(stop.next(at(50_000)), Action::Terminate);
        assert_eq!(stop.deadline(), Some(at(51_000)));
    }

    #[test]
    fn hurry_ends_the_first_grace_only() {
        let mut stop = Stop::after_failure(Some(Duration::MAX), at(0)).hurry(at(7));
        assert_eq!(stop.next(at(7)), Action::Terminate);
        assert_eq!((stop.next(at(8)), stop.hurry(at(9)).deadline()), (Action::Wait, None));
    }

    #[test]
    fn endless_grace_never_ends() {
        let mut stop = Stop::after_failure(Some(Duration::MAX), at(0));
        assert_eq!((stop.next(at(u64::MAX / 1_000_000)), stop.deadline()), (Action::Wait, None));
    }
}
