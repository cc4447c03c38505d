//! The members of a barrier, and its round.

use std::fmt;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};

use serde::{Deserializer, Serialize};

use super::abort::AbortedBy;
use super::awaited::{Awaited, distinct};
use super::error::{BrokenBy, SyncError};
use super::member::MemberSlot;
use super::owner_table::{self, OwnerTable, Slot};
use super::record_with;
use super::robust_mutex::{self, Acquired, Locked};
use super::round::{Round, State};
use super::wait_policy::{Interrupted, WaitPolicy};
use crate::error::MemoryError;
use crate::sys::atomic_record::atomic_record;
use crate::sys::robust::{self, Me, RobustWord};
use crate::transfer::record::{Record, TypeTag};

atomic_record! {
    pub(super) struct BarrierFields {
        /// One at a time joins or arrives.
        mutex: RobustWord,
        round: Round,
        parties: AtomicU32,
        /// Of the table of members: see [`OwnerTable`].
        used: AtomicU32,
    }
}

/// The members of a barrier: threads, each with a place. What changes the places stands inside the mutex, but for what
/// their owners do with their own.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub(super) struct Members {
    shared: Record<BarrierFields>,
}

const KIND: &str = "Barrier";

/// A slot whose handle is gone, but which its owner, a living thread, still has on its list.
struct Vacated {
    members: Members,
    number: usize,
    owner: Me,
}

/// Those of this process, until their owners come by.
//
// Each keeps the barrier's memory mapped, which its owner's list leads through. A fork's copy is idle: none of its
// threads is the owner of one.
static VACANCIES: Mutex<Vec<Vacated>> = Mutex::new(Vec::new());

/// Frees the slots of `me` whose handles went on other threads, and forgets those that no thread owns any more.
fn clear_out(me: Me) {
    let mut vacancies = VACANCIES.lock().unwrap_or_else(PoisonError::into_inner);
    // The owner has ended, or the slot is another's by now: the kernel has taken it off the list.
    vacancies.retain(|vacated| vacated.members.place(vacated.number).is_vacated_by(vacated.owner));
    for Vacated { members, number, .. } in vacancies.extract_if(.., |vacated| vacated.owner == me) {
        owner_table::free(members.place(number));
    }
}

impl Members {
    pub(super) fn new(parties: usize) -> Result<Self, MemoryError> {
        let (what, most) = ("parties of a barrier", u32::MAX as usize);
        let too_many = |_| MemoryError::TooMany { what, asked: parties, most };
        let counted = u32::try_from(parties.max(1)).map_err(too_many)?;
        // A dead member keeps its slot until somebody comes in, and one whose handle went on another thread until its
        // owner comes by.
        let places = 2 * parties + 16;
        let shared = Record::<BarrierFields>::new(TypeTag::of::<()>(KIND), places * size_of::<MemberSlot>())?;
        shared.fields().parties.store(counted, Relaxed);
        Ok(Self { shared })
    }

