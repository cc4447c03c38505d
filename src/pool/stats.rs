//! What a pool does at this moment, read from what its workers say of themselves: no message, and no worker is held up.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

use super::desk::Desk;
use super::hub::{Hub, State};
use super::inbox::Inbox;
use super::label::Ticket;
use super::ledger;
use super::occupant::Occupant;
use crate::error::Callee;
use crate::sys::clock::Moment;
use crate::sys::process;

/// What a [`Pool`](super::Pool) has done and has to do.
///
/// The numbers belong together: they are read at one moment, under the pool's lock. [`Summary`](super::Summary) has them at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// How many calls and chunks have not ended: they wait for a worker, or one runs them.
    pub outstanding: usize,
    /// How many calls and items have returned a value.
    pub succeeded: u64,
    /// How many have failed, were cancelled or given up.
    pub failed: u64,
}

/// One worker of a [`Pool`](super::Pool): [`Pool::workers`](super::Pool::workers).
///
/// What its fields say of the call was stored by the worker itself, and is read without it: of a call that begins or ends at that moment they
/// may say some of one and some of the other.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::pool::{self, Pool};
///
/// fn work(_: ()) -> anyhow::Result<()> {
///     while !pool::cancelled() {
///         std::thread::yield_now();
///     }
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let pool = Pool::new(1)?;
/// let task = pool.submit(work, ())?;
/// while !task.has_begun() {
///     std::thread::yield_now();
/// }
/// // What an operator would want to see of a call that takes long.
/// for worker in pool.workers() {
///     println!("worker {} (pid {}): {:?} for {:?}", worker.number, worker.pid, worker.running, worker.since);
///     assert!(!worker.stopped && worker.memory.is_some());
/// }
/// assert!(task.kill());
/// task.join()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Its number, from 0. A worker that takes the place of one that has ended has the same.
    pub number: usize,
    /// Its process.
    pub pid: u32,
    /// The path of the function that it runs; `None`: it waits for a call.
    pub running: Option<String>,
    /// The number of the item of a map that it runs; `None`: it runs none.
    pub item: Option<u64>,
    /// For how long it has been at that call, or at the chunk of the map that the item is in.
    pub since: Option<Duration>,
    /// How far the function says that it is, from 0.0 to 1.0: [`progress`](super::progress()).
    pub progress: Option<f64>,
    /// How many calls and items have begun under this number.
    pub begun: u64,
    /// How many of them have failed by an error or a panic.
    pub failed: u64,
    /// For how long functions have run under this number, up to the last that has ended.
    pub busy: Duration,
    /// The part of the pool's life for which functions have run under this number, from 0.0 to 1.0: with what runs now.
    pub share: f64,
    /// What memory it has of its own, in bytes, without what is shared or of files (RssAnon of proc_pid_status(5)); `None`: it is gone.
    pub memory: Option<u64>,
    /// Whether its process is stopped: by SIGSTOP, at a terminal, or by a debugger. If it was stopped while it waited for a call, others
    /// may get none until it goes on (SIGCONT).
    pub stopped: bool,
}

impl Hub {
    pub(super) fn stats(&self) -> Stats {
        let state = self.lock();
        Stats { outstanding: state.outstanding(), succeeded: state.done, failed: state.failed }
    }

    pub(super) fn worker_stats(&self) -> Vec<WorkerStats> {
        let state = self.lock();
        let mut stats: Vec<_> = (0..self.size()).filter_map(|place| self.stats_of(place, &state)).collect();
        drop(state);
        // Files of /proc are read without the lock, for which workers' results may wait.
        for worker in &mut stats {
            worker.memory = process::anonymous_memory(worker.pid);
            worker.stopped = process::is_stopped(worker.pid);
        }
        stats
    }

    /// All but what the kernel knows. `None`: there is no worker at this place.
    fn stats_of(&self, place: usize, state: &State) -> Option<WorkerStats> {
        let desks = self.ledger.desks();
        let seats = || (place..desks.len()).step_by(self.size());
        let running = |seat: usize| {
            let cell = (desks[seat].cell.load(Acquire) as usize).checked_sub(1)?;
            state.occupants.get(cell)?.as_ref()
        };
        // Of two, the one that runs something: the other waits for the place, or is ending.
        let present = seats().filter(|&seat| state.pids[seat] != 0);
        let (seat, occupant) =
            present.map(|seat| (seat, running(seat))).max_by_key(|(_, running)| running.is_some())?;
        let sum = |of: fn(&Desk) -> &AtomicU64| seats().map(|seat| of(&desks[seat]).load(Relaxed)).sum();
        let (now, desk) = (Moment::now(), &desks[seat]);
        let since = occupant.map(|_| now.since(Moment::from_nanos(desk.since.load(Relaxed))));
        let busy = Duration::from_nanos(sum(|desk| &desk.busy));
        let item = occupant.and_then(|one| Some((one.first?, one.ticket)));
        Some(WorkerStats {
            number: place,
            pid: state.pids[seat],
            running: occupant.map(|occupant| occupant.entry.name().to_owned()),
            item: item.map(|(first, ticket)| first + u64::from(self.cell(ticket).item())),
            since,
            progress: occupant.and_then(|_| desk.progress()),
            begun: sum(|desk| &desk.begun),
            failed: sum(|desk| &desk.failed),
            busy,
            share: share_of(busy + since.unwrap_or_default(), now.since(self.began)),
            memory: None,
            stopped: false,
        })
    }

    /// What a traceback of a worker that has died needs to know of the function that it ran.
    pub(super) fn callee_at(&self, seat: usize) -> Option<Callee> {
        let cell = (self.ledger.desks()[seat].cell.load(Acquire) as usize).checked_sub(1)?;
        let state = self.lock();
        Some(state.occupants.get(cell)?.as_ref()?.entry.callee(None))
    }

    /// How far a task says that it is.
    pub(super) fn progress_of(&self, ticket: Ticket) -> Option<f64> {
        let runs = || {
            let standing = self.cell(ticket).standing();
            let is_own = standing.generation == ticket.generation;
            (is_own && matches!(standing.state, ledger::State::Running | ledger::State::Asked))
                .then_some(standing.worker)
        };
        let progress = self.ledger.desks().get(usize::from(runs()?))?.progress();
        // If it still runs it ran when that was read, and the desk was not another task's.
        runs().and(progress)
    }

    /// How many calls of an inbox workers are at.
    pub(super) fn running_of(&self, inbox: &Arc<Inbox>) -> usize {
        let state = self.lock();
        let own = state.occupants.iter().flatten().filter(|occupant| Arc::ptr_eq(&occupant.inbox, inbox));
        let is_running = |occupant: &&Occupant| {
            matches!(
                self.cell(occupant.ticket).standing().state,
                ledger::State::Running | ledger::State::Asked
            )
        };
        own.filter(is_running).count()
    }
}

fn share_of(busy: Duration, life: Duration) -> f64 {
    // Both are read a moment apart.
    (busy.as_secs_f64() / life.as_secs_f64().max(f64::MIN_POSITIVE)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_is_a_part() {
        assert_eq!(share_of(Duration::from_secs(1), Duration::from_secs(4)), 0.25);
        assert_eq!(share_of(Duration::from_secs(5), Duration::from_secs(4)), 1.0);
        assert_eq!(share_of(Duration::ZERO, Duration::ZERO), 0.0);
    }
}
