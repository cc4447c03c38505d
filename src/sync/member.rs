//! The slot of one member of a barrier: what its owner says of itself, and what others find in it when the owner has
//! died.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::futex_lock;
use super::owner_table::{self, Slot};
use crate::sys::atomic_record::atomic_record;
use crate::sys::robust::{Me, OWNER, OWNER_DIED, RobustWord};

atomic_record! {
    /// A thread that owns this is a member. `owner_pid` stays when the member has left: waiters can still name
    /// its process.
    pub(super) struct MemberSlot {
        member: RobustWord,
        /// [`IDLE`], [`VACATED`], [`CANCELLED`], or [`arrived`] in some round.
        attendance: AtomicU32,
    }
}

impl Slot for MemberSlot {
    #[inline]
    fn robust(&self) -> &RobustWord {
        &self.member
    }
}

/// The owner is a member, and has not arrived,
const IDLE: u32 = 0;
/// is no member any more, though it lives,
const VACATED: u32 = 1;
/// has arrived, but the barrier was reset,
const CANCELLED: u32 = 2;

/// or has arrived in this round.
fn arrived(round: u32) -> u32 {
    // The low bits are those of no other state. The upper two bits of the round are lost: only what a broken round has
    // left in a slot whose owner stays away could be taken for an arrival, 2^30 rounds later.
    round << 2 | 3
}

impl MemberSlot {
    /// Makes ready for an owner of this process, inside the mutex of the members.
    pub(super) fn prepare(&self, me: Me) {
        // Before the slot is owned: whoever finds that its owner has died reads these (`death`).
        self.member.owner_pid.store(me.pid, Release);
        self.attendance.store(IDLE, Release);
    }

    /// Whether a thread may take it. The slot of a dead member is none until the death was told: see
    /// [`bury`](Self::bury).
    pub(super) fn is_free(&self) -> bool {
        self.member.word.load(Acquire) & (OWNER | OWNER_DIED) == 0
    }

    pub(super) fn pid(&self) -> u32 {
        self.member.owner_pid.load(Acquire)
    }

    fn is_owned_by(&self, owner: Me) -> bool {
        self.member.word.load(Acquire) & OWNER == owner.tid
    }

    /// Says, as another thread than the owner and inside the mutex, that the owner is no member any more; whether it
    /// was one.
    pub(super) fn vacate(&self, owner: Me) -> bool {
        // A thread id is that of one thread in a PID namespace only.
        let is_its_own = self.is_owned_by(owner) && self.pid() == owner.pid;
        if is_its_own {
            self.attendance.store(VACATED, Release);
        }
        is_its_own
    }

    /// Whether `owner` still has it on its list, though it is no member.
    pub(super) fn is_vacated_by(&self, owner: Me) -> bool {
        self.is_owned_by(owner) && self.attendance.load(Acquire) == VACATED
    }

    pub(super) fn is_member(&self) -> bool {
        // A dead member's slot has no owner: waiters miss it, and name it as dead.
        owner_table::is_owned(self) && self.attendance.load(Acquire) != VACATED
    }

    /// Its owner has not arrived in any round.
    pub(super) fn begin(&self) {
        self.attendance.store(IDLE, Release);
    }

    pub(super) fn arrive(&self, round: u32) {
        // Release, with the Acquire of the count: what a member did before it came is done when it is counted.
        self.attendance.store(arrived(round), Release);
    }

    pub(super) fn has_arrived(&self, round: u32) -> bool {
        self.attendance.load(Acquire) == arrived(round)
    }

    /// Its owner, if it has arrived in this round, is told of a reset when it [departs](Self::depart).
    pub(super) fn cancel(&self, round: u32) {
        // It fails for a member that has not arrived, or has departed meanwhile: such a one waits for nothing.
        let _ = self.attendance.compare_exchange(arrived(round), CANCELLED, AcqRel, Relaxed);
    }

    /// Notes that the owner does not wait any more; says whether the barrier was reset meanwhile. In a round that is
    /// `broken` the slot still says that it had come, since others name the members that had not.
    pub(super) fn depart(&self, broken: bool) -> bool {
        // One step, so that a reset either comes before, and is told here, or finds a member that does not wait.
        let seen = if broken { self.attendance.load(Acquire) } else { self.attendance.swap(IDLE, AcqRel) };
        seen == CANCELLED
    }

    /// The process of a thread that has died as a member. Any thread may call this at any time.
    pub(super) fn death(&self) -> Option<u32> {
        let has_ended = || self.member.word.load(Acquire) & OWNER_DIED != 0;
        let was_member = has_ended() && self.attendance.load(Acquire) != VACATED;
        let pid = self.pid();
        // The slot is nobody's before it is another's (`bury`). So if the mark is still there, all this is about one
        // owner.
        (was_member && has_ended()).then_some(pid)
    }

    /// Makes the slot of a thread that has ended one that nobody has, inside the mutex; `tell` hears of its death
    /// first, if it was a member.
    pub(super) fn bury(&self, tell: impl FnOnce(u32)) {
        let seen = self.member.word.load(Acquire);
        if seen & OWNER_DIED != 0 {
            // First: this thread may die in the middle, and the mark is what the next one in the mutex finds.
            if let Some(pid) = self.death() {
                tell(pid);
            }
            futex_lock::forget_death(&self.member.word, seen);
            // It has not left, it has died. Written after the mark is gone: the process that finds the death reads this.
            self.member.owner_pid.store(0, Release);
        }
    }
}
