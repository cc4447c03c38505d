//! The reaper of a child: this process, or the fork server.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::stop::DEATH_THROES;
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::pidfd;
use crate::sys::signal::Signal;
use crate::sys::wait::{self, Exit, Reaped};
use crate::wire::ledger::Ledger;

/// How long one look waits for the fork server to record an end, before other children are looked after.
const WRITING: Duration = Duration::from_millis(10);

/// The process that reaps a child.
#[derive(Debug)]
pub(super) enum Reaper {
    /// This one, which is its parent.
    Own,
    Server(ServerReaper),
}

/// The fork server, which records in the ledger how its children ended.
#[derive(Debug)]
pub(crate) struct ServerReaper {
    ledger: Arc<Ledger>,
    rank: usize,
    /// The server's pidfd and pid.
    server: (Arc<OwnedFd>, u32),
    /// When the child was found ended, without a record of it.
    ended_at: Option<Moment>,
}

impl ServerReaper {
    pub(crate) fn new(ledger: Arc<Ledger>, rank: usize, server: (Arc<OwnedFd>, u32)) -> Self {
        Self { ledger, rank, server, ended_at: None }
    }

    /// How the child ended; `Running`, too, while the server has not recorded it.
    pub(super) fn try_reap(&mut self, child: BorrowedFd<'_>) -> io::Result<Reaped> {
        if !wait_readable(child, Some(Moment::now()))? {
            return Ok(Reaped::Running);
        }
        let now = Moment::now();
        // A server that is gone records nothing more, so nothing is waited for.
        let until = if self.server_is_gone(now)? { now } else { now.checked_add(WRITING).unwrap_or(now) };
        if let Some(exit) = self.ledger.await_record(self.rank, until)? {
            return Ok(found(exit));
        }
        let ended_at = *self.ended_at.get_or_insert(now);
        // The server is asked once more: it may have recorded this end and died since the look above.
        if self.server_is_gone(now)? || now.since(ended_at) > DEATH_THROES {
            return self.reap_for_server(child, now);
        }
        // The server may be stopped (SIGSTOP). If it cannot be woken, the status is lost when DEATH_THROES is over.
        let (server, pid) = &self.server;
        let _ = pidfd::send_signal(server.as_fd(), *pid, Signal::CONT);
        Ok(Reaped::Running)
    }

    fn server_is_gone(&self, now: Moment) -> io::Result<bool> {
        wait_readable(self.server.0.as_fd(), Some(now))
    }

    /// How a child ended whose server is gone: by the server's record, or else by reaping the child here.
    fn reap_for_server(&self, child: BorrowedFd<'_>, now: Moment) -> io::Result<Reaped> {
        // The record may be the server's last act. It comes before the kill, so that a whole record is not missed.
        let last = self.ledger.await_record(self.rank, now)?.flatten();
        // If this process is the parent of orphans (PR_SET_CHILD_SUBREAPER, or pid 1 of a container), the child is its own now.
        let reaped = wait::reap(child, |_| ())?;
        // Only this process is left to end the child's group; its number is not known to be its own any more.
        pidfd::kill_group(child, None);
        Ok(match reaped {
            Reaped::Exit(exit) => Reaped::Exit(exit),
            Reaped::Running | Reaped::ByOthers => found(last),
        })
    }
}

fn found(exit: Option<Exit>) -> Reaped {
    exit.map_or(Reaped::ByOthers, Reaped::Exit)
}
