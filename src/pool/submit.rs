//! How a task is given to the workers.
//!
//! The thread that submits does all of it: it takes a cell under the pool's lock, fills the cell's word and its occupant, and then, without
//! the lock, puts the message into the queue of tasks. The occupant has to be there first: the worker may have handed in a result before the
//! put returns. Between the two the task may be cancelled. So after a refused put this thread asks whether the cell is still its own.
//!
//! | meanwhile | the put | what comes of it |
//! |---|---|---|
//! | nothing | succeeds | the task is the workers' |
//! | cancelled | succeeds | it was told; the worker that finds the message drops it, whose generation is over |
//! | nothing | is refused for want of room | the cell is given back, and the caller may wait |
//! | cancelled | is refused | it was told, as of any task: the submit has succeeded |

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;

use super::alarm::Times;
use super::error::{PoolError, TaskFailure};
use super::hub::{Hub, Phase, State};
use super::inbox::Inbox;
use super::label::{TaskLabel, Ticket};
use super::ledger;
use super::occupant::Occupant;
use crate::queue::{Outgoing, QueueError};
use crate::sync::wait_policy::WaitPolicy;
use crate::sys::image::Image;
use crate::worker::entry::Entry;

/// A task to be given to a pool.
#[derive(Debug)]
pub(super) struct Order {
    /// The function, as this process knows it: its name, and how its errors are read.
    pub(super) entry: &'static Entry,
    /// Where the record of the function lies in the executable.
    pub(super) function: u64,
    /// Its label is written when it has a cell.
    pub(super) message: Outgoing,
    /// Where its results go: that of the task, the map or the set that it is part of.
    pub(super) inbox: Arc<Inbox>,
    /// The number of its first item in the map, or of the call in its set; `None`: it is a task of its own.
    pub(super) first: Option<u64>,
    /// How many items the message has; 0: the arguments of one call.
    pub(super) items: u32,
    /// How often an item may be begun again.
    pub(super) retries: u32,
    /// After which failures; `None`: after all.
    pub(super) retry_if: Option<fn(&TaskFailure) -> bool>,
    /// A deadline counts from when the order was made, before a wait for room.
    pub(super) times: Times,
    /// The worker that is to make the call; `None`: whichever takes it first.
    pub(super) seat: Option<usize>,
    /// The environment that its function needs; 0: none.
    pub(super) environment: u32,
}

impl Hub {
    /// Gives a task to the workers; waits for room as long as `policy` says, and takes results in meanwhile.
    ///
    /// The thread that waits pumps results, or sleeps until a cell is free: [`Hub::vacate`] wakes all that wait for room, and those that find none
    /// sleep again. The phase is looked at in each round, so one that waits learns that the pool was closed.
    pub(super) fn submit(&self, mut order: Order, policy: &WaitPolicy) -> Result<Ticket, PoolError> {
        self.check_here()?;
        // `try_submit` never sleeps: all waiting is here, where results are taken in meanwhile.
        let found =
            self.wait(policy, || self.try_submit(&mut order).transpose(), |thread| self.wake_at_end(thread));
        match found {
            Ok(ticket) => {
                let ticket = ticket?;
                order.message.deliver();
                Ok(ticket)
            }
            Err(QueueError::Full | QueueError::Empty | QueueError::TimedOut { .. }) => {
                Err(PoolError::Full { queued: self.lock().outstanding() })
            }
            Err(QueueError::Closed) => Err(PoolError::Closed),
            Err(other) => Err(PoolError::Queue(other)),
        }
    }

    /// Puts a task into the queue; `None`: there is no room. The caller delivers the message after that.
    pub(super) fn try_submit(&self, order: &mut Order) -> Result<Option<Ticket>, PoolError> {
        let Some(ticket) = self.occupy(order)? else { return Ok(None) };
        let put = match order.seat {
            None => self.put_task(&mut order.message),
            Some(seat) => {
                self.post_call(seat, ticket, order);
                Ok(())
            }
        };
        // Not put, and cancelled by another thread meanwhile: that has been told, as of any task.
        if put.is_ok() || !ledger::cancel(&self.cell(ticket).word, ticket.generation) {
            return Ok(Some(ticket));
        }
        self.vacate(&mut self.lock(), ticket);
        match put {
            Err(QueueError::Full | QueueError::TimedOut { .. }) => Ok(None),
            Err(error) => Err(PoolError::Queue(error)),
            Ok(()) => Ok(Some(ticket)),
        }
    }

