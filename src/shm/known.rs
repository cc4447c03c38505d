//! The segments that this process has mapped, and what they take.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use super::segment::Segment;
use super::tree;

/// Device and inode: what tells a file from any other.
pub(super) type Identity = (u64, u64);

/// The segments of this process, each found by what it is: one that arrives twice is mapped once.
type Known = HashMap<Identity, Entry>;

static KNOWN: Mutex<Option<Known>> = Mutex::new(None);

#[derive(Debug)]
struct Entry {
    segment: Weak<Segment>,
    /// What [`stats`] tells of it: a strong handle, even for a moment, would look like another holder.
    bytes: usize,
    has_descriptor: bool,
}

impl Entry {
    fn of(segment: &Arc<Segment>) -> Self {
        let has_descriptor = segment.has_descriptor();
        Self { segment: Arc::downgrade(segment), bytes: segment.len(), has_descriptor }
    }
}

/// The table, locked.
pub(super) struct Table(MutexGuard<'static, Option<Known>>);

pub(super) fn table() -> Table {
    Table(KNOWN.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Table {
    /// The segment of that file, if it is mapped here in that size. No other is even touched: the last handle of a
    /// segment must not be dropped while the table is locked.
    pub(super) fn find(&self, identity: Identity, size: u64) -> Option<Arc<Segment>> {
        let entry = self.0.as_ref()?.get(&identity)?;
        if entry.bytes as u64 == size { entry.segment.upgrade() } else { None }
    }

    pub(super) fn insert(&mut self, segment: &Arc<Segment>) {
        self.0.get_or_insert_default().insert(segment.identity(), Entry::of(segment));
    }

    /// Forgets a segment that is gone. Another thread may have mapped it anew meanwhile: that one stays known.
    pub(super) fn remove(&mut self, identity: Identity) {
        if let Some(known) = self.0.as_mut()
            && known.get(&identity).is_some_and(|entry| entry.segment.strong_count() == 0)
        {
            known.remove(&identity);
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        *self.0 = None;
    }
}

/// What shared memory this process has mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Pieces of shared memory: small storages lie in one together, larger ones have each its own.
    pub segments: usize,
    /// Mappings, of which the kernel allows vm.max_map_count.
    pub mappings: usize,
    /// Descriptors that they keep open, the one of this process's place in a tree of named memory included.
    pub descriptors: usize,
    /// Bytes of address space that they take. (Of a segment of small storages only the part that is in use has
    /// memory.)
    pub bytes: usize,
}

/// Counts the shared memory that this process has mapped.
///
/// ```
/// let large = phalanx::Tensor::<f32>::zeros(&[1 << 20])?;
/// let stats = phalanx::shm::stats();
/// assert!(stats.segments >= 1 && stats.bytes >= 4 << 20);
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
#[must_use]
pub fn stats() -> Stats {
    let place = usize::from(tree::place_in_use().is_some());
    let table = table();
    let living = table.0.iter().flat_map(HashMap::values).filter(|entry| entry.segment.strong_count() > 0);
    living.fold(Stats { descriptors: place, ..Stats::default() }, |stats, entry| Stats {
        segments: stats.segments + 1,
        mappings: stats.mappings + usize::from(entry.bytes > 0),
        descriptors: stats.descriptors + usize::from(entry.has_descriptor),
        bytes: stats.bytes + entry.bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_count_what_is_mapped_and_are_no_holders() {
        let before = stats();
        let tensor = crate::Tensor::<u8>::zeros(&[1 << 20]).unwrap();
        let during = stats();
        assert!(
            during.bytes >= 1 << 20 && during.segments >= 1 && during.mappings >= 1,
            "{during:?} after {before:?}"
        );
        std::thread::scope(|scope| {
            let counting = scope.spawn(|| (0..1000).map(|_| stats().segments).max());
            assert!(tensor.freeze().is_ok());
            counting.join().unwrap();
        });
    }
}
