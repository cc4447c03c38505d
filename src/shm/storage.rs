//! Bytes in shared memory, without a shape.

use std::any::Any;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use super::options::StorageOptions;
use super::segment::{Plan, Segment};
use super::strategy::SharingStrategy;
use crate::error::MemoryError;
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
    owner: u32,
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

/// Who else has it, in an error.
pub(super) const OTHER_HANDLE: &str = "a clone or a view of it in this process";

impl Storage {
    /// Makes a storage of `bytes` zeros. None at all is fine.
    ///
    /// # Errors
    /// [`MemoryError::NotEnough`] when the machine, this process's cgroup or the file system does not have so much,
    /// and [`MemoryError::Os`] when the system refuses.
    pub fn new(bytes: usize) -> Result<Self, MemoryError> {
        StorageOptions::new().zeros(bytes)
    }

    /// Makes a storage with a copy of `bytes`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MemoryError> {
        let storage = Self::new(bytes.len())?;
        if let Some((map, at)) = storage.bytes() {
            map.write(at, bytes, 1);
        }
        Ok(storage)
    }

    /// The bytes of a file, such as a data set: they are read when they are first used, through the page cache, which
    /// all processes share. They can only be read here.
    ///
    /// Who changes the file changes what is seen; who cuts it short makes a later access end in SIGBUS. Its tensors can be
    /// sent; `freeze` and `into_shards` copy them.
    ///
    /// ```
    /// use phalanx::{Storage, Tensor};
    /// # let file = tempfile::NamedTempFile::new()?;
    /// # std::fs::write(file.path(), [0; 32])?;
    /// # let path = file.path();
    /// let data = Tensor::<u16>::from_storage(&Storage::from_file(path)?, &[4, 4])?;
    /// assert_eq!(data.get(5)?, 0);
    /// assert!(data.set(5, 1).is_err());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::File`] when it cannot be opened or mapped.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, MemoryError> {
        let segment = Segment::of_file(path.as_ref())?;
        let len = segment.len();
        Ok(Self::place(Some(segment).filter(|_| len > 0), 0, len, true))
    }

    /// A part of a segment. `shared`: another process may have it.
    pub(super) fn place(segment: Option<Arc<Segment>>, offset: usize, len: usize, shared: bool) -> Self {
        let (owner, forks, shared) = (std::process::id(), FORKS.load(Relaxed), AtomicBool::new(shared));
        let (unit, lent) = (AtomicU8::new(0), Arc::default());
        Self(Arc::new(Inner { segment, offset, len, owner, forks, unit, shared, lent }))
    }

    /// As [`place`](Self::place), of numbers that came from elsewhere; `None` when they do not fit the segment.
    pub(super) fn checked(
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
    pub(super) fn bytes(&self) -> Option<(&SharedMap, usize)> {
        Some((self.0.segment.as_ref()?.map()?, self.0.offset))
    }

    /// Keeps its memory mapped as long as it lives.
    pub(super) fn keeper(&self) -> Arc<dyn Any + Send + Sync> {
        self.0.clone()
    }

    pub(super) fn segment(&self) -> Option<&Arc<Segment>> {
        self.0.segment.as_ref()
    }

    pub(super) fn offset(&self) -> usize {
        self.0.offset
    }

    /// Says that tensors over it have elements of that size.
    ///
    /// # Errors
    /// [`MemoryError::OtherSize`] when there was one of another size.
    pub(super) fn claim_unit(&self, size: usize) -> Result<(), MemoryError> {
        let unit = size as u8;
        match self.0.unit.compare_exchange(0, unit, Relaxed, Relaxed) {
            Err(found) if found != unit => Err(MemoryError::OtherSize { found: found.into(), asked: size }),
            _ => Ok(()),
        }
    }

    /// The size that was claimed; 0: none.
    pub(super) fn unit(&self) -> u8 {
        self.0.unit.load(Relaxed)
    }

    /// A part of it as a storage of its own, in which elements may have another size. `None`: it has no such part.
    #[cfg(feature = "safetensors")]
    pub(super) fn part(&self, at: usize, len: usize) -> Option<Self> {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len());
        let shared = self.0.shared.load(Relaxed);
        inside
            .then(|| Self::place(self.0.segment.clone().filter(|_| len > 0), self.offset() + at, len, shared))
    }

    /// Notes that another process may have it from now on, and writes to it as long as the loan lasts.
    pub(super) fn lend(&self) -> Loan {
        self.0.shared.store(true, Relaxed);
        self.0.lent.fetch_add(1, Relaxed);
        Loan(self.0.lent.clone())
    }

    /// Whether this is the only handle to its memory in any process: it was made here, was never sent, and has no
    /// clone.
    pub(super) fn is_exclusive(&mut self) -> bool {
        let Some(inner) = Arc::get_mut(&mut self.0) else { return false };
        let here = inner.owner == std::process::id() && inner.forks == FORKS.load(Relaxed);
        here && !*inner.shared.get_mut()
    }

    /// Seals its memory against writing by anybody. It comes back, sealed or as it was.
    ///
    /// # Errors
    /// [`MemoryError::StillWritable`] when somebody else has it.
    pub(super) fn freeze(self) -> (Self, Result<(), MemoryError>) {
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

    /// Memory that is this storage's alone and can be sealed.
    pub(super) fn sealable(bytes: usize) -> Result<Self, MemoryError> {
        let strategy = SharingStrategy::FileDescriptor;
        let segment = Segment::create(Plan { strategy, bytes, reserved: bytes, huge: false })?;
        Ok(Self::place(Some(segment), 0, bytes, false))
    }

    /// Whether its memory can be sealed without sealing others': a carved one's cannot, nor that of a part.
    pub(super) fn is_sealable(&self) -> bool {
        self.0.segment.as_ref().is_some_and(|segment| segment.is_sealable() && self.fills(segment))
    }

    fn fills(&self, segment: &Segment) -> bool {
        self.0.offset == 0 && segment.is_filled_by(self.len())
    }

    /// Who else is known to be able to write to it.
    pub(super) fn other_writer(&self) -> Option<&'static str> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_too_large_is_an_error_with_numbers() {
        for strategy in [SharingStrategy::FileDescriptor, SharingStrategy::FileSystem] {
            let error = StorageOptions::new().strategy(strategy).zeros(1 << 50).unwrap_err();
            assert!(
                matches!(error, MemoryError::NotEnough { asked, available, .. } if asked == 1 << 50 && available > 0)
            );
            assert!(StorageOptions::new().strategy(strategy).zeros(usize::MAX).is_err());
        }
    }

    #[test]
    fn storage_of_nothing_works() {
        let storage = Storage::new(0).unwrap();
        assert!(storage.is_empty() && storage.is_writable() && !storage.is_same(&Storage::new(0).unwrap()));
        assert_eq!((storage.len(), storage.prefault().is_ok()), (0, true));
    }

    #[test]
    fn storage_of_a_file_shows_it_and_refuses_to_be_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Storage::from_file(file.path()).unwrap().is_empty());
        std::fs::write(file.path(), [1, 2, 3]).unwrap();
        let storage = Storage::from_file(file.path()).unwrap();
        let (map, at) = storage.bytes().unwrap();
        let mut bytes = [0; 3];
        map.read(at, &mut bytes, 1);
        assert_eq!((bytes, storage.is_writable()), ([1, 2, 3], false));
        assert!(storage.is_same(&Storage::from_file(file.path()).unwrap()));
        // Of another size by now, it is mapped anew.
        std::fs::write(file.path(), vec![4; 10_000]).unwrap();
        assert_eq!(Storage::from_file(file.path()).unwrap().len(), 10_000);
        let missing = Storage::from_file("/no/such/file").unwrap_err().to_string();
        assert!(missing.contains("/no/such/file"), "{missing}");
        assert!(Storage::from_file("/dev/null").is_err());
    }
}
