//! A word that changes by compare-and-swap: of shared memory, or loom's.
//!
//! The functions of the ledger and of the trays take any [`Word`], so that what loom tries out is the code that runs, and not a copy of it.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{self, Relaxed};

/// What the ledger and the trays need of a word, so that loom can run them.
///
/// `replace` is a compare-and-swap that does not fail spuriously; its error is what stands there.
pub(super) trait Word {
    fn load(&self, ordering: Ordering) -> u64;
    fn store(&self, new: u64, ordering: Ordering);
    fn replace(&self, old: u64, new: u64, success: Ordering) -> Result<u64, u64>;
    /// Adds to it, in no order with anything else.
    fn add(&self, by: u64);
}

impl Word for AtomicU64 {
    #[inline]
    fn load(&self, ordering: Ordering) -> u64 {
        Self::load(self, ordering)
    }

    #[inline]
    fn store(&self, new: u64, ordering: Ordering) {
        Self::store(self, new, ordering);
    }

    #[inline]
    fn replace(&self, old: u64, new: u64, success: Ordering) -> Result<u64, u64> {
        self.compare_exchange(old, new, success, Relaxed)
    }

    #[inline]
    fn add(&self, by: u64) {
        self.fetch_add(by, Relaxed);
    }
}

#[cfg(all(test, loom))]
impl Word for loom::sync::atomic::AtomicU64 {
    fn load(&self, ordering: Ordering) -> u64 {
        Self::load(self, ordering)
    }

    fn store(&self, new: u64, ordering: Ordering) {
        Self::store(self, new, ordering);
    }

    fn replace(&self, old: u64, new: u64, success: Ordering) -> Result<u64, u64> {
        self.compare_exchange(old, new, success, Relaxed)
    }

    fn add(&self, by: u64) {
        self.fetch_add(by, Relaxed);
    }
}
