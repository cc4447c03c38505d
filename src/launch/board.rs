//! What runs now, as the events of a job tell it.

use super::event::Event;
use super::summary::Ending;
use crate::sys::clock::Moment;

/// A worker of the attempt that runs, or of the last one.
#[derive(Debug)]
pub(super) struct WorkerNow {
    /// How it has ended; `None`: it runs.
    pub(super) ending: Option<Ending>,
}

/// What is known of the job now.
#[derive(Debug)]
pub(super) struct Board {
    /// When the job has begun.
    pub(super) began: Moment,
    /// The attempt that runs, or that has run last, from 0 on.
    pub(super) attempt: usize,
    /// By rank; empty before the first attempt.
    pub(super) workers: Vec<WorkerNow>,
}

impl Board {
    /// That of a job that begins now.
    pub(super) fn new() -> Self {
        Self { began: Moment::now(), attempt: 0, workers: Vec::new() }
    }

    /// Takes in an event of the job.
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

    /// How many workers run.
    pub(super) fn running(&self) -> usize {
        self.workers.iter().filter(|worker| worker.ending.is_none()).count()
    }
}
