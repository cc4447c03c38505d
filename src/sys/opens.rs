//! Open file descriptions of a file (open(2)), counted by the locks that they hold (F_OFD_SETLK of fcntl(2)).
//!
//! Such a lock belongs to the open file description. That lives as long as any process has a descriptor or a map of it, or a socket
//! has it in a message; the kernel ends both together, whatever has ended those processes.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, fcntl};

use super::fd::above_stdio;
use crate::point::point;

/// The same file by an open file description of its own, for reading and writing.
///
/// # Errors
/// Where /proc is not mounted, and as open(2).
pub(crate) fn reopen(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    point!("sys.openat", call);
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let file = File::options().read(true).write(true).open(path)?;
    above_stdio(file.into())
}

/// Lets others see this open file description ([`is_seen`]) for as long as it lives.
pub(crate) fn show(fd: BorrowedFd<'_>) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_OFD_SETLK(&lock(libc::F_RDLCK)))?;
    Ok(())
}

/// Whether there is another open file description of that file that was [shown](show).
pub(crate) fn is_seen(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut wanted = lock(libc::F_WRLCK);
    fcntl(fd, FcntlArg::F_OFD_GETLK(&mut wanted))?;
    Ok(libc::c_int::from(wanted.l_type) != libc::F_UNLCK)
}

/// A lock of the whole file. It excludes no read and no write, only locks.
fn lock(kind: libc::c_int) -> libc::flock {
    let (l_type, l_whence) = (kind as libc::c_short, libc::SEEK_SET as libc::c_short);
    // F_OFD_SETLK wants 0 for the pid.
    libc::flock { l_type, l_whence, l_start: 0, l_len: 0, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::map::SharedMap;
    use super::super::{memfd, socket};
    use super::*;

    #[test]
    fn open_is_seen_as_long_as_a_message_a_descriptor_or_a_map_has_it() {
        let file = memfd::create("opens", 4096).unwrap();
        let is_seen = || is_seen(file.as_fd()).unwrap();
        assert!(!is_seen());
        let opened = reopen(file.as_fd()).unwrap();
        assert!(!is_seen());
        show(opened.as_fd()).unwrap();
        assert!(is_seen());
        // Only a message has it.
        let (one, other) = socket::Socket::pair().unwrap();
        assert_eq!(one.try_send(&[1], &[opened.as_fd()]).unwrap(), socket::Attempt::Sent);
        drop(opened);
        assert!(is_seen());
        let mut message = other.try_receive::<1>().unwrap().unwrap();
        // Only a map has it.
        let map = SharedMap::new(message.descriptors[0].as_fd(), 4096).unwrap();
        message.descriptors.clear();
        assert!(is_seen());
        drop(map);
        assert!(!is_seen());
        // A message that nobody receives.
        let opened = reopen(file.as_fd()).unwrap();
        show(opened.as_fd()).unwrap();
        assert_eq!(one.try_send(&[1], &[opened.as_fd()]).unwrap(), socket::Attempt::Sent);
        drop((opened, other));
        assert!(!is_seen());
    }
}
