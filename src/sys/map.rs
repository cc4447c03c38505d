//! mmap(2): shared memory as atomics and copies, never as references to plain data, unless it is sealed.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use super::atomic_record::AtomicRecord;
use super::copy::{copy_between, copy_in, copy_out};
use super::{limits, memfd};
use crate::point::point;

/// Memory that other processes may read and write too.
#[derive(Debug)]
pub(crate) struct SharedMap {
    raw: MmapRaw,
    access: Access,
    /// That of the map, unless nothing lies in it any more.
    len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Writable,
    ReadOnly,
    /// Of a memfd that is sealed against all writing.
    Sealed,
}

impl SharedMap {
    /// Maps the first `len` bytes of `fd`, which must be that long and stay so (see `memfd`).
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        point!("sys.mmap", call);
        let raw = MmapOptions::new().len(len).map_raw(fd.as_raw_fd())?;
        Ok(Self { raw, access: Access::Writable, len })
    }

    /// As [`new`](Self::new), of a descriptor that may only be read.
    pub(crate) fn read_only(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        point!("sys.mmap", call);
        let raw = MmapOptions::new().len(len).map_raw_read_only(fd.as_raw_fd())?;
        Ok(Self { raw, access: Access::ReadOnly, len })
    }

    /// Maps the first `len` bytes of a memfd that is sealed against writing, whose bytes therefore never change.
    ///
    /// # Errors
    /// When it is not sealed or not so long, or cannot be mapped.
    pub(crate) fn sealed(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        check_sealed(fd, len)?;
        point!("sys.mmap", call);
        // SAFETY: nobody can change these bytes or cut them short, as was just asked of the kernel. The map is a
        // private one, which shares the pages as long as nobody writes: before Linux 6.7 a sealed memfd has no other.
        // No pages are to be reserved for it: of huge ones there may be no more.
        let map =
            unsafe { MmapOptions::new().len(len).no_reserve_swap().map_copy_read_only(fd.as_raw_fd())? };
        Ok(Self { raw: MmapRaw::from(map), access: Access::Sealed, len })
    }

    /// Runs `seal` while this map, which must be the only handle to it, is not one through which `fd` could be written,
    /// and maps it at the same place again: sealed if `seal` succeeded. The place is held meanwhile.
    pub(crate) fn seal_with(
        &mut self,
        fd: BorrowedFd<'_>,
        seal: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let nothing = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        self.map_over(-1, libc::PROT_NONE, nothing)?;
        let sealed = seal().and_then(|()| check_sealed(fd, self.len));
        match sealed {
            Ok(()) => {
                self.access = Access::Sealed;
                self.map_again(fd, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_NORESERVE)?;
            }
            Err(_) => self.map_again(fd, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)?,
        }
        sealed
    }

    /// If the kernel refuses even that, nothing is mapped here any more, and an access panics instead of faulting.
    fn map_again(&mut self, fd: BorrowedFd<'_>, protection: i32, flags: i32) -> io::Result<()> {
        let len = std::mem::take(&mut self.len);
        self.map_over(fd.as_raw_fd(), protection, flags)?;
        self.len = len;
        Ok(())
    }

    /// Replaces what is mapped here.
    fn map_over(&mut self, fd: i32, protection: i32, flags: i32) -> io::Result<()> {
        let (start, flags) = (self.raw.as_mut_ptr().cast(), flags | libc::MAP_FIXED);
        // SAFETY: exactly the range of our own map, to which nobody else has a reference: `self` is borrowed mutably.
        let mapped = unsafe { libc::mmap(start, self.raw.len(), protection, flags, fd, 0) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    #[inline]
    pub(crate) fn is_writable(&self) -> bool {
        self.access == Access::Writable
    }

    /// The bytes in place, if no process can change them.
    pub(crate) fn sealed_bytes(&self) -> Option<&[u8]> {
        // SAFETY: the map is that long, and its bytes never change, as the kernel has said (see `check_sealed`).
        (self.access == Access::Sealed)
            .then(|| unsafe { std::slice::from_raw_parts(self.raw.as_ptr(), self.len) })
    }

    /// The address of byte `offset`, of which `size` bytes and `align`, a power of two, are checked.
    ///
    /// # Panics
    /// When these bytes do not lie in the map or are not aligned.
    #[inline]
    pub(crate) fn at(&self, offset: usize, size: usize, align: usize) -> *mut u8 {
        let inside = offset.checked_add(size).is_some_and(|end| end <= self.len);
        assert!(inside, "{size} bytes at {offset} of a map of {} bytes", self.len);
        // Of a power of two: no division.
        assert!(offset & (align - 1) == 0, "offset {offset} is not a multiple of {align}");
        self.raw.as_mut_ptr().wrapping_add(offset)
    }

    /// As [`at`](Self::at), to write there.
    ///
    /// # Panics
    /// As [`at`](Self::at), and when the map is read-only: its holder asks [`is_writable`](Self::is_writable) first.
    #[inline]
    fn writable_at(&self, offset: usize, size: usize, align: usize) -> *mut u8 {
        assert!(self.is_writable(), "a map that can only be read is written to");
        self.at(offset, size, align)
    }

    #[inline]
    pub(crate) fn u8(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: `at` checked the bounds; the memory lives as long as self and is accessed by atomics only. In a
        // map that can only be read the holder only loads (see `writable_at`).
        unsafe { AtomicU8::from_ptr(self.at(offset, 1, 1)) }
    }

    #[inline]
    pub(crate) fn u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as in `u8`; `at` also checked the alignment, and maps begin at a page.
        unsafe { AtomicU16::from_ptr(self.at(offset, 2, 2).cast()) }
    }

    #[inline]
    pub(crate) fn u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as in `u16`.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4, 4).cast()) }
    }

    #[inline]
    pub(crate) fn u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `u16`.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8, 8).cast()) }
    }

    /// A record of atomics.
    ///
    /// # Panics
    /// As [`writable_at`](Self::writable_at).
    #[inline]
    pub(crate) fn record<C: AtomicRecord>(&self, offset: usize) -> &C {
        let record = self.writable_at(offset, size_of::<C>(), align_of::<C>()).cast::<C>();
        // SAFETY: `writable_at` checked the bounds and the alignment; any bytes are atomics, to which others may have
        // references too; the memory lives as long as self.
        unsafe { &*record }
    }

    /// As [`record`](Self::record), of `count` records one behind the other.
    ///
    /// # Panics
    /// As [`writable_at`](Self::writable_at).
    #[inline]
    pub(crate) fn records<C: AtomicRecord>(&self, offset: usize, count: usize) -> &[C] {
        // A count whose product overflows does not fit into any map.
        let size = count.saturating_mul(size_of::<C>());
        let first = self.writable_at(offset, size, align_of::<C>()).cast::<C>();
        // SAFETY: as in `record`, for all of them.
        unsafe { std::slice::from_raw_parts(first, count) }
    }

    /// Copies `bytes` to `offset`, in elements of `unit` bytes (1, 2, 4 or 8).
    ///
    /// # Panics
    /// When they do not fit, or are not whole and aligned elements, or the map is read-only.
    #[inline]
    pub(crate) fn write(&self, offset: usize, bytes: &[u8], unit: usize) {
        assert!(bytes.len() & (unit - 1) == 0, "{} bytes are not elements of {unit}", bytes.len());
        let target = self.writable_at(offset, bytes.len(), unit);
        // SAFETY: `at` checked the target, the slice vouches for the source, and they cannot overlap: a slice of these
        // very bytes is either of a sealed map, which is refused, or of a shard, beside which no other code has this map's
        // bytes to write to; code that accesses them by elements does so by this unit.
        unsafe { copy_in(bytes.as_ptr(), target, bytes.len(), unit) }
    }

    /// Fills `bytes` from `offset`, in elements of `unit` bytes (1, 2, 4 or 8).
    ///
    /// # Panics
    /// When the map has fewer, or they are not whole and aligned elements.
    #[inline]
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8], unit: usize) {
        assert!(bytes.len() & (unit - 1) == 0, "{} bytes are not elements of {unit}", bytes.len());
        let source = self.at(offset, bytes.len(), unit);
        // SAFETY: `at` checked the source, the slice vouches for the target; the rest as in `write`.
        unsafe { copy_out(source, bytes.as_mut_ptr(), bytes.len(), unit) }
    }

    /// Copies `len` bytes of another map, from `from` on, to `offset`, in elements of `unit` bytes (1, 2, 4 or 8).
    ///
    /// # Panics
    /// When they do not lie in both maps, are no elements, or overlap; when this map is read-only.
    pub(crate) fn copy_from(&self, offset: usize, (other, from): (&Self, usize), len: usize, unit: usize) {
        let (source, target) = (other.at(from, len, unit), self.writable_at(offset, len, unit));
        assert!(len & (unit - 1) == 0, "{len} bytes are not elements of {unit}");
        assert!(
            source.addr().abs_diff(target.addr()) >= len,
            "the same {len} bytes cannot be copied to themselves"
        );
        // SAFETY: `at` checked both and they do not overlap; code that accesses either by elements does so by this unit.
        unsafe { copy_between(source, target, len, unit) }
    }

    /// Copies `len` bytes of somebody else's memory to `offset`, in elements of `unit` bytes (1, 2, 4 or 8).
    ///
    /// # Panics
    /// As [`write`](Self::write).
    ///
    /// # Safety
    /// The bytes from `source` on are readable, aligned to the element, and not those that are written here; nobody
    /// writes to them meanwhile but by atomics of its size.
    #[cfg(feature = "dlpack")]
    pub(crate) unsafe fn write_from(&self, offset: usize, source: *const u8, len: usize, unit: usize) {
        assert!(len.is_multiple_of(unit), "{len} bytes are not elements of {unit}");
        let target = self.writable_at(offset, len, unit);
        // SAFETY: `at` checked the target, the caller vouches for the source.
        unsafe { copy_between(source, target, len, unit) }
    }

    /// Reads `len` bytes of `file` from byte `from` on straight into the map at `offset`: pread(2).
    ///
    /// # Errors
    /// When the file is shorter, or cannot be read.
    ///
    /// # Panics
    /// When the map has fewer bytes, or it is read-only.
    #[cfg_attr(not(feature = "safetensors"), expect(dead_code, reason = "only files are read so"))]
    pub(crate) fn fill_from(&self, file: &File, from: u64, offset: usize, len: usize) -> io::Result<()> {
        let start = self.writable_at(offset, len, 1);
        let mut done = 0;
        while done < len {
            let place = i64::try_from(from + done as u64).map_err(io::Error::other)?;
            // SAFETY: `writable_at` checked the bounds; the kernel writes there, as any other process could.
            let got =
                unsafe { libc::pread(file.as_raw_fd(), start.wrapping_add(done).cast(), len - done, place) };
            match usize::try_from(got) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => done += more,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Fills in the page tables now, so that no later access has to: madvise(2), MADV_POPULATE_WRITE.
    pub(crate) fn prefault(&self, offset: usize, len: usize) -> io::Result<()> {
        const POPULATE_READ: i32 = 22;
        const POPULATE_WRITE: i32 = 23;
        let (_, page) = (self.at(offset, len, 1), limits::page_size());
        let begin = offset - offset % page;
        let advice = if self.is_writable() { POPULATE_WRITE } else { POPULATE_READ };
        let length = offset + len - begin;
        // SAFETY: a part of the map, which `at` checked; populating pages changes none of their bytes.
        let done = unsafe { libc::madvise(self.at(begin, length, 1).cast(), length, advice) };
        if done == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            // Before Linux 5.14 nobody else does it: a load a page.
            error if error.raw_os_error() == Some(libc::EINVAL) => {
                (begin..offset + len).step_by(page).for_each(|at| {
                    let _ = self.u8(at).load(Ordering::Relaxed);
                });
                Ok(())
            }
            error => Err(error),
        }
    }
}

