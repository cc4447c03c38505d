//! One worker of a crew: its child, what it was sent, and how it ended.

use std::io;

use super::postmortem::End;
use super::verdict::Sent;
use crate::error::{Outcome, Standing, Status};
use crate::supervise::child::Child;
use crate::sys::clock::Moment;
use crate::sys::process;
use crate::sys::signal::{Signal, Signals};

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) pid: u32,
    pub(super) started: Moment,
    /// `None` once it has been reaped or left behind.
    pub(super) child: Option<Child>,
    pub(super) rss_floor_kib: u64,
    pub(super) sent_by_program: Signals,
    pub(super) sent_by_teardown: Option<Sent>,
    pub(super) end: Option<End>,
}

impl Worker {
    pub(super) fn new(child: Child) -> Self {
        Self {
            pid: child.pid(),
            started: child.started(),
            rss_floor_kib: child.rss_floor_kib(),
            child: Some(child),
            sent_by_program: Signals::NONE,
            sent_by_teardown: None,
            end: None,
        }
    }

    /// How it is, for those who wait for it.
    pub(super) fn standing(&self) -> Standing {
        match self.status() {
            Status::Succeeded | Status::Exiting => Standing::Returned,
            Status::Running if process::is_stopped(self.pid) => Standing::Stopped,
            _ => Standing::Running,
        }
    }

    pub(super) fn status(&self) -> Status {
        match &self.end {
            Some(end) => end.ended.status,
            None if self.has_reported() => Status::Exiting,
            None => Status::Running,
        }
    }

    pub(super) fn outcome(&self, rank: usize) -> Outcome {
        let ended = self.end.as_ref().map(|end| end.ended.clone());
        Outcome { rank, pid: self.pid, exiting: self.has_reported(), ended }
    }

    /// Whether its report is whole, though it has not ended. A slot that cannot be read says so when it has.
    pub(super) fn has_reported(&self) -> bool {
        self.child.as_ref().is_some_and(|child| child.has_reported().unwrap_or(false))
    }

    /// Sends a signal of the program's own; to a worker that has ended it is nothing.
    pub(super) fn send_by_program(&mut self, signal: Signal) -> io::Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        let sent = match send(child, signal) {
            Err(_) if signal == Signal::KILL && child.cut_lifeline() => true,
            sent => sent?,
        };
        if sent {
            self.sent_by_program.insert(signal);
        }
        Ok(())
    }

    /// Sends a signal of the teardown; to a worker that has ended it is nothing. One that may not be signalled is killed by
    /// its lifeline, whatever the signal.
    ///
    /// # Errors
    /// When the system refuses: nothing was sent, and nothing is noted.
    pub(super) fn send_by_teardown(&mut self, signal: Signal, at: Moment) -> io::Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        let before = self.sent_by_teardown;
        let mut note = |signal| {
            self.sent_by_teardown.get_or_insert(Sent { at, strongest: signal }).strongest = signal;
        };
        // Noted first: a worker that ends of it must find it noted.
        note(signal);
        match send(child, signal) {
            Ok(_) => Ok(()),
            Err(_) if child.cut_lifeline() => {
                note(Signal::KILL);
                Ok(())
            }
            Err(error) => {
                self.sent_by_teardown = before;
                Err(error)
            }
        }
    }
}

/// Sends a signal unless the child has ended; says whether it was sent. SIGTERM to a stopped process has no effect
/// before SIGCONT.
fn send(child: &Child, signal: Signal) -> io::Result<bool> {
    let sent = child.signal(signal)?;
    if sent && signal == Signal::TERM {
        child.signal(Signal::CONT)?;
    }
    Ok(sent)
}
