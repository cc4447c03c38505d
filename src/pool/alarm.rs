//! The times of a task, and the moments at which the pool's thread looks at it.
//!
//! Alarms are never taken back. One that comes too late finds another ticket in the cell, or a word that has gone on, and does nothing: so no
//! race with the end of the task has to be decided here. The list is under the pool's lock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::label::Ticket;
use crate::sys::clock::Moment;

/// For how long a task may run, and until when.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    /// From the begin of its function.
    pub(super) limit: Option<Duration>,
    pub(super) deadline: Option<Deadline>,
}

/// A moment after which a task does not begin, and is ended if it runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    /// How long after it was given to the pool.
    pub(super) after: Duration,
    pub(super) at: Moment,
}

impl Times {
    /// Those of a task that is given to the pool now.
    pub(super) fn from_now(limit: Option<Duration>, deadline: Option<Duration>) -> Self {
        // Beyond what the clock can say there is none.
        let at = |after: Duration| Some(Deadline { after, at: Moment::now().checked_add(after)? });
        Self { limit, deadline: deadline.and_then(at) }
    }

    /// Whether its worker looks at the clock before the function begins.
    pub(super) fn are_set(&self) -> bool {
        self.limit.is_some() || self.deadline.is_some()
    }
}

/// What is done then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    /// Its time limit may be up.
    Limit,
    /// Its deadline has come.
    Deadline,
    /// The worker that runs it is killed.
    Kill,
    /// It is put into the queue again.
    Again,
}

/// A moment at which a task is looked at. A task that has ended by then has another ticket, and the look does nothing: so an alarm
/// need not be taken back when a task ends in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alarm {
    /// When; of CLOCK_MONOTONIC.
    pub(super) at: Moment,
    /// The task, as it was when the alarm was set.
    pub(super) ticket: Ticket,
    /// What is done then.
    pub(super) purpose: Purpose,
}

impl Alarm {
    /// By what alarms are ordered: the moment, and of one moment by anything that is the same each time.
    fn key(&self) -> (Moment, u32, u32, Purpose) {
        (self.at, self.ticket.cell, self.ticket.generation, self.purpose)
    }
}

impl PartialOrd for Alarm {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Alarm {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// Alarms by time: a heap, since only the next one matters to the pool's thread, which sleeps until then.
#[derive(Debug, Default)]
pub(super) struct Alarms(BinaryHeap<Reverse<Alarm>>);

impl Alarms {
    /// Adds one; says whether it is the next one now.
    pub(super) fn push(&mut self, alarm: Alarm) -> bool {
        let is_next = self.next().is_none_or(|next| alarm.at < next);
        self.0.push(Reverse(alarm));
        is_next
    }

    /// How many there are, those of tasks that have ended among them.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Drops those that `keep` refuses, as of tasks that have ended: a pool of short calls with a long limit would collect them.
    pub(super) fn retain(&mut self, keep: impl Fn(&Alarm) -> bool) {
        self.0.retain(|Reverse(alarm)| keep(alarm));
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Moment> {
        self.0.peek().map(|Reverse(alarm)| alarm.at)
    }

    /// Takes out the next one, if it is due.
    pub(super) fn pop_due(&mut self, now: Moment) -> Option<Alarm> {
        if self.next()? > now {
            return None;
        }
        self.0.pop().map(|Reverse(alarm)| alarm)
    }
}
