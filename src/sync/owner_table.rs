//! A table of robust words, its slots. A thread owns a slot while it holds a permit, reads, is a member of a barrier, or has tasks. The
//! kernel takes out owners that have died, so that a count of the owned slots is a count of living threads.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::futex_lock;
use super::wait_policy::{Interrupted, WaitPolicy};
use crate::sys::robust::{self, MapPin, Me, OWNER, RobustWord, WAITERS};

/// A table in shared memory: its slots, and how many of them, from the first on, have ever been owned. Only these are looked at, so that a
/// large table with few owners costs little.
#[derive(Clone, Copy)]
pub(crate) struct OwnerTable<'a> {
    slots: &'a [RobustWord],
    used: &'a AtomicU32,
}

impl<'a> OwnerTable<'a> {
    #[inline]
    pub(crate) fn new(slots: &'a [RobustWord], used: &'a AtomicU32) -> Self {
        Self { slots, used }
    }

    pub(crate) fn capacity(self) -> usize {
        self.slots.len()
    }

    /// # Panics
    /// When the table has no such slot.
    #[inline]
    pub(crate) fn slot(self, number: usize) -> &'a RobustWord {
        &self.slots[number]
    }

    /// The slots that have ever been owned.
    #[inline]
    pub(crate) fn used(self) -> &'a [RobustWord] {
        // Any process may have written the number: it is not trusted.
        let used = self.used.load(Acquire) as usize;
        &self.slots[..used.min(self.slots.len())]
    }

    /// The slots that living threads own.
    #[inline]
    pub(crate) fn owned(self) -> impl Iterator<Item = &'a RobustWord> {
        self.used().iter().filter(|slot| is_owned(slot))
    }

    /// The process ids of their owners.
    pub(crate) fn holders(self) -> impl Iterator<Item = u32> {
        self.owned().map(|slot| slot.holder.load(Relaxed))
    }

    /// The slot that this thread, which is `me`, owns.
    #[inline]
    pub(crate) fn own(self, me: Me) -> Option<&'a RobustWord> {
        // A thread of another PID namespace may have the same id.
        let is_mine = |slot: &&RobustWord| slot.word.load(Relaxed) & OWNER == me.tid && robust::owns(slot);
        self.used().iter().find(is_mine)
    }

    /// The number of the first used slot that `is_free`, or of the first that was never used. `None`: the table is full.
    pub(crate) fn first(self, is_free: impl Fn(&RobustWord) -> bool) -> Option<usize> {
        let used = self.used();
        let number = used.iter().position(is_free).unwrap_or(used.len());
        Some(number).filter(|&number| number < self.slots.len())
    }

    /// Takes a slot that no thread owns, and writes this process into it.
    ///
    /// # Errors
    /// [`Interrupted::WouldBlock`] when a thread owns it.
    #[inline]
    pub(crate) fn take(
        self,
        number: usize,
        keep: impl FnOnce() -> MapPin,
    ) -> Result<&'a RobustWord, Interrupted> {
        let slot = self.slot(number);
        // Before it is owned: whoever looks for the owners sees the slot from then on.
        self.used.fetch_max(number as u32 + 1, AcqRel);
        robust::take(slot, keep, |me| {
            futex_lock::take(&slot.word, me.tid, &WaitPolicy::Never)?;
            slot.holder.store(me.pid, Relaxed);
            Ok(slot)
        })
    }
}

/// Frees a slot of this thread; in a fork of the owner nothing happens.
pub(crate) fn free(slot: &RobustWord) {
    robust::free(slot, || futex_lock::free(&slot.word, &WaitPolicy::Never));
}

/// Whether a living thread owns it. If not, what the last owner did before it freed the slot is visible (Acquire with `free`'s Release).
#[inline]
pub(crate) fn is_owned(slot: &RobustWord) -> bool {
    slot.word.load(Acquire) & OWNER != 0
}

/// Prepares to sleep on the word of a slot until its owner frees it or dies; returns the word and the value that it has until then.
/// `None`: no thread owns it.
pub(crate) fn watch(slot: &RobustWord) -> Option<(&AtomicU32, u32)> {
    let mut seen = slot.word.load(Acquire);
    while seen & OWNER != 0 {
        let watched = seen | WAITERS;
        match slot.word.compare_exchange(seen, watched, Relaxed, Acquire) {
            Ok(_) => return Some((&slot.word, watched)),
            Err(now) => seen = now,
        }
    }
    None
}

/// As [`watch`], of a slot without an owner: a sleeper on its word is woken when the next owner dies. `None`: a thread owns it.
pub(crate) fn watch_free(slot: &RobustWord) -> Option<(&AtomicU32, u32)> {
    let mut seen = slot.word.load(Acquire);
    while seen & OWNER == 0 {
        // A new owner keeps the bit (`futex_lock::take`), so that the kernel wakes when that owner dies.
        let watched = seen | WAITERS;
        match slot.word.compare_exchange(seen, watched, Relaxed, Acquire) {
            Ok(_) => return Some((&slot.word, watched)),
            Err(now) => seen = now,
        }
    }
    None
}
