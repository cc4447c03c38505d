//! Counted bytes in a sealed memfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::error::MemoryError;
use crate::sys::map::SharedMap;
use crate::sys::{memfd, memory};

/// Below this size nobody asks the kernel first whether there is so much: it takes longer than it is worth.
const ASK_FIRST: u64 = 1 << 20;

/// A piece of memory that workers share: bytes in a memfd, which has no name and is gone with its last holder.
///
/// Its memory is reserved when it is made and its size is sealed, so no use of it can end in SIGBUS. Clones,
/// and what arrives in a worker, are the same memory.
///
/// ```
/// let storage = phalanx::Storage::new(4096)?;
/// assert_eq!(storage.len(), 4096);
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Storage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fd: OwnedFd,
    /// `None` when it has no bytes: nothing cannot be mapped.
    map: Option<SharedMap>,
    identity: (u64, u64),
}

impl Storage {
    /// Makes a storage of `bytes` zeros.
    ///
    /// # Errors
    /// [`MemoryError::NotEnough`] when the machine or this process's cgroup does not have so much, and
    /// [`MemoryError::Os`] when the system refuses.
    pub fn new(bytes: usize) -> Result<Self, MemoryError> {
        let asked = bytes as u64;
        // Asking first, since the kernel would rather kill somebody than refuse (malloc(3), overcommit).
        if asked >= ASK_FIRST
            && let Some(available) = memory::available().filter(|&available| available < asked)
        {
            return Err(MemoryError::NotEnough { asked, available });
        }
        let os = |doing| move |os| MemoryError::Os { doing, bytes: asked, os };
        let fd = memfd::create("phalanx-storage", asked).map_err(os("reserving a memfd"))?;
        memfd::seal_size(fd.as_fd()).map_err(os("sealing a memfd"))?;
        Self::map(fd).map_err(os("mapping a memfd"))
    }

    /// Takes over a storage that another process made.
    pub(super) fn receive(fd: OwnedFd) -> io::Result<Self> {
        if !memfd::is_size_sealed(fd.as_fd())? {
            return Err(io::Error::other("the descriptor is no storage: its size is not sealed"));
        }
        Self::map(fd)
    }

    fn map(fd: OwnedFd) -> io::Result<Self> {
        let (identity, size) = memfd::identity(fd.as_fd())?;
        let len = usize::try_from(size).map_err(io::Error::other)?;
        let map = if len == 0 { None } else { Some(SharedMap::new(fd.as_fd(), len)?) };
        Ok(Self(Arc::new(Inner { fd, map, identity })))
    }

    /// Its size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.map.as_ref().map_or(0, SharedMap::len)
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.map.is_none()
    }

    /// Whether both are the same memory.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.identity == other.0.identity
    }

    /// The mapped bytes; `None` when there are none.
    pub(super) fn bytes(&self) -> Option<&SharedMap> {
        self.0.map.as_ref()
    }
}

impl AsFd for Storage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_too_large_is_an_error_with_numbers() {
        let error = Storage::new(1 << 50).unwrap_err();
        assert!(
            matches!(error, MemoryError::NotEnough { asked, available } if asked == 1 << 50 && available > 0)
        );
        assert!(Storage::new(usize::MAX).is_err());
    }

    #[test]
    fn storage_of_nothing_works() {
        let storage = Storage::new(0).unwrap();
        assert!(storage.is_empty());
        assert_eq!(storage.len(), 0);
    }

    #[test]
    fn storage_cannot_be_resized() {
        let storage = Storage::new(100).unwrap();
        let file = std::fs::File::from(storage.as_fd().try_clone_to_owned().unwrap());
        assert!(file.set_len(10).is_err());
        assert!(file.set_len(1000).is_err());
    }

    #[test]
    fn receive_refuses_what_is_not_sealed() {
        let loose = memfd::create("loose", 100).unwrap();
        assert!(Storage::receive(loose).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Storage::receive(file.into()).is_err());
    }
}
