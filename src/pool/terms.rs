//! What holds for calls: how often they are begun again, for how long they may run, and until when.
//!
//! The terms stand in the handle by which a call is given to the pool. So one pool serves calls with other terms through other handles, and
//! each way to give it a call, a map, a set, a call with a state, has them without options of its own.

use std::time::Duration;

use super::error::TaskFailure;

/// What holds for the calls that are given through a handle.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CallTerms {
    /// How often an item may be begun again.
    pub(super) retries: u32,
    /// After which failures; `None`: after each that can be followed by another attempt.
    pub(super) retry_if: Option<fn(&TaskFailure) -> bool>,
    /// How long a function may run.
    pub(super) limit: Option<Duration>,
    /// How long after it was given to the pool a call may begin, and run.
    pub(super) deadline: Option<Duration>,
}

impl CallTerms {
    /// Whether workers are to look at the clock before they begin.
    pub(super) fn are_timed(&self) -> bool {
        self.limit.is_some() || self.deadline.is_some()
    }
}
