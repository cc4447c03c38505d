//! memfd_create(2), fallocate(2) and seals (fcntl_getseal(2)): memory without a name.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::ftruncate;

use super::fd::above_stdio;
use super::{cgroup, limits};
use crate::point::point;

/// A memfd of `size` bytes of zeros whose memory is reserved: using it later cannot fail with SIGBUS.
pub(crate) fn create(name: &str, size: u64) -> io::Result<OwnedFd> {
    let fd = unnamed(name, MFdFlags::empty())?;
    reserve(fd.as_fd(), 0, size)?;
    Ok(fd)
}

/// As [`create`], in huge pages of the system's default size, of which `size` is a multiple (hugetlbfs).
pub(crate) fn create_huge(name: &str, size: u64) -> io::Result<OwnedFd> {
    let fd = unnamed(name, MFdFlags::MFD_HUGETLB)?;
    reserve(fd.as_fd(), 0, size)?;
    Ok(fd)
}

/// A memfd of `size` bytes of which none is reserved: see [`reserve`].
pub(crate) fn create_empty(name: &str, size: u64) -> io::Result<OwnedFd> {
    let fd = unnamed(name, MFdFlags::empty())?;
    set_size(fd.as_fd(), size)?;
    Ok(fd)
}

fn unnamed(name: &str, flags: MFdFlags) -> io::Result<OwnedFd> {
    point!("sys.memfd-create", call);
    above_stdio(memfd_create(name, flags | MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?)
}

/// ftruncate(2), with an error where the kernel would kill.
pub(crate) fn set_size(fd: BorrowedFd<'_>, size: u64) -> io::Result<()> {
    check_file_size(size)?;
    Ok(ftruncate(fd, offset(size)?)?)
}

/// Beyond RLIMIT_FSIZE the kernel does not refuse but kills, by SIGXFSZ.
pub(crate) fn check_file_size(size: u64) -> io::Result<()> {
    if size > limits::file_size()? {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    Ok(())
}

fn offset(bytes: u64) -> io::Result<i64> {
    i64::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

/// What is reserved in one call: fallocate(2) undoes a call that a signal interrupts, so that a single large one
/// might never come to an end under a storm of signals.
const CHUNK: u64 = 64 << 20;

/// Reserves the memory of the bytes from `from` to `to`, in a memfd or a file below /dev/shm: using them later cannot
/// fail with SIGBUS. The file grows to hold them.
pub(crate) fn reserve(fd: BorrowedFd<'_>, from: u64, to: u64) -> io::Result<()> {
    check_file_size(to)?;
    point!("sys.fallocate", call);
    let mut done = from;
    while done < to {
        let chunk = CHUNK.min(to - done);
        match fallocate(fd, FallocateFlags::empty(), offset(done)?, offset(chunk)?) {
            Ok(()) => done += chunk,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Bytes of a huge page, and how many huge pages are free and not reserved (/proc/meminfo).
pub(crate) fn huge_pages() -> Option<(u64, u64)> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let number = |key| cgroup::number_after(&meminfo, key);
    let free = number("HugePages_Free:")?.saturating_sub(number("HugePages_Rsvd:")?);
    Some((number("Hugepagesize:")? * 1024, free))
}

/// Of what the size of a file is a multiple: its page where these are huge ones, else a byte.
pub(crate) fn allocation_unit(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let system = fstatfs(fd)?;
    let huge = system.filesystem_type() == HUGETLBFS_MAGIC;
    Ok(if huge { system.block_size() as usize } else { 1 })
}

/// A memfd with `parts`, one after the other, sealed so that its bytes never change.
pub(crate) fn sealed_with(name: &str, parts: &[&[u8]]) -> io::Result<OwnedFd> {
    let size = parts.iter().map(|part| part.len() as u64).sum();
    let file = File::from(create(name, size)?);
    let mut at = 0;
    for part in parts {
        file.write_all_at(part, at)?;
        at += part.len() as u64;
    }
    let fd = OwnedFd::from(file);
    seal_contents(fd.as_fd())?;
    Ok(fd)
}

/// Seals against growing and shrinking, so that no map of it can run past its end.
pub(crate) fn seal_size(fd: BorrowedFd<'_>) -> io::Result<()> {
    add_seals(fd, SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK)
}

/// How often a seal is tried that the kernel refuses because pages are in use.
const SEAL_ATTEMPTS: u32 = 20;

/// Seals against any change at all.
///
/// # Errors
/// EBUSY while a process can still write to it.
pub(crate) fn seal_contents(fd: BorrowedFd<'_>) -> io::Result<()> {
    let all =
        SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    for _ in 1..SEAL_ATTEMPTS {
        // Beside a writable map, which is refused at once, EBUSY means that a page has another user: the kernel itself
        // has waited 75 ms for that (memfd_wait_for_pins). Reclaim, compaction and DAMON may hold a page for longer on a
        // busy machine, and let go of it.
        match add_seals(fd, all) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            other => return other,
        }
    }
    add_seals(fd, all)
}

fn add_seals(fd: BorrowedFd<'_>, seals: SealFlag) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(())
}

/// Whether it is a memfd, and no file: also one that was removed has its path (proc_pid_fd(5)).
pub(crate) fn is_memfd(fd: BorrowedFd<'_>) -> bool {
    super::fd::target(fd).is_some_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"/memfd:"))
}

/// Whether its size can change no more.
pub(crate) fn is_size_sealed(fd: BorrowedFd<'_>) -> bool {
    seals(fd).contains(SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK)
}

/// Whether neither its bytes nor its size can change any more.
pub(crate) fn is_content_sealed(fd: BorrowedFd<'_>) -> bool {
    seals(fd).contains(SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_WRITE)
}

/// Whether it may be sealed: it is a memfd, and no file with a name.
pub(crate) fn is_sealable(fd: BorrowedFd<'_>) -> bool {
    fcntl(fd, FcntlArg::F_GET_SEALS).is_ok() && !seals(fd).contains(SealFlag::F_SEAL_SEAL)
}

/// What can have no seals has none.
fn seals(fd: BorrowedFd<'_>) -> SealFlag {
    SealFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GET_SEALS).unwrap_or(0))
}

