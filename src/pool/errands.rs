//! Errands: what the pool gives to one of its workers, and not to whichever takes it first: a call of
//! [`Pool::broadcast`](super::Pool::broadcast), the environment of a map.
//!
//! The queue of tasks cannot carry them. The pool posts an errand in a list of its own, counts it at the worker's desk, and wakes the worker.
//! The worker asks for the errand, and for an environment that it lacks, by a message to the pool's thread: its number, what it wants, and a
//! socket for the answer. So each answer finds the process that has asked for it, whoever dies meanwhile, and a worker that needs nothing
//! of the kind costs no descriptor.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

use super::label::{TaskLabel, Ticket};
use crate::queue::Outgoing;
use crate::sys::socket::Socket;

/// What a worker asks for that wants its next errand. No environment has this number.
pub(super) const NEXT: u32 = 0;
/// The cell, which no pool has, of an errand that is to forget an environment.
pub(super) const FORGET: u32 = u32::MAX - 1;

/// Bytes of a request: a seat, and what its worker wants, both in the machine's order.
pub(super) const REQUEST: usize = 8;

/// What one worker is to do.
#[derive(Debug)]
pub(super) enum Errand {
    /// A call.
    Call(Ticket, Outgoing),
    /// It needs an environment no longer.
    Forget(u32),
}

/// What the pool has for single workers.
#[derive(Debug, Default)]
pub(super) struct Errands {
    /// By seat. Most pools never have any.
    pub(super) posted: BTreeMap<usize, VecDeque<Errand>>,
    /// By seat, the call that its worker was sent last. The worker asks for the next one after it has claimed this one, or died.
    pub(super) sent: BTreeMap<usize, Ticket>,
    pub(super) environments: BTreeMap<u32, Shared>,
    /// The number of the last environment.
    last: u32,
}

/// An environment that some map has.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) message: Outgoing,
    /// The seats whose workers have it.
    pub(super) seats: BTreeSet<usize>,
}

impl Errands {
    /// The next errand of a worker, as a message, and the call that it is.
    pub(super) fn next(&mut self, seat: usize) -> Option<(Outgoing, Option<Ticket>)> {
        match self.posted.get_mut(&seat)?.pop_front()? {
            Errand::Call(ticket, message) => {
                self.sent.insert(seat, ticket);
                Some((message, Some(ticket)))
            }
            Errand::Forget(number) => {
                let ticket = Ticket { cell: FORGET, generation: 0 };
                let label = TaskLabel { ticket, function: 0, items: 0, is_timed: false, environment: number };
                let message = Outgoing::labelled(&label.to_bytes(), &(), 0).ok()?;
                Some((message, None))
            }
        }
    }

    /// An environment for a worker, which has it from now on.
    pub(super) fn environment(&mut self, number: u32, seat: usize) -> Option<Outgoing> {
        let shared = self.environments.get_mut(&number)?;
        shared.seats.insert(seat);
        shared.message.duplicate()
    }

    /// Takes in an environment; returns its number.
    pub(super) fn lend(&mut self, message: Outgoing) -> u32 {
        let is_free = |number: &u32| *number != NEXT && !self.environments.contains_key(number);
        // Fewer than 2^31 maps live at a time.
        let next = (1..).map(|step| self.last.wrapping_add(step) & (u32::MAX >> 1)).find(is_free);
        self.last = next.unwrap_or(self.last);
        self.environments.insert(self.last, Shared { message, seats: BTreeSet::new() });
        self.last
    }
}

/// The socket pair by which workers ask: the pool's end, and theirs.
pub(super) fn channel() -> io::Result<(Socket, Socket)> {
    crate::sys::limits::with_room(Socket::pair)
}
