//! An eventcount: many waiters, one condition. No waiter stays asleep, whichever process is killed.
//!
//! A notifier changes the epoch and wakes all waiters. Both it and each waiter have the eventcount's robust word
//! pending meanwhile. If one of them is killed, the kernel wakes one waiter through that word, and a waiter that was
//! woken so wakes all the others.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::wait_policy::{Interrupted, WaitPolicy};
use crate::sys::atomic_record::atomic_record;
use crate::sys::futex;
use crate::sys::robust::{self, RobustWord};

atomic_record! {
    pub(crate) struct EventCount {
        /// Never owned: notifiers and waiters have it pending, and waiters sleep on it beside the epoch.
        pending: RobustWord,
        epoch: AtomicU32,
    }
}

impl EventCount {
    /// The epoch, to be read before the condition. What its notifier changed before is visible after this (Acquire).
    #[inline]
    pub(crate) fn epoch(&self) -> u32 {
        // Acquire, with the Release of a notifier's change: a waiter that sees the new epoch sees what was changed
        // before it.
        self.epoch.load(Acquire)
    }

    /// Advances the epoch and wakes all waiters.
    pub(crate) fn notify_all(&self) {
        self.notify_if(|epoch| {
            epoch.fetch_add(1, AcqRel);
            true
        });
    }

    /// Runs `change`, which is given the epoch, and wakes all waiters if it returns that it has advanced it; returns
    /// the same. If `change` changes something else before the epoch and the thread dies in between, the kernel wakes
    /// one waiter.
    pub(crate) fn notify_if(&self, change: impl FnOnce(&AtomicU32) -> bool) -> bool {
        // Pending from before the change: a notifier that dies between the change and the wake has the kernel wake one
        // waiter for it.
        robust::with_pending(&self.pending, || {
            let changed = change(&self.epoch);
            // All, not one: a waiter that is killed as it is woken would take the only wake with it.
            if changed {
                futex::wake_all(&self.epoch);
            }
            changed
        })
    }

    /// Sleeps while the epoch is `seen` and the other words have the expected values. It may return spuriously.
    pub(crate) fn wait_once(
        &self,
        seen: u32,
        others: &[(&AtomicU32, u32)],
        policy: &WaitPolicy,
    ) -> Result<(), Interrupted> {
        let word = &self.pending.word;
        // The kernel compares all the words again before it lets this thread sleep: a notification since `seen` was
        // read has changed the epoch. It comes back after 2^32 notifications, all of which would have to fall between
        // that read and this call.
        let own = [(&self.epoch, seen), (word, word.load(Relaxed))];
        let words: Vec<_> = own.into_iter().chain(others.iter().copied()).collect();
        // Pending here, too: this thread may be killed as it is woken, and the kernel passes the wake on.
        robust::with_pending(&self.pending, || {
            let woken = policy.sleep_any(&words)?;
            // Woken through the robust word: by the kernel, for a notifier that died before it had woken all, or for a
            // waiter that died as it was woken. Others may sleep since an earlier epoch than `seen`, so an unchanged
            // epoch does not say that there is nobody to wake.
            if woken.is_some_and(|which| which > 0) {
                futex::wake_all(&self.epoch);
            }
            Ok(())
        })
    }

