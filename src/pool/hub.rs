//! What the handles of a pool, its tasks and its thread share in the process that made it.
//!
//! # Which lock is taken when
//!
//! There is one lock, of [`State`]. Below it, so by a thread that has it, two others may be taken: that of an inbox, to put a failure
//! into it, and the mutex of a queue, without waiting for room. Nobody takes the pool's lock with one of those. Starts of processes,
//! waits, decoding and whatever is the program's code run without it.
//!
//! The words of the ledger need no lock: each change is one compare-and-swap. Under the lock is what only this process knows of a task,
//! its occupant. A free cell goes to a task, and back, under the lock alone.

use std::collections::VecDeque;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::Thread;
use std::time::Duration;

use super::alarm::Alarms;
use super::delivery::{Delivery, Results};
use super::errands::Errands;
use super::error::{PoolError, TaskFailure};
use super::inbox::Inbox;
use super::label::Ticket;
use super::ledger::{Cell, Ledger};
use super::occupant::Occupant;
use super::options::PoolOptions;
use super::seats::Size;
use super::serve::{ResultMessage, TaskMessage};
use crate::error::Outcome;
use crate::queue::Queue;
use crate::supervise::pump::Pump;
use crate::sys::clock::Moment;
use crate::sys::event::EventFd;
use crate::sys::forks::Here;
use crate::sys::socket::Socket;

/// How far a pool is.
///
/// It only goes forward: a pool that is being ended is never open again, and one that has broken stays so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// It takes no more tasks; those that it has are done.
    Closing,
    /// What it has not done is given up, and its workers are ended.
    Ending {
        /// By SIGKILL at once.
        kills: bool,
    },
    /// It cannot keep workers, for this reason.
    Broken(String),
}

/// Handles, tasks and maps have it by `Arc`, and so does the pool's thread. So it lives on after the last handle of the pool, as long as
/// a task is still waited for.
#[derive(Debug)]
pub(super) struct Hub {
    /// Workers take from it; handles, and the pool's thread for what is given out again, put.
    pub(super) tasks: Queue<TaskMessage>,
    /// Workers put into it, and nudges; the thread that pumps takes.
    pub(super) results: Queue<ResultMessage>,
    /// Both sides write its words.
    pub(super) ledger: Ledger,
    /// How long a task that was asked to end has before its worker is killed.
    pub(super) grace: Duration,
    /// How long the set-up of a worker may take.
    pub(super) init_limit: Option<Duration>,
    /// How many workers there may be.
    pub(super) size: Size,
    state: Mutex<State>,
    /// Wakes the pool's thread when a result has been delivered, or the thread that takes them has gone.
    pub(super) delivered: Condvar,
    /// How many tasks of several items have not ended.
    pub(super) chunks: AtomicUsize,
    /// How many futures are not ready, which take results out of the queue when they are polled.
    pub(super) futures: AtomicUsize,
    /// Calls the pool's thread.
    pub(super) call: EventFd,
    /// Tells the workers that one of their tasks was asked to end.
    pub(super) asked: EventFd,
    /// Workers ask here for what the pool has for them alone.
    pub(super) requests: Socket,
    /// The process that made the pool, by which a fork of it is told, and its pid for the text of an error.
    owner: (Here, u32),
    /// When the pool was made.
    pub(super) began: Moment,
    /// The thread that carries what the workers print, if there is one. The pool's thread has it.
    pub(super) printer: Weak<Pump>,
}

