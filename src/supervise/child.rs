//! One child: a pid and a pidfd, reaped exactly once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::reaper::{Reaper, ServerReaper};
use super::stop::DEATH_THROES;
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::pidfd;
use crate::sys::signal::Signal;
use crate::sys::wait::{self, ExitStatus, Reaped};
use crate::wire::lifeline::Lifeline;

/// A child process that has not been reaped. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Child {
    pid: u32,
    pidfd: OwnedFd,
    started: Moment,
    rss_floor_kib: u64,
    reaper: Reaper,
    /// Closed when the child is gone; when it is closed before, the kernel kills the child.
    lifeline: Option<Lifeline>,
    /// Set, too, when the child was left behind.
    is_reaped: bool,
    /// Whether signals go to its process group, which it leads.
    means_group: bool,
}

impl Child {
    /// Takes over a child of this process that was started at `started` and has not been reaped.
    ///
    /// # Errors
    /// When there is no pidfd of it. The child is dead and reaped then, by this function or by other code of this process.
    pub(crate) fn adopt(pid: u32, started: Moment, lifeline: Option<Lifeline>) -> io::Result<Self> {
        let pidfd = pidfd::open(pid).inspect_err(|error| {
            // ESRCH: a waitpid(-1) of this process was faster, and the number may be another process's by now.
            if error.raw_os_error() != Some(pidfd::NO_SUCH_PROCESS) {
                wait::kill_unwatched(pid);
            }
        })?;
        let rss_floor_kib = wait::max_rss_kib();
        Ok(Self {
            pid,
            pidfd,
            started,
            rss_floor_kib,
            reaper: Reaper::Own,
            lifeline,
            is_reaped: false,
            means_group: false,
        })
    }

    /// Takes over a child of this process with its pidfd. It leads a process group, and all signals go to that group, since a foreign
    /// program does not pass signals on to what it has started.
    pub(crate) fn of_program(pid: u32, pidfd: OwnedFd, started: Moment) -> Self {
        let (rss_floor_kib, reaper) = (wait::max_rss_kib(), Reaper::Own);
        Self {
            pid,
            pidfd,
            started,
            rss_floor_kib,
            reaper,
            lifeline: None,
            is_reaped: false,
            means_group: true,
        }
    }

    /// Takes over a child of the fork server: with the moment of its start, and the memory in KiB that the server had
    /// resident then.
    pub(crate) fn of_server(
        (pid, pidfd): (u32, OwnedFd),
        (started, rss_floor_kib): (Moment, u64),
        reaper: ServerReaper,
        lifeline: Option<Lifeline>,
    ) -> Self {
        let reaper = Reaper::Server(reaper);
        Self { pid, pidfd, started, rss_floor_kib, reaper, lifeline, is_reaped: false, means_group: false }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn started(&self) -> Moment {
        self.started
    }

    /// What its parent had resident at the start, in KiB: the kernel's peak of the child begins there.
    pub(super) fn rss_floor_kib(&self) -> u64 {
        self.rss_floor_kib
    }

    /// Sends a signal to the process, and to no other if it has ended meanwhile; says whether it was there.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<bool> {
        let sent = if self.means_group {
            // The leader has not been reaped, so the group's number is its own.
            pidfd::signal_group_of_child(self.pid, signal)
        } else {
            pidfd::send_signal(self.pidfd.as_fd(), self.pid, signal)
        };
        match sent {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(pidfd::NO_SUCH_PROCESS) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// As [`signal`](Self::signal), to this process alone, whatever its group; false if it has ended, though it was not reaped.
    pub(super) fn strike(&self, signal: Signal) -> io::Result<bool> {
        // A pidfd is readable when its process has ended (pidfd_open(2)).
        if wait_readable(self.pidfd.as_fd(), Some(Moment::now()))? {
            return Ok(false);
        }
        match pidfd::send_signal(self.pidfd.as_fd(), self.pid, signal) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(pidfd::NO_SUCH_PROCESS) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Has the kernel kill the child, where this process may not signal it; says whether the child has a lifeline for that.
    /// Only a fork of this process, which has the lifeline too, can keep the child alive.
    pub(super) fn cut_lifeline(&mut self) -> bool {
        self.lifeline.take().is_some()
    }

    /// Kills what is left of the child's process group and reaps the child, if it has ended.
    ///
    /// `look` is told how it ended, while its pid is still its own. When another process reaps the child, `look` is not
    /// called.
    pub(super) fn try_reap(&mut self, look: impl FnOnce(ExitStatus)) -> io::Result<Reaped> {
        let pidfd = self.pidfd.as_fd();
        let found = match &mut self.reaper {
            Reaper::Server(reaper) => reaper.try_reap(pidfd)?,
            Reaper::Own => {
                // The group first: once the child is reaped, its number, which before Linux 6.9 is the only handle of the
                // group, may be another group's.
                let before = |status| {
                    pidfd::kill_group(pidfd, Some(self.pid));
                    look(status);
                };
                let found = wait::reap(pidfd, before)?;
                if found == Reaped::ByOthers {
                    pidfd::kill_group(pidfd, None);
                }
                found
            }
        };
        self.is_reaped = found != Reaped::Running;
        Ok(found)
    }

    /// Gives the child up without waiting: it survived SIGKILL, cannot be sent it, or is another process's.
    pub(super) fn leave_behind(mut self) {
        self.is_reaped = true;
    }
}

impl AsFd for Child {
    /// Readable when the child has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Child {
    /// A failure here has no caller to go to: a child that cannot be killed or reaped is left to the kernel.
    fn drop(&mut self) {
        if self.is_reaped {
            return;
        }
        // A signal that was not sent has no effect to wait for.
        let throes = if self.signal(Signal::KILL).is_ok() { DEATH_THROES } else { Duration::ZERO };
        let _ = wait_readable(self.as_fd(), Moment::now().checked_add(throes));
        let _ = self.try_reap(|_| ());
    }
}