    /// Waits until the epoch is not `seen` any more.
    pub(crate) fn wait(&self, seen: u32, policy: &WaitPolicy) -> Result<(), Interrupted> {
        // A sleep may end for nothing, or for the death of another waiter: the epoch alone says that there was a
        // notification.
        while self.epoch() == seen {
            self.wait_once(seen, &[], policy)?;
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
    fn all_waiters_are_woken_by_one_notification() {
        let changed = RecordWith::<EventCount, ()>::new("test", ()).unwrap();
        let (changed, ready) = (changed.fields(), AtomicU32::new(0));
        let wait = |seen| {
            ready.fetch_add(1, AcqRel);
            changed.wait(seen, &WaitPolicy::Forever).unwrap();
        };
        let wait = &wait;
        std::thread::scope(|scope| {
            for round in 0..200 {
                let waiters = [(); 3].map(|()| scope.spawn(move || wait(round)));
                while ready.load(Acquire) < 3 * (round + 1) {
                    std::thread::yield_now();
                }
                changed.notify_all();
                waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
            }
        });
    }

    #[test]
    fn waiter_that_the_kernel_woke_wakes_the_others() {
        let changed = RecordWith::<EventCount, ()>::new("test", ()).unwrap();
        let (changed, tids) = (changed.fields(), [(); 3].map(|()| AtomicU32::new(0)));
        let wait = |tid: &AtomicU32| {
            tid.store(robust::me().unwrap().tid, Release);
            changed.wait(0, &WaitPolicy::Forever)
        };
        let wait = &wait;
        std::thread::scope(|scope| {
            let waiters: Vec<_> = tids.iter().map(|tid| scope.spawn(move || wait(tid))).collect();
            tids.iter().for_each(futex::tests::await_asleep);
            // As one that dies after it has counted and before it has woken anybody. Where nobody can sleep on the word
            // that the kernel wakes (before Linux 5.16), each looks for itself.
            changed.epoch.fetch_add(1, AcqRel);
            while futex::wake(&changed.pending.word, 1) == 0
                && waiters.iter().any(|waiter| !waiter.is_finished())
            {
                std::thread::yield_now();
            }
            waiters.into_iter().for_each(|waiter| waiter.join().unwrap().unwrap());
        });
    }

    #[test]
    fn notifier_that_dies_between_the_change_and_the_wake_leaves_no_waiter_asleep() {
        let changed = RecordWith::<EventCount, ()>::new("test", ()).unwrap();
        for round in 0..50 {
            let ready = AtomicU32::new(0);
            std::thread::scope(|scope| {
                let wait = || {
                    ready.fetch_add(1, AcqRel);
                    changed.fields().wait(round, &WaitPolicy::Forever)
                };
                let waiters = [(); 3].map(|()| scope.spawn(wait));
                while ready.load(Acquire) < 3 {
                    std::thread::yield_now();
                }
                let doomed = changed.clone();
                robust::testing::doomed(move || {
                    doomed.fields().notify_if(|epoch| {
                        epoch.fetch_add(1, AcqRel);
                        robust::testing::die()
                    });
                });
                waiters.into_iter().for_each(|waiter| waiter.join().unwrap().unwrap());
            });
        }
    }

    #[test]
    fn new_waiter_that_the_kernel_woke_wakes_those_that_slept_before_the_change() {
        let changed = RecordWith::<EventCount, ()>::new("test", ()).unwrap();
        let changed = changed.fields();
        let can_wait_for_several = futex::tests::can_wait_for_several();
        let sleep = &|seen| {
            if !can_wait_for_several {
                // Before Linux 5.16 a death wakes no waiter here: each looks again by itself.
                return changed.wait(seen, &WaitPolicy::Forever).unwrap();
            }
            // As one that the kernel would wake later, by its priority.
            while changed.epoch() == seen {
                futex::wait(&changed.epoch, seen, None).unwrap();
            }
        };
        std::thread::scope(|scope| {
            for round in 0..50 {
                let sleeper = scope.spawn(move || sleep(round));
                while futex::wake(&changed.epoch, 1) == 0 {
                    std::thread::yield_now();
                }
                // It sleeps again, soon. Who counts dies before it wakes anybody.
                (0..50).for_each(|_| std::thread::yield_now());
                changed.epoch.fetch_add(1, AcqRel);
                let newcomer = scope.spawn(move || changed.wait_once(round + 1, &[], &WaitPolicy::Forever));
                while futex::wake(&changed.pending.word, 1) == 0 && !newcomer.is_finished() {
                    std::thread::yield_now();
                }
                newcomer.join().unwrap().unwrap();
                sleeper.join().unwrap();
            }
        });
    }
}
