//! A parker: the waiter lets wakers know that it sleeps, so that they make the system call once, and only when it does.
//!
//! One thread at a time waits, since it holds a robust mutex meanwhile. If it dies, the next owner of that mutex clears
//! its bit. If a waker dies between its change and the wake, the kernel wakes the waiter: no wakeup is lost.

#[cfg(all(test, loom))]
mod models;

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use crossbeam::utils::Backoff;

use super::futex_lock::{self, AtomicWord, Futex};
use super::wait_policy::{Interrupted, WaitPolicy};
use crate::sys::atomic_record::atomic_record;
use crate::sys::robust::{self, RobustWord};

atomic_record! {
    /// A parking place for one waiter in shared memory.
    pub(crate) struct Parker {
        /// Owned by the waker from before its change until it has woken the waiter, so that the kernel changes the word
        /// and wakes if the waker is killed in between.
        waker: RobustWord,
        /// The futex that the waiter sleeps on: [`PARKED`] is set while it is parked or about to park, the other bits
        /// are a sequence number that every park and every wake advances.
        sequence: AtomicU32,
        /// What `sequence` was after the last wake, so that a second waker need not make the system call.
        last_wake: AtomicU32,
        // The next field is the waiter's own: not in the cache line that each waker writes.
        spare: [AtomicU32; 4],
        /// 1 if the last wait was longer than [`SHORT`]: the next one does not spin.
        skip_spin: AtomicU32,
    }
}

/// Set while the waiter sleeps or is about to.
const PARKED: u32 = 1;
/// One step of the sequence number.
const STEP: u32 = 2;

/// Announces that the waiter is about to park; returns the value on which it then sleeps. The waiter looks once more
/// for what it waits for between the two.
fn prepare<W: AtomicWord>(word: &W) -> u32 {
    // One addition sets the bit and advances the number: the bit is not set, since there is one waiter, which clears it
    // (`finish`), as does the next owner of its mutex (`reset_after_death`). The number comes back after 2^31 steps. To
    // be fooled, a waiter would have to sleep between its ticket and FUTEX_WAIT while exactly as many wakes pass.
    let ticket = word.add(STEP + PARKED, Relaxed).wrapping_add(STEP + PARKED);
    // The waiter stores its bit and then loads the condition; the waker stores the condition and then loads the bit
    // (`unpark`). With a full barrier between the two on either side at least one sees the other's store. Without it
    // both could miss (a lost wakeup).
    W::barrier_after_change();
    ticket
}

/// The waiter is not parked any more.
fn finish<W: AtomicWord>(word: &W) {
    // An addition, not a store: a waker may advance the number at any moment. The bit is set, so nothing borrows from
    // the number.
    word.add(PARKED.wrapping_neg(), Relaxed);
}

/// Wakes the waiter if it is parked and was not woken since it parked. The condition was changed before, by an
/// operation that reads and writes an atomic.
#[inline]
fn unpark<W: AtomicWord, P: Futex<W>>(word: &W, last_wake: &W, park: &P) {
    // The other side of the barrier in `prepare`.
    W::barrier_after_change();
    // Relaxed: the barrier has ordered it after the change, and only the bit and the number are of interest.
    let seen = word.load(Relaxed);
    // An equal number says that a waker has woken this very park: the waiter is on its way.
    if seen & PARKED != 0 && last_wake.load(Relaxed) != seen {
        wake_sleeper(word, last_wake, park);
    }
}

#[cold]
fn wake_sleeper<W: AtomicWord, P: Futex<W>>(word: &W, last_wake: &W, park: &P) {
    // A waiter that is not asleep yet then finds another value than its ticket, and does not fall asleep (EAGAIN of
    // FUTEX_WAIT).
    let now = word.add(STEP, Relaxed).wrapping_add(STEP);
    park.wake(word, 1);
    // After the wake: a waker that is killed before leaves the number as it was, and the next one wakes again.
    last_wake.swap(now, Relaxed);
}

