//! A worker of a pool: takes tasks out of the queue, calls their functions, and hands in what came of them.
//!
//! One thread of the worker does all of it. It owns nothing of the pool's that a death would keep from others: the mutexes that it takes
//! are robust, counts at its desk are its own, and each task is found by the word of its cell. One round is:
//!
//! 1. the errands that were posted for it alone
//! 2. sleep in the queue of tasks, and there, as the owner of its mutex, claim the task of the message that comes next
//! 3. take the message out, and begin: the word says Running from then on
//! 4. read the arguments, call the function, and encode what it returns behind the label of a result
//! 5. finish: the word says Sending, or the worker is condemned and waits for its end
//! 6. put the result into the queue of results
//!
//! What the word says at its death is what becomes of the task: [`occupant::after_death`](super::occupant::after_death).
//!
//! # Errors
//!
//! An error of a function is a result. An error of these functions ends the worker: the pool's memory or queues do not work here, or its
//! state cannot be made. The pool reads it from the report, as it would of a worker of `spawn`.

use std::cell::{Cell as Slot, RefCell};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::desk::{Desk, Stage};
use super::inside::{self, Idle, Inside};
use super::kept::{Beside, State};
use super::label::{Kind, ResultLabel, TaskLabel, Ticket};
use super::leaving::{self, Service};
use super::ledger::{self, Cell, Ledger};
use super::seats::Term;
use crate::memory::descriptor::Descriptor;
use crate::point::point;
use crate::queue::{Incoming, Outgoing, Queue, QueueError, message_buffer};
use crate::sync::AbortedBy;
use crate::sync::wait_policy::WaitPolicy;
use crate::sys::clock::Moment;
use crate::sys::event::EventFd;
use crate::sys::image::Image;
use crate::transfer::received::Received;
use crate::wire::codec::Encoded;
use crate::worker::entry::{self, CallError, Entry};
use crate::worker::{hooks, report};

/// What the queue of tasks carries: labels and arguments, which no type of its own describes.
#[derive(Debug)]
pub(super) enum TaskMessage {}

/// What the queue of results carries.
#[derive(Debug)]
pub(super) enum ResultMessage {}

/// What a worker of a pool is given.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) tasks: Queue<TaskMessage>,
    pub(super) results: Queue<ResultMessage>,
    pub(super) ledger: Ledger,
    /// The event by which a worker tells the pool that the queue of results is full, or that it leaves.
    pub(super) full: Descriptor,
    /// The event by which the pool tells its workers that it has asked a task to end.
    pub(super) asked: Descriptor,
    /// The socket at which workers ask for what the pool has for them alone.
    pub(super) requests: Descriptor,
    /// How many pools are around this one: 1 for that of a program.
    pub(super) depth: u32,
    /// When its workers leave by themselves.
    pub(super) term: Term,
    /// How many bytes of memory of its own each may have.
    pub(super) memory: Option<u64>,
}

/// How long the queue of results may be full before the pool's own thread is called. Threads that wait for results make room much
/// sooner.
const UNTAKEN: Duration = Duration::from_millis(1);

/// Runs a worker of a pool, until the pool has no more tasks for it. `state`: what its functions have beside their arguments, if the pool
/// has that.
///
/// Memory is limited before the state is made, and the state is made before the worker waits for its place: so a successor does all of its
/// set-up while its predecessor still works. It goes on until the queue is closed and empty, its term is over, or it was asked to leave.
pub(super) fn serve(rank: usize, place: Place, state: Option<Box<dyn State>>) -> anyhow::Result<()> {
    let image = Image::main().context("identify this executable")?;
    let (seat, ledger) = (leaving::seat(&place.ledger, rank)?, place.ledger.clone());
    inside::serve(place.ledger.clone(), seat, place.depth, place.asked.clone());
    place.memory.map_or(Ok(()), leaving::limit_memory)?;
    let full = EventFd::from_descriptor(place.full.clone());
    let service = Service::new(place.term.for_one(hooks::seed()));
    let waits = place.term.has_end();
    let beside = RefCell::new(Beside::new(state));
    let (known, errands) = (Slot::new(None), Slot::new(0));
    let worker = Server { seat, place, full, image, known, beside, errands, service };
    worker.restore_state()?;
    worker.desk().set_stage(Stage::Serving);
    let _place = waits.then(|| leaving::take_place(&ledger, rank)).transpose()?;
    while worker.serve_one()? {}
    worker.desk().set_stage(Stage::Retiring);
    let state = worker.beside.into_inner().into_state();
    state.map_or(Ok(()), |state| state.retire().context("give up the state of a worker of a pool"))
}

