//! The round of a barrier: its state in one word, which changes in one step, and the waiters that are told of a change.

use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::error::BrokenBy;
use super::event_count::EventCount;
use crate::sys::atomic_record::atomic_record;
use crate::sys::futex;
use crate::sys::robust::OWNER;

atomic_record! {
    pub(super) struct Round {
        /// Notified when a member joins, the round is over, it is broken or reset.
        changed: EventCount,
        /// A [`State`]. One word, so that a round either is over or is broken, whoever dies.
        state: AtomicU64,
    }
}

/// The number of the round, and whether it is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) round: u32,
    /// How in the upper two bits, by which process in the others, [`UNKNOWN`] perhaps; 0: it is not broken.
    breach: u32,
}

/// A process is less than that (proc_sys_kernel(5), pid_max).
const UNKNOWN: u32 = OWNER;
// By their places in the word, for all processes: these run one executable. A reset breaks nothing, and has no place.
const BREACHES: [BrokenBy; 3] = [BrokenBy::Death, BrokenBy::GivingUp, BrokenBy::Abort];

impl State {
    pub(super) fn of(bits: u64) -> Self {
        Self { round: (bits >> 32) as u32, breach: bits as u32 }
    }

    pub(super) fn bits(self) -> u64 {
        u64::from(self.round) << 32 | u64::from(self.breach)
    }

    pub(super) fn next(self) -> Self {
        // After 2^32 rounds the first comes again. A waiter would have to sleep through all the others to be fooled.
        Self { round: self.round.wrapping_add(1), breach: 0 }
    }

    pub(super) fn broken(self, by: BrokenBy, pid: u32) -> Self {
        let how = BREACHES.iter().position(|&known| known == by).unwrap_or(0) as u32;
        // Never 0, which is the bits of a whole round: the first way to break it is 0, too.
        let pid = if pid == 0 { UNKNOWN } else { pid & OWNER };
        Self { round: self.round, breach: how << OWNER.count_ones() | pid }
    }

    pub(super) fn is_broken(self) -> bool {
        self.breach != 0
    }

    /// How it was broken, and by which process; 0: that is not known.
    pub(super) fn breach(self) -> Option<(BrokenBy, u32)> {
        // Any process may have written the word: bits of no known way are taken for a death.
        let by =
            BREACHES.get((self.breach >> OWNER.count_ones()) as usize).copied().unwrap_or(BrokenBy::Death);
        let pid = Some(self.breach & OWNER).filter(|&pid| pid != UNKNOWN);
        self.is_broken().then_some((by, pid.unwrap_or(0)))
    }
}

impl Round {
    pub(super) fn changed(&self) -> &EventCount {
        &self.changed
    }

    pub(super) fn state(&self) -> State {
        // Acquire, with the Release of `change`: the last one to arrive has counted the others inside the mutex, so who
        // sees it let them go sees what each of them did before it came.
        State::of(self.state.load(Acquire))
    }

    /// Releases all members that have arrived in a round, unless it is broken.
    pub(super) fn release(&self, state: State) -> bool {
        // Only from the state in which the last one counted: a breach since then wins, and all are told of it, the last
        // one too.
        self.change(|now| (now == state).then(|| now.next()))
    }

    /// Breaks the barrier, if it is in this state.
    pub(super) fn break_in(&self, state: State, by: BrokenBy, pid: u32) -> bool {
        self.change(|now| (now == state).then(|| now.broken(by, pid)))
    }

    /// Breaks the barrier, if it is not broken.
    pub(super) fn break_by(&self, by: BrokenBy, pid: u32) {
        // The first breach stays: it is the one whose process is to be named.
        self.change(|now| (!now.is_broken()).then(|| now.broken(by, pid)));
    }

    /// Begins another round, whole.
    pub(super) fn reset(&self) {
        // From whatever state: also a barrier that was broken in this very moment is whole again. The number goes up in
        // any case, so no waiter takes the new round for its own.
        self.change(|now| Some(now.next()));
    }

    /// Changes the state, and wakes all; says whether it did.
    fn change(&self, change: impl Fn(State) -> Option<State>) -> bool {
        self.changed.notify_if(|epoch| {
            let next = |bits| change(State::of(bits)).map(State::bits);
            let changed = self.state.fetch_update(AcqRel, Acquire, next).is_ok();
            // After the state: a waiter reads the epoch first, so that an epoch that it knows already comes with the
            // state of that time.
            epoch.fetch_add(changed.into(), AcqRel);
            changed
        })
    }

    /// The words to sleep on while it is in this state. The state itself is among them: the thread that changes it may
    /// die before it advances the epoch, and the kernel then wakes only those that sleep already. One that is about to
    /// sleep finds the state changed.
    pub(super) fn watch(&self, state: State) -> [(&AtomicU32, u32); 2] {
        futex::halves(&self.state, state.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_keeps_how_and_by_whom_it_was_broken() {
        let whole = State::of(7 << 32);
        for by in BREACHES {
            for pid in [0, 1, 1 << 22] {
                let broken = State::of(whole.broken(by, pid).bits());
                assert_eq!((broken.round, broken.breach()), (7, Some((by, pid))));
            }
        }
        assert_eq!((whole.breach(), whole.next().round), (None, 8));
    }
}
