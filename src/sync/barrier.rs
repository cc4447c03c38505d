//! `Barrier`: a point at which all wait for all.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::arrival::{Arrival, BarrierWaitResult};
use super::error::{BrokenBy, SyncError};
use super::members::Members;
use super::owner_table::Slot;
use super::wait_policy::WaitPolicy;
use crate::error::MemoryError;
use crate::sys::robust::{self, Me};

/// A point at which a number of parties wait until all of them have come, again and again: Python's
/// `multiprocessing.Barrier`.
///
/// # Members
///
/// A thread becomes a *member* when it waits for the first time, or before, when the barrier arrives with it in a
/// worker's arguments or in another message. It is one until the handle is dropped. The process that only makes a
/// barrier is none.
///
/// If a member dies, the barrier is *broken*, whether that member was waiting or had not come yet: every wait that is
/// under way or begins later is [`SyncError::Broken`] with its process. A panic that drops the handle breaks it too, as
/// do a timeout in [`wait_timeout`](Self::wait_timeout) and [`abort`](Self::abort). It stays so until
/// [`reset`](Self::reset).
///
/// The kernel does not say whether a thread ended or died: one that ends while the handle by which it waited lives on
/// counts as dead. In a process with several threads each should therefore have a clone of its own, and drop it at its
/// end, as a closure with `move` does. A clone is the same barrier, and no member yet. There is room for twice as many
/// members as parties, and 16.
///
/// With more than 122 members a death may be noticed 50 ms late.
///
/// Where a process has been stopped (SIGSTOP) for a second in the middle of joining or arriving, a barrier that arrives
/// in another process, by a queue perhaps, is an error there, and one that is dropped on another thread than it was
/// used on leaves that thread a member.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::sync::{Barrier, SyncError, Value};
///
/// fn work(_rank: usize, (barrier, sum): (Barrier, Value<u32>)) -> anyhow::Result<u32> {
///     sum.fetch_add(1);
///     barrier.wait()?;
///     Ok(sum.get())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let barrier = Barrier::new(3)?;
/// assert_eq!(phalanx::spawn(work, (barrier.clone(), Value::new(0)?), 3)?, [3, 3, 3]);
///
/// // A member that dies leaves no other waiting.
/// let leave = |rank: usize, barrier: Barrier| -> anyhow::Result<()> {
///     if rank == 0 {
///         std::process::exit(1);
///     }
///     match barrier.wait() {
///         Err(SyncError::Broken { pid: Some(_), .. }) => Ok(()),
///         other => anyhow::bail!("{other:?}"),
///     }
/// };
/// let options = phalanx::Options::new(3).grace_period(std::time::Duration::from_secs(10));
/// let error = phalanx::start_processes(leave, barrier, options)?.join().unwrap_err();
/// assert!(error.to_string().contains("exit code 1"), "{error}");
/// # Ok(())
/// # }
/// ```
pub struct Barrier {
    members: Members,
    /// The places that threads have taken by this handle.
    taken: Mutex<Vec<(usize, Me)>>,
}

impl Barrier {
    /// Makes a barrier for `parties` members; 0 is taken as 1.
    ///
    /// # Errors
    /// [`MemoryError`] when there is no shared memory for it, or `parties` is more than a `u32` can count.
    pub fn new(parties: usize) -> Result<Self, MemoryError> {
        Ok(Self::over(Members::new(parties)?))
    }

    /// Waits until as many have come as there are parties.
    ///
    /// When they go on, all of them see what each party had written to shared memory before it came.
    ///
    /// ```
    /// let barrier = phalanx::sync::Barrier::new(2)?;
    /// let other = barrier.clone(); // of each thread its own
    /// std::thread::scope(|scope| {
    ///     scope.spawn(move || other.wait().unwrap());
    ///     let own = barrier;
    ///     own.wait()
    /// })?;
    /// # Ok::<(), phalanx::sync::SyncError>(())
    /// ```
    ///
    /// # Errors
    /// - [`SyncError::Broken`] when a member died, gave up or called [`abort`](Self::abort), or the barrier was reset
    ///   meanwhile
    /// - [`SyncError::Full`] when there are too many members
    /// - [`SyncError::Aborted`], which breaks it for the others, when the wait is ended because another worker has
    ///   failed
    /// - [`SyncError::System`] when this thread holds 1000 locks, permits and the like already, or the system refuses
    ///   the wait
    pub fn wait(&self) -> Result<BarrierWaitResult, SyncError> {
        self.wait_for(&WaitPolicy::Forever)
    }

