//! Fork, and run in place.

use std::io::{self, Write};

use super::plan::{Failure, Group};
use crate::memory::storage;
use crate::sys::env;
use crate::sys::process::{self, ForkError};
use crate::wire::lifeline::WorkersEnd;
use crate::wire::slot::Slot;
use crate::worker::{self, Origin};

/// Forks one worker, which never comes back here.
pub(super) fn start(
    group: &Group,
    rank: usize,
    slot: &Slot,
    lifeline: Option<&WorkersEnd>,
) -> Result<u32, Failure> {
    let marker = group.marker(rank, slot, lifeline);
    // What is buffered would be written by both. A closed stdout has lost it anyway.
    let _ = io::stdout().flush();
    storage::expect_fork();
    let alone = process::single_thread().map_err(failure)?;
    let forked = process::fork(&alone, || {
        for (key, value) in &group.environment {
            env::set(key, value);
        }
        worker::run(&marker, &Origin::Fork)
    });
    let pid = forked.map_err(failure)?;
    // The worker does so too; whoever comes first, the group is there when either goes on. It can have ended.
    let _ = process::lead_own_group(pid);
    Ok(pid)
}

fn failure(error: ForkError) -> Failure {
    match error {
        ForkError::Threads(threads) => Failure::Threads(threads),
        ForkError::Os(os) => Failure::of("forking (fork)")(os),
    }
}
