//! One worker of a context: its report slot while it runs, and after that how it ended.

use super::postmortem::End;
use crate::error::{Outcome, Standing, Status};
use crate::sys::wait;
use crate::wire::slot::Slot;

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) pid: u32,
    /// `None` once the worker has ended or was left behind.
    pub(super) slot: Option<Slot>,
    pub(super) end: Option<End>,
}

impl Worker {
    pub(super) fn new(pid: u32, slot: Slot) -> Self {
        Self { pid, slot: Some(slot), end: None }
    }

    /// What it does, for the text of an error of workers that wait for it.
    pub(super) fn standing(&self) -> Standing {
        match self.status() {
            Status::Succeeded | Status::Exiting => Standing::Returned,
            Status::Running if wait::is_stopped(self.pid) => Standing::Stopped,
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

    /// `stderr_tail`: the end of its stderr, if that is kept.
    pub(super) fn outcome(&self, rank: usize, stderr_tail: Vec<String>) -> Outcome {
        let ended = self.end.as_ref().map(|end| end.ended.clone());
        Outcome { rank, pid: self.pid, exiting: self.has_reported(), stderr_tail, ended }
    }

    /// Whether its report is whole, though it has not ended.
    pub(super) fn has_reported(&self) -> bool {
        // A slot that cannot be read says why when the worker has ended.
        self.slot.as_ref().is_some_and(|slot| slot.is_whole().unwrap_or(false))
    }
}
