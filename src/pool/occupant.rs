//! A task on its way, as the pool knows it, and what becomes of it when its worker has died. The decision is pure.

use std::sync::Arc;
use std::time::Duration;

use super::alarm::Times;
use super::error::{TaskFailed, TaskFailure};
use super::inbox::Inbox;
use super::label::Ticket;
use super::ledger::State;
use crate::error::Outcome;
use crate::queue::Outgoing;
use crate::worker::entry::Entry;

/// The task that has a cell of the ledger.
#[derive(Debug)]
pub(super) struct Occupant {
    pub(super) ticket: Ticket,
    pub(super) entry: &'static Entry,
    pub(super) inbox: Arc<Inbox>,
    /// The number of its first item; `None`: it is no part of a map.
    pub(super) first: Option<u64>,
    /// How many items it has: 0 for a single call.
    pub(super) items: u32,
    /// How many of their results have arrived.
    pub(super) delivered: u32,
    /// How the attempts at the item that comes next have ended.
    pub(super) earlier: Vec<TaskFailure>,
    /// How often an item may be begun again.
    pub(super) retries: u32,
    /// After which failures; `None`: after all.
    pub(super) retry_if: Option<fn(&TaskFailure) -> bool>,
    pub(super) times: Times,
    /// Its message, to be given out again; `None`: it was not kept, or could not be.
    pub(super) kept: Option<Outgoing>,
    /// What in its message forbids to keep that, as a noun: only one process may get it.
    pub(super) exclusive: Option<&'static str>,
    pub(super) ended_by: Option<EndedBy>,
    /// Whether one worker was to do it, and no other: its message was never in the queue.
    pub(super) is_errand: bool,
}

/// Why a running task is being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndedBy {
    Kill,
    Limit,
    Deadline,
}

impl Occupant {
    /// Whether the program still holds the handle that gives its result.
    pub(super) fn is_wanted(&self) -> bool {
        self.inbox.is_wanted()
    }

    /// Whether its results may lie in a worker's tray.
    pub(super) fn is_chunk(&self) -> bool {
        self.items > 0
    }

    /// Takes in results of items from `first` on. Returns the number of the first one that had not come before, how many had, and how
    /// many had not; `None`: all had, or results before them have not come.
    pub(super) fn take_in(&mut self, first: u32, items: u32) -> Option<(u64, u32, u32)> {
        let skipped = self.delivered.checked_sub(first)?;
        let new = items.checked_sub(skipped).filter(|&new| new > 0)?;
        let item = self.number(self.delivered);
        self.delivered += new;
        self.earlier.clear();
        Some((item, skipped, new))
    }

    /// The number of an item in its map; 0 for a single call.
    pub(super) fn number(&self, item: u32) -> u64 {
        self.first.unwrap_or(0) + u64::from(item)
    }

    /// The failure of an item.
    pub(super) fn failed(&self, item: u32, began: bool, failure: TaskFailure) -> TaskFailed {
        let number = self.first.map(|_| self.number(item));
        let earlier = if item == self.delivered { self.earlier.clone() } else { Vec::new() };
        TaskFailed::new(self.entry.name(), number, began, failure).after(earlier)
    }

    /// Whether an item that has begun may be begun again, if its message and the program allow it.
    pub(super) fn may_retry(&self) -> bool {
        let is_ended = matches!(self.ended_by, Some(EndedBy::Kill | EndedBy::Deadline));
        self.retries as usize > self.earlier.len() && !is_ended
    }

    /// What to say of an item whose worker has ended.
    pub(super) fn failure_of(&self, outcome: Outcome) -> TaskFailure {
        match (self.ended_by, self.times) {
            (Some(EndedBy::Kill), _) => TaskFailure::Killed(outcome),
            (Some(EndedBy::Limit), Times { limit: Some(limit), .. }) => {
                TaskFailure::TimedOut { limit, outcome }
            }
            (Some(EndedBy::Deadline), Times { deadline: Some(deadline), .. }) => {
                TaskFailure::DeadlinePassed { deadline: deadline.after, outcome: Some(outcome) }
            }
            _ => TaskFailure::WorkerEnded(outcome),
        }
    }
}

