//! A robust word: a futex in shared memory that a thread can own, and whose owner the kernel takes out when the thread ends.

use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::super::atomic_record::AtomicRecord;

/// The bits of a word that hold the owner's thread id (futex(2), FUTEX_TID_MASK).
pub(crate) const OWNER: u32 = 0x3fff_ffff;
/// FUTEX_OWNER_DIED: the kernel sets it when it takes out an owner that has ended.
pub(crate) const OWNER_DIED: u32 = 0x4000_0000;
/// FUTEX_WAITERS: a waiter sets it before it sleeps. Whoever frees the word, the kernel too, then wakes one waiter.
pub(crate) const WAITERS: u32 = 0x8000_0000;

/// A futex that a thread can own, with the links of the owner's robust list. It is a field of a record: of a lock, of a
/// slot in a table, which has fields of its own for what the owner does.
//
// The layout is that of glibc's pthread_mutex_t on 64-bit machines, as far as the kernel and glibc's list code look at
// it: the futex at 0 (__lock), the link before at 24 (__list.__prev), the link to the next at 32 (__list.__next). The
// kernel finds the futex from the link by one offset for the whole list, so our words need the distance that the C
// library has registered.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct RobustWord {
    pub(crate) word: AtomicU32,
    /// The owner's process id. A mutex has it from when its owner has entered until that begins to leave; otherwise 0.
    pub(crate) owner_pid: AtomicU32,
    /// The owner's [`nonce`](super::Me::nonce), as long as `owner_pid` is not 0.
    pub(crate) owner_nonce: AtomicU32,
    // Fills the place of __nusers, __kind and __spins, up to the links.
    spare: [AtomicU32; 3],
    /// The link before. Only the C library uses it, and only that of the anchors.
    pub(in crate::sys) before: AtomicU64,
    /// The link to the next word of the owner's list, which the kernel follows.
    pub(in crate::sys) next: AtomicU64,
}

// SAFETY: atomics, laid out as in C, without padding.
unsafe impl AtomicRecord for RobustWord {}

impl RobustWord {
    pub(super) fn new() -> Self {
        let zero = || AtomicU32::new(0);
        let (before, next) = (AtomicU64::new(0), AtomicU64::new(0));
        let spare = [zero(), zero(), zero()];
        Self { word: zero(), owner_pid: zero(), owner_nonce: zero(), spare, before, next }
    }

    /// The address of its link, which is what a robust list consists of.
    pub(super) fn link(&self) -> usize {
        // Exposed: the list stores addresses as integers, and reads and writes go through them (`pending::read`, `pending::write`).
        ptr::from_ref(&self.next).expose_provenance()
    }
}
