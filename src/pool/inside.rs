//! What a task can ask of its pool while it runs, and how the waits of its process learn that it was asked to end.

use std::cell::Cell as Slot;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};

use super::label::Ticket;
use super::ledger::{Cell, Ledger, Standing, State};
use crate::memory::descriptor::Descriptor;
use crate::sys::event::EventFd;
use crate::wire::running_task::{self, RunningTask};
use crate::worker::{WorkerInfo, worker_info};

/// What a process that works for a pool keeps until its end.
#[derive(Debug)]
struct Served {
    ledger: Ledger,
    /// Its number in the pool.
    worker: u16,
    /// How many pools are around one that it makes.
    depth: u32,
}

/// The pool that this process works for.
static SERVED: OnceLock<Served> = OnceLock::new();
/// The ticket of the call that is being made: its generation, and above it its cell plus one; 0: none. One word, so that each thread
/// of the process reads both of the same call.
static CURRENT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// While this thread waits for a task: how many errands it has done.
    static IDLE: Slot<Option<u64>> = const { Slot::new(None) };
}

/// Begins to work for a pool, whose `asked` is rung when it has asked a task to end. Called once in a process.
pub(super) fn serve(ledger: Ledger, worker: u16, depth: u32, asked: Descriptor) {
    if SERVED.set(Served { ledger, worker, depth }).is_ok() {
        let event = EventFd::from_descriptor(asked);
        running_task::apply(RunningTask { word: unasked, is_asked, event });
    }
}

/// How many pools are around one that this process makes.
pub(super) fn depth() -> u32 {
    SERVED.get().map_or(0, |served| served.depth)
}

/// While it lives, the function of a task runs: what waits in this process ends when the task is asked to end. What the worker does
/// before and after is no part of the task, and waits as long as it must.
#[derive(Debug)]
pub(super) struct Inside(());

impl Inside {
    pub(super) fn of(ticket: Ticket) -> Self {
        CURRENT.store((u64::from(ticket.cell) + 1) << 32 | u64::from(ticket.generation), Release);
        Self(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        CURRENT.store(0, Release);
    }
}

/// While it lives, this thread waits for a task, and a new errand ends the wait as the end of a task ends the waits in it.
#[derive(Debug)]
pub(super) struct Idle(());

impl Idle {
    /// `done`: how many errands this worker has done.
    pub(super) fn after(done: u64) -> Self {
        IDLE.set(Some(done));
        Self(())
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        IDLE.set(None);
    }
}

/// The word of this worker's errands, and what it is as long as there is no new one; `None`: this thread does not wait for a task.
fn no_errand() -> Option<(&'static AtomicU64, u64)> {
    let (served, done) = (SERVED.get()?, IDLE.get()?);
    Some((&served.ledger.desks()[usize::from(served.worker)].errands, done))
}

/// The cell of the call that is being made, its generation, and this worker's number.
fn current() -> Option<(&'static Cell, u32, u16)> {
    let served = SERVED.get()?;
    let current = CURRENT.load(Acquire);
    let cell = (current >> 32).checked_sub(1)?;
    Some((served.ledger.cells().get(cell as usize)?, current as u32, served.worker))
}

/// The word of the running task, and what it is as long as nobody has asked it to end; between tasks that of errands.
fn unasked() -> Option<(&'static AtomicU64, u64)> {
    no_errand().or_else(unasked_task)
}

fn unasked_task() -> Option<(&'static AtomicU64, u64)> {
    current().map(|(cell, generation, worker)| {
        (&cell.word, Standing { generation, worker, state: State::Running }.to_word())
    })
}

fn is_asked() -> bool {
    if let Some((errands, done)) = no_errand() {
        return errands.load(Acquire) != done;
    }
    is_task_asked()
}

fn is_task_asked() -> bool {
    current().is_some_and(|(cell, generation, _)| {
        let standing = cell.standing();
        // A thread that the task has left behind may have read the ticket of a task that is over: its cell has the next generation
        // by now, or is about to, and in neither is anybody asked.
        standing.generation == generation && matches!(standing.state, State::Asked | State::Condemned)
    })
}

/// Whether the task that this worker runs was asked to end: it was [killed](super::Task::kill), its time is up, or the iterator that
/// wanted its result was dropped. False in a process that runs no task.
///
/// After a kill, or when the time is up, the worker is ended a [grace period](super::PoolOptions::grace) later.
///
/// What waits in the task for queues, pipes, locks and the like, or for a pool of its own, then returns `Aborted` by
/// [`AbortedBy::Pool`](crate::sync::AbortedBy::Pool), so that only what computes needs to ask. It costs a few loads, from any thread of
/// the worker.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::pool::{self, Pool};
///
/// fn count(_: ()) -> anyhow::Result<u64> {
///     let mut rounds = 1;
///     while !pool::cancelled() {
///         rounds += 1;
///     }
///     Ok(rounds)
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let pool = Pool::new(1)?;
/// let task = pool.submit(count, ())?;
/// while !task.has_begun() {
///     std::thread::yield_now();
/// }
/// assert!(task.kill()); // it is asked
/// assert!(task.join()? > 0);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn cancelled() -> bool {
    running_task::is_asked()
}

/// Says how far the task that runs is, from 0.0 to 1.0: [`Task::progress`](super::Task::progress) and
/// [`Pool::workers`](super::Pool::workers) tell it. It is a store into shared memory, so a loop may say it each time. What is less or more counts as
/// 0.0 or 1.0, and in a process that runs no task nothing happens.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::pool::{self, Pool};
///
/// fn train(epochs: u32) -> anyhow::Result<()> {
///     for epoch in 0..epochs {
///         pool::progress(f64::from(epoch) / f64::from(epochs));
///         // … one more epoch …
///     }
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let pool = Pool::new(1)?;
/// pool.submit(train, 10)?.join()?;
/// # Ok(())
/// # }
/// ```
pub fn progress(part: f64) {
    if let (Some(served), Some(_)) = (SERVED.get(), current()) {
        served.ledger.desks()[usize::from(served.worker)].set_progress(part);
    }
}

/// Which worker of a pool this process is: its number, from 0, in [`WorkerInfo::rank`], and of how many in [`WorkerInfo::nprocs`]. `None`
/// in a process that works for no pool. A worker that takes the place of one that has ended has the same number, so it can name what
/// only one process at a time may use, such as a device.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::pool::{self, Pool};
///
/// fn number(_: ()) -> anyhow::Result<(usize, usize)> {
///     let worker = pool::worker().expect("this is a worker of a pool");
///     Ok((worker.rank, worker.nprocs))
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let (number, of) = Pool::new(2)?.submit(number, ())?.join()?;
/// assert!(number < 2 && of == 2);
/// assert!(pool::worker().is_none());
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn worker() -> Option<WorkerInfo> {
    SERVED.get().and_then(|_| worker_info())
}
