//! A count that is waited for. Whoever is to be woken is woken, though the one that counts, or who is woken before, is
//! killed.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::patience::{Patience, Stop};
use crate::sys::atomic_record::atomic_record;
use crate::sys::futex;
use crate::sys::robust::{self, RobustWord};

atomic_record! {
    /// The count is the `mark`. The `word` is nobody's ever: the kernel wakes one who sleeps on it when a thread dies that
    /// was counting or sleeping, and that one passes it on.
    pub(crate) struct Bell {
        place: RobustWord,
    }
}

impl Bell {
    /// What it has come to. Changes before it are seen.
    #[inline]
    pub(crate) fn count(&self) -> u32 {
        self.place.mark.load(Acquire)
    }

    /// Counts on, and wakes all who sleep.
    pub(crate) fn ring(&self) {
        self.ring_if(|count| {
            count.fetch_add(1, AcqRel);
            true
        });
    }

    /// Runs `change`, and wakes all who sleep if it says that it has changed the count; says so too. If it changes
    /// something else before it and the thread dies in between, one of those who sleep is woken.
    pub(crate) fn ring_if(&self, change: impl FnOnce(&AtomicU32) -> bool) -> bool {
        robust::with_pending(&self.place, || {
            let changed = change(&self.place.mark);
            if changed {
                futex::wake_all(&self.place.mark);
            }
            changed
        })
    }

    /// Sleeps while the count is `seen` and the other words are what is expected of them. It may wake for nothing.
    pub(crate) fn hear(
        &self,
        seen: u32,
        others: &[(&AtomicU32, u32)],
        patience: &Patience,
    ) -> Result<(), Stop> {
        let word = &self.place.word;
        let own = [(&self.place.mark, seen), (word, word.load(Relaxed))];
        let words: Vec<_> = own.into_iter().chain(others.iter().copied()).collect();
        robust::with_pending(&self.place, || {
            let woken = patience.doze(&words)?;
            // By the kernel, for one that died before it had woken all. Others may sleep since an earlier count than this
            // one, which has seen the last, so the count does not say whether there is somebody to wake.
            if woken.is_some_and(|which| which > 0) {
                futex::wake_all(&self.place.mark);
            }
            Ok(())
        })
    }

    /// Waits until the count is not `seen` any more.
    pub(crate) fn wait(&self, seen: u32, patience: &Patience) -> Result<(), Stop> {
        while self.count() == seen {
            self.hear(seen, &[], patience)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Release;

    use super::super::record_with::RecordWith;
    use super::*;

    #[test]
    fn all_who_wait_are_woken_by_one_ring() {
        let bell = RecordWith::<Bell, ()>::new("test", ()).unwrap();
        let (bell, ready) = (bell.fields(), AtomicU32::new(0));
        let wait = |seen| {
            ready.fetch_add(1, AcqRel);
            bell.wait(seen, &Patience::Endless).unwrap();
        };
        let wait = &wait;
        std::thread::scope(|scope| {
            for round in 0..200 {
                let waiters = [(); 3].map(|()| scope.spawn(move || wait(round)));
                while ready.load(Acquire) < 3 * (round + 1) {
                    std::thread::yield_now();
                }
                bell.ring();
                waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
            }
        });
    }

    #[test]
    fn one_that_the_kernel_woke_wakes_the_others() {
        let bell = RecordWith::<Bell, ()>::new("test", ()).unwrap();
        let (bell, tids) = (bell.fields(), [(); 3].map(|()| AtomicU32::new(0)));
        let wait = |tid: &AtomicU32| {
            tid.store(robust::me().unwrap().tid, Release);
            bell.wait(0, &Patience::Endless)
        };
        let wait = &wait;
        std::thread::scope(|scope| {
            let waiters: Vec<_> = tids.iter().map(|tid| scope.spawn(move || wait(tid))).collect();
            tids.iter().for_each(futex::tests::await_asleep);
            // As one that dies after it has counted and before it has woken anybody. Where nobody can sleep on the word that the
            // kernel wakes (before Linux 5.16), each looks for itself.
            bell.place.mark.fetch_add(1, AcqRel);
            while futex::wake(&bell.place.word, 1) == 0 && waiters.iter().any(|waiter| !waiter.is_finished())
            {
                std::thread::yield_now();
            }
            waiters.into_iter().for_each(|waiter| waiter.join().unwrap().unwrap());
        });
    }

    #[test]
    fn one_that_dies_between_the_change_and_the_wake_leaves_nobody_asleep() {
        let bell = RecordWith::<Bell, ()>::new("test", ()).unwrap();
        for round in 0..50 {
            let ready = AtomicU32::new(0);
            std::thread::scope(|scope| {
                let wait = || {
                    ready.fetch_add(1, AcqRel);
                    bell.fields().wait(round, &Patience::Endless)
                };
                let waiters = [(); 3].map(|()| scope.spawn(wait));
                while ready.load(Acquire) < 3 {
                    std::thread::yield_now();
                }
                let doomed = bell.clone();
                robust::testing::doomed(move || {
                    doomed.fields().ring_if(|count| {
                        count.fetch_add(1, AcqRel);
                        robust::testing::die()
                    });
                });
                waiters.into_iter().for_each(|waiter| waiter.join().unwrap().unwrap());
            });
        }
    }

    #[test]
    fn newcomer_whom_the_kernel_woke_wakes_those_who_slept_before_the_change() {
        let bell = RecordWith::<Bell, ()>::new("test", ()).unwrap();
        let bell = bell.fields();
        let can_wait_for_several = futex::tests::can_wait_for_several();
        let sleep = &|seen| {
            if !can_wait_for_several {
                // Before Linux 5.16 nobody is woken for a dead one: who sleeps looks for itself.
                return bell.wait(seen, &Patience::Endless).unwrap();
            }
            // As one that the kernel would wake later, by its priority.
            while bell.count() == seen {
                futex::wait(&bell.place.mark, seen, None).unwrap();
            }
        };
        std::thread::scope(|scope| {
            for round in 0..50 {
                let sleeper = scope.spawn(move || sleep(round));
                while futex::wake(&bell.place.mark, 1) == 0 {
                    std::thread::yield_now();
                }
                // It sleeps again, soon. Who counts dies before it wakes anybody.
                (0..50).for_each(|_| std::thread::yield_now());
                bell.place.mark.fetch_add(1, AcqRel);
                let newcomer = scope.spawn(move || bell.hear(round + 1, &[], &Patience::Endless));
                while futex::wake(&bell.place.word, 1) == 0 && !newcomer.is_finished() {
                    std::thread::yield_now();
                }
                newcomer.join().unwrap().unwrap();
                sleeper.join().unwrap();
            }
        });
    }
}
