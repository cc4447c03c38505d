//! One child of a group, and the signals that it was sent.

use std::io;

use super::child::Child;
use super::verdict::Sent;
use crate::sys::clock::Moment;
use crate::sys::signal::{Signal, Signals};

#[derive(Debug)]
pub(super) struct Member {
    pub(super) pid: u32,
    pub(super) started: Moment,
    /// `None` once the child has been reaped or left behind.
    pub(super) child: Option<Child>,
    /// Whether it has been seen ended, though it may not be reaped yet.
    pub(super) is_seen_ended: bool,
    pub(super) rss_floor_kib: u64,
    pub(super) sent_by_program: Signals,
    pub(super) sent_by_teardown: Option<Sent>,
}

impl Member {
    pub(super) fn new(child: Child) -> Self {
        Self {
            pid: child.pid(),
            started: child.started(),
            rss_floor_kib: child.rss_floor_kib(),
            child: Some(child),
            is_seen_ended: false,
            sent_by_program: Signals::NONE,
            sent_by_teardown: None,
        }
    }

    /// Sends a signal of the program's own. For a child that has ended this does nothing.
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

    /// Sends a signal of the teardown, which has begun to send it to all children at the moment `at`. For a child that has ended this
    /// does nothing. A child that this process may not signal is killed by its lifeline, whatever the signal.
    ///
    /// # Errors
    /// When the system refuses: nothing was sent, and nothing is noted.
    pub(super) fn send_by_teardown(&mut self, signal: Signal, at: Moment) -> io::Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        let before = self.sent_by_teardown;
        let mut note = |signal| {
            let sent = self.sent_by_teardown.get_or_insert(Sent { at, strongest: signal });
            // A child may be ended alone and with all others, each by a teardown of its own: SIGTERM of the one may come after
            // SIGKILL of the other.
            if sent.strongest != Signal::KILL {
                sent.strongest = signal;
            }
        };
        // Noted before it is sent, so that it is known when the signal ends the child at once.
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

/// Sends a signal unless the child has ended; says whether it was sent.
fn send(child: &Child, signal: Signal) -> io::Result<bool> {
    let sent = child.signal(signal)?;
    if sent && signal == Signal::TERM {
        // A stopped process takes SIGTERM only when it goes on.
        child.signal(Signal::CONT)?;
    }
    Ok(sent)
}
