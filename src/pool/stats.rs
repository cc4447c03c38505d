//! What a pool does at this moment, read from what its workers say of themselves: no message, and no worker is held up.

use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

use super::hub::Hub;

/// What a [`Pool`](super::Pool) has done and has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// How many calls and chunks have not ended: they wait for a worker, or one runs them.
    pub outstanding: usize,
    /// How many calls and items have returned a value.
    pub succeeded: u64,
    /// How many have failed, were cancelled or given up.
    pub failed: u64,
}

/// One worker of a [`Pool`](super::Pool).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Its number, from 0. A worker that takes the place of one that has ended has the same.
    pub number: usize,
    /// Its process.
    pub pid: u32,
    /// The path of the function that it runs; `None`: it waits for a call.
    pub running: Option<String>,
    /// How many calls and items have begun under this number.
    pub begun: u64,
    /// How many of them have failed by an error or a panic.
    pub failed: u64,
    /// For how long functions have run under this number, up to the last that has ended.
    pub busy: Duration,
}

impl Hub {
    pub(super) fn stats(&self) -> Stats {
        let state = self.lock();
        Stats { outstanding: state.outstanding(), succeeded: state.done, failed: state.failed }
    }

    pub(super) fn worker_stats(&self) -> Vec<WorkerStats> {
        let state = self.lock();
        let named = self.ledger.desks().iter().zip(&state.pids).enumerate();
        let stats = named.map(|(number, (desk, &pid))| {
            let cell = (desk.cell.load(Acquire) as usize).checked_sub(1);
            let occupant = cell.and_then(|cell| state.occupants.get(cell)?.as_ref());
            WorkerStats {
                number,
                pid,
                running: occupant.map(|occupant| occupant.entry.name().to_owned()),
                begun: desk.begun.load(Relaxed),
                failed: desk.failed.load(Relaxed),
                busy: Duration::from_nanos(desk.busy.load(Relaxed)),
            }
        });
        stats.collect()
    }
}