/// What the worker has for its whole life. One thread uses it, so its changing parts are cells.
pub(super) struct Server {
    pub(super) seat: u16,
    pub(super) place: Place,
    full: EventFd<Descriptor>,
    image: &'static Image,
    /// The function that was called last: most tasks of a pool call the same one.
    known: Slot<Option<(u64, &'static Entry)>>,
    pub(super) beside: RefCell<Beside>,
    /// How many errands it has done.
    pub(super) errands: Slot<u64>,
    service: Service,
}

/// A task in this worker's hands.
pub(super) struct Taken<'a> {
    pub(super) label: TaskLabel,
    pub(super) cell: &'a Cell,
    entry: &'static Entry,
    began: Moment,
}

impl Server {
    /// Takes one task and does it. False: there will be no more for this worker.
    ///
    /// `Idle` has the errands' word watched by the sleep in the queue, so an errand ends that with `Aborted`, and the next round does it
    /// first. The claim runs as the owner of the queue's mutex: a death before the take leaves the message there.
    fn serve_one(&self) -> anyhow::Result<bool> {
        self.run_errands()?;
        let (mut claimed, mut leaves) = (None, false);
        let claim = |bytes: &[u8], number| {
            claimed = self.claim(bytes, number);
            // Said before the message is out of the queue: the pool, which finds it empty, counts this worker no more.
            leaves = claimed.is_none() && leaving::is_request(bytes);
            if leaves {
                leaving::announce(self.desk());
            }
        };
        let idle = Idle::after(self.errands.get());
        let taken = self.place.tasks.core().get_noted(&WaitPolicy::Forever, claim);
        drop(idle);
        let message = match taken {
            Err(QueueError::Closed) => return Ok(false),
            Err(QueueError::Aborted { by: AbortedBy::Pool, .. }) => return Ok(true),
            taken => taken.context("take a task")?,
        };
        if leaves {
            return Ok(false);
        }
        // `None`: the task was cancelled, or given to another worker.
        claimed.map_or(Ok(true), |(label, cell)| self.do_task(label, cell, message))
    }

    /// Does a task that this worker has claimed. False: it was the last one.
    ///
    /// A task of the queue, or an errand's. That it is the worker's last one is said after the begin and before the call, so that the
    /// successor is started while it runs. The cell at the desk tells [`Pool::workers`](super::Pool::workers), and a traceback, what runs
    /// here.
    pub(super) fn do_task(&self, label: TaskLabel, cell: &Cell, message: Incoming) -> anyhow::Result<bool> {
        // Before the begin: a reader that then finds the task running finds what that has said, or nothing.
        self.desk().forget_progress();
        if !ledger::begin(&cell.word, label.ticket.generation, self.seat) {
            return Ok(true);
        }
        point!("pool.begun", deaths);
        let is_last = self.service.begin(u64::from(label.items.max(1)));
        if is_last {
            self.leave();
        }
        self.desk().cell.store(u64::from(label.ticket.cell) + 1, Relaxed);
        let entry = self.entry(label.function)?;
        let began = Moment::now();
        self.desk().since.store(began.as_nanos(), Relaxed);
        self.work(&Taken { label, cell, entry, began }, message)?;
        self.desk().cell.store(0, Relaxed);
        if is_last {
            return Ok(false);
        }
        let stays = !self.service.is_too_large(began);
        if !stays {
            self.leave();
        }
        Ok(stays)
    }

