//! Bytes in shared memory, without a shape.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use super::segment::{OTHER_HANDLE, Segment};
use crate::error::MemoryError;
use crate::sys::forks::Here;
use crate::sys::held::HeldRef;
use crate::sys::map::SharedMap;

/// A piece of memory that workers share. It travels below a [`Tensor`](crate::Tensor); by itself it cannot be sent.
/// Clones, and the storage of a tensor that arrives in a worker, are the same memory.
///
/// Its memory is reserved when it is made and its size is fixed, so no use of it ends in SIGBUS. (The exception is a
/// file that is truncated: see [`from_file`](Self::from_file), and docs/memory.md for named memory.)
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
    /// The process that made it. A fork of it has the same memory, so that neither is the only holder.
    owner: Here,
    /// [`FORKS`] when it was made. Workers that were forked later have copies of its handles, in this process's statics.
    forks: u32,
    /// Bytes of an element of the tensors over it; 0 before there is one. Atomic accesses of different sizes to the same bytes
    /// are undefined behaviour, so that a storage has one size for good.
    unit: AtomicU8,
    /// Whether another process may have it.
    shared: AtomicBool,
    /// The number of messages with it whose receivers may still write.
    lent: Arc<AtomicUsize>,
}

impl Inner {
    #[inline]
    fn bytes(&self) -> Option<(&SharedMap, usize)> {
        Some((self.segment.as_ref()?.map()?, self.offset))
    }
}

/// How many workers this process has forked, or has begun to. (A fork generation would not do: it is the parent that has to know
/// that a child has a copy.)
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Notes that a worker is about to be forked, which will have a copy of every handle in a static.
pub(crate) fn expect_fork() {
    FORKS.fetch_add(1, Relaxed);
}

/// How many workers this process has forked, or has begun to.
pub(super) fn forks() -> u32 {
    FORKS.load(Relaxed)
}

/// A message that carries a storage. Until this is dropped the receivers may write to the storage.
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

/// The identity of a piece of memory: equal in all processes that have it mapped.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::Tensor;
/// use phalanx::shm::StorageId;
///
/// # fn main() -> anyhow::Result<()> {
/// let tensor = Tensor::<f32>::zeros(&[8])?;
/// let seen = phalanx::spawn(|_, tensor: Tensor<f32>| Ok::<StorageId, phalanx::MemoryError>(tensor.storage_id()), tensor.clone(), 1)?;
/// assert_eq!(seen, [tensor.storage_id()]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StorageId {
    device: u64,
    inode: u64,
    offset: u64,
}

impl StorageId {
    /// As numbers, for a place in shared memory.
    pub(crate) fn words(self) -> [u64; 3] {
        [self.device, self.inode, self.offset]
    }
}

impl fmt::Display for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, inode, offset } = self;
        write!(f, "{device:x}:{inode}+{offset}")
    }
}

impl Storage {
    /// A storage of `len` bytes of a segment, from `offset` on. `shared`: another process may have it.
    pub(crate) fn place(segment: Option<Arc<Segment>>, offset: usize, len: usize, shared: bool) -> Self {
        let (owner, forks, shared) = (Here::now(), FORKS.load(Relaxed), AtomicBool::new(shared));
        let (unit, lent) = (AtomicU8::new(0), Arc::default());
        Self(Arc::new(Inner { segment, offset, len, owner, forks, unit, shared, lent }))
    }

    /// As [`place`](Self::place), of numbers that another process has sent; `None` when they do not fit the segment.
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

