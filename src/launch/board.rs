//! What runs now, as the events of a job tell it.

use std::time::Duration;

use super::event::Event;
use super::summary::Ending;
use crate::sys::clock::Moment;
use crate::sys::process::{self, ProcessNow};

/// A worker of the attempt that runs, or of the last one.
#[derive(Debug)]
pub(super) struct WorkerNow {
    pub(super) pid: u32,
    pub(super) started: Moment,
    /// How it ended, and when that was seen.
    pub(super) ending: Option<(Ending, Moment)>,
    /// As it was at the last look.
    pub(super) usage: Option<Usage>,
}

/// What a worker was seen to do and to use, its children not counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    at: Moment,
    cpu: Duration,
    pub(super) state: char,
    /// In bytes.
    pub(super) resident: u64,
    /// Processor time between the last two looks, or since the start, per time: 2.0 is two processors.
    pub(super) load: f64,
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
                let started = Moment::now();
                let worker = |&pid: &u32| WorkerNow { pid, started, ending: None, usage: None };
                (self.attempt, self.workers) = (*attempt, pids.iter().map(worker).collect());
            }
            Event::Ended { rank, ending } => {
                if let Some(worker) = self.workers.get_mut(*rank) {
                    worker.ending = Some((*ending, Moment::now()));
                    worker.usage = None;
                }
            }
            _ => {}
        }
    }

    /// Looks at all that run.
    pub(super) fn look(&mut self) {
        let now = Moment::now();
        for worker in self.workers.iter_mut().filter(|worker| worker.ending.is_none()) {
            let Some(ProcessNow { state, cpu, resident }) = process::look(worker.pid) else { continue };
            let (since, before) =
                worker.usage.map_or((worker.started, Duration::ZERO), |last| (last.at, last.cpu));
            let load = cpu.saturating_sub(before).as_secs_f64() / now.since(since).as_secs_f64().max(0.001);
            worker.usage = Some(Usage { at: now, cpu, state, resident, load });
        }
    }

    /// How many workers run.
    pub(super) fn running(&self) -> usize {
        self.workers.iter().filter(|worker| worker.ending.is_none()).count()
    }
}