    /// Tells the pool that this worker takes no other task, so that it starts the next one.
    fn leave(&self) {
        if leaving::announce(self.desk()) {
            self.full.ring();
        }
    }

    /// The label of a message, and the cell of its task, if the task is this worker's from now on.
    ///
    /// `number` is the message's in the queue, 0 for an errand, which was never there. `None`, too, for a label that no pool has written.
    pub(super) fn claim(&self, bytes: &[u8], number: u32) -> Option<(TaskLabel, &Cell)> {
        let label = TaskLabel::read(bytes)?;
        let cell = self.place.ledger.cells().get(label.ticket.cell as usize)?;
        cell.claim(label.ticket.generation, self.seat, number).then_some((label, cell))
    }

    /// The record of the function that lies at this offset of the executable: checked, since any number may stand in a message.
    pub(super) fn entry(&self, function: u64) -> anyhow::Result<&'static Entry> {
        if let Some((_, entry)) = self.known.get().filter(|(known, _)| *known == function) {
            return Ok(entry);
        }
        let entry = entry::at(function, self.image)
            .with_context(|| format!("there is no function at offset {function:#x} of this executable"))?;
        self.known.set(Some((function, entry)));
        Ok(entry)
    }

    pub(super) fn desk(&self) -> &Desk {
        &self.place.ledger.desks()[usize::from(self.seat)]
    }

    /// Reads what came beside the arguments, and runs the call or the chunk. The message lives until that has ended.
    fn work(&self, task: &Taken<'_>, message: Incoming) -> anyhow::Result<()> {
        let worked = message.open(TaskLabel::LEN, |bytes, received| match task.label.items {
            0 => self.run(task, bytes, received.unwrap_or_default()),
            items => self.run_items(task, items, bytes),
        });
        // What came beside the arguments did not arrive.
        worked.unwrap_or_else(|reason| {
            let message = refusal(task.label.ticket, Kind::Arguments, 0, &reason, self.most())?;
            self.hand_in(task, true, message)
        })
    }

    /// Calls the function of a task of one call, and hands in what came of it.
    fn run(&self, task: &Taken<'_>, arguments: &[u8], received: Received) -> anyhow::Result<()> {
        self.restore_state()?;
        let mut into = message_buffer();
        into.extend_from_slice(&ResultLabel::of(task.label.ticket, Kind::Returned, 0).to_bytes());
        let message = match self.call(task, (0, arguments), received, into) {
            Ok(encoded) => self.message_of(task, 0, encoded),
            Err(refused) => refused,
        };
        self.hand_in(task, true, message?)
    }

    /// Calls the function with an item, and encodes what it returns behind the bytes of `into`. `Err`: the message of a call that has
    /// no result.
    ///
    /// Of a timed task the worker stores when it begins, and looks at the deadline, so that one that is late does not begin even if the
    /// pool's thread has not looked yet. Errors and panics are caught; a panic costs the worker its state.
    pub(super) fn call(
        &self,
        task: &Taken<'_>,
        (item, arguments): (u32, &[u8]),
        received: Received,
        into: Vec<u8>,
    ) -> Result<Encoded, Result<Outgoing, QueueError>> {
        task.cell.set_item(item);
        self.desk().forget_progress();
        if task.label.is_timed {
            let now = Moment::now();
            if task.cell.is_late(now) {
                let label = ResultLabel::of(task.label.ticket, Kind::Late, item);
                return Err(Outgoing::labelled(&label.to_bytes(), &(), self.most()));
            }
            task.cell.set_since(now);
        }
        add(&self.desk().begun, 1);
        let call = || {
            let mut beside = self.beside.borrow_mut();
            let number = task.label.environment;
            let beside = beside.of(number, || self.environment(number)).map_err(CallError::Arguments)?;
            let _inside = Inside::of(task.label.ticket);
            task.entry.call(beside, arguments, received, into)
        };
        report::attempt(call, trouble).map_err(|(raised, trouble)| {
            if raised.panicked {
                self.lose_state();
            }
            if let Some((kind, reason)) = trouble {
                return refusal(task.label.ticket, kind, item, &reason, self.most());
            }
            add(&self.desk().failed, 1);
            let label = ResultLabel::of(task.label.ticket, Kind::Raised, item);
            Outgoing::labelled(&label.to_bytes(), &raised, self.most())
        })
    }

    /// The message of a result that stands behind its label.
    ///
    /// Where it cannot be sent, as for want of memory or of descriptors, the message says so instead, so that the call has an end.
    pub(super) fn message_of(
        &self,
        task: &Taken<'_>,
        item: u32,
        encoded: Encoded,
    ) -> Result<Outgoing, QueueError> {
        Outgoing::of_encoded(ResultLabel::LEN, encoded, self.most())
            .or_else(|error| refusal(task.label.ticket, Kind::Result, item, &error.to_string(), self.most()))
    }

    /// Puts a result into the queue. The last one of a task ends it.
    ///
    /// Finish comes before the put: once the word says Sending, no time limit and no kill of this task reaches the worker. A worker that
    /// dies between the two has lost it, and the task counts as begun.
    ///
    /// A full queue of results is emptied by the threads that wait. Where none does, the pool's thread is called after a millisecond, so
    /// a worker never hangs because nobody has asked for results yet.
    pub(super) fn hand_in(
        &self,
        task: &Taken<'_>,
        is_last: bool,
        mut message: Outgoing,
    ) -> anyhow::Result<()> {
        if is_last {
            let busy = Moment::now().since(task.began);
            add(&self.desk().busy, nanos(busy));
            if !ledger::finish(&task.cell.word, task.label.ticket.generation) {
                await_end();
            }
            write_busy(&mut message, busy);
            point!("pool.finished", deaths);
        }
        let results = self.place.results.core();
        match results.put_undelivered(&mut message, &WaitPolicy::of(UNTAKEN)) {
            Ok(()) => message.deliver(),
            // The pool takes results out when one of its threads waits for one. Perhaps none waits now, so the pool's own thread is called.
            Err(QueueError::TimedOut { .. }) => {
                self.full.ring();
                results.put(message, &WaitPolicy::Forever).context("hand in a result")?;
            }
            Err(error) => return Err(error).context("hand in a result"),
        }
        Ok(())
    }

    /// The most bytes of a result in the queue's ring.
    pub(super) fn most(&self) -> usize {
        self.place.results.core().inline()
    }
}

