//! The futex lock algorithm of a robust word, generic over memory and kernel, so that loom can try all orders of its steps.

use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

use crossbeam::utils::Backoff;

use crate::sys::robust::{OWNER, OWNER_DIED, WAITERS};

/// An atomic word.
pub(crate) trait AtomicWord {
    fn load(&self, ordering: Ordering) -> u32;
    fn swap(&self, new: u32, ordering: Ordering) -> u32;
    /// compare_exchange, with failure ordering Relaxed.
    fn replace(&self, old: u32, new: u32, ordering: Ordering) -> Result<u32, u32>;
    /// fetch_add: wraps around and returns the old value.
    fn add(&self, by: u32, ordering: Ordering) -> u32;
    /// A full barrier, directly after an operation that has read and written an atomic.
    fn barrier_after_change();
}

/// How to sleep until a word changes, and how to wake sleepers: futex(2), or loom's model of it.
pub(crate) trait Futex<W> {
    /// Why a wait ended without success.
    type Interrupted;
    /// Sleeps while all words have the expected values. It may return spuriously.
    fn wait(&self, words: &[(&W, u32)]) -> Result<(), Self::Interrupted>;
    /// Wakes at most `count` sleepers; returns how many it has woken.
    fn wake(&self, word: &W, count: i32) -> usize;
    /// An error when the caller does not wait, or not any longer.
    fn check(&self) -> Result<(), Self::Interrupted>;
    /// Whether to spin before the first sleep.
    fn spins(&self) -> bool;
    /// The monotonic clock, in nanoseconds.
    fn nanos(&self) -> u64;
}

/// How a word was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It had no owner.
    Free,
    /// Its owner had died.
    FromDead,
}

/// Takes the word if no thread owns it. `keep`: WAITERS if others may sleep although the word does not say so, else 0.
fn try_take<W: AtomicWord>(word: &W, tid: u32, keep: u32) -> Result<Taken, u32> {
    let mut seen = word.load(Relaxed);
    loop {
        if seen & OWNER != 0 {
            return Err(seen);
        }
        match word.replace(seen, tid | (seen & WAITERS) | keep, Acquire) {
            Ok(_) if seen & OWNER_DIED != 0 => return Ok(Taken::FromDead),
            Ok(_) => return Ok(Taken::Free),
            Err(now) => seen = now,
        }
    }
}

/// Waits for the word and takes it for thread `tid`. A caller that does not wait leaves the word as it is: WAITERS would cost the owner a
/// system call for nothing.
pub(crate) fn take<W: AtomicWord, P: Futex<W>>(
    word: &W,
    tid: u32,
    park: &P,
) -> Result<Taken, P::Interrupted> {
    if let Ok(taken) = try_take(word, tid, 0) {
        return Ok(taken);
    }
    park.check()?;
    let backoff = Backoff::new();
    while park.spins() && !backoff.is_completed() {
        backoff.snooze();
        if let Ok(taken) = try_take(word, tid, 0) {
            return Ok(taken);
        }
    }
    take_sleeping(word, tid, park)
}

#[cold]
fn take_sleeping<W: AtomicWord, P: Futex<W>>(word: &W, tid: u32, park: &P) -> Result<Taken, P::Interrupted> {
    // After a sleep this thread cannot know whether it was the only sleeper, so it keeps WAITERS from then on.
    let mut others = 0;
    loop {
        let seen = match try_take(word, tid, others) {
            Ok(taken) => return Ok(taken),
            Err(seen) => seen,
        };
        let asleep = seen | WAITERS;
        if seen != asleep && word.replace(seen, asleep, Relaxed).is_err() {
            continue;
        }
        if let Err(stop) = park.wait(&[(word, asleep)]) {
            // The owner may have chosen this sleeper for its one wake in the same moment: then another sleeper has to be woken.
            if word.load(Relaxed) & OWNER == 0 {
                park.wake(word, 1);
            }
            return Err(stop);
        }
        others = WAITERS;
    }
}

/// Frees the word and wakes one sleeper.
pub(crate) fn free<W: AtomicWord, P: Futex<W>>(word: &W, park: &P) {
    // WAITERS stays until no sleeper is found. This thread may be killed before it has woken one, or that one as it wakes: then a third
    // thread, which was faster to take the word, still knows that it has to wake a sleeper when it frees the word.
    let freed = let_go(word);
    if freed & WAITERS != 0 && park.wake(word, 1) == 0 {
        // Fails if a thread has taken it meanwhile: WAITERS then stays, which costs one wake at most.
        let _ = word.replace(freed, 0, Relaxed);
    }
}

/// Takes the owner out; returns what is left.
fn let_go<W: AtomicWord>(word: &W) -> u32 {
    let mut seen = word.load(Relaxed);
    loop {
        let freed = seen & WAITERS;
        match word.replace(seen, freed, Release) {
            Ok(_) => return freed,
            Err(now) => seen = now,
        }
    }
}

#[cfg(all(test, loom))]
mod tests {
    use std::sync::Arc;

    use loom::sync::atomic::{AtomicU32, AtomicUsize};
    use loom::thread;

    use super::super::model::{Doomed, FutexModel, KERNELS, Kernel, check, check_switches};
    use super::*;

    /// For what depends on no pending word of a dead thread.
    const NEWEST: Kernel = Kernel::WakesWithoutOwner;

    /// How the thread ends that holds a word.
    type End = fn(&AtomicU32, &FutexModel);

