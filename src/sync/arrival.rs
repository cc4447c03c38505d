//! One arrival of a thread at a barrier: the wait for the other members, and what ends it.

use super::error::{BrokenBy, SyncError};
use super::members::Members;
use super::round::State;
use super::wait_policy::WaitPolicy;

/// What a [`Barrier`](super::Barrier) returns to each member that it lets go: in which place that member came.
///
/// ```
/// use phalanx::sync::Barrier;
///
/// let barrier = Barrier::new(1)?;
/// let result = barrier.wait()?;
/// assert!(result.is_leader() && result.index() == 0);
/// # Ok::<(), phalanx::sync::SyncError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierWaitResult {
    index: usize,
    is_leader: bool,
}

impl BarrierWaitResult {
    /// Whether this member came last, which is true for exactly one member of each round.
    ///
    /// The leader is to do what has to be done once a round, such as to print a line or to write a file. The others go
    /// on at the same time: let them wait once more where they need what it does. Python's barrier has an `action` for
    /// that.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.is_leader
    }

    /// How many members came before this one: each has a number of its own, from 0 on. What Python's `wait` returns.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }
}

/// A member that has arrived in a round, until it goes on.
pub(super) struct Arrival<'a> {
    members: &'a Members,
    place: usize,
    /// The state in which it came: any other one ends the wait.
    state: State,
    index: usize,
    is_last: bool,
}

impl<'a> Arrival<'a> {
    /// Says, inside the mutex, that the owner of a place has come in this state; the last one lets all go.
    pub(super) fn begin(members: &'a Members, place: usize, state: State) -> Result<Self, SyncError> {
        let index = members.arrive(place, state.round);
        // Under the mutex: two cannot both be last.
        let is_last = index + 1 >= members.parties();
        if is_last {
            let released = members.round().release(state);
            members.place(place).depart(!released);
            if !released {
                // To break a barrier takes no mutex: a member died, gave up or called abort() since `state` was read.
                members.check(members.round().state())?;
            }
        }
        Ok(Self { members, place, state, index, is_last })
    }

    /// Waits until the round is over.
    pub(super) fn await_others(&self, policy: &WaitPolicy) -> Result<BarrierWaitResult, SyncError> {
        if !self.is_last {
            self.sleep_until_over(policy)?;
        }
        Ok(BarrierWaitResult { index: self.index, is_leader: self.is_last })
    }

    fn sleep_until_over(&self, policy: &WaitPolicy) -> Result<(), SyncError> {
        let changed = self.members.round().changed();
        let mut slept_at = None;
        loop {
            // Read before the state: a change of the state is followed by a new epoch, so an old epoch with a new state
            // shows a change that was not told yet.
            let seen = changed.epoch();
            if self.members.round().state() != self.state {
                self.pass_on(slept_at, seen);
                return self.leave();
            }
            // Watched before the look: a member that dies after the look changes a watched word, and this thread does
            // not sleep.
            let words = self.members.watch(self.state);
            if self.members.look_for_deaths() {
                continue;
            }
            slept_at = Some(seen);
            if let Err(stop) = changed.wait_once(seen, &words, policy)
                && self.give_up()
            {
                return Err(stop.awaiting(|| self.members.awaited(self.state.round)));
            }
        }
    }

    /// Tells the others what only this thread may have been woken for.
    fn pass_on(&self, slept_at: Option<u32>, seen: u32) {
        // The kernel wakes one sleeper for each death. It may have been this one, which waits no more: others may sleep
        // already in the next round, on the word of the same dead member.
        if slept_at.is_some() {
            self.members.look_for_deaths();
        }
        // The epoch is still that of the sleep: the thread that changed the state has told no waiter, and may have died
        // before it could.
        if slept_at == Some(seen) {
            self.members.round().changed().notify_all();
        }
    }

    /// Breaks the barrier for a member that waits no more, unless the others have come in the last moment.
    fn give_up(&self) -> bool {
        self.members.round().break_in(self.state, BrokenBy::GivingUp, std::process::id())
    }

    /// Goes on when the state is another than that in which it came.
    fn leave(&self) -> Result<(), SyncError> {
        let state = self.members.round().state();
        // In a later round it may be broken, but this one is over.
        let broken = state.round == self.state.round;
        if self.members.place(self.place).depart(broken) {
            return Err(SyncError::broken(0, BrokenBy::Reset, Vec::new()));
        }
        if broken { self.members.check(state) } else { Ok(()) }
    }
}