/// All that changes, under one lock. A task is on its way exactly as long as its cell has an occupant.
#[derive(Debug)]
pub(super) struct State {
    /// By cell.
    pub(super) occupants: Vec<Option<Occupant>>,
    /// Cells without an occupant, whose words say Free. The last one is taken next.
    pub(super) free: Vec<u32>,
    /// Whether a thread takes results out of the queue; the others sleep.
    pub(super) pumps: bool,
    pub(super) sleepers: VecDeque<Thread>,
    /// The processes of the workers, by seat; 0: there is none.
    pub(super) pids: Vec<u32>,
    /// The most tasks that had not ended at a time, since the pool's thread last looked.
    pub(super) peak: usize,
    /// With more tasks than this that thread is called, since workers may be missing.
    pub(super) calls_above: usize,
    /// Threads that sleep until a task has ended, to put another one.
    pub(super) without_room: Vec<Thread>,
    /// How many results have been delivered, modulo 2^32: the queue counts those that were put.
    pub(super) delivered: u32,
    /// How many threads wait for that: std's condition variables make a system call for each notification, waiters or not.
    pub(super) drain: usize,
    /// What the pool's thread is to bring about.
    pub(super) phase: Phase,
    /// When that thread is to look at which task.
    pub(super) alarms: Alarms,
    /// Tasks that are to be put into the queue again, for which it had no room.
    pub(super) again: Vec<Ticket>,
    /// What it has for single workers.
    pub(super) errands: Errands,
    /// How the first worker ended that could not give up its state.
    pub(super) unretired: Option<Outcome>,
    /// Calls and items, as [`Summary`] has them.
    pub(super) done: u64,
    pub(super) failed: u64,
}

/// What a pool and its workers share.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) tasks: Queue<TaskMessage>,
    pub(super) results: Queue<ResultMessage>,
    pub(super) ledger: Ledger,
    pub(super) call: EventFd,
    pub(super) asked: EventFd,
    pub(super) requests: Socket,
}

/// What a pool has done, when it has ended.
///
/// [`Pool::join`](super::Pool::join) returns it. Attempts that were followed by another one do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// How many calls and items have returned a value.
    pub succeeded: u64,
    /// How many have not: they failed, were cancelled or given up.
    pub failed: u64,
}

impl State {
    /// How many tasks have not ended.
    pub(super) fn outstanding(&self) -> usize {
        self.occupants.len() - self.free.len()
    }

    /// The occupant of a ticket; `None`: that task is over, or has been given out again since.
    pub(super) fn occupant(&mut self, ticket: Ticket) -> Option<&mut Occupant> {
        let occupant = self.occupants.get_mut(ticket.cell as usize)?.as_mut();
        occupant.filter(|occupant| occupant.ticket == ticket)
    }

    /// Gives up a cell, whose word is free already.
    ///
    /// Wakes all that wait for room, and not one, since a thread that waits for the end of all tasks sleeps in the same list.
    fn vacate(&mut self, ticket: Ticket) -> Option<Occupant> {
        self.occupant(ticket)?;
        let occupant = self.occupants[ticket.cell as usize].take();
        self.free.push(ticket.cell);
        self.without_room.drain(..).for_each(|thread| thread.unpark());
        occupant
    }
}

impl AsRef<Hub> for Hub {
    fn as_ref(&self) -> &Hub {
        self
    }
}

impl Hub {
    pub(super) fn new(parts: Parts, options: &PoolOptions, printer: Weak<Pump>) -> Self {
        let Parts { tasks, results, ledger, call, asked, requests } = parts;
        let (grace, size) = (options.grace, options.size());
        let cells = ledger.cells().len();
        let state = State {
            occupants: (0..cells).map(|_| None).collect(),
            // The lowest is taken first, so that few cells are ever touched where few tasks are on their way.
            free: (0..cells as u32).rev().collect(),
            pumps: false,
            sleepers: VecDeque::new(),
            pids: vec![0; ledger.desks().len()],
            peak: 0,
            calls_above: usize::MAX,
            without_room: Vec::new(),
            delivered: 0,
            drain: 0,
            phase: Phase::Open,
            alarms: Alarms::default(),
            again: Vec::new(),
            errands: Errands::default(),
            unretired: None,
            done: 0,
            failed: 0,
        };
        let owner = (Here::now(), std::process::id());
        let state = Mutex::new(state);
        Self {
            tasks,
            results,
            ledger,
            grace,
            init_limit: options.init_limit,
            size,
            state,
            delivered: Condvar::new(),
            chunks: AtomicUsize::new(0),
            futures: AtomicUsize::new(0),
            call,
            asked,
            requests,
            owner,
            began: Moment::now(),
            printer,
        }
    }

    /// Gives up a cell; tells the pool's thread when it was the last one that a closed pool has waited for.
    pub(super) fn vacate(&self, state: &mut State, ticket: Ticket) -> Option<Occupant> {
        let occupant = state.vacate(ticket);
        if occupant.as_ref().is_some_and(Occupant::is_chunk) {
            self.chunks.fetch_sub(1, Relaxed);
        }
        if state.phase != Phase::Open && state.outstanding() == 0 {
            self.call.ring();
        }
        occupant
    }

