//! What runs now, as the events of a job tell it.

use super::event::Event;
use super::summary::Ending;
use crate::sys::clock::Moment;

/// A worker of the attempt that runs, or of the last one.
#[derive(Debug)]
pub(super) struct WorkerNow {
    pub(super) ending: Option<Ending>,
}

/// All of them, by rank.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) began: Moment,
    pub(super) attempt: usize,
    pub(super) workers: Vec<WorkerNow>,
}

impl Board {
    pub(super) fn new() -> Self {
        Self { began: Moment::now(), attempt: 0, workers: Vec::new() }
    }

    pub(super) fn hear(&mut self, event: &Event) {
        match event {
            Event::Started { attempt, pids, .. } => {
                let worker = |_| WorkerNow { ending: None };
                (self.attempt, self.workers) = (*attempt, pids.iter().map(worker).collect());
            }
            Event::Ended { rank, ending } => {
                if let Some(worker) = self.workers.get_mut(*rank) {
                    worker.ending = Some(*ending);
                }
            }
            _ => {}
        }
    }

    /// How many run.
    pub(super) fn running(&self) -> usize {
        self.workers.iter().filter(|worker| worker.ending.is_none()).count()
    }
}