/// What was wrong beside the function itself.
///
/// `None`: the function itself has failed.
fn trouble(error: &anyhow::Error) -> Option<(Kind, String)> {
    error.downcast_ref::<CallError>().map(|trouble| match trouble {
        CallError::Arguments(reason) => (Kind::Arguments, reason.clone()),
        CallError::Result(reason) => (Kind::Result, reason.clone()),
    })
}

/// A result that says why there is none.
fn refusal(ticket: Ticket, kind: Kind, item: u32, reason: &str, most: usize) -> Result<Outgoing, QueueError> {
    Outgoing::labelled(&ResultLabel::of(ticket, kind, item).to_bytes(), &reason, most)
}

fn write_busy(message: &mut Outgoing, busy: Duration) {
    let label = message.label_mut(ResultLabel::LEN);
    label[ResultLabel::LEN - 8..].copy_from_slice(&nanos(busy).to_le_bytes());
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Adds to a count that only this worker changes.
fn add(count: &AtomicU64, by: u64) {
    count.store(count.load(Relaxed).wrapping_add(by), Relaxed);
}

/// Waits for the SIGKILL that the pool sends after it has condemned this worker.
///
/// It must not return: the next task would meet the signal.
fn await_end() -> ! {
    loop {
        thread::park();
    }
}
