//! A robust mutex: a word that one thread at a time owns, and whose next owner learns that the last one died
//! (EOWNERDEAD), and in which process.

use std::marker::PhantomData;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::futex_lock::{self, Taken};
use super::wait_policy::{Interrupted, WaitPolicy};
use crate::point::point;
use crate::sys::robust::{self, MapPin, OWNER, RobustWord};

/// How long a call that must not block waits for an owner that is in the middle of something. An owner needs
/// microseconds, unless its process is stopped (SIGSTOP).
pub(crate) const IN_THE_MIDDLE: Duration = Duration::from_secs(1);
/// As [`IN_THE_MIDDLE`], for a future, which must not hold up its thread.
const OF_A_POLL: Duration = Duration::from_millis(1);
/// How often it looks meanwhile whether that owner waits itself.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Makes a guard `Sync` but not `Send`: the kernel frees the word of the thread that has taken it.
pub(super) type OfThread = PhantomData<MutexGuard<'static, ()>>;

/// How the mutex was acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acquired {
    /// The last owner has freed it.
    Clean,
    /// EOWNERDEAD: the last owner, a thread of this process, died in the middle of something.
    OwnerDied { pid: u32 },
}

/// Waits for the mutex and takes it.
///
/// # Errors
/// [`Interrupted::Deadlock`] when this thread owns it already.
#[inline]
pub(crate) fn lock(
    mutex: &RobustWord,
    keep: impl FnOnce() -> MapPin,
    policy: &WaitPolicy,
) -> Result<Acquired, Interrupted> {
    robust::take(mutex, keep, |me| {
        // The id alone may be that of a thread of another PID namespace. Whether the word is on the list of this thread
        // does not tell either: a fork may have mapped it twice.
        if mutex.word.load(Relaxed) & OWNER == me.tid && mutex.owner_nonce.load(Relaxed) == me.nonce {
            return Err(Interrupted::Deadlock);
        }
        // Relaxed from here on: the word orders these fields, by its Acquire here and its Release in `unlock`.
        let taken = futex_lock::take(&mutex.word, me.tid, policy)?;
        // The dead owner's process is 0 if it died before it had entered, or when it was about to leave: then it has
        // left nothing in disorder. It must be read before it is overwritten.
        let acquired = match (taken, mutex.owner_pid.load(Relaxed)) {
            (Taken::FromDead, pid) if pid != 0 => Acquired::OwnerDied { pid },
            _ => Acquired::Clean,
        };
        // From here on a death leaves something behind. This thread is on no list yet, but has the word pending.
        mutex.owner_pid.store(me.pid, Relaxed);
        mutex.owner_nonce.store(me.nonce, Relaxed);
        point!("lock.taken", deaths);
        Ok(acquired)
    })
}

/// Frees the mutex. In a fork of the owner nothing happens.
#[inline]
pub(super) fn unlock(mutex: &RobustWord) {
    robust::free(mutex, || {
        // Before the word is free: then they are the next owner's. A death between these stores and the freeing leaves
        // 0, so that the next owner takes the mutex from the dead as from one that had finished.
        mutex.owner_nonce.store(0, Relaxed);
        mutex.owner_pid.store(0, Relaxed);
        point!("lock.freed", deaths);
        futex_lock::free(&mutex.word, &WaitPolicy::Never);
    });
}

/// Whether this thread owns it.
pub(super) fn is_locked_here(mutex: &RobustWord) -> bool {
    // By this thread's own list, which a fork does not inherit; the word would say the parent's id there, too.
    robust::owns(mutex)
}

/// Whether any thread owns it.
pub(crate) fn is_locked(word: &AtomicU32) -> bool {
    owner(word) != 0
}

fn owner(word: &AtomicU32) -> u32 {
    // Relaxed: a snapshot, of which nothing follows for what the mutex guards.
    word.load(Relaxed) & OWNER
}

/// The owner's process id; 0 without an owner.
pub(crate) fn owner_pid(mutex: &RobustWord) -> u32 {
    // 0 for a moment also with an owner, before it has written itself: texts then name nobody.
    mutex.owner_pid.load(Relaxed)
}

/// Owns the mutex until it is dropped.
#[derive(Debug)]
pub(crate) struct Locked<'a>(&'a RobustWord);

impl<'a> Locked<'a> {
    /// As [`lock`](lock()).
    pub(crate) fn lock(
        mutex: &'a RobustWord,
        keep: impl FnOnce() -> MapPin,
        policy: &WaitPolicy,
    ) -> Result<(Self, Acquired), Interrupted> {
        let acquired = lock(mutex, keep, policy)?;
        Ok((Self(mutex), acquired))
    }

