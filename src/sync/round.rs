//! The state of a barrier, as it is kept in one word: its round, and how that was broken.

use super::error::BrokenBy;
use crate::sys::robust::OWNER;

/// The number of the round, and whether it is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) round: u32,
    /// How in the upper two bits, by which process in the others, [`UNKNOWN`] perhaps; 0: it is not broken.
    breach: u32,
}

/// A process is less than that (proc_sys_kernel(5), pid_max).
const UNKNOWN: u32 = OWNER;
const BREACHES: [BrokenBy; 3] = [BrokenBy::Death, BrokenBy::GivingUp, BrokenBy::Abort];

impl State {
    pub(super) fn of(bits: u64) -> Self {
        Self { round: (bits >> 32) as u32, breach: bits as u32 }
    }

    pub(super) fn bits(self) -> u64 {
        u64::from(self.round) << 32 | u64::from(self.breach)
    }

    pub(super) fn next(self) -> Self {
        Self { round: self.round.wrapping_add(1), breach: 0 }
    }

    pub(super) fn broken(self, by: BrokenBy, pid: u32) -> Self {
        let how = BREACHES.iter().position(|&known| known == by).unwrap_or(0) as u32;
        let pid = if pid == 0 { UNKNOWN } else { pid & OWNER };
        Self { round: self.round, breach: how << OWNER.count_ones() | pid }
    }

    pub(super) fn is_broken(self) -> bool {
        self.breach != 0
    }

    /// How it was broken, and by which process; 0: that is not known.
    pub(super) fn breach(self) -> Option<(BrokenBy, u32)> {
        let by =
            BREACHES.get((self.breach >> OWNER.count_ones()) as usize).copied().unwrap_or(BrokenBy::Death);
        let pid = Some(self.breach & OWNER).filter(|&pid| pid != UNKNOWN);
        self.is_broken().then_some((by, pid.unwrap_or(0)))
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
