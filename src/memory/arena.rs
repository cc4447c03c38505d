//! Small storages: carved one after the other from a shared segment, so that thousands of them cost a few descriptors
//! and mappings.
//!
//! A storage's bytes are never reused: the kernel frees a segment when no process has it mapped any more. A free list or a
//! reference count in shared memory would be left wrong by a process that is killed.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::create::{self, Plan};
use super::segment::Segment;
use super::strategy::SharingStrategy;
use crate::error::MemoryError;
use crate::sys::forks::Here;
use crate::sys::limits;

/// The largest storage, in bytes, that is carved from a shared segment.
pub(crate) const SMALL: usize = 256 << 10;
/// Bytes of address space of a segment. Its memory is reserved step by step, as it is carved.
const SEGMENT: usize = 8 << 20;
/// Bytes that are reserved at a time (fallocate(2)).
const STEP: usize = 256 << 10;
/// Storages begin at multiples of this: two of them share no cache line, and any element is aligned.
pub(crate) const ALIGN: usize = 64;

/// The segment that is being carved. Its storages keep it mapped; the arena does not, so that it goes with the last of them.
struct Arena {
    /// A fork of this process has a copy of the arena, but must not carve the same bytes.
    owner: Here,
    /// The strategy by which the segment was made: storages of another one need another segment.
    strategy: SharingStrategy,
    /// The segment, as long as one of its storages is alive.
    segment: Weak<Segment>,
    /// The segment's size in bytes.
    size: usize,
    /// The bytes from the segment's begin on that are carved: the next storage begins there.
    used: usize,
    /// The bytes from the segment's begin on whose memory is reserved.
    reserved: usize,
}

/// The arena of this process, once there is one.
static ARENA: Mutex<Option<Arena>> = Mutex::new(None);

/// Carves a storage of `bytes` bytes, all zero, and returns its segment and its offset there in bytes.
///
/// # Errors
/// As [`create::create`], and as [`Segment::reserve`].
pub(super) fn carve(strategy: SharingStrategy, bytes: usize) -> Result<(Arc<Segment>, usize), MemoryError> {
    let mut arena = ARENA.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(arena) = arena.as_mut().filter(|arena| arena.serves(strategy, bytes))
        && let Some(segment) = arena.segment.upgrade()
    {
        let at = arena.take(&segment, bytes)?;
        return Ok((segment, at));
    }
    let size = segment_size(bytes);
    let reserved = STEP.min(size);
    let segment = create::create(Plan { strategy, bytes: size, reserved, huge: false })?;
    let used = bytes.next_multiple_of(ALIGN);
    let (owner, weak) = (Here::now(), Arc::downgrade(&segment));
    *arena = Some(Arena { owner, strategy, segment: weak, size, used, reserved });
    Ok((segment, 0))
}

/// The size of a new segment: smaller where RLIMIT_FSIZE forbids a file of [`SEGMENT`] bytes, but never smaller than `bytes`,
/// so that the refusal names what the caller asked for.
fn segment_size(bytes: usize) -> usize {
    let limit = limits::file_size().ok().and_then(|limit| usize::try_from(limit).ok()).unwrap_or(SEGMENT);
    SEGMENT.min(limit).max(bytes)
}

impl Arena {
    /// Whether this process may carve as many bytes from the segment, and they fit.
    fn serves(&self, strategy: SharingStrategy, bytes: usize) -> bool {
        self.owner.is_now() && self.strategy == strategy && self.used + bytes <= self.size
    }

    /// Carves the next bytes, and returns their offset. When memory cannot be reserved for them, nothing is carved.
    fn take(&mut self, segment: &Segment, bytes: usize) -> Result<usize, MemoryError> {
        let (at, end) = (self.used, self.used + bytes);
        if end > self.reserved {
            let reserved = end.next_multiple_of(STEP).min(self.size);
            segment.reserve(self.reserved, reserved)?;
            self.reserved = reserved;
        }
        self.used = end.next_multiple_of(ALIGN);
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carved_pieces_do_not_overlap_and_a_full_segment_is_followed_by_another() {
        let pieces: Vec<_> =
            (0..100).map(|_| carve(SharingStrategy::FileDescriptor, SMALL - 1).unwrap()).collect();
        let mut places: Vec<_> = pieces.iter().map(|(segment, at)| (segment.identity(), *at)).collect();
        places.sort_unstable();
        for pair in places.windows(2) {
            assert!(pair[0].0 != pair[1].0 || pair[1].1 - pair[0].1 >= SMALL - 1, "{pair:?}");
        }
        assert!(places.iter().all(|(_, at)| at % ALIGN == 0 && at + SMALL <= SEGMENT));
        places.dedup_by_key(|(identity, _)| *identity);
        assert!((4..=6).contains(&places.len()), "{}", places.len());
    }
}
