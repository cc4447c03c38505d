//! The futex lock algorithm of a robust word, generic over memory and kernel, so that loom can try all orders of its
//! steps.

#[cfg(all(test, loom))]
mod models;

use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

use crossbeam::utils::Backoff;

use crate::sys::robust::{OWNER, OWNER_DIED, WAITERS};

/// An atomic word.
pub(crate) trait AtomicWord {
    fn load(&self, ordering: Ordering) -> u32;
    fn store(&self, new: u32, ordering: Ordering);
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
#[inline]
fn try_take<W: AtomicWord>(word: &W, tid: u32, keep: u32) -> Result<Taken, u32> {
    // Relaxed: nothing follows from what is seen here but the value that the exchange compares.
    let mut seen = word.load(Relaxed);
    loop {
        if seen & OWNER != 0 {
            return Err(seen);
        }
        // Acquire, with the Release of `let_go`: this thread sees all that the last owner did. A dead owner has no
        // Release, but the kernel changes the word as that thread, after its last store and by a full barrier.
        // OWNER_DIED goes in the same step, so that exactly one next owner learns of the death.
        match word.replace(seen, tid | (seen & WAITERS) | keep, Acquire) {
            Ok(_) if seen & OWNER_DIED != 0 => return Ok(Taken::FromDead),
            Ok(_) => return Ok(Taken::Free),
            Err(now) => seen = now,
        }
    }
}

/// Waits for the word and takes it for thread `tid`. A caller that does not wait leaves the word as it is: WAITERS
/// would cost the owner a system call for nothing.
#[inline]
pub(crate) fn take<W: AtomicWord, P: Futex<W>>(
    word: &W,
    tid: u32,
    park: &P,
) -> Result<Taken, P::Interrupted> {
    // Before anybody asks for the time: a word that is free is taken by a call with no time left, too.
    match try_take(word, tid, 0) {
        Ok(taken) => Ok(taken),
        Err(_) => take_waiting(word, tid, park),
    }
}

/// As [`take`], of a word that another thread has owned a moment ago.
#[cold]
fn take_waiting<W: AtomicWord, P: Futex<W>>(word: &W, tid: u32, park: &P) -> Result<Taken, P::Interrupted> {
    park.check()?;
    // Most owners free the word sooner than a sleep and its wake are over. WAITERS is not set meanwhile, so that they
    // make no system call.
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
        // Relaxed: the kernel compares the word once more, under the lock under which it looks for sleepers to wake
        // (FUTEX_WAIT). An owner that frees the word in between either finds this sleeper or has changed the word, and
        // this thread does not sleep.
        if seen != asleep && word.replace(seen, asleep, Relaxed).is_err() {
            continue;
        }
        // It returns for nothing too (EINTR, EAGAIN): the loop asks the word itself.
        if let Err(stop) = park.wait(&[(word, asleep)]) {
            // The owner may have chosen this sleeper for its one wake in the same moment: then another sleeper has to
            // be woken.
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
    // WAITERS stays until no sleeper is found. This thread may be killed before it has woken one, or that one as it
    // wakes: then a third thread, which was faster to take the word, still knows that it has to wake a sleeper when it
    // frees the word.
    let freed = let_go(word);
    if freed & WAITERS != 0 && park.wake(word, 1) == 0 {
        // Fails if a thread has taken it meanwhile: WAITERS then stays, which costs one wake at most.
        let _ = word.replace(freed, 0, Relaxed);
    }
}

/// Takes the owner out; returns what is left.
pub(super) fn let_go<W: AtomicWord>(word: &W) -> u32 {
    let mut seen = word.load(Relaxed);
    loop {
        let freed = seen & WAITERS;
        // An exchange, not a store: a waiter may set WAITERS at any moment, and would sleep unseen if that were lost.
        // Release, with the Acquire of `try_take`.
        match word.replace(seen, freed, Release) {
            Ok(_) => return freed,
            Err(now) => seen = now,
        }
    }
}

/// Frees a word whose sleepers sleep on other words too; says whether there may be sleepers, which the caller then wakes
/// by one of the other words.
pub(crate) fn free_for_all<W: AtomicWord>(word: &W) -> bool {
    // The bit goes with the owner, unlike in `free`: no sleeper that is passed over relies on it, since all are woken.
    // The caller has the word pending: if it dies before its wake, the kernel wakes one sleeper for it.
    word.swap(0, Release) & WAITERS != 0
}

/// Owns a word that no other thread takes meanwhile, and that is on no list: this thread has it pending. If the thread
/// dies, the kernel changes the word (OWNER_DIED) and wakes a sleeper.
#[inline]
pub(crate) fn own_unlisted<W: AtomicWord>(word: &W, tid: u32) {
    // WAITERS in any case: the kernel wakes a sleeper for a dead owner only if the word has it, and a sleeper does not
    // set it here. A store, not an exchange: no other thread writes the word meanwhile, and this is the way of each
    // message of a queue.
    word.store(tid | WAITERS, Release);
}

/// Ends [`own_unlisted`]. No waiter is woken: a sleeper on this word waits for another one to change.
#[inline]
pub(super) fn disown_unlisted<W: AtomicWord>(word: &W) {
    word.store(0, Release);
}

/// Prepares to sleep on a word until its owner frees it or dies; returns the value that it has until then. `None`: no
/// thread owns it.
pub(crate) fn watch_owned<W: AtomicWord>(word: &W) -> Option<u32> {
    announce_sleeper(word, |seen| seen & OWNER != 0)
}

/// As [`watch_owned`], of a word without an owner: its sleeper is woken when the next owner dies. `None`: a thread owns
/// it.
pub(crate) fn watch_free<W: AtomicWord>(word: &W) -> Option<u32> {
    // A new owner keeps the bit (`try_take`), so that the kernel wakes when that owner dies.
    announce_sleeper(word, |seen| seen & OWNER == 0)
}

/// Sets WAITERS as long as the word is as the caller wants it; returns the value to sleep on.
fn announce_sleeper<W: AtomicWord>(word: &W, is_wanted: impl Fn(u32) -> bool) -> Option<u32> {
    loop {
        // Acquire: a caller that is told that there is no owner sees what the last one did before it freed the word.
        let seen = word.load(Acquire);
        if !is_wanted(seen) {
            return None;
        }
        let watched = seen | WAITERS;
        // Relaxed: the kernel compares the word again, under its own lock, before it lets the caller sleep
        // (FUTEX_WAIT).
        if word.replace(seen, watched, Relaxed).is_ok() {
            return Some(watched);
        }
    }
}

/// Takes the mark of a dead owner out of a word that was `seen` with it, so that no thread takes the word from the dead
/// any more.
pub(super) fn forget_death<W: AtomicWord>(word: &W, seen: u32) {
    // WAITERS stays: somebody may watch the word for its next owner. It fails if a watcher has set the bit just now:
    // then the mark stays for the next caller.
    let _ = word.replace(seen, seen & WAITERS, Ordering::AcqRel);
}
