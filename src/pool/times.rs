//! Time limits and deadlines of tasks, and how a task that is to end is ended: asked first, then killed with its worker.
//!
//! Handles, the threads that drop maps, and the pool's thread call this, with no lock held unless a parameter is the locked state. Ending
//! a task takes up to three steps, each one change of the cell's word, so that whatever races with it has one winner:
//!
//! 1. *cancel*: Queued or Claimed to Free. It has not begun, and never will.
//! 2. *ask*: Running to Asked. Whatever waits in the function wakes up, since it sleeps on that word.
//! 3. *condemn*, after the grace: Running or Asked to Condemned, by the pool's thread, which then sends SIGKILL.
//!
//! A worker that hands in its result first changes the word to Sending, and the later steps find nothing to end.

use super::alarm::{Alarm, Purpose, Times};
use super::error::TaskFailure;
use super::hub::{Hub, State};
use super::label::Ticket;
use super::ledger;
use super::occupant::{EndedBy, Occupant};
use crate::sys::clock::Moment;

impl Hub {
    /// Has the pool's thread look at a task, which is queued now, when its times may be up.
    ///
    /// The alarm of the limit comes one limit after the submit: no task can be over its limit before that. Most have ended by then, and cost
    /// no second look.
    pub(super) fn watch_times(&self, state: &mut State, ticket: Ticket, times: Times) {
        if let Some(at) = times.limit.and_then(|limit| Moment::now().checked_add(limit)) {
            self.set_alarm(state, Alarm { at, ticket, purpose: Purpose::Limit });
        }
        if let Some(deadline) = times.deadline {
            self.set_alarm(state, Alarm { at: deadline.at, ticket, purpose: Purpose::Deadline });
        }
    }

    /// Calls the pool's thread at a moment.
    pub(super) fn set_alarm(&self, state: &mut State, alarm: Alarm) {
        // A task that ends in time leaves its alarm behind.
        if state.alarms.len() > 4 * state.occupants.len() {
            let occupants = &state.occupants;
            let is_current = |occupant: &Occupant, alarm: &Alarm| occupant.ticket == alarm.ticket;
            state.alarms.retain(|alarm| {
                occupants[alarm.ticket.cell as usize].as_ref().is_some_and(|one| is_current(one, alarm))
            });
        }
        if state.alarms.push(alarm) {
            self.call.ring();
        }
    }

    /// Looks at a task with a time limit, at the moment at which it may be up.
    ///
    /// The worker stores when it begins, and nobody is told. So a task that is still queued, or has begun since, gets another alarm at the moment
    /// at which it can be over at the earliest.
    pub(super) fn look_at_limit(&self, ticket: Ticket, now: Moment) {
        let (cell, mut state) = (self.cell(ticket), self.lock());
        let Some(limit) = state.occupant(ticket).and_then(|occupant| occupant.times.limit) else { return };
        // One that has not begun by now cannot be over before the limit has passed from now on.
        // Nothing clears `since` when a task is given out again, so it counts only from when the function has begun.
        let begun = cell.since().filter(|_| cell.standing().has_begun());
        let end = begun.unwrap_or(now).checked_add(limit);
        let Some(end) = end else { return };
        if end > now {
            state.alarms.push(Alarm { at: end, ticket, purpose: Purpose::Limit });
            return;
        }
        drop(state);
        self.end_task(ticket, EndedBy::Limit);
    }

    /// Ends a task whose deadline has come.
    ///
    /// Where it has begun it is ended as for a limit. A worker looks at the deadline itself before it calls the function, so a task that is taken
    /// at this moment does not depend on how soon this thread runs.
    pub(super) fn look_at_deadline(&self, ticket: Ticket) {
        let Some(deadline) = self.lock().occupant(ticket).and_then(|occupant| occupant.times.deadline) else {
            return;
        };
        let late = || TaskFailure::DeadlinePassed { deadline: deadline.after, outcome: None };
        // Between the two it may begin, or end.
        if self.cancel_because(ticket, late) {
            self.nudge();
        } else {
            self.end_task(ticket, EndedBy::Deadline);
        }
    }

    /// Cancels a task that has not begun. True: its function will never begin.
    ///
    /// The waiter is woken by a message through the queue of results, as by a worker's.
    pub(super) fn cancel(&self, ticket: Ticket) -> bool {
        let is_cancelled = self.is_here() && self.cancel_because(ticket, || TaskFailure::Cancelled);
        if is_cancelled {
            self.nudge();
        }
        is_cancelled
    }

    /// Cancels the tasks that have not begun and that `is_meant` names; returns how many there were.
    ///
    /// The tickets are collected first, and each is then cancelled as if alone: `is_meant` runs with the lock held, the change of the word and
    /// the telling take it again. A task that begins meanwhile is not cancelled, and does not count.
    pub(super) fn cancel_all(&self, is_meant: impl Fn(&Occupant) -> bool) -> usize {
        if !self.is_here() {
            return 0;
        }
        let state = self.lock();
        let meant = state.occupants.iter().flatten().filter(|occupant| is_meant(occupant));
        let tickets: Vec<_> = meant.map(|occupant| occupant.ticket).collect();
        drop(state);
        let cancel = |&ticket: &Ticket| self.cancel_because(ticket, || TaskFailure::Cancelled);
        let cancelled = tickets.into_iter().filter(cancel).count();
        if cancelled > 0 {
            self.nudge();
        }
        cancelled
    }

    /// The caller nudges: a thread that takes results out of the queue, for all, does not look into its own inbox meanwhile.
    ///
    /// The word first: from then on the function cannot begin. Its cell is not in the list of free ones before the occupant has gone, so nobody
    /// takes it between the two.
    fn cancel_because(&self, ticket: Ticket, why: impl Fn() -> TaskFailure) -> bool {
        let is_cancelled = ledger::cancel(&self.cell(ticket).word, ticket.generation);
        if is_cancelled {
            self.fail(&mut self.lock(), ticket, why);
        }
        is_cancelled
    }

    /// Asks a running task to end, and ends what waits in it. True: it runs, and had not been asked.
    pub(super) fn ask(&self, ticket: Ticket) -> bool {
        let is_asked = self.cell(ticket).ask(ticket.generation);
        if is_asked {
            self.asked.ring();
        }
        is_asked
    }

    /// Asks a running task to end, and has its worker killed after the grace period. True: it runs.
    ///
    /// The kill is only noted here, as an alarm. When that is due the word decides: a task that has ended has another generation or another state.
    pub(super) fn end_task(&self, ticket: Ticket, why: EndedBy) -> bool {
        if !self.is_here() {
            return false;
        }
        // Before the change: who decides what the death of the worker means finds the reason too.
        let mut state = self.lock();
        if !self.ask(ticket) {
            return false;
        }
        if let Some(occupant) = state.occupant(ticket) {
            occupant.ended_by = Some(why);
        }
        if let Some(at) = Moment::now().checked_add(self.grace) {
            self.set_alarm(&mut state, Alarm { at, ticket, purpose: Purpose::Kill });
        }
        true
    }
}