    /// The ticket that the task of an inbox has now, in the cell in which it was put.
    ///
    /// A handle knows cell and inbox, and asks for the ticket each time: a task that is given out again has the next generation.
    pub(super) fn ticket_of(&self, cell: u32, inbox: &Arc<Inbox>) -> Option<Ticket> {
        let state = self.lock();
        let occupant = state.occupants.get(cell as usize)?.as_ref()?;
        Arc::ptr_eq(&occupant.inbox, inbox).then_some(occupant.ticket)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // No user code runs with the lock held, so that a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many workers there may be.
    pub(super) fn size(&self) -> usize {
        self.size.most
    }

    /// Whether this process is the one that made the pool.
    pub(super) fn is_here(&self) -> bool {
        self.owner.0.is_now()
    }

    pub(super) fn check_here(&self) -> Result<(), PoolError> {
        if self.is_here() { Ok(()) } else { Err(PoolError::Forked { owner: self.owner.1 }) }
    }

    /// Whether a worker may have a chunk in its hands.
    pub(super) fn has_chunks(&self) -> bool {
        self.chunks.load(Relaxed) > 0
    }

    pub(super) fn cell(&self, ticket: Ticket) -> &Cell {
        &self.ledger.cells()[ticket.cell as usize]
    }

    /// Ends a task with a failure of all its items that have none yet, which the pool tells, and not a worker.
    ///
    /// The caller has changed the cell's word, or knows that no worker will ask for it any more.
    pub(super) fn fail(&self, state: &mut State, ticket: Ticket, failure: impl Fn() -> TaskFailure) {
        let Some(occupant) = self.vacate(state, ticket) else { return };
        for item in occupant.delivered..occupant.items.max(1) {
            state.failed += 1;
            let results = Results::Failed(occupant.failed(item, false, failure()));
            occupant.inbox.put(Delivery { item: occupant.number(item), results, chunk: None });
        }
    }

    /// Goes on to a phase, unless the pool is further already.
    pub(super) fn enter(&self, phase: Phase) {
        let mut state = self.lock();
        let is_later = matches!(
            (&state.phase, &phase),
            (Phase::Open, _)
                | (Phase::Closing, Phase::Ending { .. })
                | (Phase::Ending { kills: false }, Phase::Ending { kills: true })
        );
        if is_later {
            state.phase = phase;
        }
        drop(state);
        self.call.ring();
    }

    /// Gives up all tasks of an inbox whose handle is gone: cancels those that have not begun, and asks the others to end.
    pub(super) fn abandon(&self, inbox: &Arc<Inbox>) {
        if !self.is_here() {
            return;
        }
        let is_meant = |occupant: &Occupant| Arc::ptr_eq(&occupant.inbox, inbox);
        self.cancel_all(is_meant);
        for occupant in self.lock().occupants.iter().flatten().filter(|occupant| is_meant(occupant)) {
            self.ask(occupant.ticket);
        }
    }

    /// Whether the program still holds a handle of one of the tasks.
    pub(super) fn is_wanted(&self) -> bool {
        self.lock().occupants.iter().flatten().any(Occupant::is_wanted)
    }

    /// Whether all tasks have ended.
    pub(super) fn is_done(&self) -> bool {
        self.lock().outstanding() == 0
    }

    /// Has a thread woken when a task ends.
    ///
    /// Once: it has to be named again before each sleep.
    pub(super) fn wake_at_end(&self, thread: Thread) {
        self.lock().without_room.push(thread);
    }

    /// What has been done; the error of a pool that is broken.
    ///
    /// That the pool broke is told before a state that could not be given up.
    pub(super) fn summary(&self) -> Result<Summary, PoolError> {
        let state = self.lock();
        match (&state.phase, &state.unretired) {
            (Phase::Broken(reason), _) => Err(PoolError::Broken { reason: reason.clone() }),
            (_, Some(outcome)) => Err(PoolError::Retire(Box::new(outcome.clone()))),
            (_, None) => Ok(Summary { succeeded: state.done, failed: state.failed }),
        }
    }
}