    /// Its size in bytes, as it was asked for: pages beyond it are not counted.
    ///
    /// ```
    /// assert_eq!(phalanx::Storage::new(100)?.len(), 100);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether it has no bytes, and so no memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Whether it can be written to: it is neither frozen nor a mapped file.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let frozen = Tensor::from_slice(&[1, 2], &[2])?.freeze()?;
    /// assert!(!frozen.to_tensor().storage().is_writable());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.bytes().is_none_or(|(map, _)| map.is_writable())
    }

    /// Whether both are the same memory, at the same offset.
    ///
    /// ```
    /// use phalanx::{Storage, Tensor};
    /// let tensor = Tensor::<f32>::zeros(&[8])?;
    /// let view = tensor.narrow(0, 4, 4)?;
    /// assert!(view.storage().is_same(tensor.storage()));
    /// assert!(!tensor.storage().is_same(&Storage::new(32)?));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || !self.is_empty() && self.id() == other.id()
    }

    /// Its identity, equal in every process. All storages of zero bytes have the same.
    ///
    /// ```
    /// use phalanx::Storage;
    /// let storage = Storage::new(64)?;
    /// assert_eq!(storage.id(), storage.clone().id());
    /// assert_ne!(storage.id(), Storage::new(64)?.id());
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    #[must_use]
    pub fn id(&self) -> StorageId {
        let (device, inode) = self.0.segment.as_ref().map_or((0, 0), |segment| segment.identity());
        StorageId { device, inode, offset: self.0.offset as u64 }
    }

    /// Maps all of its pages in this process at once (madvise(2), MADV_POPULATE_WRITE), so that later accesses cause no page
    /// faults.
    ///
    /// ```
    /// use phalanx::Storage;
    /// let storage = Storage::new(16 << 20)?;
    /// storage.prefault()?;
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::Os`] when the system call fails.
    pub fn prefault(&self) -> Result<(), MemoryError> {
        let Some((map, at)) = self.bytes() else { return Ok(()) };
        let len = self.len();
        map.prefault(at, len).map_err(MemoryError::os("filling in page tables (madvise)", len as u64))
    }

    /// The map with its bytes, and their offset in it; `None` when there are none.
    #[inline]
    pub(crate) fn bytes(&self) -> Option<(&SharedMap, usize)> {
        self.0.bytes()
    }

    /// What lies in its memory, which stays mapped as long.
    pub(crate) fn hold<T>(&self, find: impl FnOnce((&SharedMap, usize)) -> &T) -> HeldRef<T> {
        HeldRef::new(self.0.clone(), |inner| find(inner.bytes().expect("it has bytes")))
    }

    /// Keeps its memory mapped as long as it lives.
    pub(crate) fn map_pin(&self) -> Arc<dyn Any + Send + Sync> {
        self.0.clone()
    }

    pub(crate) fn segment(&self) -> Option<&Arc<Segment>> {
        self.0.segment.as_ref()
    }

    pub(crate) fn offset(&self) -> usize {
        self.0.offset
    }

    /// Fixes the size of the elements of all tensors over it, in bytes.
    ///
    /// # Errors
    /// [`MemoryError::OtherSize`] when another size was fixed before.
    pub(crate) fn claim_unit(&self, size: usize) -> Result<(), MemoryError> {
        let unit = size as u8;
        match self.0.unit.compare_exchange(0, unit, Relaxed, Relaxed) {
            Err(found) if found != unit => Err(MemoryError::OtherSize { found: found.into(), asked: size }),
            _ => Ok(()),
        }
    }

    /// The size that was fixed; 0: none yet.
    pub(crate) fn unit(&self) -> u8 {
        self.0.unit.load(Relaxed)
    }

    /// A part of it as a storage of its own, in which elements may have another size; `None` when it reaches beyond the end.
    #[cfg(feature = "safetensors")]
    pub(crate) fn part(&self, at: usize, len: usize) -> Option<Self> {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len());
        let shared = self.0.shared.load(Relaxed);
        inside
            .then(|| Self::place(self.0.segment.clone().filter(|_| len > 0), self.offset() + at, len, shared))
    }

    /// Notes that another process may have it from now on, and may write to it as long as the loan lasts.
    pub(crate) fn lend(&self) -> Loan {
        self.0.shared.store(true, Relaxed);
        self.0.lent.fetch_add(1, Relaxed);
        Loan(self.0.lent.clone())
    }

    /// Whether this is the only handle to its memory in any process: this process made it, never sent it and forked no worker
    /// since, and it has no clone.
    pub(crate) fn is_exclusive(&mut self) -> bool {
        let Some(inner) = Arc::get_mut(&mut self.0) else { return false };
        let here = inner.owner.is_now() && inner.forks == FORKS.load(Relaxed);
        here && !*inner.shared.get_mut()
    }

    /// Seals its memory against writing in any process. Returns the storage in either case.
    ///
    /// # Errors
    /// [`MemoryError::StillWritable`] when another handle or process has it.
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
        // The other fields go on, so that what is known of other holders is not lost when the seal was refused.
        (Self(Arc::new(Inner { segment, ..inner })), done)
    }

    /// Whether it is all there is in a memfd: sealing a carved storage or a part would seal the memory of others.
    pub(crate) fn is_sealable(&self) -> bool {
        self.0.segment.as_ref().is_some_and(|segment| segment.is_sealable() && self.fills(segment))
    }

    fn fills(&self, segment: &Segment) -> bool {
        self.0.offset == 0 && segment.is_filled_by(self.len())
    }

    /// Which other holder is known that could write to it, in words.
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
