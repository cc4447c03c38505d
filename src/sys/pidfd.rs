//! pidfd_open(2), pidfd_send_signal(2), kill(2) of process groups: a process by a descriptor that cannot come to mean another.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::{io, ptr};

use super::fd::above_stdio;
use super::signal::Signal;
use super::wait::{self, Reaped};

/// The error of a call for a process that does not exist (ESRCH).
pub(crate) const NO_SUCH_PROCESS: i32 = libc::ESRCH;

/// pidfd_open(2), close-on-exec. The pid must be that of a child that has not been reaped.
pub(crate) fn open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers; no memory is passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    above_stdio(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal to exactly this process: by its pidfd, or where that call is not there or a filter of system calls
/// refuses it, by its number.
///
/// # Errors
/// ESRCH when the process has been reaped; EPERM when this process may not signal it.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, pid: u32, signal: Signal) -> io::Result<()> {
    match send_by_pidfd(pidfd, signal, 0) {
        Err(error) if error.raw_os_error() != Some(NO_SUCH_PROCESS) => send_by_number(pidfd, pid, signal),
        done => done,
    }
}

/// Sends a signal to this process: a thread that does not block it takes it.
///
/// # Errors
/// None for a signal that there is (kill(2)).
pub(crate) fn signal_own_process(signal: Signal) -> io::Result<()> {
    kill(std::process::id() as i32, signal)
}

fn send_by_number(pidfd: BorrowedFd<'_>, pid: u32, signal: Signal) -> io::Result<()> {
    // A child that waitid(2) knows is not reaped, so its number is its own. ECHILD: it has been reaped, or is another
    // process's child, which is not reaped while it runs. (That one could end, be reaped and its number be given to a new
    // process before the next line: numbers are given out in turn, so not without a full turn in that moment.)
    match wait::wait(pidfd, libc::WNOWAIT) {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
            if wait::gone(pidfd)? == Reaped::ByOthers {
                return Err(io::Error::from_raw_os_error(NO_SUCH_PROCESS));
            }
        }
        Err(error) => return Err(error),
    }
    kill(pid as i32, signal)
}

/// pidfd_send_signal(2).
fn send_by_pidfd(pidfd: BorrowedFd<'_>, signal: Signal, flags: u32) -> io::Result<()> {
    let no_info = ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means the one that kill(2) would make.
    let done = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal.number(), no_info, flags)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// PIDFD_SIGNAL_PROCESS_GROUP of linux/pidfd.h, which libc does not have yet.
const SIGNAL_PROCESS_GROUP: u32 = 1 << 2;

/// Kills what is left of the process group that the process of `pidfd` led, also when it has been reaped.
/// `leader` is its pid if it has not been: on kernels before 6.9 the group has no other handle.
pub(crate) fn kill_group(pidfd: BorrowedFd<'_>, leader: Option<u32>) {
    // ESRCH: nobody is left. EINVAL: the kernel does not know the flag. ENOSYS or EPERM: a filter refuses the call, or all
    // members have changed their user, which kill(2) will say too and which cannot be mended here.
    let by_pidfd = send_by_pidfd(pidfd, Signal::KILL, SIGNAL_PROCESS_GROUP);
    let refused = by_pidfd.is_err_and(|error| error.raw_os_error() != Some(NO_SUCH_PROCESS));
    if let Some(leader) = leader.filter(|_| refused) {
        kill_group_of_child(leader);
    }
}

/// Sends a signal to all in the process group that a child leads, which has not been reaped.
///
/// # Errors
/// ESRCH when the group has no process; EPERM when this process may signal none of them.
pub(crate) fn signal_group_of_child(pid: u32, signal: Signal) -> io::Result<()> {
    kill(-(pid as i32), signal)
}

/// Kills the process group that a child leads, which has not been reaped.
pub(crate) fn kill_group_of_child(pid: u32) {
    // ESRCH: nobody is left. EPERM: all members have changed their user, which cannot be mended here.
    let _ = kill(-(pid as i32), Signal::KILL);
}

/// Whether a pidfd means its process's group, too (Linux 6.9); this one's process leads it.
pub(crate) fn means_group(pidfd: BorrowedFd<'_>) -> bool {
    send_by_pidfd(pidfd, Signal::from_kernel(0), SIGNAL_PROCESS_GROUP).is_ok()
}

/// kill(2), of a number that is still its process's own.
fn kill(number: i32, signal: Signal) -> io::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "an unreaped child's number is as good as a pidfd")]
    // SAFETY: takes two integers; the caller vouches for whose number it is.
    let done = unsafe { libc::kill(number, signal.number()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
