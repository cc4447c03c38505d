//! memfd_create(2), fallocate(2) and seals (fcntl_getseal(2)): memory without a name.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;

use super::fd::above_stdio;
use super::limits;

/// A memfd of `size` bytes of zeros whose memory is reserved: using it later cannot fail with SIGBUS.
pub(crate) fn create(name: &str, size: u64) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = above_stdio(memfd_create(name, flags)?)?;
    reserve(&fd, size)?;
    Ok(fd)
}

/// What is reserved in one call: fallocate(2) undoes a call that a signal interrupts, so that a single large one
/// might never come to an end under a storm of signals.
const CHUNK: u64 = 64 << 20;

fn reserve(fd: &OwnedFd, size: u64) -> io::Result<()> {
    // Beyond RLIMIT_FSIZE the kernel does not refuse but kills, by SIGXFSZ.
    if size > limits::file_size()? {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    let offset = |bytes: u64| i64::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG));
    let mut done = 0;
    while done < size {
        let chunk = CHUNK.min(size - done);
        match fallocate(fd, FallocateFlags::empty(), offset(done)?, offset(chunk)?) {
            Ok(()) => done += chunk,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
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
    seal_contents(std::os::fd::AsFd::as_fd(&fd))?;
    Ok(fd)
}

/// Seals against growing and shrinking, so that no map of it can run past its end.
pub(crate) fn seal_size(fd: BorrowedFd<'_>) -> io::Result<()> {
    add_seals(fd, SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK)
}

/// Seals against any change at all.
pub(crate) fn seal_contents(fd: BorrowedFd<'_>) -> io::Result<()> {
    let all =
        SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    add_seals(fd, all)
}

fn add_seals(fd: BorrowedFd<'_>, seals: SealFlag) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(())
}

/// Whether its size can change no more.
pub(crate) fn is_size_sealed(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let seals = SealFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GET_SEALS)?);
    Ok(seals.contains(SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK))
}

/// What tells this file from any other: device and inode, and its size in bytes.
pub(crate) fn identity(fd: BorrowedFd<'_>) -> io::Result<((u64, u64), u64)> {
    let stat = fstat(fd)?;
    Ok(((stat.st_dev, stat.st_ino), stat.st_size.unsigned_abs()))
}
