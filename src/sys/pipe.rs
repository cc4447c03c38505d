//! pipe(2), read(2), write(2): streams of bytes between processes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{pipe2, read, write};

use super::epoll::wait_writable;
use super::fd::above_stdio;
use crate::point::point;

/// What fits into a pipe whose reader is slow. Where the user's share of pipe buffers is used up (pipe(7)), 64 KiB.
const ROOM: i32 = 256 * 1024;

/// A pipe: the end that is read, without waiting, and the end that is written, which waits for room.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = ends()?;
    // The flag belongs to the open file description, and the two ends are two of them: the writer is not touched.
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let _ = fcntl(&reader, FcntlArg::F_SETPIPE_SZ(ROOM));
    Ok((reader, writer))
}

/// A pipe for a line or a few: the end that is read, which waits, and the end that is written, without waiting.
pub(crate) fn line() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = ends()?;
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((reader, writer))
}

fn ends() -> io::Result<(OwnedFd, OwnedFd)> {
    point!("sys.pipe", call);
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((above_stdio(reader)?, above_stdio(writer)?))
}

/// A new FIFO (mkfifo(3)) that is read without waiting. It is open for writing here too, so that it has no end when a writer goes, and
/// no writer finds it without a reader.
pub(crate) fn fifo(path: &Path) -> io::Result<OwnedFd> {
    nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    above_stdio(open(path, OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// What a look into a pipe finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Bytes(usize),
    /// There is nothing now.
    Nothing,
    /// No writer is left.
    End,
}

/// Reads what is there, without waiting.
pub(crate) fn read_now(pipe: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Read> {
    loop {
        return match read(pipe, buffer) {
            Ok(0) => Ok(Read::End),
            Ok(count) => Ok(Read::Bytes(count)),
            Err(Errno::EAGAIN) => Ok(Read::Nothing),
            Err(Errno::EINTR) => continue,
            Err(error) => Err(error.into()),
        };
    }
}

/// How many bytes are in the pipe now (FIONREAD of pipe(7)).
pub(crate) fn waiting(pipe: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: this request writes one int to the address, which is that of an int.
    let asked = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if asked < 0 { Err(io::Error::last_os_error()) } else { Ok(count.unsigned_abs() as usize) }
}

/// Writes all, and waits for room also if O_NONBLOCK is set, as another job that shares the terminal may have done.
pub(crate) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => drop(wait_writable(fd, None)?),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Writes what there is room for now into an end of [`line`].
pub(crate) fn write_now(pipe: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    Ok(write(pipe, bytes)?)
}

/// Whether two descriptors lead to one file, as stdout and stderr do on a terminal.
pub(crate) fn is_same_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let file = |fd: BorrowedFd<'_>| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino, stat.st_rdev));
    matches!((file(one), file(other)), (Ok(one), Ok(other)) if one == other)
}

/// What tells this pipe from any other file: device and inode. What is no pipe is an error.
pub(crate) fn identity(fd: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = fstat(fd)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFIFO {
        return Err(io::Error::other("it is no pipe"));
    }
    Ok((stat.st_dev, stat.st_ino))
}

/// isatty(3).
pub(crate) fn is_terminal(fd: &impl AsFd) -> bool {
    use std::io::IsTerminal;
    fd.as_fd().is_terminal()
}

/// How wide a terminal is (TIOCGWINSZ); 80 where it does not say.
pub(crate) fn columns(terminal: BorrowedFd<'_>) -> usize {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the record is ours, and what this request writes.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    if done < 0 || size.ws_col == 0 { 80 } else { size.ws_col.into() }
}

/// Whether it is a pipe or a socket, and no file or device.
pub(crate) fn is_pipe(fd: &impl AsFd) -> bool {
    let kind = fstat(fd).map(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT);
    matches!(kind, Ok(kind) if kind == SFlag::S_IFIFO || kind == SFlag::S_IFSOCK)
}

/// The terminal of stdin, to be read without waiting. It is opened anew: other processes share the flags of stdin itself.
pub(crate) fn terminal_to_read() -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    above_stdio(open("/proc/self/fd/0", flags, Mode::empty())?)
}

/// Reads what was typed at a terminal. In the background nothing was typed for this process, which goes on.
pub(crate) fn read_typed(terminal: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Read> {
    super::signal::with_blocked(nix::sys::signal::SIGTTIN, || read_now(terminal, buffer))
}

/// Gives the terminal of `fd` to a process group (tcsetpgrp(3)): it may read, and Ctrl-C goes to it. The caller is in the
/// terminal's session.
pub(crate) fn set_foreground(fd: BorrowedFd<'_>, group: u32) -> io::Result<()> {
    // A process in the background that does this is stopped by SIGTTOU, unless it ignores or blocks that.
    super::signal::with_blocked(nix::sys::signal::SIGTTOU, || {
        // SAFETY: takes two integers.
        let done = unsafe { libc::tcsetpgrp(fd.as_raw_fd(), group as libc::pid_t) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    })
}

/// The process group that the terminal of `fd` belongs to (tcgetpgrp(3)).
pub(crate) fn foreground(fd: BorrowedFd<'_>) -> Option<u32> {
    nix::unistd::tcgetpgrp(fd).ok().map(|group| group.as_raw().unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipe_tells_bytes_nothing_and_the_end() {
        let (reader, writer) = pipe().unwrap();
        let mut buffer = [0; 8];
        assert_eq!(read_now(reader.as_fd(), &mut buffer).unwrap(), Read::Nothing);
        write_all(writer.as_fd(), b"abc").unwrap();
        assert_eq!(waiting(reader.as_fd()).unwrap(), 3);
        assert_eq!(read_now(reader.as_fd(), &mut buffer).unwrap(), Read::Bytes(3));
        drop(writer);
        assert_eq!(read_now(reader.as_fd(), &mut buffer).unwrap(), Read::End);
    }

    #[test]
    fn only_the_same_file_is_the_same() {
        let (reader, writer) = pipe().unwrap();
        let null = super::super::fd::null().unwrap();
        assert!(is_same_file(reader.as_fd(), writer.as_fd()));
        assert!(!is_same_file(reader.as_fd(), null.as_fd()));
    }
}