/// Whether the descriptor may only be read.
pub(crate) fn is_read_only(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    Ok(flags & OFlag::O_ACCMODE == OFlag::O_RDONLY)
}

/// What tells this file from any other: device and inode, and its size in bytes. What is no file of bytes is an error.
pub(crate) fn identity(fd: BorrowedFd<'_>) -> io::Result<((u64, u64), u64)> {
    let stat = fstat(fd)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(io::Error::other("it is no regular file"));
    }
    Ok(((stat.st_dev, stat.st_ino), stat.st_size.unsigned_abs()))
}

/// How many names it has.
pub(crate) fn link_count(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(fstat(fd)?.st_nlink)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use super::*;
    use crate::sys::epoll::pause;
    use crate::sys::map::SharedMap;

    #[test]
    fn seal_waits_for_a_page_that_is_in_use_for_a_while() {
        let file = File::from(create("pinned", 4096).unwrap());
        file.write_all_at(b"x", 0).unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let map = SharedMap::new(file.as_fd(), 4096).unwrap();
        let part = libc::iovec { iov_base: map.at(0, 1, 1).cast(), iov_len: 1 };
        // vmsplice(2) keeps the page in use until the byte is read from the pipe.
        // SAFETY: one record, of memory that is mapped.
        assert_eq!(unsafe { libc::vmsplice(writer.as_raw_fd(), &raw const part, 1, 0) }, 1);
        // Else the writable map would be the reason.
        drop(map);
        let user = std::thread::spawn(move || {
            // Longer than the kernel waits for it.
            pause(Duration::from_millis(200)).unwrap();
            reader.read_exact(&mut [0]).unwrap();
        });
        seal_contents(file.as_fd()).unwrap();
        user.join().unwrap();
    }
}
