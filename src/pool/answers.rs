//! How the pool hands out errands: it posts them, and its thread answers the workers that ask.
//!
//! Posting is for any thread of the program; answers are given by the pool's thread alone, which finds the requests at its socket. It
//! never waits for a worker: it sends without blocking, and where that fails the call fails. What an errand is, and why it does not
//! travel by the queue of tasks, is said in [`errands`](super::errands).

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::errands::{Errand, NEXT, REQUEST};
use super::error::TaskFailure;
use super::hub::{Hub, State};
use super::label::Ticket;
use super::ledger;
use super::submit::Order;
use crate::error::Outcome;
use crate::queue::Outgoing;
use crate::sys::socket::{Attempt, Socket};

/// The environment of a map, as long as the map lives.
///
/// The [`Map`](super::Map) owns it. Its end has each worker that has read the environment forget it, by an errand.
#[derive(Debug)]
pub(super) struct Lent {
    hub: Arc<Hub>,
    pub(super) number: u32,
}

impl Hub {
    /// Gives an errand to the worker of a seat. False: there is none.
    ///
    /// Called with the lock held, under which a seat's pid is cleared, too, when its worker has been reaped: an errand is posted before
    /// that, and is dropped with the others of the worker, or is refused.
    pub(super) fn post(&self, state: &mut State, seat: usize, errand: Errand) -> bool {
        if state.pids[seat] == 0 {
            return false;
        }
        state.errands.posted.entry(seat).or_default().push_back(errand);
        self.ledger.desks()[seat].post_errand();
        true
    }

    /// Posts a call whose cell is queued already, or fails it.
    ///
    /// Called by the thread that submits, in place of the put into the queue. The message stays in the order, as it would after a put.
    pub(super) fn post_call(&self, seat: usize, ticket: Ticket, order: &Order) {
        let mut state = self.lock();
        // What only one process may have was refused when the order was made.
        let is_posted = order
            .message
            .duplicate()
            .is_some_and(|message| self.post(&mut state, seat, Errand::Call(ticket, message)));
        drop(state);
        if !is_posted {
            self.fail_call(ticket, || TaskFailure::PoolEnded("its worker has ended".to_owned()));
        }
    }

    /// The seats of the workers that are there and stay.
    ///
    /// Both workers of a place may be among them, where one leaves and has not said so yet.
    pub(super) fn present(&self) -> Vec<usize> {
        let (state, desks) = (self.lock(), self.ledger.desks());
        let stays = |&seat: &usize| state.pids[seat] != 0 && desks[seat].leaving.load(Relaxed) == 0;
        (0..desks.len()).filter(stays).collect()
    }

    /// Answers the requests of workers that have come.
    ///
    /// Requests of workers that have died meanwhile are answered too: the answer finds no reader.
    pub(super) fn answer_requests(&self) {
        // A request that is none, or came without its socket, as where this process had no number left for it: the worker is told by the
        // end of its socket.
        while let Ok(Some(mut request)) = self.requests.try_receive::<REQUEST>() {
            let [seat, wanted] = [0, 4]
                .map(|at| request.bytes[at..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes)));
            if let Some(reply) = request.descriptors.pop() {
                self.answer(seat as usize, wanted, &Socket::from_descriptor(reply));
            }
        }
    }

    /// Sends a worker what it wants. Where there is nothing to send the worker finds the end of its socket.
    ///
    /// The lock is held for taking the errand out of its list, and not for sending, which is a system call that results should not wait
    /// for.
    fn answer(&self, seat: usize, wanted: u32, reply: &Socket) {
        let mut state = self.lock();
        let answer = match wanted {
            NEXT => state.errands.next(seat),
            number => state.errands.environment(number, seat).map(|message| (message, None)),
        };
        drop(state);
        let Some((message, call)) = answer else { return };
        let refused = match message.try_send(reply) {
            Ok(Attempt::Sent) => return,
            Ok(Attempt::Full | Attempt::Crowded) => "too many descriptors are on their way".to_owned(),
            // The worker that has asked is gone: what it was to have is told when it is reaped (`drop_errands`).
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return,
            Err(error) => error.to_string(),
        };
        if let Some(ticket) = call {
            self.fail_call(ticket, || TaskFailure::Arguments(format!("they could not be sent: {refused}")));
        }
    }

    /// Fails a call that no worker has begun, nor will.
    fn fail_call(&self, ticket: Ticket, why: impl Fn() -> TaskFailure) {
        if ledger::cancel(&self.cell(ticket).word, ticket.generation) {
            self.fail(&mut self.lock(), ticket, why);
            self.nudge();
        }
    }

    /// Drops the errands of a worker that has ended, and fails the calls among them.
    ///
    /// The pool's thread calls it for a worker that is reaped. The environments that the worker had read went with it.
    pub(super) fn drop_errands(&self, seat: usize, outcome: &Outcome) {
        let mut state = self.lock();
        let posted = state.errands.posted.remove(&seat).unwrap_or_default();
        // The worker may have died before it has claimed this one, which is then in no list, and in no worker's hands by the ledger.
        let sent = state.errands.sent.remove(&seat);
        for shared in state.errands.environments.values_mut() {
            shared.seats.remove(&seat);
        }
        drop(state);
        let posted = posted.into_iter().filter_map(|errand| match errand {
            Errand::Call(ticket, _) => Some(ticket),
            Errand::Forget(_) => None,
        });
        // One that has begun is settled, as any task of a dead worker.
        sent.into_iter().chain(posted).for_each(|ticket| {
            self.fail_call(ticket, || TaskFailure::WorkerEnded(outcome.clone()));
        });
    }

    /// Has workers ask for a map's environment from now on.
    pub(super) fn lend(self: &Arc<Self>, message: Outgoing) -> Lent {
        let number = self.lock().errands.lend(message);
        Lent { hub: self.clone(), number }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Self { hub, number } = self;
        // In a fork of the process the workers are not its children.
        if !hub.is_here() {
            return;
        }
        let mut state = hub.lock();
        let Some(shared) = state.errands.environments.remove(number) else { return };
        for seat in shared.seats {
            hub.post(&mut state, seat, Errand::Forget(*number));
        }
        drop(state);
        // What it has of tensors and descriptors is closed without the lock.
        drop(shared.message);
    }
}
