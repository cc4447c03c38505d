//! Storages whose memory is used again once no process has them any more.
//!
//! The kernel tells whether another process has a storage: by open file descriptions ([`opens`](crate::sys::opens)), and by the links of
//! named memory. A process that is killed would leave a count in shared memory wrong.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use super::create::{self, Plan};
use super::segment::{self, Segment};
use super::storage::{self, Storage};
use super::strategy::get_sharing_strategy;
use crate::error::MemoryError;
use crate::sys::forks::Here;

/// Memory that is kept for the next storage.
#[derive(Debug)]
pub(crate) struct Recycler {
    kept: Mutex<Vec<Kept>>,
    /// How many pieces are kept at most.
    most: usize,
    /// How many storages were made of new memory.
    made: AtomicU64,
}

/// A piece of memory that this process has made.
#[derive(Debug)]
struct Kept {
    segment: Arc<Segment>,
    /// A fork of this process has the pieces too, but must not hand them out.
    owner: Here,
    /// How many workers had been forked. Those that were forked since may have it mapped, of which the kernel tells nothing.
    forks: u32,
}

impl Kept {
    fn is_ours(&self) -> bool {
        self.owner.is_now() && self.forks == storage::forks()
    }

    /// Whether a storage of as many bytes leaves no more than half of it unused.
    fn suits(&self, bytes: usize) -> bool {
        (bytes..=bytes.saturating_mul(2).max(PAGE)).contains(&self.segment.len())
    }

    fn is_free(&self) -> bool {
        segment::registry().has_nobody_else(&self.segment)
    }
}

/// What a memfd takes of memory, however few bytes it has.
const PAGE: usize = 4096;

impl Recycler {
    pub(crate) fn new(most: usize) -> Self {
        Self { kept: Mutex::default(), most, made: AtomicU64::new(0) }
    }

    /// How many storages were made of new memory.
    pub(crate) fn made(&self) -> u64 {
        self.made.load(Relaxed)
    }

    /// How many pieces are kept.
    pub(crate) fn kept(&self) -> usize {
        self.lock().len()
    }

    /// A storage of as many bytes, in memory that nobody has any more, or else in new memory, which is kept if there is room for it.
    ///
    /// # Errors
    /// As [`create::create`].
    pub(crate) fn storage(&self, bytes: usize) -> Result<Storage, MemoryError> {
        if bytes == 0 {
            return Storage::new(0);
        }
        if let Some(segment) = self.find(bytes) {
            return Ok(Storage::place(Some(segment), 0, bytes, false));
        }
        // Before the memory is mapped: a worker that is forked after that has it too.
        let forks = storage::forks();
        let size = bytes.next_multiple_of(8);
        let plan = Plan { strategy: get_sharing_strategy(), bytes: size, reserved: size, huge: false };
        let segment = create::create(plan)?;
        self.made.fetch_add(1, Relaxed);
        self.keep(&segment, forks);
        Ok(Storage::place(Some(segment), 0, bytes, false))
    }

    /// A piece that suits and is free.
    fn find(&self, bytes: usize) -> Option<Arc<Segment>> {
        let mut kept = self.lock();
        kept.retain(Kept::is_ours);
        let at = kept.iter().position(|kept| kept.suits(bytes) && kept.is_free())?;
        // To the end: the piece that was given out first is likely to be the first that comes back.
        let found = kept.remove(at);
        let segment = found.segment.clone();
        kept.push(found);
        Some(segment)
    }

    /// Keeps a new piece, in the place of a free one if there is no other. Without a place it is memory like any other, which goes with
    /// its last holder.
    fn keep(&self, segment: &Arc<Segment>, forks: u32) {
        let mut kept = self.lock();
        if kept.len() >= self.most
            && let Some(unsuited) = kept.iter().position(Kept::is_free)
        {
            kept.remove(unsuited);
        }
        if kept.len() < self.most {
            segment.count_holders();
            kept.push(Kept { segment: segment.clone(), owner: Here::now(), forks });
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Kept>> {
        // Each change is one call, so that a panic leaves nothing half done.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_when_the_last_handle_has_gone_and_it_suits() {
        let recycler = Recycler::new(2);
        let (one, two) = (recycler.storage(100_000).unwrap(), recycler.storage(100_000).unwrap());
        let (first, second) = (one.id(), two.id());
        let view = two.clone();
        drop((one, two));
        let three = recycler.storage(99_999).unwrap();
        assert_eq!((three.id(), recycler.made()), (first, 2));
        drop(view);
        // Too large for it; and too small, since most of it would be of no use.
        for bytes in [100_001, 40_000] {
            let other = recycler.storage(bytes).unwrap();
            assert_ne!(other.id(), second);
        }
        assert!(recycler.storage(0).unwrap().is_empty());
    }

    #[test]
    fn no_more_is_kept_than_was_asked_for() {
        let recycler = Recycler::new(2);
        let held: Vec<_> = (0..4).map(|_| recycler.storage(5000).unwrap()).collect();
        assert_eq!((recycler.kept(), recycler.made()), (2, 4));
        drop(held);
        // One that is free gives way to one that suits.
        let large = recycler.storage(50_000).unwrap();
        let large_id = large.id();
        drop(large);
        assert_eq!((recycler.storage(50_000).unwrap().id(), recycler.kept()), (large_id, 2));
    }

    #[test]
    fn memory_whose_holders_are_not_all_counted_is_not_used_again() {
        let recycler = Recycler::new(2);
        let storage = recycler.storage(5000).unwrap();
        let segment = storage.segment().unwrap().clone();
        // A message that goes nowhere.
        let opened = segment.open().unwrap();
        drop(storage);
        assert!(!segment::registry().has_nobody_else(&segment));
        drop(opened);
        let sent = segment.open_without_proc().unwrap();
        let before = segment.identity();
        drop((segment, sent));
        assert_ne!(recycler.storage(5000).unwrap().segment().unwrap().identity(), before);
    }
}