    /// Puts a message into the queue of tasks, without waiting. Where there is no room for it, the pool's thread is called as soon as a worker
    /// has made some, and wakes all that wait.
    ///
    /// The end of a task does not say that. Tasks that were cancelled have given up their cells, and their messages fill the queue until workers
    /// drop them, of which nobody hears; and messages may be so long that few of them fill it.
    fn put_task(&self, message: &mut Outgoing) -> Result<(), QueueError> {
        let tasks = self.tasks.core();
        match tasks.put_undelivered(message, &WaitPolicy::Never) {
            Err(QueueError::Full | QueueError::TimedOut { .. }) => {
                tasks.watch_room();
                // Once more: what was taken out before the watch has called nobody.
                tasks.put_undelivered(message, &WaitPolicy::Never)
            }
            put => put,
        }
    }

    /// Takes a cell for a task, and writes its label; `None`: all are taken.
    ///
    /// All under the lock: that the pool is open, the cell, its word, the label with the new ticket, and the occupant. With a worker missing, or an
    /// alarm that is the next one, the pool's thread is called.
    fn occupy(&self, order: &mut Order) -> Result<Option<Ticket>, PoolError> {
        let &mut Order { entry, function, first, items, retries, retry_if, times, seat, environment, .. } =
            order;
        let mut state = self.lock();
        match &state.phase {
            Phase::Open => {}
            Phase::Closing | Phase::Ending { .. } => return Err(PoolError::Closed),
            Phase::Broken(reason) => return Err(PoolError::Broken { reason: reason.clone() }),
        }
        let Some(number) = state.free.pop() else { return Ok(None) };
        let generation =
            self.ledger.cells()[number as usize].queue(times.deadline.map(|deadline| deadline.at));
        let ticket = Ticket { cell: number, generation };
        let label = TaskLabel { ticket, function, items, is_timed: times.are_set(), environment };
        order.message.label_mut(TaskLabel::LEN).copy_from_slice(&label.to_bytes());
        // A call for one worker is for no other. One that may be begun once is given out again only if it has not begun: that is not worth
        // holding on to tensors and descriptors.
        let is_kept = seat.is_none() && (retries > 0 || order.message.plain_bytes().is_some());
        let kept = is_kept.then(|| order.message.duplicate()).flatten();
        let exclusive = order.message.exclusive();
        let inbox = order.inbox.clone();
        let (delivered, earlier, ended_by) = (0, Vec::new(), None);
        let is_errand = seat.is_some();
        let occupant = Occupant {
            ticket,
            entry,
            inbox,
            first,
            items,
            delivered,
            earlier,
            retries,
            retry_if,
            times,
            kept,
            exclusive,
            ended_by,
            is_errand,
        };
        // Before the task is in the queue, and so before a worker adds to its tray: see `Hub::next_result`.
        self.chunks.fetch_add(usize::from(occupant.is_chunk()), Relaxed);
        state.occupants[number as usize] = Some(occupant);
        state.peak = state.peak.max(state.outstanding());
        if state.outstanding() > state.calls_above {
            self.call.ring();
        }
        self.watch_times(&mut state, ticket, times);
        Ok(Some(ticket))
    }

    /// Puts a task into the queue again, from an item on. Its cell is queued already, for this ticket.
    ///
    /// Called with the lock held, as the order of locks allows: the queue's mutex is taken below the pool's, and never the other way round. It puts
    /// without waiting, since the thread that would make room may need this lock.
    pub(super) fn put_again(&self, state: &mut State, ticket: Ticket) {
        let Some(occupant) = state.occupant(ticket) else { return };
        let Some(message) = occupant.kept.as_ref().and_then(Outgoing::duplicate) else { return };
        if self.tasks.core().put(message, &WaitPolicy::Never).is_err() {
            state.again.push(ticket);
        }
    }
}

/// Where the record of a function lies in the executable.
///
/// A number and not an address, since the executable lies elsewhere in each process. The error: the function lies in a shared object.
pub(super) fn function(entry: &'static Entry) -> Result<u64, PoolError> {
    let image = Image::main().map_err(PoolError::system("identify this executable (/proc/self/exe)"))?;
    entry.offset(image).map_err(|error| PoolError::Function(Box::new(error)))
}

/// The error of arguments that cannot be sent.
pub(super) fn unsent(function: &'static str, error: QueueError) -> PoolError {
    match error {
        QueueError::Encode { reason } => PoolError::Arguments { function, reason },
        other => PoolError::Queue(other),
    }
}

/// A message for several workers, each of which is sent a duplicate, with all bytes beside its label.
pub(super) fn for_several<A: Serialize>(function: &'static str, args: &A) -> Result<Outgoing, PoolError> {
    let message =
        Outgoing::labelled(&[0; TaskLabel::LEN], args, 0).map_err(|error| unsent(function, error))?;
    match message.exclusive() {
        None => Ok(message),
        Some(noun) => {
            let reason = format!("they are for several workers, and only one process can have a {noun}");
            Err(PoolError::Arguments { function, reason })
        }
    }
}
