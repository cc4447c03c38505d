//! One child: a pid and a pidfd, reaped exactly once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::process::{self, Exit, Reaped};
use crate::sys::signal::Signal;
use crate::wire::slot::Slot;

/// How long a killed child may take to be gone before it is left behind, as one that hangs in the kernel.
pub(crate) const DEATH_THROES: Duration = Duration::from_secs(10);

/// A child process that has not been reaped. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Child {
    pid: u32,
    pidfd: OwnedFd,
    slot: Option<Slot>,
    started: Moment,
    rss_floor_kib: u64,
}

/// What is left of a child.
#[derive(Debug)]
pub(crate) struct Remains {
    /// `None` when somebody else took its status.
    pub(crate) exit: Option<Exit>,
    pub(crate) slot: Slot,
}

impl Child {
    /// Takes over a child that was just started and not been reaped.
    ///
    /// # Errors
    /// When there is no pidfd of it. It is dead and reaped then, or was reaped by somebody else.
    pub(crate) fn adopt(pid: u32, slot: Slot, started: Moment) -> io::Result<Self> {
        let pidfd = process::pidfd_open(pid).inspect_err(|error| {
            // Without such a process somebody's waitpid(-1) was faster: the number may be another's by now.
            if error.raw_os_error() != Some(process::NO_SUCH_PROCESS) {
                process::kill_unwatched(pid);
            }
        })?;
        Ok(Self { pid, pidfd, slot: Some(slot), started, rss_floor_kib: process::max_rss_kib() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn started(&self) -> Moment {
        self.started
    }

    /// From where the kernel counts its peak of resident memory, in KiB: what we had when it was started.
    pub(crate) fn rss_floor_kib(&self) -> u64 {
        self.rss_floor_kib
    }

    /// Sends a signal to the process, and to nobody else even if it has ended meanwhile; says whether it was there.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<bool> {
        match process::pidfd_send_signal(self.pidfd.as_fd(), signal) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(process::NO_SUCH_PROCESS) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Ends what is left of its process group and reaps it, if it has ended. `None`: it still runs.
    ///
    /// The group first: until it is reaped, the child's number cannot be anybody else's.
    pub(crate) fn try_reap(&mut self) -> io::Result<Option<Remains>> {
        let pidfd = self.pidfd.as_fd();
        let exit = match process::reap(pidfd, || process::kill_group(pidfd, Some(self.pid)))? {
            Reaped::Running => return Ok(None),
            Reaped::Exit(exit) => Some(exit),
            Reaped::ByOthers => {
                process::kill_group(pidfd, None);
                None
            }
        };
        Ok(self.slot.take().map(|slot| Remains { exit, slot }))
    }

    /// Gives it up without waiting: it survived SIGKILL, and is the kernel's now.
    pub(crate) fn leave_behind(mut self) {
        self.slot = None;
    }

    /// Whether [`try_reap`](Self::try_reap) has returned its remains, or it was given up.
    fn is_reaped(&self) -> bool {
        self.slot.is_none()
    }
}

impl AsFd for Child {
    /// Readable when it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Child {
    /// Failures here have nobody to go to: a child that cannot be killed or reaped is left to the kernel.
    fn drop(&mut self) {
        if self.is_reaped() {
            return;
        }
        let _ = self.signal(Signal::KILL);
        let _ = wait_readable(self.as_fd(), Moment::now().checked_add(DEATH_THROES));
        let _ = self.try_reap();
    }
}