    /// As [`lock`](Self::lock); a call that must not block waits only for owners that hold the mutex for a moment.
    /// `is_hopeless`: whether such a caller could do nothing with the mutex anyway.
    ///
    /// # Errors
    /// For a call that must not block [`Interrupted::WouldBlock`] when it is hopeless, and [`Interrupted::TimedOut`] when one
    /// thread has owned the mutex for [`IN_THE_MIDDLE`]. For a future `WouldBlock` in either case.
    pub(crate) fn lock_as(
        policy: &WaitPolicy,
        mutex: &'a RobustWord,
        keep: impl Fn() -> MapPin,
        is_hopeless: impl Fn() -> bool,
    ) -> Result<(Self, Acquired), Interrupted> {
        match policy {
            WaitPolicy::Never => Self::lock_soon(mutex, keep, is_hopeless, IN_THE_MIDDLE),
            WaitPolicy::Poll => match Self::lock_soon(mutex, keep, is_hopeless, OF_A_POLL) {
                Err(Interrupted::TimedOut(_)) => Err(Interrupted::WouldBlock),
                locked => locked,
            },
            _ => Self::lock(mutex, keep, policy),
        }
    }

    /// As [`lock_as`](Self::lock_as), for a call that must not block, and waits for one owner no longer than `patience`.
    fn lock_soon(
        mutex: &'a RobustWord,
        keep: impl Fn() -> MapPin,
        is_hopeless: impl Fn() -> bool,
        patience: Duration,
    ) -> Result<(Self, Acquired), Interrupted> {
        // Not at all, then a millisecond at a time: this sleeps on the word as others do, and is woken when the owner
        // frees it.
        let mut locked = Self::lock(mutex, &keep, &WaitPolicy::Never);
        let (mut seen, mut middle) = (owner(&mutex.word), WaitPolicy::of(patience));
        while let Err(Interrupted::WouldBlock | Interrupted::TimedOut(_)) = locked {
            // The owner may itself be a waiter, for minutes perhaps, and what it waits for is what this caller wants,
            // too.
            if is_hopeless() {
                return Err(Interrupted::WouldBlock);
            }
            // As long as owners come and go, none of them is stopped, however many there are: the time begins anew.
            let now = owner(&mutex.word);
            if now != seen {
                (seen, middle) = (now, WaitPolicy::of(patience));
            }
            // An abort of the context ends this wait too.
            middle.check()?;
            locked = Self::lock(mutex, &keep, &WaitPolicy::of(LOOK_AGAIN));
        }
        locked
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        unlock(self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use super::super::barrier::Barrier;
    use super::super::error::SyncError;
    use super::super::members::Members;
    use super::*;
    use crate::sys::futex::{self, tests::await_asleep};
    use crate::sys::robust::WAITERS;
    use crate::sys::robust::testing::{die, doomed};
    use crate::sys::socket::{Attempt, Socket};
    use crate::wire::codec;
    use crate::wire::value_message::{self, ValueMessage};

    #[test]
    fn calls_that_do_not_wait_leave_nothing_by_which_the_holder_would_have_to_wake_somebody() {
        let word = robust::testing::free_word();
        lock(&word, || MapPin::OWNER, &WaitPolicy::Forever).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let refused = lock(&word, || MapPin::OWNER, &WaitPolicy::Never);
                assert!(matches!(refused, Err(Interrupted::WouldBlock)), "{refused:?}");
                let refused = lock(&word, || MapPin::OWNER, &WaitPolicy::of(Duration::ZERO));
                assert!(matches!(refused, Err(Interrupted::TimedOut(_))), "{refused:?}");
            });
        });
        assert_eq!(word.word.load(SeqCst) & WAITERS, 0);
        unlock(&word);
    }

    #[test]
    fn call_that_is_not_to_wait_waits_for_one_in_the_middle_but_not_for_ever_nor_without_hope() {
        let (word, keep) = (robust::testing::free_word(), || MapPin::OWNER);
        let (asked, _inside) = (AtomicU32::new(0), Locked::lock(&word, keep, &WaitPolicy::Forever).unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let stuck = Locked::lock_soon(&word, keep, || false, IN_THE_MIDDLE);
                assert!(
                    matches!(stuck, Err(Interrupted::TimedOut(waited)) if waited == IN_THE_MIDDLE),
                    "{stuck:?}"
                );
                let is_hopeless = || asked.fetch_add(1, SeqCst) == 3;
                let refused = Locked::lock_soon(&word, keep, is_hopeless, IN_THE_MIDDLE);
                assert!(matches!(refused, Err(Interrupted::WouldBlock)), "{refused:?}");
            });
        });
        assert_eq!(asked.load(SeqCst), 4);
    }

    #[test]
    fn barrier_that_arrives_is_reset_or_dropped_waits_no_longer_for_one_that_is_stopped() {
        let (members, (here, there)) = (Members::new(2).unwrap(), Socket::pair().unwrap());
        let encoded = codec::encode(&members).unwrap();
        let mut value_message = ValueMessage::new(&encoded.bytes, encoded.attachments).unwrap();
        assert_eq!(value_message.try_send(&there).unwrap(), Attempt::Sent);
        let (barrier, own) = (Barrier::over(members.clone()), Barrier::over(members.clone()));
        std::thread::scope(|scope| _ = scope.spawn(|| assert!(own.wait_timeout(Duration::ZERO).is_err())));
        let _stopped = members.enter(&WaitPolicy::Forever).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let refused = value_message::try_receive(&here).unwrap().unwrap().decode::<Barrier>().unwrap_err();
                assert!(refused.contains("cannot take part in a barrier"), "{refused}");
                assert!(
                    matches!(barrier.reset(), Err(SyncError::TimedOut { waited, .. }) if waited == IN_THE_MIDDLE)
                );
                // It was used by a thread that has ended.
                drop(own);
            });
        });
    }

    #[test]
    fn thread_of_another_pid_namespace_with_the_same_id_is_another() {
        let (word, me) = (robust::testing::free_word(), robust::me().unwrap());
        let try_lock = || lock(&word, || MapPin::OWNER, &WaitPolicy::Never);
        word.word.store(me.tid, SeqCst);
        word.owner_nonce.store(me.nonce ^ 1, SeqCst);
        assert!(matches!(try_lock(), Err(Interrupted::WouldBlock)));
        // Through another mapping of the same memory.
        word.owner_nonce.store(me.nonce, SeqCst);
        assert!(matches!(try_lock(), Err(Interrupted::Deadlock)));
    }

    /// On a kernel that wakes no sleeper then, the sleeper looks again.
    #[test]
    fn sleeper_is_not_forgotten_when_who_frees_dies_before_it_wakes() {
        let word: &RobustWord = Box::leak(Box::new(robust::testing::free_word()));
        doomed(move || {
            lock(word, || MapPin::OWNER, &WaitPolicy::Forever).unwrap();
            let asleep = owner(&word.word) | WAITERS;
            while !futex::sleepers(&word.word, asleep).is_ok_and(|count| count > 0) {
                std::thread::yield_now();
            }
            robust::free(word, || {
                word.owner_pid.store(0, Relaxed);
                // What `futex_lock::free` does first.
                futex_lock::let_go(&word.word);
                die()
            });
        });
        while owner(&word.word) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(lock(word, || MapPin::OWNER, &WaitPolicy::Forever).unwrap(), Acquired::Clean);
        unlock(word);
    }

    /// The thread that frees a word is gone before it has woken a waiter, and another has taken the word meanwhile.
    #[test]
    fn sleeper_is_not_forgotten_when_who_frees_dies_before_it_wakes_and_another_is_faster() {
        static FREES: AtomicU32 = AtomicU32::new(0);
        static SLEEPS: AtomicU32 = AtomicU32::new(0);
        let word: &RobustWord = Box::leak(Box::new(robust::testing::free_word()));
        let come_in = move || lock(word, || MapPin::OWNER, &WaitPolicy::Forever).unwrap();
        let spin_until = |done: &dyn Fn() -> bool| {
            while !done() {
                std::thread::yield_now();
            }
        };
        doomed(move || {
            come_in();
            FREES.store(robust::me().unwrap().tid, SeqCst);
            await_asleep(&SLEEPS);
            robust::free(word, || {
                word.owner_pid.store(0, Relaxed);
                // What `futex_lock::free` does first.
                futex_lock::let_go(&word.word);
                std::thread::spawn(move || {
                    come_in();
                    let gone = format!("/proc/self/task/{}", FREES.load(SeqCst));
                    spin_until(&|| !std::path::Path::new(&gone).exists());
                    unlock(word);
                });
                spin_until(&|| word.word.load(SeqCst) & OWNER != 0);
                die()
            });
        });
        spin_until(&|| FREES.load(SeqCst) != 0);
        let sleeper = std::thread::spawn(move || {
            SLEEPS.store(robust::me().unwrap().tid, SeqCst);
            come_in();
            unlock(word);
        });
        sleeper.join().unwrap();
    }
}