/// Whether no process can change the first `len` bytes or cut them short.
fn check_sealed(fd: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    let (_, size) = memfd::identity(fd)?;
    if memfd::is_content_sealed(fd) && size >= len as u64 {
        return Ok(());
    }
    Err(io::Error::other(format!("it is not sealed with {len} bytes against any change")))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn shared_map_writes_are_seen_through_a_second_map() {
        let fd = memfd::create("test", 64).unwrap();
        let one = SharedMap::new(fd.as_fd(), 64).unwrap();
        let two = SharedMap::read_only(fd.as_fd(), 64).unwrap();
        one.write(3, b"hello", 1);
        one.u32(16).store(9, Relaxed);
        let mut seen = [0; 5];
        two.read(3, &mut seen, 1);
        assert_eq!((&seen, two.u32(16).load(Relaxed)), (b"hello", 9));
        one.prefault(5, 40).unwrap();
        two.prefault(5, 40).unwrap();
    }

    #[test]
    #[should_panic(expected = "8 bytes at 60 of a map of 64 bytes")]
    fn shared_map_out_of_bounds_panics() {
        let fd = memfd::create("test", 64).unwrap();
        SharedMap::new(fd.as_fd(), 64).unwrap().u64(60);
    }

    #[test]
    #[should_panic(expected = "can only be read")]
    fn read_only_map_refuses_to_be_written_before_the_processor_does() {
        let fd = memfd::create("test", 64).unwrap();
        SharedMap::read_only(fd.as_fd(), 64).unwrap().write(0, &[1], 1);
    }

    #[test]
    fn sealed_map_refuses_writable_memory_and_what_is_too_short() {
        let fd = memfd::create("test", 64).unwrap();
        assert!(SharedMap::sealed(fd.as_fd(), 64).is_err());
        memfd::seal_contents(fd.as_fd()).unwrap();
        assert_eq!(SharedMap::sealed(fd.as_fd(), 64).unwrap().sealed_bytes().unwrap(), [0; 64]);
        assert!(SharedMap::sealed(fd.as_fd(), 65).is_err());
    }
}
