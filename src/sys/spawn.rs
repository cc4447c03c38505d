//! posix_spawn(3) of our own executable.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode;
use nix::unistd::Pid;

/// The file that this process runs, also when it was replaced or deleted since.
const OWN_EXECUTABLE: &CStr = c"/proc/self/exe";

/// With which signals a new process begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    Nothing,
    /// What should come before the process has seen to its signals waits until then, instead of ending it.
    Everything,
}

/// Runs our own executable again: stdin is /dev/null, dispositions default, own process group, the signal mask as said,
/// and `inherited` at the numbers that they have here.
///
/// glibc does this with CLONE_VFORK | CLONE_VM, so its cost does not grow with our memory.
pub(crate) fn spawn_self<'a>(
    arguments: &[CString],
    environment: &[&CStr],
    inherited: impl Iterator<Item = BorrowedFd<'a>>,
    blocked: Blocked,
) -> io::Result<u32> {
    let mut actions = PosixSpawnFileActions::init()?;
    actions.add_open(libc::STDIN_FILENO, c"/dev/null", OFlag::O_RDONLY, Mode::empty())?;
    for fd in inherited {
        // A dup2 onto itself clears the close-on-exec flag in the child alone: the descriptor never leaks
        // into what other threads start meanwhile.
        actions.add_dup2(fd.as_raw_fd(), fd.as_raw_fd())?;
    }
    let attributes = attributes(blocked)?;
    loop {
        match posix_spawn(OWN_EXECUTABLE, &actions, &attributes, arguments, environment) {
            Err(Errno::EINTR) => {}
            other => return Ok(other?.as_raw().unsigned_abs()),
        }
    }
}

fn attributes(blocked: Blocked) -> nix::Result<PosixSpawnAttr> {
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETPGROUP
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK,
    )?;
    attributes.set_pgroup(Pid::from_raw(0))?;
    attributes.set_sigdefault(&SigSet::all())?;
    attributes.set_sigmask(&match blocked {
        Blocked::Nothing => SigSet::empty(),
        Blocked::Everything => SigSet::all(),
    })?;
    Ok(attributes)
}