/// Nanoseconds for which a waiter spins before it parks: about the time of a wake and its answer. Where the last wait
/// was longer, the spin gained nothing and kept a processor from the process that was waited for, so the next wait
/// parks at once.
pub(crate) const SHORT: u64 = 25_000;

/// Calls `look` until it finds something or the clock, in `nanos`, reads `until`.
pub(crate) fn spin<T>(nanos: impl Fn() -> u64, until: u64, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let backoff = Backoff::new();
    loop {
        // Gives up the processor after some turns: on a single one the waker could not run otherwise.
        backoff.snooze();
        match look() {
            // The clock is read after the look, so there is one look at the least.
            None if nanos() < until => {}
            found => return found,
        }
    }
}

/// Waits until `look` finds something.
fn wait<W: AtomicWord, P: Futex<W>, T>(
    (word, waker, skip_spin): (&W, &W, &W),
    park: &P,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T, P::Interrupted> {
    if let Some(found) = look() {
        return Ok(found);
    }
    // A caller that does not wait must not set the bit: wakers would make system calls for nothing.
    park.check()?;
    let short = park.nanos() + SHORT;
    if park.spins()
        // A hint about the other side, by the last waiter of any process. It may be wrong, which costs time and never a
        // wakeup.
        && skip_spin.load(Relaxed) == 0
        && let Some(found) = spin(|| park.nanos(), short, &mut look)
    {
        return Ok(found);
    }
    let waited = sleep_until_found((word, waker), park, look);
    // Slept or not: the clock tells whether a spin would have been enough.
    skip_spin.swap((park.nanos() > short).into(), Relaxed);
    waited
}

/// Parks until `look` finds something.
fn sleep_until_found<W: AtomicWord, P: Futex<W>, T>(
    (word, waker): (&W, &W),
    park: &P,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T, P::Interrupted> {
    loop {
        let ticket = prepare(word);
        // Before the look: the word of a waker that dies after the look changes (FUTEX_OWNER_DIED), so that the waiter
        // is woken, or does not fall asleep.
        let seen_waker = waker.load(Acquire);
        let slept = match look() {
            Some(found) => Ok(Some(found)),
            // The kernel compares both words with what was read before the look (FUTEX_WAITV): a waker that
            // came between the look and this call has changed the first, one that died has changed the second.
            None => park.wait(&[(word, ticket), (waker, seen_waker)]).map(|()| None),
        };
        // Before the last look: a waker that comes from here on makes no system call.
        finish(word);
        // Woken, or woken for nothing: only the look decides.
        match slept.map(|found| found.or_else(&mut look)) {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            // The time was up, but a waker may have made its change in the same moment, and its one wake may have been
            // this thread's.
            Err(stop) => return look().ok_or(stop),
        }
    }
}

/// A waiter that also wakes when `end` is not 0 any more.
struct Sleeper<'a> {
    policy: &'a WaitPolicy,
    end: &'a AtomicU32,
}

impl Futex<AtomicU32> for Sleeper<'_> {
    type Interrupted = Interrupted;

    fn wait(&self, words: &[(&AtomicU32, u32)]) -> Result<(), Interrupted> {
        // One step of a closer changes `end` and wakes those that sleep on it (FUTEX_WAKE_OP): no parker is asked, on
        // either side.
        let all: Vec<_> = words.iter().copied().chain([(self.end, 0)]).collect();
        self.policy.sleep(&all)
    }

    fn wake(&self, word: &AtomicU32, count: i32) -> usize {
        self.policy.wake(word, count)
    }

    fn check(&self) -> Result<(), Interrupted> {
        self.policy.check()
    }

    fn spins(&self) -> bool {
        self.policy.spins()
    }

    fn nanos(&self) -> u64 {
        self.policy.nanos()
    }
}

impl Parker {
    /// Waits until `look` finds something, as it does when `end` is not 0 any more. The caller holds the mutex of the
    /// waiting side.
    pub(crate) fn park<T>(
        &self,
        policy: &WaitPolicy,
        end: &AtomicU32,
        look: impl FnMut() -> Option<T>,
    ) -> Result<T, Interrupted> {
        wait((&self.sequence, &self.waker.word, &self.skip_spin), &Sleeper { policy, end }, look)
    }