    /// As [`wait`](Self::wait), but no longer than `timeout`, by CLOCK_MONOTONIC. A timeout breaks the barrier for the
    /// others.
    ///
    /// ```
    /// use std::time::Duration;
    /// use phalanx::sync::{Barrier, SyncError};
    ///
    /// let barrier = Barrier::new(2)?;
    /// let waited = barrier.wait_timeout(Duration::from_millis(5));
    /// assert!(matches!(waited, Err(SyncError::TimedOut { .. })) && barrier.is_broken());
    /// barrier.reset()?;
    /// assert!(!barrier.is_broken());
    /// # Ok::<(), SyncError>(())
    /// ```
    ///
    /// # Errors
    /// [`SyncError::TimedOut`], which names the members that had not come; else as [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<BarrierWaitResult, SyncError> {
        self.wait_for(&WaitPolicy::of(timeout))
    }

    /// Breaks the barrier: every wait that is under way or begins later is [`SyncError::Broken`].
    ///
    /// It waits for nothing, also where a process is stopped in the middle of the barrier. A barrier that is broken
    /// already keeps its first reason.
    pub fn abort(&self) {
        // Without the mutex, which a stopped process may own: to break it is one step in one word.
        self.break_by(BrokenBy::Abort);
    }

    /// Makes the barrier as good as new. A wait that is under way ends with [`SyncError::Broken`]; members that have
    /// died are forgotten, and others may take their place.
    ///
    /// # Errors
    /// [`SyncError::Aborted`] when another worker has failed; [`SyncError::TimedOut`] when a process has been in the
    /// middle of joining or arriving for a second, as one that is stopped there.
    pub fn reset(&self) -> Result<(), SyncError> {
        // Inside, so that nobody arrives in the middle: it would be counted in a round that is over.
        let _inside = self.members.enter_soon()?;
        self.members.reset();
        Ok(())
    }

    /// Whether it is broken.
    ///
    /// It looks for members that have died, so the answer is true also when no member has noticed the death yet.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.members.look_for_deaths()
    }

    /// How many members have to come.
    #[must_use]
    pub fn parties(&self) -> usize {
        self.members.parties()
    }

    /// How many members are waiting at this moment: Python's `n_waiting`.
    #[must_use]
    pub fn waiting(&self) -> usize {
        // The members that were waiting are on their way out of a broken round, though their slots still say that they came.
        let state = self.members.round().state();
        if state.is_broken() { 0 } else { self.members.waiting(state.round) }
    }

    pub(super) fn over(members: Members) -> Self {
        Self { members, taken: Mutex::new(Vec::new()) }
    }

    fn break_by(&self, by: BrokenBy) {
        self.members.round().break_by(by, std::process::id());
    }

    fn taken(&self) -> MutexGuard<'_, Vec<(usize, Me)>> {
        // It is a list, and never half changed.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for(&self, policy: &WaitPolicy) -> Result<BarrierWaitResult, SyncError> {
        // A thread that gives up at the mutex has not arrived, but the others wait for it: it breaks the barrier as one
        // inside does.
        let arrival = self.arrive(policy).inspect_err(|error| {
            if matches!(error, SyncError::TimedOut { .. } | SyncError::Aborted { .. }) {
                self.break_by(BrokenBy::GivingUp);
            }
        })?;
        arrival.await_others(policy)
    }

    /// Comes in and says so; the last one lets all go.
    fn arrive(&self, policy: &WaitPolicy) -> Result<Arrival<'_>, SyncError> {
        let members = &self.members;
        // The mutex is let go before the sleep: `Arrival` holds none.
        let _inside = members.enter(policy)?;
        let state = members.round().state();
        members.check(state)?;
        Arrival::begin(members, self.join()?, state)
    }

    /// This thread's place, inside the mutex.
    fn join(&self) -> Result<usize, SyncError> {
        let me = robust::me()?;
        let mut taken = self.taken();
        // By the list of this thread as well: a thread that has ended may have had the same id, and in a fork the list
        // is the parent's.
        let own =
            |&&(place, owner): &&(usize, Me)| owner == me && robust::owns(self.members.place(place).robust());
        if let Some(&(place, _)) = taken.iter().find(own) {
            return Ok(place);
        }
        // The handle's lock is held meanwhile: another thread of this handle waits for the members' mutex anyway.
        let place = self.members.join(me)?;
        taken.push((place, me));
        Ok(place)
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        let own = std::process::id();
        // What a fork has from its parent is the parent's.
        // Out of the lock before anything else is done: to part waits for the members' mutex, for a second at most.
        let taken: Vec<_> = self.taken().drain(..).filter(|(_, owner)| owner.pid == own).collect();
        // Before it parts: the others would wait for a member that is none any more. A handle by which nobody waited
        // says nothing.
        if !taken.is_empty() && std::thread::panicking() {
            self.abort();
        }
        taken.into_iter().for_each(|(place, owner)| self.members.part(place, owner));
    }
}

impl Clone for Barrier {
    fn clone(&self) -> Self {
        // No places: what threads have taken by the one handle is given up when that one is dropped.
        Self::over(self.members.clone())
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { members, taken: _ } = self;
        let mut shown = f.debug_struct("Barrier");
        shown.field("at", members).field("parties", &self.parties()).field("waiting", &self.waiting());
        shown.field("state", &members.round().state()).finish()
    }
}

