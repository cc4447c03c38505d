//! What the end of a worker means for the tasks that it had, and the end of the pool for all of them.
//!
//! The pool's thread calls most of this. What a worker had is read from the words of the ledger once it is reaped, when the worker itself
//! changes them no more. Another worker may, which finds a claimed message still in the queue, and so may a canceller. So each change
//! here names the word that was read ([`ledger::take_back`]), and does nothing where another has come first. Between the reading and the
//! telling may lie the time that the worker's last lines take to be written.

use std::panic;

use super::alarm::{Alarm, Purpose};
use super::chunk;
use super::delivery::{Delivery, Results};
use super::error::TaskFailure;
use super::hub::{Hub, Phase, State};
use super::label::{TaskLabel, Ticket};
use super::leaving;
use super::ledger::{self, Ledger, Standing};
use super::occupant::{self, Fate, Left};
use crate::error::Outcome;
use crate::queue::Outgoing;
use crate::sync::wait_policy::WaitPolicy;
use crate::sys::clock::Moment;

impl Hub {
    /// The tasks that a worker has in its hands, which change no more until they are settled.
    ///
    /// Called for a worker that is reaped, or that no signal ends, after its results in the queue and in its tray have been taken in.
    pub(super) fn seize_from(&self, worker: u16) -> Vec<(Ticket, Standing)> {
        let state = self.lock();
        for (ticket, _) in Self::held(&self.ledger, &state, worker) {
            // They are settled when all that the worker has printed is written. Asked to end in between, a task would not be what
            // `settle` compares with, and the kill that follows would meet the next worker of that seat.
            ledger::seize(&self.cell(ticket).word, ticket.generation, worker);
        }
        Self::held(&self.ledger, &state, worker)
    }

    /// The tasks that a worker has in its hands, for a caller that has the lock. It looks at all cells that are occupied: the ledger has no list by worker, which would be
    /// one more thing to be right after a death.
    fn held(ledger: &Ledger, state: &State, worker: u16) -> Vec<(Ticket, Standing)> {
        let tickets = state.occupants.iter().flatten().map(|occupant| occupant.ticket);
        let standings = tickets.map(|ticket| (ticket, ledger.cells()[ticket.cell as usize].standing()));
        let is_held = |(ticket, standing): &(Ticket, Standing)| {
            standing.generation == ticket.generation && standing.is_held() && standing.worker == worker
        };
        standings.filter(is_held).collect()
    }

    /// Whether an item that a dead worker had begun may be begun again, by its terms and by what the program says of its failure.
    ///
    /// Without the lock: what is asked is the program's code. A panic of it is a no.
    fn may_retry(&self, ticket: Ticket, outcome: &Outcome) -> bool {
        let asked = {
            let mut state = self.lock();
            let Some(occupant) = state.occupant(ticket).filter(|occupant| occupant.may_retry()) else {
                return false;
            };
            occupant.retry_if.map(|may| (may, occupant.failure_of(outcome.clone())))
        };
        asked.is_none_or(|(may, failure)| panic::catch_unwind(|| may(&failure)).unwrap_or(false))
    }

    /// Decides what becomes of a task whose worker is dead, and does it.
    ///
    /// `standing` is what the cell said when the worker was reaped. Under the lock: that the word is taken back and that the occupant
    /// changes is one step for all who look for the task by its inbox. Why the task was to end does not change any more by then
    /// ([`seize_from`](Self::seize_from)), so whether it may be retried can be decided before.
    pub(super) fn settle(&self, ticket: Ticket, standing: Standing, outcome: &Outcome) {
        let may_retry = self.may_retry(ticket, outcome);
        let (cell, state) = (self.cell(ticket), &mut *self.lock());
        let Some(occupant) = state.occupants[ticket.cell as usize].as_mut() else { return };
        let taken = self.tasks.core().taken_count();
        let left = Left {
            state: standing.state,
            item: cell.item(),
            delivered: occupant.delivered,
            items: occupant.items.max(1),
            is_kept: occupant.kept.is_some(),
            // Both count the messages of the queue, modulo 2^32: one whose number is not below the count of those taken out is still in it.
            is_queued: !occupant.is_errand && cell.number().wrapping_sub(taken).cast_signed() >= 0,
            may_retry,
        };
        let (failed, from, is_retry) = match occupant::after_death(&left) {
            Fate::Queued => return,
            Fate::Again { from, is_retry } => (None, from, is_retry),
            Fate::Fails { item, began } => (Some((item, began)), item + 1, false),
        };
        let is_left = from < left.items && occupant.is_wanted();
        // First: another worker may have found the message in the queue since the word was read, and then nothing has happened.
        if !ledger::take_back(&cell.word, standing, is_left) {
            return;
        }
        let failure = occupant.failure_of(outcome.clone());
        if let Some((item, began)) = failed {
            // Said only where it has made a difference: the item would have been begun again.
            let exclusive = occupant.exclusive.filter(|_| left.may_retry && began);
            let failed = occupant.failed(item, began, failure).not_tried_again(exclusive);
            occupant.inbox.put(Delivery {
                item: occupant.number(item),
                results: Results::Failed(failed),
                chunk: None,
            });
            occupant.earlier.clear();
            state.failed += 1;
        } else if is_retry {
            occupant.earlier.push(failure);
        }
        if is_left {
            self.give_out_again(state, ticket, from, is_retry);
        } else {
            self.vacate(state, ticket);
        }
    }