    /// Runs `change`, which ends with an operation that reads and writes the atomic that the waiter looks at, then
    /// wakes the waiter. If this thread dies in between, the kernel wakes it. The caller holds the mutex of the waking
    /// side.
    #[inline]
    pub(crate) fn publish<T>(&self, change: impl FnOnce() -> T) {
        // The wakers' mutex keeps others out of `waker`, though it is taken by a plain store.
        robust::with_pending_to_own(&self.waker, |tid| {
            // Before the change: a death after the change must find the word owned, or it would not change, and a
            // waiter that is only about to sleep would not be held back.
            if let Some(tid) = tid {
                futex_lock::own_unlisted(&self.waker.word, tid);
            }
            change();
            unpark(&self.sequence, &self.last_wake, &WaitPolicy::Never);
            // A waiter that has read the owned word in between does not fall asleep on it (EAGAIN), and looks once
            // more.
            futex_lock::disown_unlisted(&self.waker.word);
        });
    }

    /// Whether a waiter is parked, or about to park.
    pub(crate) fn is_parked(&self) -> bool {
        self.sequence.load(Relaxed) & PARKED != 0
    }

    /// Clears the bit of a waiter that has died. The caller holds the mutex of the waiting side.
    pub(crate) fn reset_after_death(&self) {
        // Left set, each change would cost its waker a system call that wakes nobody; and the next waiter's addition
        // would clear the bit by its carry: that waiter would sleep unseen.
        if self.is_parked() {
            finish(&self.sequence);
        }
    }
}

#[cfg(test)]
mod kernel_tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::SeqCst;

    use super::super::record_with::RecordWith;
    use super::*;
    use crate::sys::robust::OWNER_DIED;

    /// A waiter, and a waker that dies between the change and the wake when `is_time` says so of the parker.
    fn race(is_time: impl Fn(&Parker) -> bool + Send + 'static) {
        let parker = RecordWith::<Parker, ()>::new("test", ()).unwrap();
        let (waker, happened) = (parker.clone(), Arc::new(AtomicBool::new(false)));
        let happens = happened.clone();
        robust::testing::doomed(move || {
            waker.fields().publish(|| {
                while !is_time(waker.fields()) {
                    std::thread::yield_now();
                }
                happens.store(true, SeqCst);
                robust::testing::die()
            });
        });
        let look = || happened.load(SeqCst).then_some(());
        parker.fields().park(&WaitPolicy::Forever, &AtomicU32::new(0), look).unwrap();
        assert_eq!(parker.fields().sequence.load(SeqCst) & PARKED, 0);
    }

    #[test]
    fn sleeper_finds_what_happened_though_the_waker_died_before_it_woke_anybody() {
        (0..200).for_each(|_| race(|parker| parker.sequence.load(SeqCst) & PARKED != 0));
    }

    #[test]
    fn sleeper_finds_what_happened_though_the_waker_died_before_it_was_asleep() {
        let (parker, happened) =
            (RecordWith::<Parker, ()>::new("test", ()).unwrap(), Arc::new(AtomicBool::new(false)));
        let mut is_first = true;
        let look = || {
            if !std::mem::take(&mut is_first) {
                return happened.load(SeqCst).then_some(());
            }
            // All that happens now comes too late for this look, which is the last before the sleep.
            let (waker, happens) = (parker.clone(), happened.clone());
            robust::testing::doomed(move || {
                waker.fields().publish(|| {
                    happens.store(true, SeqCst);
                    robust::testing::die()
                });
            });
            while parker.fields().waker.word.load(SeqCst) & OWNER_DIED == 0 {
                std::thread::yield_now();
            }
            None
        };
        let (parker, end) = (parker.fields(), AtomicU32::new(0));
        let sleeper = Sleeper { policy: &WaitPolicy::Forever, end: &end };
        super::sleep_until_found((&parker.sequence, &parker.waker.word), &sleeper, look).unwrap();
    }
}
