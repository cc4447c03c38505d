//! Descriptors: fcntl(2), close(2), dup2(2) and /proc/self/fd.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::stat::Mode;

use super::signal::Signal;
use crate::point::point;

/// Which descriptors of other people a worker closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inherited {
    /// Those that came through exec: they lack the close-on-exec flag, which whatever this image has opened
    /// by itself before `init` carries.
    ThroughExec,
    /// All: after a fork nothing tells them apart.
    ThroughFork,
}

/// How many forks of *workers* came before something. Each of them has closed the descriptors of its parent, whose numbers are
/// free since then, or belong to other files. This is no [`Here`](super::forks::Here): a fork that the program makes itself keeps
/// its descriptors, and goes on to use and to close them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation(u32);

/// Counts up in a worker that was forked.
static GENERATION: AtomicU32 = AtomicU32::new(0);

impl Generation {
    pub(crate) fn current() -> Self {
        Self(GENERATION.load(Relaxed))
    }

    /// Whether a fork has closed what was opened in it.
    pub(crate) fn is_past(self) -> bool {
        self != Self::current()
    }

    /// Says that all descriptors were closed that the process had of which this one is a fork.
    pub(crate) fn end() {
        GENERATION.fetch_add(1, Relaxed);
    }
}

/// Closes its descriptor when it is dropped, unless a fork has done so.
#[derive(Debug)]
pub(crate) struct Owner {
    fd: ManuallyDrop<OwnedFd>,
    generation: Generation,
}

impl Owner {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd: ManuallyDrop::new(fd), generation: Generation::current() }
    }

    /// Whether a fork has closed it.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.generation.is_past()
    }

    /// Gives it up.
    ///
    /// # Errors
    /// When a fork has closed it.
    pub(crate) fn into_fd(self) -> Result<OwnedFd, Self> {
        if self.is_cut_off() {
            return Err(self);
        }
        let mut this = ManuallyDrop::new(self);
        // SAFETY: it is taken once: `this`, its owner, is not used and not dropped after that.
        Ok(unsafe { ManuallyDrop::take(&mut this.fd) })
    }
}

impl AsFd for Owner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if !self.is_cut_off() {
            // SAFETY: it is dropped once, with its owner.
            unsafe { ManuallyDrop::drop(&mut self.fd) }
        }
    }
}

/// Moves a new descriptor above 0 to 2, where it would be taken for stdin, stdout or stderr.
pub(super) fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > libc::STDERR_FILENO {
        return Ok(fd);
    }
    let moved = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(libc::STDERR_FILENO + 1))?;
    // SAFETY: fcntl has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

/// Whether its number is that of stdin, stdout or stderr.
pub(crate) fn is_stdio(fd: BorrowedFd<'_>) -> bool {
    fd.as_raw_fd() <= libc::STDERR_FILENO
}

