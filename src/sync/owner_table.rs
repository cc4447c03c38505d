//! A table of robust words, its slots. A thread owns a slot while it holds a permit, reads, is a member of a barrier,
//! or has tasks. The kernel takes out owners that have died, so that a count of the owned slots is a count of living
//! threads.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::futex_lock;
use super::wait_policy::{Interrupted, WaitPolicy};
use crate::sys::atomic_record::AtomicRecord;
use crate::sys::robust::{self, MapPin, Me, OWNER, RobustWord};

/// A slot of a table: a record of the primitive that has the table.
pub(crate) trait Slot: AtomicRecord {
    /// What the slot's owner owns.
    fn robust(&self) -> &RobustWord;
}

/// A table in shared memory: its slots, and how many of them, from the first on, have ever been owned. Only these are
/// looked at, so that a large table with few owners costs little.
pub(crate) struct OwnerTable<'a, S> {
    slots: &'a [S],
    used: &'a AtomicU32,
}

impl<S> Clone for OwnerTable<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for OwnerTable<'_, S> {}

impl<'a, S: Slot> OwnerTable<'a, S> {
    #[inline]
    pub(crate) fn new(slots: &'a [S], used: &'a AtomicU32) -> Self {
        Self { slots, used }
    }

    pub(crate) fn capacity(self) -> usize {
        self.slots.len()
    }

    /// # Panics
    /// When the table has no such slot.
    #[inline]
    pub(crate) fn slot(self, number: usize) -> &'a S {
        &self.slots[number]
    }

    /// The slots that have ever been owned.
    #[inline]
    pub(crate) fn used(self) -> &'a [S] {
        // Any process may have written the number: it is not trusted.
        let used = self.used.load(Acquire) as usize;
        &self.slots[..used.min(self.slots.len())]
    }

    /// The slots that living threads own.
    #[inline]
    pub(crate) fn owned(self) -> impl Iterator<Item = &'a S> {
        // Each slot at its own moment: outside of the mutex under which slots are taken, one owner may be seen that
        // came after another had gone.
        self.used().iter().filter(|slot| is_owned(*slot))
    }

    /// The process ids of their owners.
    pub(super) fn owner_pids(self) -> impl Iterator<Item = u32> {
        self.owned().map(|slot| slot.robust().owner_pid.load(Relaxed))
    }

    /// The slot that this thread, which is `me`, owns.
    #[inline]
    pub(crate) fn own(self, me: Me) -> Option<&'a S> {
        // The id first, which costs one load: the list is asked only of a slot that may be this thread's. A thread of
        // another PID namespace may have the same id.
        let is_mine =
            |robust: &RobustWord| robust.word.load(Relaxed) & OWNER == me.tid && robust::owns(robust);
        self.used().iter().find(|slot| is_mine(slot.robust()))
    }

    /// The number of the first used slot that `is_free`, or of the first that was never used. `None`: the table is
    /// full.
    pub(crate) fn first(self, is_free: impl Fn(&S) -> bool) -> Option<usize> {
        // Used ones first, so that `used` grows only when as many are owned at a time.
        let used = self.used();
        let number = used.iter().position(is_free).unwrap_or(used.len());
        Some(number).filter(|&number| number < self.slots.len())
    }

    /// Takes a slot that no thread owns, and writes this process into it.
    ///
    /// # Errors
    /// [`Interrupted::WouldBlock`] when a thread owns it.
    #[inline]
    pub(crate) fn take(self, number: usize, keep: impl FnOnce() -> MapPin) -> Result<&'a S, Interrupted> {
        let slot = self.slot(number);
        // Before it is owned: whoever looks for the owners sees the slot from then on. A maximum, not an addition: a
        // thread that dies after this leaves a slot that was never owned, which does no harm.
        self.used.fetch_max(number as u32 + 1, AcqRel);
        let robust = slot.robust();
        robust::take(robust, keep, |me| {
            // Whether the last owner died is of no interest: that it owns the slot no more is all that its death means
            // here.
            futex_lock::take(&robust.word, me.tid, &WaitPolicy::Never)?;
            robust.owner_pid.store(me.pid, Relaxed);
            Ok(slot)
        })
    }
}

/// Frees a slot of this thread; in a fork of the owner nothing happens.
pub(crate) fn free(slot: &impl Slot) {
    let robust = slot.robust();
    // What the slot says of its owner stays: the next owner overwrites it, and a barrier names members that have left by
    // it.
    robust::free(robust, || futex_lock::free(&robust.word, &WaitPolicy::Never));
}

/// Whether a living thread owns it. If not, what the last owner did before it freed the slot is visible (Acquire with
/// `free`'s Release).
#[inline]
pub(crate) fn is_owned(slot: &impl Slot) -> bool {
    // A word that the kernel has marked has no owner in it, so a dead one is never counted.
    slot.robust().word.load(Acquire) & OWNER != 0
}

/// Prepares to sleep on the word of a slot until its owner frees it or dies; returns the word and the value that it has
/// until then. `None`: no thread owns it.
pub(crate) fn watch(slot: &impl Slot) -> Option<(&AtomicU32, u32)> {
    let word = &slot.robust().word;
    futex_lock::watch_owned(word).map(|watched| (word, watched))
}

/// As [`watch`], of a slot without an owner: a sleeper on its word is woken when the next owner dies. `None`: a thread
/// owns it.
pub(crate) fn watch_free(slot: &impl Slot) -> Option<(&AtomicU32, u32)> {
    let word = &slot.robust().word;
    futex_lock::watch_free(word).map(|watched| (word, watched))
}
