//! ResourceUsage: what a worker's process had used.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a worker's process had used by its end, as the kernel tells it to the process that reaps it (getrusage(2)). What the worker's
/// own children had used is in it only if the worker has waited for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ResourceUsage {
    /// The CPU time that it spent in user mode, of all its threads together.
    pub user: Duration,
    /// The CPU time that the kernel spent for it.
    pub system: Duration,
    /// The most memory it had resident, in bytes, where that is known: a worker that was killed before it had
    /// more than the launcher had at the start cannot be told from it.
    pub peak_memory: Option<u64>,
}