/// Takes over the descriptor `raw`, which the launcher put there, and lets no later exec inherit it.
///
/// # Errors
/// When there is no such descriptor.
pub(crate) fn adopt(raw: RawFd) -> io::Result<OwnedFd> {
    if raw <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: by the protocol of `wire` the descriptor was put here for this one taker; whether it exists
    // is checked by the fcntl below, which fails without harm otherwise.
    let fd = unsafe { OwnedFd::from_raw_fd(checked(raw)?) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

/// `raw` when it is an open descriptor: an `OwnedFd` over a closed one would abort when it is dropped.
fn checked(raw: RawFd) -> io::Result<RawFd> {
    flags(raw).map(|_| raw)
}

fn flags(raw: RawFd) -> io::Result<FdFlag> {
    // SAFETY: F_GETFD only reads a flag; a number that is not open gives EBADF.
    let flags = unsafe { libc::fcntl(raw, libc::F_GETFD) };
    if flags < 0 { Err(io::Error::last_os_error()) } else { Ok(FdFlag::from_bits_retain(flags)) }
}

/// How many descriptors this process has open.
pub(crate) fn count_open() -> io::Result<usize> {
    // The size of the directory, from Linux 6.2 on. Listing them would take a system call for each: `low_descriptors` does not see
    // those that were opened with O_PATH, which poll(2) refuses.
    match std::fs::metadata("/proc/self/fd")?.len() {
        0 => open_descriptors().map(|open| open.len()),
        count => Ok(count as usize),
    }
}

/// The numbers of all open descriptors of this process.
pub(crate) fn open_descriptors() -> io::Result<Vec<RawFd>> {
    match low_descriptors() {
        Some(all) => Ok(all),
        None => listed_descriptors(),
    }
}

/// All open descriptors, if they are all low: much faster than listing them, which makes an inode for each.
/// `None` when there are higher ones, or when the kernel does not tell their count (before Linux 6.2).
fn low_descriptors() -> Option<Vec<RawFd>> {
    const LOW: usize = 256;
    let count = std::fs::metadata("/proc/self/fd").ok()?.len();
    let mut asked: [libc::pollfd; LOW] =
        std::array::from_fn(|number| libc::pollfd { fd: number as RawFd, events: 0, revents: 0 });
    // SAFETY: an array of ours and its length. A number that is not open is answered with POLLNVAL.
    if unsafe { libc::poll(asked.as_mut_ptr(), LOW as libc::nfds_t, 0) } < 0 {
        return None;
    }
    let open: Vec<_> =
        asked.iter().filter(|asked| asked.revents & libc::POLLNVAL == 0).map(|asked| asked.fd).collect();
    (open.len() as u64 == count).then_some(open)
}

fn listed_descriptors() -> io::Result<Vec<RawFd>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    // The directory's own descriptor was among them and is closed by now.
    numbers.retain(|&raw| flags(raw).is_ok());
    Ok(numbers)
}

/// Closes every descriptor above 2 that is not in `keep` and that came as `inherited` says.
///
/// Call it only in a worker, before user code has run.
pub(crate) fn close_inherited(inherited: Inherited, keep: &[RawFd]) -> io::Result<()> {
    if inherited == Inherited::ThroughFork && close_around(keep) {
        return Ok(());
    }
    for raw in open_descriptors()? {
        let own = raw <= libc::STDERR_FILENO || keep.contains(&raw);
        let late = inherited == Inherited::ThroughExec && flags(raw)?.contains(FdFlag::FD_CLOEXEC);
        if !own && !late {
            // SAFETY: in a worker no code of this process knows the descriptor yet, but statics that a fork
            // copied; the docs of the Fork start method say that theirs are closed.
            unsafe { libc::close(raw) };
        }
    }
    Ok(())
}

/// F_SETSIG of fcntl(2): of linux/fcntl.h, which the libc crate does not have.
const F_SETSIG: libc::c_int = 10;

/// Has the kernel send this process `signal` whenever something happens to a socket, such as that its other end is
/// closed (fcntl(2), F_SETOWN, F_SETSIG, O_ASYNC). It holds for all copies of the descriptor, for the process that has
/// asked last. The kernel checks the rights to send it against those that the process has now.
pub(crate) fn signal_on_hangup(socket: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let own = std::process::id() as libc::c_int;
    for (command, value) in [(F_SETSIG, signal.number()), (libc::F_SETOWN, own)] {
        // SAFETY: these two commands take an integer and touch no memory.
        if unsafe { libc::fcntl(socket.as_raw_fd(), command, value) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_ASYNC))?;
    Ok(())
}

/// Opens a file to be read, without waiting for the other end of a FIFO.
pub(crate) fn open_to_read(path: &Path) -> io::Result<OwnedFd> {
    above_stdio(open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Opens a file, or makes one, to which each write is appended, and may empty it.
///
/// # Errors
/// Also where the other end of a FIFO is not there.
pub(crate) fn open_to_append(path: &Path, empty: bool) -> io::Result<OwnedFd> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let empty = if empty { OFlag::O_TRUNC } else { OFlag::empty() };
    let fd = open(path, flags | empty | OFlag::O_NONBLOCK, Mode::from_bits_truncate(0o666))?;
    // It was only for the opening.
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
    above_stdio(fd)
}

/// What a descriptor leads to, as /proc shows it.
pub(crate) fn target(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()
}

/// close_range(2) of all gaps between the numbers to keep, above 2; false before Linux 5.9.
fn close_around(keep: &[RawFd]) -> bool {
    let mut kept: Vec<_> = keep.iter().map(|raw| raw.unsigned_abs()).filter(|&raw| raw > 2).collect();
    kept.sort_unstable();
    let mut from = 3;
    for end in kept.into_iter().map(Some).chain([None]) {
        let last = end.map_or(u32::MAX, |end| end - 1);
        // SAFETY: as in `close_inherited`: nobody knows these descriptors, but statics that a fork copied.
        if from <= last && unsafe { libc::syscall(libc::SYS_close_range, from, last, 0) } < 0 {
            return false;
        }
        from = end.map_or(u32::MAX, |end| end + 1);
    }
    true
}

/// Puts /dev/null in the place of stdin, and of stdout and stderr where they are closed.
pub(crate) fn open_stdio_on_null() -> io::Result<()> {
    null_at(libc::STDIN_FILENO)?;
    for raw in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        if flags(raw).is_err() {
            null_at(raw)?;
        }
    }
    Ok(())
}

/// Puts a copy of `fd` in the place of stdout (1) or stderr (2).
pub(crate) fn put_at(fd: BorrowedFd<'_>, place: RawFd) -> io::Result<()> {
    // SAFETY: dup2 onto a stdio number, which nobody owns as an OwnedFd.
    if unsafe { libc::dup2(fd.as_raw_fd(), place) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A copy of stdout (1) or stderr (2); of /dev/null when it is closed.
pub(crate) fn copy_of_stdio(place: RawFd) -> io::Result<OwnedFd> {
    copy_of(place).or_else(|_| null())
}

/// A copy of whatever has this number in this process.
///
/// # Errors
/// When nothing has it, or there is no room for one more.
pub(crate) fn copy_of(raw: RawFd) -> io::Result<OwnedFd> {
    point!("sys.dup", call);
    // SAFETY: F_DUPFD_CLOEXEC makes a new descriptor; a number that is not open gives EBADF.
    let copy = unsafe { libc::fcntl(raw, libc::F_DUPFD_CLOEXEC, libc::STDERR_FILENO + 1) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fcntl has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// /dev/null.
pub(crate) fn null() -> io::Result<OwnedFd> {
    above_stdio(open_null()?)
}

fn open_null() -> io::Result<OwnedFd> {
    Ok(open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Lets the number of `fd` mean what `other` does from now on. What it meant is closed, but the number stays its owner's.
pub(crate) fn replace(fd: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes two integers. The number stays open, so whoever has borrowed it has a descriptor.
    if unsafe { libc::dup3(other.as_raw_fd(), fd.as_raw_fd(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn null_at(place: RawFd) -> io::Result<()> {
    let null = open_null()?;
    if null.as_raw_fd() == place {
        // open took the free place itself: let it stay there, inheritable like any stdio.
        fcntl(&null, FcntlArg::F_SETFD(FdFlag::empty()))?;
        std::mem::forget(null);
        return Ok(());
    }
    put_at(null.as_fd(), place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adopt_closed_number_is_an_error() {
        assert_eq!(adopt(1_000_000).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(adopt(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn descriptors_are_counted_as_they_are_listed_those_of_paths_too() {
        let _path = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        // Other tests open and close some all the while.
        while count_open().unwrap() != listed_descriptors().unwrap().len() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn open_descriptors_lists_a_new_file() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(open_descriptors().unwrap().contains(&file.as_raw_fd()));
        assert!(listed_descriptors().unwrap().contains(&file.as_raw_fd()));
    }
}
