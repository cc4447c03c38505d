//! Fork, and run in place.

use std::io::{self, Write};
use std::os::fd::AsFd;

use super::plan::{Failure, Plan, Prepared};
use crate::memory::storage;
use crate::sys::env;
use crate::sys::fork::{self, ForkError};
use crate::worker::{self, Origin};

/// Forks one worker, which never comes back here.
pub(super) fn start(plan: &Plan, worker: &Prepared) -> Result<u32, Failure> {
    // Before the fork: its numbers are the same in the child, but the launcher's pid is this process's.
    let marker = plan.marker(worker);
    // Both processes would write what is buffered. An error means that stdout is closed, and the text lost in any case.
    let _ = io::stdout().flush();
    storage::expect_fork();
    // Asked for each worker: a library may have started a thread since the one before. A fork has no other thread than the
    // caller's, but every lock as it was, so what another thread had locked would stay locked (fork(2)).
    let alone = fork::single_thread().map_err(failure)?;
    let forked = fork::fork(&alone, || {
        for (key, value) in &plan.environment {
            env::set(key, value);
        }
        let output = worker.writers.each_ref().map(|fd| fd.as_ref().map(AsFd::as_fd));
        worker::run(&marker, &Origin::Fork { output })
    });
    let pid = forked.map_err(failure)?;
    // The worker does so too. If only it did, a signal to its group could come before; if only this process did, the worker
    // could have children in ours before. An error means that it has ended or done it (setpgid(2)).
    let _ = fork::lead_own_group(pid);
    Ok(pid)
}

fn failure(error: ForkError) -> Failure {
    match error {
        ForkError::Threads(threads) => Failure::Threads(threads),
        ForkError::Uncounted(os) => Failure::of("counting this process's threads (/proc/self/task)")(os),
        ForkError::Os(os) => Failure::of("forking (fork)")(os),
    }
}