    pub(super) fn receive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { shared: record_with::receive(KIND, deserializer)? })
    }

    fn fields(&self) -> &BarrierFields {
        self.shared.fields()
    }

    pub(super) fn round(&self) -> &Round {
        &self.fields().round
    }

    pub(super) fn parties(&self) -> usize {
        self.fields().parties.load(Relaxed) as usize
    }

    pub(super) fn place(&self, number: usize) -> &MemberSlot {
        self.table().slot(number)
    }

    fn table(&self) -> OwnerTable<'_, MemberSlot> {
        OwnerTable::new(self.shared.beside(), &self.fields().used)
    }

    /// Takes the mutex, and breaks the barrier if a member has died.
    pub(super) fn enter(&self, policy: &WaitPolicy) -> Result<Locked<'_>, SyncError> {
        self.look_around(Locked::lock(&self.fields().mutex, || self.shared.map_pin(), policy))
    }

    /// As [`enter`](Self::enter), for calls that must not block: see [`Locked::lock_as`].
    pub(super) fn enter_soon(&self) -> Result<Locked<'_>, SyncError> {
        let keep = || self.shared.map_pin();
        self.look_around(Locked::lock_as(&WaitPolicy::Never, &self.fields().mutex, keep, || false))
    }

    fn look_around<'a>(
        &'a self,
        entered: Result<(Locked<'a>, Acquired), Interrupted>,
    ) -> Result<Locked<'a>, SyncError> {
        let mutex = &self.fields().mutex;
        let holder = || Awaited::holders("the barrier's own lock is", [robust_mutex::owner_pid(mutex)]);
        let (inside, found) = entered.map_err(|stop| stop.awaiting(holder))?;
        // It may have died after it took a slot and before it wrote its pid there: so a process that dies in here counts as a member.
        if let Acquired::OwnerDied { pid } = found {
            self.round().break_by(BrokenBy::Death, pid);
        }
        // Each member that comes in looks for dead ones, so that their slots can be taken again.
        let tell = |pid| self.round().break_by(BrokenBy::Death, pid);
        self.table().used().iter().for_each(|place| place.bury(tell));
        Ok(inside)
    }

    /// Takes a place for this thread, inside the mutex; returns its number.
    pub(super) fn join(&self, me: Me) -> Result<usize, SyncError> {
        // Here, as only the owner can take a word off its list, and it has come by.
        clear_out(me);
        let number = self.occupy(me)?;
        // Waiters are to sleep on this member's word too.
        self.round().changed().notify_all();
        Ok(number)
    }

    /// Takes a slot for this thread, inside the mutex, without telling the others.
    pub(super) fn occupy(&self, me: Me) -> Result<usize, SyncError> {
        let full = SyncError::Full { what: "the members of a barrier", capacity: self.table().capacity() };
        let number = self.table().first(MemberSlot::is_free).ok_or(full)?;
        self.place(number).prepare(me);
        // A death after this line is a member's.
        self.table().take(number, || self.shared.map_pin())?;
        Ok(number)
    }

    /// Gives up the place that `owner` has taken, on whichever thread. If that is another one than the owner, and a
    /// process is stopped inside the mutex, the owner stays a member until its thread ends.
    pub(super) fn part(&self, number: usize, owner: Me) {
        let place = self.place(number);
        // By this thread itself it is one step without the mutex, also where a process is stopped inside.
        // The owner may have ended, and its place be another's: this thread's too.
        if robust::me().is_ok_and(|me| me == owner) && robust::owns(place.robust()) {
            owner_table::free(place);
        } else if let Ok(_inside) = self.enter_soon() {
            // Only a thread can take a word off its list: the place stays its own until it joins something the next
            // time, but its end means nothing any more.
            if place.vacate(owner) {
                let mut vacancies = VACANCIES.lock().unwrap_or_else(PoisonError::into_inner);
                vacancies.push(Vacated { members: self.clone(), number, owner });
            }
        }
    }

    /// Says that the owner of a place, which is inside the mutex, has arrived in this round; returns how many had
    /// before.
    pub(super) fn arrive(&self, number: usize, round: u32) -> usize {
        // Its own slot does not count, whatever an earlier wait has left there.
        self.place(number).begin();
        // No two count the same number: this is inside the mutex. One that gives up meanwhile breaks the round, and the
        // number means nothing then.
        let before = self.waiting(round);
        self.place(number).arrive(round);
        before
    }

    /// How many have arrived in this round.
    pub(super) fn waiting(&self, round: u32) -> usize {
        let waits = |place: &&MemberSlot| place.has_arrived(round) && owner_table::is_owned(*place);
        self.table().used().iter().filter(waits).count()
    }

    /// The members that have not arrived in this round.
    pub(super) fn awaited(&self, round: u32) -> Awaited {
        let (mut came, mut missing, mut left) = (0, Vec::new(), Vec::new());
        for place in self.table().used() {
            match (place.has_arrived(round), place.is_member()) {
                (true, _) => came += 1,
                (false, true) => missing.push(place.pid()),
                (false, false) => left.push(place.pid()),
            }
        }
        // A snapshot without the mutex, for a text: members may come and go meanwhile.
        let parties = self.parties();
        let (missing, left) = (distinct(missing), distinct(left));
        // If more have left than are needed, it is not known for which of them the others wait.
        let needed = parties.saturating_sub(came + missing.len());
        let left = if left.len() <= needed { left } else { Vec::new() };
        Awaited::Members { came, parties, missing, left }
    }

    /// # Errors
    /// When it is broken in this state.
    pub(super) fn check(&self, state: State) -> Result<(), SyncError> {
        let Some((by, pid)) = state.breach() else { return Ok(()) };
        // The error of a member that gave up also names the members that it had waited for. A death or an abort needs no
        // further names.
        if by != BrokenBy::GivingUp {
            return Err(SyncError::broken(pid, by, Vec::new()));
        }
        // All workers of a context are told to wait no longer. Whoever hears it first breaks the barrier, but is not to
        // blame.
        if let Some(by) = AbortedBy::now() {
            return Err(Interrupted::Aborted(by).into());
        }
        let missing = self.awaited(state.round).pids().into_iter().filter(|&other| other != pid);
        Err(SyncError::broken(pid, by, missing.collect()))
    }

    /// Begins another round. Members that have arrived in this one are told, inside the mutex.
    pub(super) fn reset(&self) {
        // Before the round changes: a member that then sees the new round finds in its slot that it was sent away, not
        // let go.
        let round = self.round().state().round;
        self.table().used().iter().for_each(|place| place.cancel(round));
        self.round().reset();
    }

    /// Breaks the barrier if a member has died; says whether it is broken.
    pub(super) fn look_for_deaths(&self) -> bool {
        loop {
            // Whoever breaks it breaks what was there before the look: a reset meanwhile may have forgotten that death.
            let state = self.round().state();
            if state.is_broken() {
                return true;
            }
            match self.table().used().iter().find_map(MemberSlot::death) {
                Some(pid) if self.round().break_in(state, BrokenBy::Death, pid) => return true,
                Some(_) => {}
                None => return false,
            }
        }
    }

    /// The words to sleep on in this state: its own, and those of all members, which change when one of them dies.
    pub(super) fn watch(&self, state: State) -> Vec<(&AtomicU32, u32)> {
        // The place that the next member takes, too: it may die before it has told anybody that it is one.
        let next = self.table().first(|slot| !owner_table::is_owned(slot));
        let next = next.and_then(|number| owner_table::watch_free(self.place(number)));
        let members = self.table().used().iter().filter_map(owner_table::watch);
        self.round().watch(state).into_iter().chain(members).chain(next).collect()
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::super::barrier::Barrier;
    use super::*;

    #[test]
    fn thread_that_ends_with_the_handle_alive_counts_as_dead_and_one_whose_handle_is_gone_does_not() {
        let barrier = Barrier::new(1).unwrap();
        let (own, (tell, told), (end, ended)) =
            (barrier.clone(), std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
        let thread = std::thread::spawn(move || {
            own.wait().unwrap();
            tell.send(own).unwrap();
            ended.recv().unwrap_err();
        });
        drop(told.recv().unwrap());
        drop(end);
        thread.join().unwrap();
        barrier.wait().unwrap();

        let lasting = barrier.clone();
        std::thread::scope(|scope| scope.spawn(|| lasting.wait().map(drop)).join().unwrap()).unwrap();
        // The kernel marks the place a moment after the thread is joined.
        while !barrier.is_broken() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn places_are_taken_again() {
        let barrier = Barrier::new(1).unwrap();
        (0..100).for_each(|_| _ = barrier.clone().wait().unwrap());
        let clones: Vec<_> = std::iter::repeat_with(|| barrier.clone()).take(19).collect();
        let refused = clones.iter().map(Barrier::wait).filter(Result::is_err).count();
        assert_eq!(refused, 1);
        let error = clones[18].wait().unwrap_err();
        assert!(matches!(error, SyncError::Full { capacity: 18, .. }), "{error}");
        assert!(!barrier.is_broken());
    }

    #[test]
    fn death_that_a_reset_has_forgotten_breaks_nothing() {
        let members = Members::new(2).unwrap();
        let (before, inside) = (members.round().state(), members.enter(&WaitPolicy::Never).unwrap());
        members.reset();
        drop(inside);
        let by = BrokenBy::Death;
        assert!(!members.round().break_in(before, by, 1) && !members.look_for_deaths());
        assert!(members.round().break_in(members.round().state(), by, 1) && members.look_for_deaths());
        let told = members.check(members.round().state());
        assert!(matches!(told, Err(SyncError::Broken { pid: Some(1), by: BrokenBy::Death, .. })), "{told:?}");
    }

    #[test]
    fn member_that_dies_as_it_joins_breaks_it() {
        let members = Members::new(2).unwrap();
        let doomed = members.clone();
        robust::testing::doomed(move || {
            let inside = doomed.enter(&WaitPolicy::Forever).unwrap();
            doomed.join(robust::me().unwrap()).unwrap();
            std::mem::forget(inside);
            robust::testing::die();
        });
        while !members.look_for_deaths() {
            std::thread::yield_now();
        }
        let inside = members.enter(&WaitPolicy::Forever).unwrap();
        members.reset();
        drop(inside);
        assert!(!members.look_for_deaths() && members.table().owned().next().is_none());
    }

    #[test]
    fn handle_of_a_thread_that_ended_gives_up_no_place_of_another() {
        let barrier = Barrier::new(1).unwrap();
        let (old, heirs) = (barrier.clone(), barrier.clone());
        let await_death = || {
            while !barrier.is_broken() {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| _ = scope.spawn(|| old.wait().unwrap()));
        await_death();
        barrier.reset().unwrap();
        let heirs = &heirs;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // It has the place of the dead one.
                heirs.wait().unwrap();
                drop(old);
            });
        });
        await_death();
    }
}