    /// Gives out a task again, from an item on; after a pause where `is_retry`. Its cell is queued already, for the next generation.
    ///
    /// The occupant takes the new ticket before the message is put, since a worker may claim it at once. What is left of the time limit's
    /// alarms names the old ticket, and does nothing; the deadline stays where it was. A full queue is no failure: the pool's thread
    /// tries again.
    fn give_out_again(&self, state: &mut State, ticket: Ticket, from: u32, is_retry: bool) {
        let Some(occupant) = state.occupants[ticket.cell as usize].as_mut() else { return };
        let again = Ticket { generation: ticket.generation.wrapping_add(1), ..ticket };
        occupant.ticket = again;
        occupant.delivered = 0;
        occupant.ended_by = None;
        let times = occupant.times;
        let skipped = from.min(occupant.items);
        occupant.first = occupant.first.map(|first| first + u64::from(skipped));
        occupant.items -= skipped;
        let kept = occupant.kept.take();
        occupant.kept = kept.map(|message| without_items(message, skipped, again, occupant.items));
        let retry = if is_retry { occupant.earlier.len() } else { 0 };
        self.watch_times(state, again, times);
        match Moment::now().checked_add(occupant::pause_before(retry)) {
            Some(at) if retry > 1 => {
                self.set_alarm(state, Alarm { at, ticket: again, purpose: Purpose::Again })
            }
            _ => self.put_again(state, again),
        }
    }

    /// Asks one worker to leave: whichever takes the message, which is one that has nothing to do.
    ///
    /// A message, and neither a signal nor a word of one worker's: the worker that takes it has no task in its hands, and gets none.
    pub(super) fn ask_one_to_leave(&self) {
        let message = Outgoing::labelled(&leaving::request().to_bytes(), &(), self.tasks.core().inline());
        // A full queue has tasks, and no worker is idle.
        let _ = message.and_then(|message| self.tasks.core().put(message, &WaitPolicy::Never));
    }

    /// Fails all tasks.
    ///
    /// The words of the cells stay as they are: the phase lets no task into a cell any more, and a worker that still runs one is being
    /// ended.
    pub(super) fn give_up_all(&self, reason: &str) {
        let mut state = self.lock();
        let tickets: Vec<_> = state.occupants.iter().flatten().map(|occupant| occupant.ticket).collect();
        for ticket in tickets {
            self.fail(&mut state, ticket, || TaskFailure::PoolEnded(reason.to_owned()));
        }
        drop(state);
        self.nudge();
    }

    /// Notes that the pool cannot keep workers.
    ///
    /// Its thread sees the phase in its next step: it fails all tasks, and ends what workers there are. A phase that came before is
    /// overwritten, so that a pool that breaks while it is closed says so.
    pub(super) fn break_off(&self, reason: String) {
        self.lock().phase = Phase::Broken(reason);
    }
}

/// The message of a task without its first items, for another ticket.
///
/// For a task that is given out again: what was done is cut off, and the label has the new ticket and the number of items that are left.
fn without_items(mut message: Outgoing, skipped: u32, ticket: Ticket, items: u32) -> Outgoing {
    if let Some(bytes) = message.plain_bytes() {
        return Outgoing::of_bytes(chunk::without_items(bytes, skipped, ticket, items));
    }
    // What has something beside it is one item.
    let label = message.label_mut(TaskLabel::LEN);
    let again = chunk::without_items(label, 0, ticket, items);
    label.copy_from_slice(&again);
    message
}