impl Serialize for Barrier {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.members.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Barrier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let barrier = Self::over(Members::receive(deserializer)?);
        // Now, not at the first wait: a worker that dies before that is missed by the others.
        let joined = barrier.members.enter_soon();
        let joined = joined.and_then(|_inside| barrier.join());
        joined.map_err(|error| D::Error::custom(format!("cannot take part in a barrier: {error}")))?;
        Ok(barrier)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    /// Runs `work` on `threads` threads, each with a clone of its own.
    fn each(barrier: &Barrier, threads: usize, work: impl Fn(&Barrier) + Sync) {
        std::thread::scope(|scope| {
            for own in std::iter::repeat_with(|| barrier.clone()).take(threads) {
                let work = &work;
                scope.spawn(move || {
                    let own = own;
                    work(&own);
                });
            }
        });
    }

    #[test]
    fn each_round_has_one_leader_and_an_index_for_each() {
        let (barrier, seen) = (Barrier::new(3).unwrap(), Mutex::new(Vec::new()));
        each(&barrier, 3, |barrier| {
            for round in 0..100 {
                let result = barrier.wait().unwrap();
                seen.lock().unwrap().push((round, result.index(), result.is_leader()));
            }
        });
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        let expected = (0..100).flat_map(|round| (0..3).map(move |index| (round, index, index == 2)));
        assert_eq!(seen, expected.collect::<Vec<_>>());
        assert!(!barrier.is_broken() && barrier.waiting() == 0 && barrier.parties() == 3);
    }

    #[test]
    fn barrier_of_one_or_none_holds_nobody_up() {
        for parties in [0, 1] {
            let result = Barrier::new(parties).unwrap().wait().unwrap();
            assert_eq!((result.is_leader(), result.index()), (true, 0));
        }
        assert!(matches!(Barrier::new(usize::MAX), Err(MemoryError::TooMany { .. })));
    }

    #[test]
    fn who_gives_up_breaks_it_until_it_is_reset() {
        let barrier = Barrier::new(2).unwrap();
        let error = barrier.wait_timeout(Duration::from_millis(2)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "timed out after 2ms: 1 of 2 came to the barrier; missing: 1 unknown, which did not have the barrier yet or have left it"
        );
        let own = std::process::id();
        let error = barrier.wait().unwrap_err();
        let by = BrokenBy::GivingUp;
        assert!(
            matches!(error, SyncError::Broken { pid: Some(pid), by: how, .. } if pid == own && how == by)
        );
        barrier.reset().unwrap();
        assert!(!barrier.is_broken());
        each(&barrier, 2, |barrier| _ = barrier.wait().unwrap());
        barrier.abort();
        assert!(barrier.is_broken());
    }

    #[test]
    fn reset_sends_away_who_waits() {
        let barrier = Barrier::new(2).unwrap();
        std::thread::scope(|scope| {
            let own = barrier.clone();
            let waiter = scope.spawn(move || own.wait());
            while barrier.waiting() == 0 {
                std::thread::yield_now();
            }
            barrier.reset().unwrap();
            assert!(matches!(
                waiter.join().unwrap(),
                Err(SyncError::Broken { pid: None, by: BrokenBy::Reset, .. })
            ));
        });
        assert!(!barrier.is_broken());
        each(&barrier, 2, |barrier| _ = barrier.wait().unwrap());
    }

    #[test]
    fn panic_breaks_it() {
        let barrier = Barrier::new(1).unwrap();
        let own = barrier.clone();
        let panics = std::panic::AssertUnwindSafe(|| {
            let own = own;
            own.wait().unwrap();
            panic!("as a member");
        });
        assert!(std::panic::catch_unwind(panics).is_err());
        let own = std::process::id();
        assert!(matches!(barrier.wait(), Err(SyncError::Broken { pid: Some(pid), .. }) if pid == own));
    }

    #[test]
    fn who_waits_is_told_of_one_that_dies_as_it_joins() {
        let barrier = Barrier::new(2).unwrap();
        std::thread::scope(|scope| {
            let own = barrier.clone();
            let waiter = scope.spawn(move || own.wait().map(drop));
            // Until it is about to sleep: it watches the place that the next one takes.
            while barrier.members.place(1).robust().word.load(Relaxed) & robust::WAITERS == 0 {
                std::thread::yield_now();
            }
            let doomed = barrier.clone();
            robust::testing::doomed(move || {
                std::mem::forget(doomed.members.enter(&WaitPolicy::Forever).unwrap());
                doomed.members.occupy(robust::me().unwrap()).unwrap();
                robust::testing::die();
            });
            let told = waiter.join().unwrap();
            assert!(matches!(told, Err(SyncError::Broken { pid: Some(_), .. })), "{told:?}");
        });
    }
}
