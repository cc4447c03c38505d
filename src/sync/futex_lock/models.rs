//! Models of the futex lock: owners that free the word, die or are woken and die, in all orders.

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
                    // Whoever takes it owns it alone; that it comes in at all is what `deadlock` would tell.
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
//
// The word has no owner then, so the kernel looks at it only as the pending one, and not every kernel wakes a sleeper
// for that.
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

/// A thread watches the word of an owner, which ends in some way, and then looks whether the word has no owner any
/// more.
fn race_with_watcher(end: End) {
    check(move || {
        let (word, futex) = (Arc::new(AtomicU32::new(1)), FutexModel::on(NEWEST));
        let watcher = {
            let (word, futex) = (word.clone(), futex.clone());
            thread::spawn(move || {
                // Without an end to its patience: a wake that is lost leaves it asleep, which loom calls a deadlock.
                while let Some(watched) = watch_owned(&*word) {
                    futex.wait(&[(&word, watched)]).unwrap();
                }
            })
        };
        end(&word, &futex);
        watcher.join().unwrap();
    });
}

#[test]
fn loom_watcher_is_woken_by_an_owner_that_frees_the_word_for_all() {
    race_with_watcher(|word, futex| {
        if free_for_all(word) {
            futex.wake(word, i32::MAX);
        }
    });
}

#[test]
fn loom_watcher_is_woken_by_the_death_of_the_owner() {
    race_with_watcher(DIES);
}

#[test]
fn loom_watcher_of_a_free_word_is_woken_by_the_death_of_its_next_owner() {
    check(|| {
        let (word, futex) = (Arc::new(AtomicU32::new(0)), FutexModel::on(NEWEST));
        let watcher = {
            let (word, futex) = (word.clone(), futex.clone());
            thread::spawn(move || {
                // Watched first, then looked at, as the words of a barrier's members: a death before that is seen here.
                if let Some(watched) = watch_free(&*word)
                    && watched & OWNER_DIED == 0
                {
                    futex.wait(&[(&word, watched)]).unwrap();
                }
            })
        };
        assert_eq!(try_take(&*word, 2, 0), Ok(Taken::Free));
        futex.bury(&word, 2);
        watcher.join().unwrap();
    });
}

/// What `WaitPolicy` is for that looks again from time to time.
//
// It also proves the models: sleepers that look again would hide every lost wake, and here loom finds the one that
// there is.
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
                // Not `take`, whose first look may find the word free: only a sleeper can die as it is woken.
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
    // It takes the word without a sleep, so WAITERS must have stayed in the word: nothing else tells it of the
    // sleepers.
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
                // The one wake of `free` may be for this thread, whose time is up: it has to pass it on.
                if take(&*word, 3, &park).is_ok() {
                    free(&*word, &park);
                }
            })
        };
        // One wake for two sleepers: which of them it is for decides whether there is anything to pass on.
        free(&*word, &park);
        patient.join().unwrap();
        impatient.join().unwrap();
    });
}
