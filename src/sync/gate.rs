//! A robust word as a lock: one thread at a time is inside, and the next one learns when it died there.

use std::marker::PhantomData;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::patience::{Patience, Stop};
use super::word::{self, Taken};
use crate::sys::robust::{self, Keeper, OWNER, RobustWord};

/// How long a call that does not wait gives those who are inside to go out: they need microseconds, unless they are
/// stopped.
const MOMENT: Duration = Duration::from_millis(10);

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
    keep: impl FnOnce() -> Keeper,
    patience: &Patience,
) -> Result<Found, Stop> {
    robust::take(gate, keep, |me| {
        if gate.word.load(Relaxed) & OWNER == me.tid {
            return Err(Stop::Deadlock);
        }
        let taken = word::take(&gate.word, me.tid, patience)?;
        // Who died before it was inside has done nothing. This must be read before it is overwritten.
        let found = match (taken, gate.holder.load(Relaxed)) {
            (Taken::FromDead, pid) if pid != 0 => Found::Mess { pid },
            _ => Found::Order,
        };
        gate.holder.store(me.pid, Relaxed);
        Ok(found)
    })
}

/// Goes out. In a fork of the process that is inside, nothing happens.
#[inline]
pub(crate) fn leave(gate: &RobustWord) {
    robust::free(gate, || {
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
    word.load(Relaxed) & OWNER != 0
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
        keep: impl FnOnce() -> Keeper,
        patience: &Patience,
    ) -> Result<(Self, Found), Stop> {
        let found = enter(gate, keep, patience)?;
        Ok((Self(gate), found))
    }

    /// As [`enter`](Self::enter), for a call that does not wait, past those who are inside only for a moment. `stays`: whether
    /// who is inside now has come to stay.
    pub(crate) fn enter_soon(
        gate: &'a RobustWord,
        keep: impl Fn() -> Keeper,
        stays: impl FnOnce() -> bool,
    ) -> Result<(Self, Found), Stop> {
        match Self::enter(gate, &keep, &Patience::None) {
            Err(Stop::WouldBlock) if !stays() => {
                Self::enter(gate, keep, &Patience::of(MOMENT)).map_err(|stop| match stop {
                    Stop::TimedOut(_) => Stop::WouldBlock,
                    other => other,
                })
            }
            other => other,
        }
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

    use super::*;
    use crate::sys::futex::tests::await_asleep;
    use crate::sys::robust::WAITERS;
    use crate::sys::robust::testing::{die, doomed};

    /// The thread that frees a word is gone before it has woken anybody, and another has taken the word meanwhile.
    #[test]
    fn sleeper_is_not_forgotten_when_who_frees_dies_before_it_wakes_and_another_is_faster() {
        static FREES: AtomicU32 = AtomicU32::new(0);
        static SLEEPS: AtomicU32 = AtomicU32::new(0);
        let word: &RobustWord = Box::leak(Box::new(robust::testing::free_word()));
        let come_in = move || enter(word, || Keeper::Owner, &Patience::Endless).unwrap();
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
