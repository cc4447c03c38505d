//! namespaces(7): where a thread is, and where its children will be.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

/// What [`link`] says of a namespace that the kernel does not have, or that no process has entered yet.
const NONE: &str = "none";

/// The directory of the calling thread in /proc.
pub(super) fn thread_dir() -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(AT_FDCWD, "/proc/thread-self", flags, Mode::empty())?)
}

/// What the link to a namespace tells, such as `mnt:[4026531832]`, or "none". By the system call: nix takes memory for the
/// longest path there can be.
pub(super) fn link(thread: BorrowedFd<'_>, path: &CStr) -> io::Result<String> {
    let mut target = [0_u8; 64];
    let (at, room) = (target.as_mut_ptr().cast(), target.len());
    // SAFETY: the path ends with a zero, and the kernel writes into `target` at most as many bytes as it has.
    let length = unsafe { libc::readlinkat(thread.as_raw_fd(), path.as_ptr(), at, room) };
    match usize::try_from(length) {
        Ok(length) => Ok(String::from_utf8_lossy(&target[..length]).into_owned()),
        Err(_) if Errno::last() == Errno::ENOENT => Ok(NONE.to_owned()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// The kind of a namespace that the children of the calling thread enter while it stays outside, as after unshare(2) or
/// setns(2) with CLONE_NEWPID or CLONE_NEWTIME. `None`, too, where /proc does not show it.
pub(crate) fn of_children_only() -> Option<&'static str> {
    let thread = thread_dir().ok()?;
    entered_by_children(thread.as_fd(), link(thread.as_fd(), c"ns/time"))
}

/// As [`of_children_only`], of the thread of a directory and the link to its time namespace.
pub(super) fn entered_by_children(thread: BorrowedFd<'_>, time: io::Result<String>) -> Option<&'static str> {
    let pid = || differ(link(thread, c"ns/pid"), || link(thread, c"ns/pid_for_children"));
    let time = || differ(time, || link(thread, c"ns/time_for_children"));
    if pid() { Some("PID") } else { time().then_some("time") }
}

/// Without the first this kernel has no such namespaces. Without the second, the children's has no process yet.
fn differ(own: io::Result<String>, of_children: impl FnOnce() -> io::Result<String>) -> bool {
    own.is_ok_and(|own| own != NONE && of_children().is_ok_and(|of_children| own != of_children))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_without_a_process_yet_are_elsewhere() {
        let at = |number: u32| Ok(format!("pid:[{number}]"));
        let (none, refused) = (|| Ok(NONE.to_owned()), || Err(io::ErrorKind::PermissionDenied.into()));
        assert!(!differ(at(1), || at(1)));
        assert!(differ(at(1), || at(2)));
        assert!(differ(at(1), none));
        assert!(!differ(at(1), refused));
        assert!(!differ(none(), none));
        assert_eq!(of_children_only(), None);
    }
}
