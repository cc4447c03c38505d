//! mmap(2): shared memory as atomics and copies, never as references to plain data.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use memmap2::{Mmap, MmapOptions, MmapRaw};

use super::copy::{copy_in, copy_out};

/// Memory that other processes read and write too.
#[derive(Debug)]
pub(crate) struct SharedMap {
    raw: MmapRaw,
    len: usize,
}

impl SharedMap {
    /// Maps the first `len` bytes of `fd`, which must be that long and stay so (see `memfd`).
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let raw = MmapOptions::new().len(len).map_raw(fd.as_raw_fd())?;
        Ok(Self { raw, len })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address of byte `offset`, of which `size` bytes and `align` are checked.
    ///
    /// # Panics
    /// When these bytes do not lie in the map or are not aligned.
    pub(crate) fn at(&self, offset: usize, size: usize, align: usize) -> *mut u8 {
        let inside = offset.checked_add(size).is_some_and(|end| end <= self.len);
        assert!(inside, "{size} bytes at {offset} of a map of {} bytes", self.len);
        assert!(offset.is_multiple_of(align), "offset {offset} is not a multiple of {align}");
        self.raw.as_mut_ptr().wrapping_add(offset)
    }

    pub(crate) fn u8(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: `at` checked the bounds; the memory lives as long as self and is accessed by atomics only.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1, 1)) }
    }

    pub(crate) fn u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as in `u8`; `at` also checked the alignment, and maps begin at a page.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4, 4).cast()) }
    }

    pub(crate) fn u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `u32`.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8, 8).cast()) }
    }

    /// Copies `bytes` to `offset`, in elements of `unit` bytes (1, 4 or 8).
    ///
    /// # Panics
    /// When they do not fit, or are not whole and aligned elements.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8], unit: usize) {
        assert!(bytes.len().is_multiple_of(unit), "{} bytes are not elements of {unit}", bytes.len());
        let target = self.at(offset, bytes.len(), unit);
        // SAFETY: `at` checked the target, the slice vouches for the source, and they cannot overlap, since
        // nobody can have a slice of shared memory; who accesses it by elements does so by this unit.
        unsafe { copy_in(bytes.as_ptr(), target, bytes.len(), unit) }
    }

    /// Fills `bytes` from `offset`, in elements of `unit` bytes (1, 4 or 8).
    ///
    /// # Panics
    /// When there are not so many, or they are not whole and aligned elements.
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8], unit: usize) {
        assert!(bytes.len().is_multiple_of(unit), "{} bytes are not elements of {unit}", bytes.len());
        let source = self.at(offset, bytes.len(), unit);
        // SAFETY: `at` checked the source, the slice vouches for the target; the rest as in `write`.
        unsafe { copy_out(source, bytes.as_mut_ptr(), bytes.len(), unit) }
    }
}

/// Maps a memfd that is sealed against writing, whose bytes therefore never change.
///
/// # Errors
/// When it is not sealed or cannot be mapped.
pub(crate) fn map_sealed(fd: BorrowedFd<'_>) -> io::Result<Mmap> {
    MmapOptions::new().map_if_safe(fd.as_raw_fd()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering::Relaxed;

    use super::super::memfd;
    use super::*;

    #[test]
    fn shared_map_writes_are_seen_through_a_second_map() {
        let fd = memfd::create("test", 64).unwrap();
        let one = SharedMap::new(fd.as_fd(), 64).unwrap();
        let two = SharedMap::new(fd.as_fd(), 64).unwrap();
        one.write(3, b"hello", 1);
        one.u32(16).store(9, Relaxed);
        let mut seen = [0; 5];
        two.read(3, &mut seen, 1);
        assert_eq!((&seen, two.u32(16).load(Relaxed)), (b"hello", 9));
    }

    #[test]
    #[should_panic(expected = "8 bytes at 60 of a map of 64 bytes")]
    fn shared_map_out_of_bounds_panics() {
        let fd = memfd::create("test", 64).unwrap();
        SharedMap::new(fd.as_fd(), 64).unwrap().u64(60);
    }

    #[test]
    fn map_sealed_refuses_writable_memory() {
        let fd = memfd::create("test", 64).unwrap();
        assert!(map_sealed(fd.as_fd()).is_err());
        memfd::seal_contents(fd.as_fd()).unwrap();
        assert_eq!(map_sealed(fd.as_fd()).unwrap().len(), 64);
    }
}
