//! What a pool does at this moment, read from what its workers say of themselves: no message, and no worker is held up.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

use super::hub::{Hub, State};
use super::ledger::Desk;

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
        (0..self.size()).filter_map(|place| self.stats_of(place, &state)).collect()
    }

    /// `None`: there is no worker at this place.
    fn stats_of(&self, place: usize, state: &State) -> Option<WorkerStats> {
        let desks = self.ledger.desks();
        let seats = || (place..desks.len()).step_by(self.size());
        let running = |seat: usize| {
            let cell = (desks[seat].cell.load(Acquire) as usize).checked_sub(1)?;
            Some(state.occupants.get(cell)?.as_ref()?.entry.name().to_owned())
        };
        // Of two, the one that runs something: the other waits for the place, or is ending.
        let present = seats().filter(|&seat| state.pids[seat] != 0);
        let (seat, running) =
            present.map(|seat| (seat, running(seat))).max_by_key(|(_, running)| running.is_some())?;
        let sum = |of: fn(&Desk) -> &AtomicU64| seats().map(|seat| of(&desks[seat]).load(Relaxed)).sum();
        Some(WorkerStats {
            number: place,
            pid: state.pids[seat],
            running,
            begun: sum(|desk| &desk.begun),
            failed: sum(|desk| &desk.failed),
            busy: Duration::from_nanos(sum(|desk| &desk.busy)),
        })
    }
}
