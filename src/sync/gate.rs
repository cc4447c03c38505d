//! A robust word as a lock: one thread at a time is inside, and the next one learns when it died there.

use std::marker::PhantomData;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::patience::{Patience, Stop};
use super::word::{self, Taken};
use crate::sys::robust::{self, MapPin, OWNER, RobustWord};

/// How long a call that is not to wait gives one that is in the middle of something: that needs microseconds, unless its process is
/// stopped (SIGSTOP).
pub(crate) const IN_THE_MIDDLE: Duration = Duration::from_secs(1);
/// How often it looks meanwhile whether that one waits itself.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Of a guard, which must not leave its thread, though others may look at it.
pub(super) type OfThread = PhantomData<MutexGuard<'static, ()>>;

/// What somebody finds who comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nobody died inside.
    Order,
    /// This process did, in the middle of something.
    Mess { pid: u32 },
}

/// Comes in, for which it waits.
///
/// # Errors
/// [`Stop::Deadlock`] when this thread is inside already.
#[inline]
pub(crate) fn enter(
    gate: &RobustWord,
    keep: impl FnOnce() -> MapPin,
    patience: &Patience,
) -> Result<Found, Stop> {
    robust::take(gate, keep, |me| {
        // The id alone may be that of a thread of another PID namespace. Whether the word is on the list of this thread does not
        // tell either: a fork may have mapped it twice.
        if gate.word.load(Relaxed) & OWNER == me.tid && gate.nonce.load(Relaxed) == me.nonce {
            return Err(Stop::Deadlock);
        }
        let taken = word::take(&gate.word, me.tid, patience)?;
        // Who died before it was inside has done nothing. This must be read before it is overwritten.
        let found = match (taken, gate.holder.load(Relaxed)) {
            (Taken::FromDead, pid) if pid != 0 => Found::Mess { pid },
            _ => Found::Order,
        };
        gate.holder.store(me.pid, Relaxed);
        gate.nonce.store(me.nonce, Relaxed);
        Ok(found)
    })
}

/// Goes out. In a fork of the process that is inside, nothing happens.
#[inline]
pub(crate) fn leave(gate: &RobustWord) {
    robust::free(gate, || {
        gate.nonce.store(0, Relaxed);
        gate.holder.store(0, Relaxed);
        word::free(&gate.word, &Patience::None);
    });
}

/// Whether this thread is inside.
pub(crate) fn is_inside(gate: &RobustWord) -> bool {
    robust::owns(gate)
}

/// Whether anybody is.
pub(crate) fn is_taken(word: &AtomicU32) -> bool {
    owner(word) != 0
}

fn owner(word: &AtomicU32) -> u32 {
    word.load(Relaxed) & OWNER
}

/// The process of the thread that is inside, 0 if there is none.
pub(crate) fn holder(gate: &RobustWord) -> u32 {
    gate.holder.load(Relaxed)
}

/// Is inside as long as it lives.
#[derive(Debug)]
pub(crate) struct Inside<'a>(&'a RobustWord);

impl<'a> Inside<'a> {
    /// As [`enter`](enter()).
    pub(crate) fn enter(
        gate: &'a RobustWord,
        keep: impl FnOnce() -> MapPin,
        patience: &Patience,
    ) -> Result<(Self, Found), Stop> {
        let found = enter(gate, keep, patience)?;
        Ok((Self(gate), found))
    }

