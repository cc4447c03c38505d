//! One child: a pid and a pidfd, reaped exactly once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

use super::stop::DEATH_THROES;
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::process::{self, Exit, ExitStatus, Reaped};
use crate::sys::signal::Signal;
use crate::wire::ledger::Ledger;
use crate::wire::lifeline::Lifeline;
use crate::wire::slot::Slot;

/// A child process that has not been reaped. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Child {
    pid: u32,
    pidfd: OwnedFd,
    slot: Option<Slot>,
    started: Moment,
    rss_floor_kib: u64,
    /// `None`: it is a child of this process.
    served: Option<Served>,
    /// When it was found ended, but nobody had reaped it yet.
    ended_at: Option<Moment>,
    /// The thread that started it, if that was made for it: the child's parent-death signal comes when that thread ends.
    parent: Option<Arc<ParentThread>>,
    /// Closed when the child is gone, or else the child is killed.
    lifeline: Option<Lifeline>,
}

/// A thread that has started children and lives until this is dropped.
#[derive(Debug)]
pub(crate) struct ParentThread {
    thread: Thread,
    over: Arc<AtomicBool>,
}

impl ParentThread {
    /// The thread parks until `over`.
    pub(crate) fn new(thread: Thread, over: Arc<AtomicBool>) -> Self {
        Self { thread, over }
    }
}

impl Drop for ParentThread {
    fn drop(&mut self) {
        // No lock is taken here: in a fork of this process, which has no such thread, it must do nothing.
        self.over.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Who reaps a worker of the fork server, and where that is written.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) rank: usize,
    /// The server's pidfd and pid.
    pub(crate) server: Arc<OwnedFd>,
    pub(crate) server_pid: u32,
}

/// How long the fork server may take to write down who has ended, before anybody else is looked after.
const WRITING: Duration = Duration::from_millis(10);

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
    pub(crate) fn adopt(
        pid: u32,
        slot: Slot,
        started: Moment,
        lifeline: Option<Lifeline>,
    ) -> io::Result<Self> {
        let pidfd = process::pidfd_open(pid).inspect_err(|error| {
            // Without such a process somebody's waitpid(-1) was faster: the number may be another's by now.
            if error.raw_os_error() != Some(process::NO_SUCH_PROCESS) {
                process::kill_unwatched(pid);
            }
        })?;
        let (slot, rss_floor_kib) = (Some(slot), process::max_rss_kib());
        Ok(Self {
            pid,
            pidfd,
            slot,
            started,
            rss_floor_kib,
            served: None,
            ended_at: None,
            parent: None,
            lifeline,
        })
    }

    /// Takes over a worker that the fork server has forked: with its slot, the moment of its start, and what the server
    /// had resident, in KiB.
    pub(crate) fn served(
        pid: u32,
        pidfd: OwnedFd,
        (slot, started, rss_floor_kib): (Slot, Moment, u64),
        served: Served,
        lifeline: Option<Lifeline>,
    ) -> Self {
        let (slot, served) = (Some(slot), Some(served));
        Self { pid, pidfd, slot, started, rss_floor_kib, served, ended_at: None, parent: None, lifeline }
    }

    /// Has the thread that started it live as long as it does.
    pub(crate) fn keep_parent(&mut self, parent: Arc<ParentThread>) {
        self.parent = Some(parent);
    }

    /// Has the kernel kill it, where this process may not signal it any more; says whether there is such a way. Only a
    /// fork of this process that has its lifeline too can keep it alive.
    pub(crate) fn cut_lifeline(&mut self) -> bool {
        self.lifeline.take().is_some()
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
        match process::send_signal(self.pidfd.as_fd(), self.pid, signal) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(process::NO_SUCH_PROCESS) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Ends what is left of its process group and reaps it, if it has ended. `None`: it still runs.
    ///
    /// The group first: until it is reaped, the child's number cannot be anybody else's. `look` is told before that how it
    /// ended, unless somebody else reaps it.
    pub(crate) fn try_reap(&mut self, look: impl FnOnce(ExitStatus)) -> io::Result<Option<Remains>> {
        if let Some(served) = &self.served {
            return Ok(match served.end_of(self.pidfd.as_fd(), &mut self.ended_at)? {
                Some(exit) => self.slot.take().map(|slot| Remains { exit, slot }),
                None => None,
            });
        }
        let pidfd = self.pidfd.as_fd();
        let before = |status| {
            process::kill_group(pidfd, Some(self.pid));
            look(status);
        };
        let exit = match process::reap(pidfd, before)? {
            Reaped::Running => return Ok(None),
            Reaped::Exit(exit) => Some(exit),
            Reaped::ByOthers => {
                process::kill_group(pidfd, None);
                None
            }
        };
        Ok(self.slot.take().map(|slot| Remains { exit, slot }))
    }

    /// Whether its report is whole.
    pub(crate) fn has_reported(&self) -> io::Result<bool> {
        self.slot.as_ref().map_or(Ok(false), Slot::is_whole)
    }

    /// Gives it up without waiting: it survived SIGKILL and is the kernel's now, or cannot be sent it.
    pub(crate) fn leave_behind(mut self) {
        self.slot = None;
    }

    /// Whether [`try_reap`](Self::try_reap) has returned its remains, or it was given up.
    fn is_reaped(&self) -> bool {
        self.slot.is_none()
    }
}

impl Served {
    /// How the worker ended; the outer `None`: it has not, or the server has not written it yet.
    fn end_of(
        &self,
        worker: BorrowedFd<'_>,
        ended_at: &mut Option<Moment>,
    ) -> io::Result<Option<Option<Exit>>> {
        if !wait_readable(worker, Some(Moment::now()))? {
            return Ok(None);
        }
        let now = Moment::now();
        let record = |until| self.ledger.await_record(self.rank, until);
        let gone = wait_readable(self.server.as_fd(), Some(now))?;
        if let Some(exit) = record(now.checked_add(WRITING).filter(|_| !gone).unwrap_or(now))? {
            return Ok(Some(exit));
        }
        let ended_at = *ended_at.get_or_insert(now);
        if wait_readable(self.server.as_fd(), Some(now))? || now.since(ended_at) > DEATH_THROES {
            // It wrote this as its last word, or nothing; what is left of the worker's group has no other to end it. The
            // worker is ours to reap if we are the subreaper of orphans, as the first process of a container is.
            let last = record(now)?.flatten();
            let found = process::reap(worker, |_| ())?;
            process::kill_group(worker, None);
            return Ok(Some(match found {
                Reaped::Exit(exit) => Some(exit),
                Reaped::Running | Reaped::ByOthers => last,
            }));
        }
        // Somebody may have stopped it. If it cannot be woken, the status is lost when DEATH_THROES is over.
        let _ = process::send_signal(self.server.as_fd(), self.server_pid, Signal::CONT);
        Ok(None)
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
        // For what was not sent there is no use in waiting.
        let throes = if self.signal(Signal::KILL).is_ok() { DEATH_THROES } else { Duration::ZERO };
        let _ = wait_readable(self.as_fd(), Moment::now().checked_add(throes));
        let _ = self.try_reap(|_| ());
    }
}