    /// Two threads take a word that a third, 1, holds when the model begins, which then ends in some way.
    fn race(futex: impl Fn() -> FutexModel + Sync + Send + 'static, end: End, expected_dead: usize) {
        check(move || {
            let word = Arc::new(AtomicU32::new(1));
            let inside = Arc::new(AtomicUsize::new(0));
            let dead = Arc::new(AtomicUsize::new(0));
            let park = futex();
            let takers: Vec<_> = (2..4)
                .map(|tid| {
                    let (word, inside, dead) = (word.clone(), inside.clone(), dead.clone());
                    let park = park.clone();
                    thread::spawn(move || {
                        if take(&*word, tid, &park).unwrap() == Taken::FromDead {
                            dead.fetch_add(1, Relaxed);
                        }
                        assert_eq!(inside.fetch_add(1, Relaxed), 0, "two are inside");
                        inside.fetch_sub(1, Relaxed);
                        free(&*word, &park);
                        park.done();
                    })
                })
                .collect();
            end(&word, &park);
            park.await_done(2);
            takers.into_iter().for_each(|taker| taker.join().unwrap());
            assert_eq!(dead.load(Relaxed), expected_dead);
        });
    }

    /// Dies as the holder.
    const DIES: End = |word, park| park.bury(word, 1);

    /// Dies in the middle of `free`.
    const DIES_BEFORE_IT_WAKES: End = |word, park| {
        let_go(word);
        park.bury(word, 1);
    };

    #[test]
    fn loom_word_is_one_threads_at_a_time_and_nobody_sleeps_for_ever() {
        race(|| FutexModel::on(NEWEST), |word, park| free(word, park), 0);
    }

    #[test]
    fn loom_death_of_the_holder_is_told_to_exactly_one() {
        race(|| FutexModel::on(NEWEST), DIES, 1);
    }

    #[test]
    fn loom_holder_that_dies_between_freeing_and_waking_leaves_nobody_asleep() {
        KERNELS.iter().for_each(|&kernel| race(move || FutexModel::on(kernel), DIES_BEFORE_IT_WAKES, 0));
    }

    /// What `WaitPolicy` is for that looks again from time to time.
    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_finds_who_sleeps_for_ever_on_an_older_kernel_that_is_trusted() {
        race(|| FutexModel::on(Kernel::WakesAtZero).trusting(), DIES_BEFORE_IT_WAKES, 0);
    }

    /// Which differ for one that is woken and dies: it leaves the bit for sleepers.
    const OF_WAITERS: [Kernel; 2] = [Kernel::WakesAtZero, NEWEST];

    /// The holder ends in some way, one that sleeps for the word is killed as it wakes, and a third sleeps on.
    fn race_with_doomed(futex: impl Fn() -> FutexModel + Sync + Send + 'static, end: End) {
        // Three threads that each do much: with one more it takes a quarter of an hour.
        check_switches(2, move || {
            let (word, futex) = (Arc::new(AtomicU32::new(1)), futex());
            let doomed = {
                let (word, park) = (word.clone(), Doomed { futex: futex.clone(), tid: 2 });
                thread::spawn(move || {
                    if take_sleeping(&*word, 2, &park).is_ok() {
                        free(&*word, &park.futex);
                    }
                    park.futex.done();
                })
            };
            let sleeper = {
                let (word, park) = (word.clone(), futex.clone());
                thread::spawn(move || {
                    take(&*word, 3, &park).unwrap();
                    free(&*word, &park);
                    park.done();
                })
            };
            end(&word, &futex);
            futex.await_done(2);
            doomed.join().unwrap();
            sleeper.join().unwrap();
        });
    }

    /// Frees it, and may be the first to take it again.
    const FREES_AND_IS_FASTER: End = |word, park| {
        free(word, park);
        if try_take(word, 1, 0).is_ok() {
            free(word, park);
        }
    };

    #[test]
    fn loom_waiter_that_dies_as_it_is_woken_leaves_nobody_asleep_though_a_third_is_faster() {
        OF_WAITERS
            .iter()
            .for_each(|&kernel| race_with_doomed(move || FutexModel::on(kernel), FREES_AND_IS_FASTER));
    }

    #[test]
    fn loom_waiter_that_dies_as_it_is_woken_for_a_dead_holder_leaves_nobody_asleep() {
        OF_WAITERS.iter().for_each(|&kernel| race_with_doomed(move || FutexModel::on(kernel), DIES));
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_finds_who_sleeps_for_ever_after_two_deaths_on_an_older_kernel_that_is_trusted() {
        race_with_doomed(|| FutexModel::on(Kernel::WakesAtZero).trusting(), DIES);
    }

    #[test]
    fn loom_waiter_that_gives_up_takes_no_wake_with_it() {
        check(|| {
            let (word, park) = (Arc::new(AtomicU32::new(1)), FutexModel::on(NEWEST));
            let patient = {
                let (word, park) = (word.clone(), park.clone());
                thread::spawn(move || {
                    take(&*word, 2, &park).unwrap();
                    free(&*word, &park);
                })
            };
            let impatient = {
                let (word, park) = (word.clone(), park.impatient());
                thread::spawn(move || {
                    if take(&*word, 3, &park).is_ok() {
                        free(&*word, &park);
                    }
                })
            };
            free(&*word, &park);
            patient.join().unwrap();
            impatient.join().unwrap();
        });
    }
}