/// How long an item waits before it is begun again for the n-th time, n from 1. What kills it may be the state of the machine.
pub(super) fn pause_before(retry: usize) -> Duration {
    const PAUSES: [u64; 4] = [0, 10, 100, 1000];
    Duration::from_millis(PAUSES[retry.saturating_sub(1).min(PAUSES.len() - 1)])
}

/// What is known of a task whose worker has died.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    pub(super) state: State,
    /// The item that had begun last.
    pub(super) item: u32,
    /// How many results of its items have arrived. All that the worker has put into the queue have.
    pub(super) delivered: u32,
    /// How many items it has; at least 1.
    pub(super) items: u32,
    /// Whether its message can be put again.
    pub(super) is_kept: bool,
    /// Whether its message is still in the queue: the worker died before it took it out.
    pub(super) is_queued: bool,
    /// Whether an item that had begun may be begun again.
    pub(super) may_retry: bool,
}

/// What becomes of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The next worker that looks into the queue takes it.
    Queued,
    /// It is given out again from this item on. Nothing that had begun is in it, unless it `is_retry`.
    Again { from: u32, is_retry: bool },
    /// This item fails, and those behind it are given out again.
    Fails { item: u32, began: bool },
}

/// Decides it: exactly the item that ran fails.
pub(super) fn after_death(left: &Left) -> Fate {
    let &Left { state, item, delivered, items, is_kept, is_queued, may_retry } = left;
    debug_assert!(delivered < items, "the last result ends a task");
    match state {
        State::Claimed if is_queued => Fate::Queued,
        State::Claimed if is_kept => Fate::Again { from: delivered, is_retry: false },
        State::Claimed => Fate::Fails { item: delivered, began: false },
        // The result of the last item that had begun is here, and the next one had not begun.
        _ if item < delivered => Fate::Again { from: delivered, is_retry: false },
        _ if may_retry && is_kept => Fate::Again { from: delivered, is_retry: true },
        // Its function may have ended, and its result died with the worker.
        _ => Fate::Fails { item: delivered, began: true },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(state: State, item: u32, delivered: u32) -> Left {
        Left { state, item, delivered, items: 10, is_kept: true, is_queued: false, may_retry: false }
    }

    #[test]
    fn exactly_the_item_that_ran_fails() {
        for state in [State::Running, State::Asked, State::Condemned, State::Sending] {
            assert_eq!(after_death(&left(state, 4, 4)), Fate::Fails { item: 4, began: true });
            // Between two items nothing runs.
            assert_eq!(after_death(&left(state, 4, 5)), Fate::Again { from: 5, is_retry: false });
        }
    }

    #[test]
    fn item_that_had_not_begun_is_given_out_again_as_long_as_its_bytes_are_there() {
        let claimed = left(State::Claimed, 0, 0);
        assert_eq!(after_death(&claimed), Fate::Again { from: 0, is_retry: false });
        assert_eq!(after_death(&Left { is_queued: true, ..claimed }), Fate::Queued);
        let alone = Left { is_kept: false, items: 1, ..claimed };
        assert_eq!(after_death(&alone), Fate::Fails { item: 0, began: false });
        assert_eq!(after_death(&Left { is_queued: true, ..alone }), Fate::Queued);
    }

    #[test]
    fn first_retry_comes_at_once_and_the_later_ones_after_longer_and_longer_pauses() {
        let pauses = [0, 1, 2, 3, 4, 5, usize::MAX].map(|retry| pause_before(retry).as_millis());
        assert_eq!(pauses, [0, 0, 10, 100, 1000, 1000, 1000]);
    }

    #[test]
    fn only_what_is_kept_is_tried_again() {
        let ran = Left { may_retry: true, ..left(State::Running, 3, 3) };
        assert_eq!(after_death(&ran), Fate::Again { from: 3, is_retry: true });
        assert_eq!(after_death(&Left { is_kept: false, ..ran }), Fate::Fails { item: 3, began: true });
    }
}