    /// As [`enter`](Self::enter), for a call that is not to wait: past those who are inside only for a moment. `is_hopeless`:
    /// whether there would be nothing to do inside.
    ///
    /// # Errors
    /// [`Stop::WouldBlock`] when it is hopeless; [`Stop::TimedOut`] when the same thread has been inside for [`IN_THE_MIDDLE`].
    pub(crate) fn enter_soon(
        gate: &'a RobustWord,
        keep: impl Fn() -> MapPin,
        is_hopeless: impl Fn() -> bool,
    ) -> Result<(Self, Found), Stop> {
        let mut entered = Self::enter(gate, &keep, &Patience::None);
        let (mut seen, mut middle) = (owner(&gate.word), Patience::of(IN_THE_MIDDLE));
        while let Err(Stop::WouldBlock | Stop::TimedOut(_)) = entered {
            if is_hopeless() {
                return Err(Stop::WouldBlock);
            }
            // However many stand before this one, as long as they come and go none of them is stopped.
            let now = owner(&gate.word);
            if now != seen {
                (seen, middle) = (now, Patience::of(IN_THE_MIDDLE));
            }
            middle.check()?;
            entered = Self::enter(gate, &keep, &Patience::of(LOOK_AGAIN));
        }
        entered
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        leave(self.0);
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
        enter(&word, || MapPin::Owner, &Patience::Endless).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let refused = enter(&word, || MapPin::Owner, &Patience::None);
                assert!(matches!(refused, Err(Stop::WouldBlock)), "{refused:?}");
                let refused = enter(&word, || MapPin::Owner, &Patience::of(Duration::ZERO));
                assert!(matches!(refused, Err(Stop::TimedOut(_))), "{refused:?}");
            });
        });
        assert_eq!(word.word.load(SeqCst) & WAITERS, 0);
        leave(&word);
    }

    #[test]
    fn call_that_is_not_to_wait_waits_for_one_in_the_middle_but_not_for_ever_nor_without_hope() {
        let (word, keep) = (robust::testing::free_word(), || MapPin::Owner);
        let (asked, _inside) = (AtomicU32::new(0), Inside::enter(&word, keep, &Patience::Endless).unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let stuck = Inside::enter_soon(&word, keep, || false);
                assert!(matches!(stuck, Err(Stop::TimedOut(waited)) if waited == IN_THE_MIDDLE), "{stuck:?}");
                let is_hopeless = || asked.fetch_add(1, SeqCst) == 3;
                let refused = Inside::enter_soon(&word, keep, is_hopeless);
                assert!(matches!(refused, Err(Stop::WouldBlock)), "{refused:?}");
            });
        });
        assert_eq!(asked.load(SeqCst), 4);
    }

    #[test]
    fn barrier_that_arrives_is_reset_or_dropped_waits_no_longer_for_one_that_is_stopped() {
        let (members, (here, there)) = (Members::new(2).unwrap(), Socket::pair().unwrap());
        let mut value_message = ValueMessage::new(codec::encode(&members).unwrap()).unwrap();
        assert_eq!(value_message.try_send(&there).unwrap(), Attempt::Sent);
        let (barrier, own) = (Barrier::over(members.clone()), Barrier::over(members.clone()));
        std::thread::scope(|scope| _ = scope.spawn(|| assert!(own.wait_timeout(Duration::ZERO).is_err())));
        let _stopped = members.enter(&Patience::Endless).unwrap();
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
        let enter = || enter(&word, || MapPin::Owner, &Patience::None);
        word.word.store(me.tid, SeqCst);
        word.nonce.store(me.nonce ^ 1, SeqCst);
        assert!(matches!(enter(), Err(Stop::WouldBlock)));
        // Through another mapping of the same memory.
        word.nonce.store(me.nonce, SeqCst);
        assert!(matches!(enter(), Err(Stop::Deadlock)));
    }

    /// On a kernel that wakes nobody then, the sleeper looks again.
    #[test]
    fn sleeper_is_not_forgotten_when_who_frees_dies_before_it_wakes() {
        let word: &RobustWord = Box::leak(Box::new(robust::testing::free_word()));
        doomed(move || {
            enter(word, || MapPin::Owner, &Patience::Endless).unwrap();
            let asleep = owner(&word.word) | WAITERS;
            while !futex::sleepers(&word.word, asleep).is_ok_and(|count| count > 0) {
                std::thread::yield_now();
            }
            robust::free(word, || {
                word.holder.store(0, Relaxed);
                // What `word::free` does first.
                word.word.fetch_and(WAITERS, SeqCst);
                die()
            });
        });
        while owner(&word.word) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(enter(word, || MapPin::Owner, &Patience::Endless).unwrap(), Found::Order);
        leave(word);
    }

    /// The thread that frees a word is gone before it has woken anybody, and another has taken the word meanwhile.
    #[test]
    fn sleeper_is_not_forgotten_when_who_frees_dies_before_it_wakes_and_another_is_faster() {
        static FREES: AtomicU32 = AtomicU32::new(0);
        static SLEEPS: AtomicU32 = AtomicU32::new(0);
        let word: &RobustWord = Box::leak(Box::new(robust::testing::free_word()));
        let come_in = move || enter(word, || MapPin::Owner, &Patience::Endless).unwrap();
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
                word.holder.store(0, Relaxed);
                // What `word::free` does first.
                word.word.fetch_and(WAITERS, SeqCst);
                std::thread::spawn(move || {
                    come_in();
                    let gone = format!("/proc/self/task/{}", FREES.load(SeqCst));
                    spin_until(&|| !std::path::Path::new(&gone).exists());
                    leave(word);
                });
                spin_until(&|| word.word.load(SeqCst) & OWNER != 0);
                die()
            });
        });
        spin_until(&|| FREES.load(SeqCst) != 0);
        let sleeper = std::thread::spawn(move || {
            SLEEPS.store(robust::me().unwrap().tid, SeqCst);
            come_in();
            leave(word);
        });
        sleeper.join().unwrap();
    }
}
