//! Allocation of storages: in a memfd or a named file, alone or carved from the arena, in ordinary or huge pages.

use std::path::Path;
use std::sync::Arc;

use super::arena;
use super::create::{self, Plan};
use super::options::{HugePages, StorageOptions};
use super::segment::Segment;
use super::storage::Storage;
use super::strategy::{SharingStrategy, get_sharing_strategy};
use crate::error::MemoryError;
use crate::sys::memfd;

impl Storage {
    /// Makes a storage of `bytes` zeros by the process's sharing strategy. Zero bytes are allowed.
    ///
    /// The memory is reserved at once: a storage that was made never fails for want of memory later.
    ///
    /// ```
    /// use phalanx::Storage;
    /// assert_eq!(Storage::new(4096)?.len(), 4096);
    /// assert!(Storage::new(1 << 50).is_err());
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::NotEnough`] when the machine, this process's cgroup or the file system has fewer bytes left, and
    /// [`MemoryError::Os`] when a system call fails for another reason.
    pub fn new(bytes: usize) -> Result<Self, MemoryError> {
        StorageOptions::new().zeros(bytes)
    }

    /// Makes a storage with a copy of `bytes`.
    ///
    /// ```
    /// use phalanx::{Storage, Tensor};
    /// let storage = Storage::from_bytes(&[1, 2, 3])?;
    /// assert_eq!(Tensor::<u8>::from_storage(&storage, &[3])?.to_vec(), [1, 2, 3]);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
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

    /// Maps a file, such as a data set, to be read only. The kernel reads a page when it is first used, into the page cache,
    /// which all processes share.
    ///
    /// A change of the file is seen in the storage. If the file is truncated, an access beyond its new end raises SIGBUS.
    /// Tensors over it can be sent; `freeze` and `into_shards` copy them.
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
    /// [`MemoryError::File`] when the file cannot be opened or mapped, or is itself shared memory of a process.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, MemoryError> {
        let segment = create::of_file(path.as_ref())?;
        let len = segment.len();
        Ok(Self::place(Some(segment).filter(|_| len > 0), 0, len, true))
    }

    /// Makes a storage that has a memfd of its own, which can be sealed whatever the sharing strategy.
    pub(crate) fn sealable(bytes: usize) -> Result<Self, MemoryError> {
        let strategy = SharingStrategy::FileDescriptor;
        let segment = create::create(Plan { strategy, bytes, reserved: bytes, huge: false })?;
        Ok(Self::place(Some(segment), 0, bytes, false))
    }
}

impl StorageOptions {
    /// Makes a storage of `bytes` zeros with these options.
    ///
    /// ```
    /// use phalanx::shm::StorageOptions;
    /// use phalanx::{SharingStrategy, Tensor};
    /// let storage = StorageOptions::new().strategy(SharingStrategy::FileSystem).zeros(1 << 20)?;
    /// let tensor = Tensor::<f64>::from_storage(&storage, &[1 << 17])?;
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Storage::new`], and [`MemoryError::NoHugePages`].
    pub fn zeros(self, bytes: usize) -> Result<Storage, MemoryError> {
        let storage = self.make(bytes)?;
        if self.prefault {
            storage.prefault()?;
        }
        Ok(storage)
    }

    fn make(self, bytes: usize) -> Result<Storage, MemoryError> {
        let strategy = self.strategy.unwrap_or_else(get_sharing_strategy);
        if bytes == 0 {
            return Ok(Storage::place(None, 0, 0, false));
        }
        if self.huge == HugePages::No && bytes <= arena::SMALL {
            let (segment, offset) = arena::carve(strategy, bytes)?;
            return Ok(Storage::place(Some(segment), offset, bytes, false));
        }
        let ordinary = || create::create(Plan { strategy, bytes, reserved: bytes, huge: false });
        let segment = match (self.huge, strategy) {
            (HugePages::No, _) => ordinary(),
            (HugePages::Preferred, SharingStrategy::FileDescriptor) => {
                in_huge_pages(bytes).or_else(|_| ordinary())
            }
            (HugePages::Preferred, SharingStrategy::FileSystem) => ordinary(),
            (HugePages::Required, _) => in_huge_pages(bytes),
        };
        Ok(Storage::place(Some(segment?), 0, bytes, false))
    }
}

fn in_huge_pages(asked: usize) -> Result<Arc<Segment>, MemoryError> {
    let none = MemoryError::NoHugePages { asked: asked as u64, page: 0, free: 0 };
    let page = memfd::huge_pages().and_then(|(page, _)| usize::try_from(page).ok()).filter(|&page| page > 0);
    let bytes = page.and_then(|page| asked.checked_next_multiple_of(page)).ok_or(none)?;
    create::create(Plan { strategy: SharingStrategy::FileDescriptor, bytes, reserved: bytes, huge: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_an_error_with_numbers_or_fall_back() {
        let options = StorageOptions::new().prefault(true);
        // More than can be reserved on any machine that runs this.
        let error = options.huge_pages(HugePages::Required).zeros(1 << 50).unwrap_err();
        assert!(matches!(error, MemoryError::NoHugePages { asked, .. } if asked == 1 << 50), "{error}");
        let storage = options.huge_pages(HugePages::Preferred).zeros(3 << 20).unwrap();
        assert_eq!(storage.len(), 3 << 20);
        let named = options.strategy(SharingStrategy::FileSystem).huge_pages(HugePages::Preferred);
        assert!(named.zeros(1 << 20).is_ok());
    }

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
