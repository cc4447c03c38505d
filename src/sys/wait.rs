//! waitid(2), getrusage(2): how a child ended, and what it had used.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;
use std::{fmt, io, mem};

use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;

use super::clock::Moment;
use super::signal::Signal;

/// How a process ended, and what it had used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) status: ExitStatus,
    pub(crate) user: Duration,
    pub(crate) system: Duration,
    pub(crate) max_rss_kib: u64,
}

/// The part of a wait status that is left when a process is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    Code(i32),
    Signal { signal: Signal, core_dumped: bool },
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal { signal, .. } => write!(f, "signal {signal}"),
        }
    }
}

/// What [`reap`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaped {
    /// The child has not ended.
    Running,
    Exit(Exit),
    /// The child has ended, but other code of this process has taken its status.
    ByOthers,
}

/// Reaps the child if it has ended, after `before`, which is told how and can still count on its pid being nobody else's.
/// Does not block.
pub(crate) fn reap(pidfd: BorrowedFd<'_>, before: impl FnOnce(ExitStatus)) -> io::Result<Reaped> {
    let found = match wait(pidfd, libc::WNOWAIT) {
        Ok(Some(exit)) => {
            before(exit.status);
            wait(pidfd, 0)
        }
        other => other,
    };
    match found {
        Ok(Some(exit)) => Ok(Reaped::Exit(exit)),
        Ok(None) => Ok(Reaped::Running),
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => gone(pidfd),
        Err(error) => Err(error),
    }
}

/// Whether a child that cannot be waited for has ended: with SIGCHLD ignored waitid(2) says ECHILD for it only
/// then, but a child of a thread or process that is not ours gives it always.
pub(super) fn gone(pidfd: BorrowedFd<'_>) -> io::Result<Reaped> {
    let ended = super::epoll::wait_readable(pidfd, Some(Moment::now()))?;
    Ok(if ended { Reaped::ByOthers } else { Reaped::Running })
}

/// waitid(P_PIDFD): the raw system call, since only it returns the resource use too.
pub(super) fn wait(pidfd: BorrowedFd<'_>, flags: i32) -> io::Result<Option<Exit>> {
    wait_for(libc::P_PIDFD, pidfd.as_raw_fd().unsigned_abs(), libc::WNOHANG | flags)
}

/// The next child of this process that has ended and was not reaped; nothing is reaped yet.
pub(crate) fn next_ended() -> io::Result<Option<u32>> {
    // By libc: nix refuses the status of a child that a real-time signal ended.
    // SAFETY: a plain record of integers, for which zeros are valid.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the record is ours and outlives the call.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) } != 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ECHILD) { Ok(None) } else { Err(error) };
    }
    // SAFETY: waitid has filled in the fields of a SIGCHLD, or left them zero.
    let pid = unsafe { info.si_pid() };
    Ok((pid != 0).then_some(pid.unsigned_abs()))
}

/// Whether this process has children that waits for any child find.
pub(crate) fn has_children() -> bool {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // The only error of this call is ECHILD.
    // SAFETY: no record is asked for.
    unsafe { libc::waitid(libc::P_ALL, 0, std::ptr::null_mut(), flags) == 0 }
}

/// Reaps a child without its status; false: it cannot be reaped.
pub(crate) fn forget(pid: u32) -> bool {
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(pid as i32, std::ptr::null_mut(), libc::WNOHANG) > 0 }
}

/// The signal by which a child has been stopped since the last time that this was asked.
pub(crate) fn stopped_by(pidfd: BorrowedFd<'_>) -> io::Result<Option<Signal>> {
    // SAFETY: a plain record of integers, for which zeros are valid.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let (fd, flags) = (pidfd.as_raw_fd().unsigned_abs(), libc::WSTOPPED | libc::WNOHANG);
    // SAFETY: the record is ours and outlives the call.
    if unsafe { libc::waitid(libc::P_PIDFD, fd, &raw mut info, flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid has filled in the fields of a SIGCHLD, or left them zero.
    Ok(Signal::new(unsafe { info.si_status() }))
}

fn wait_for(kind: libc::idtype_t, id: u32, flags: i32) -> io::Result<Option<Exit>> {
    // SAFETY: a plain record of integers, for which zeros are valid.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    // SAFETY: likewise.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: both pointers are to records of ours that outlive the call.
    let done = unsafe {
        libc::syscall(libc::SYS_waitid, kind, id, &raw mut info, libc::WEXITED | flags, &raw mut usage)
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid has filled in the fields of a SIGCHLD, or left them zero.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    Ok((pid != 0).then(|| Exit {
        status: exit_status(info.si_code, status),
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
        max_rss_kib: usage.ru_maxrss.unsigned_abs(),
    }))
}

/// Ends and reaps a child of which there is no pidfd. It must not have been reaped yet.
pub(crate) fn kill_unwatched(pid: u32) {
    let pid = Pid::from_raw(pid as i32);
    // ESRCH and ECHILD mean that it is gone already, which is what we want.
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
    let _ = nix::sys::wait::waitpid(pid, None);
}

fn exit_status(code: i32, status: i32) -> ExitStatus {
    match code {
        libc::CLD_EXITED => ExitStatus::Code(status),
        code => {
            ExitStatus::Signal { signal: Signal::from_kernel(status), core_dumped: code == libc::CLD_DUMPED }
        }
    }
}

fn duration(time: libc::timeval) -> Duration {
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_usec.unsigned_abs() as u32 * 1000)
}

/// The most memory this process has had resident, in KiB, as a child's count begins with it (getrusage(2)).
pub(crate) fn max_rss_kib() -> u64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss().unsigned_abs())
}

/// Whether a process is stopped, by a signal or a debugger (proc_pid_stat(5)). The pid must be that of a child that has not
/// been reaped; one of which the kernel says nothing is not.
pub(crate) fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it is in parentheses, and may have any in it.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('T' | 't'))
}

/// Reaps a child that has ended, of which there is no pidfd.
pub(crate) fn reap_ended(pid: u32) -> io::Result<Option<Exit>> {
    wait_for(libc::P_PID, pid, libc::WNOHANG)
}
