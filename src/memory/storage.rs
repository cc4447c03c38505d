//! Bytes in shared memory, without a shape.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use super::segment::{OTHER_HANDLE, Segment};
use crate::error::MemoryError;
use crate::sys::forks::Here;
use crate::sys::map::SharedMap;

/// A piece of memory that workers share. It travels below a [`Tensor`](crate::Tensor); by itself it cannot be sent.
/// Clones, and the storage of a tensor that arrives in a worker, are the same memory.
///
/// Its memory is reserved when it is made and its size is fixed, so no use of it ends in SIGBUS. (The exception is a
/// file that somebody cuts short: see [`from_file`](Self::from_file), and docs/memory.md for named memory.)
///
/// Storages of up to 256 KiB lie together in segments of 8 MiB, so thousands of them cost a few descriptors; a segment
/// goes with the last of its storages. A larger one has a segment of its own.
///
/// ```
/// use phalanx::Storage;
/// let storage = Storage::new(4096)?;
/// let copy = Storage::from_bytes(b"hello")?;
/// assert_eq!((storage.len(), copy.len()), (4096, 5));
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
#[derive(Clone)]
pub struct Storage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None` when it has no bytes.
    segment: Option<Arc<Segment>>,
    /// Where it begins in the segment.
    offset: usize,
    len: usize,
    /// The process that has made it; a fork of it has the same memory.
    owner: Here,
    /// How many workers this process had forked when it was made: those that came later have a copy of its handles.
    forks: u32,
    /// Bytes of an element of the tensors over it; 0: there was none yet. Atomics of different sizes must not meet.
    unit: AtomicU8,
    /// Whether another process may have it.
    shared: AtomicBool,
    /// In how many messages it is whose receivers have not ended.
    lent: Arc<AtomicUsize>,
}

/// How many workers this process has forked, or has begun to.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Says that a worker is being forked: it has a copy of every handle that is in a static.
pub(crate) fn expect_fork() {
    FORKS.fetch_add(1, Relaxed);
}

/// A message that a storage is in. Until this is dropped its receivers may write to the storage.
#[derive(Debug)]
pub(crate) struct Loan(Arc<AtomicUsize>);

impl Drop for Loan {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage({}, {} bytes)", self.id(), self.len())
    }
}

/// What is the same for the same memory, in whichever process it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StorageId {
    device: u64,
    inode: u64,
    offset: u64,
}

impl fmt::Display for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, inode, offset } = self;
        write!(f, "{device:x}:{inode}+{offset}")
    }
}

impl Storage {
    /// A part of a segment. `shared`: another process may have it.
    pub(crate) fn place(segment: Option<Arc<Segment>>, offset: usize, len: usize, shared: bool) -> Self {
        let (owner, forks, shared) = (Here::now(), FORKS.load(Relaxed), AtomicBool::new(shared));
        let (unit, lent) = (AtomicU8::new(0), Arc::default());
        Self(Arc::new(Inner { segment, offset, len, owner, forks, unit, shared, lent }))
    }

    /// As [`place`](Self::place), of numbers that came from elsewhere; `None` when they do not fit the segment.
    pub(crate) fn checked(
        segment: Option<Arc<Segment>>,
        (offset, len): (usize, usize),
        align: usize,
        shared: bool,
    ) -> Option<Self> {
        let room = segment.as_ref().map_or(0, |segment| segment.len());
        let inside =
            offset.checked_add(len).is_some_and(|end| end <= room) || (segment.is_none() && len == 0);
        (inside && offset.is_multiple_of(align)).then(|| Self::place(segment, offset, len, shared))
    }

    /// Its size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Whether it can be written to: it is neither frozen nor a file's.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.bytes().is_none_or(|(map, _)| map.is_writable())
    }

    /// Whether both are the same memory.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || !self.is_empty() && self.id() == other.id()
    }

    /// What is the same for the same memory in every process. All storages without bytes have the same.
    #[must_use]
    pub fn id(&self) -> StorageId {
        let (device, inode) = self.0.segment.as_ref().map_or((0, 0), |segment| segment.identity());
        StorageId { device, inode, offset: self.0.offset as u64 }
    }

    /// Fills in the page tables of this process for it, so that no later access has to.
    ///
    /// # Errors
    /// [`MemoryError::Os`] when the system refuses.
    pub fn prefault(&self) -> Result<(), MemoryError> {
        let Some((map, at)) = self.bytes() else { return Ok(()) };
        let len = self.len();
        map.prefault(at, len).map_err(MemoryError::os("filling in page tables (madvise)", len as u64))
    }

    /// The map that its bytes lie in, and where; `None` when there are none.
    #[inline]
    pub(crate) fn bytes(&self) -> Option<(&SharedMap, usize)> {
        Some((self.0.segment.as_ref()?.map()?, self.0.offset))
    }

    /// Keeps its memory mapped as long as it lives.
    pub(crate) fn keeper(&self) -> Arc<dyn Any + Send + Sync> {
        self.0.clone()
    }

    pub(crate) fn segment(&self) -> Option<&Arc<Segment>> {
        self.0.segment.as_ref()
    }

    pub(crate) fn offset(&self) -> usize {
        self.0.offset
    }

    /// Says that tensors over it have elements of that size.
    ///
    /// # Errors
    /// [`MemoryError::OtherSize`] when there was one of another size.
    pub(crate) fn claim_unit(&self, size: usize) -> Result<(), MemoryError> {
        let unit = size as u8;
        match self.0.unit.compare_exchange(0, unit, Relaxed, Relaxed) {
            Err(found) if found != unit => Err(MemoryError::OtherSize { found: found.into(), asked: size }),
            _ => Ok(()),
        }
    }

    /// The size that was claimed; 0: none.
    pub(crate) fn unit(&self) -> u8 {
        self.0.unit.load(Relaxed)
    }

    /// A part of it as a storage of its own, in which elements may have another size. `None`: it has no such part.
    #[cfg(feature = "safetensors")]
    pub(crate) fn part(&self, at: usize, len: usize) -> Option<Self> {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len());
        let shared = self.0.shared.load(Relaxed);
        inside
            .then(|| Self::place(self.0.segment.clone().filter(|_| len > 0), self.offset() + at, len, shared))
    }

    /// Notes that another process may have it from now on, and writes to it as long as the loan lasts.
    pub(crate) fn lend(&self) -> Loan {
        self.0.shared.store(true, Relaxed);
        self.0.lent.fetch_add(1, Relaxed);
        Loan(self.0.lent.clone())
    }

    /// Whether this is the only handle to its memory in any process: it was made here, was never sent, and has no
    /// clone.
    pub(crate) fn is_exclusive(&mut self) -> bool {
        let Some(inner) = Arc::get_mut(&mut self.0) else { return false };
        let here = inner.owner.is_now() && inner.forks == FORKS.load(Relaxed);
        here && !*inner.shared.get_mut()
    }

    /// Seals its memory against writing by anybody. It comes back, sealed or as it was.
    ///
    /// # Errors
    /// [`MemoryError::StillWritable`] when somebody else has it.
    pub(crate) fn freeze(self) -> (Self, Result<(), MemoryError>) {
        let bytes = self.len();
        let mut inner = match Arc::try_unwrap(self.0) {
            Ok(inner) => inner,
            Err(held) => {
                let holder = OTHER_HANDLE;
                return (Self(held), Err(MemoryError::StillWritable { bytes, holder }));
            }
        };
        let (segment, done) = match inner.segment.take().map(Segment::seal) {
            Some((segment, done)) => (Some(segment), done),
            None => (None, Ok(())),
        };
        // It keeps what it knows of other holders, also when it could not be sealed.
        (Self(Arc::new(Inner { segment, ..inner })), done)
    }

    /// Whether its memory can be sealed without sealing others': a carved one's cannot, nor that of a part.
    pub(crate) fn is_sealable(&self) -> bool {
        self.0.segment.as_ref().is_some_and(|segment| segment.is_sealable() && self.fills(segment))
    }

    fn fills(&self, segment: &Segment) -> bool {
        self.0.offset == 0 && segment.is_filled_by(self.len())
    }

    /// Who else is known to be able to write to it.
    pub(crate) fn other_writer(&self) -> Option<&'static str> {
        if !self.is_writable() {
            None
        } else if self.0.lent.load(Relaxed) > 0 {
            Some("a worker that was given them and has not ended")
        } else if self.0.segment.as_ref().is_some_and(|segment| segment.is_cut_off()) {
            Some("the process of which this one is a fork")
        } else if Arc::strong_count(&self.0) > 1 {
            Some(OTHER_HANDLE)
        } else if self
            .0
            .segment
            .as_ref()
            .is_some_and(|segment| segment.has_other_names() && self.fills(segment))
        {
            Some("another process")
        } else {
            None
        }
    }
}
