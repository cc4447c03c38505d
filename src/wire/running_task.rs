//! The task that this process runs for a pool, as what waits must know it: once the task is asked to end, it ends this process's waits.
//!
//! The word that says so is that of the pool's ledger, which changes by compare-and-swap: a wait that sleeps on it while it is what it
//! is for a task that goes on can be ended by that task's end only, and never by that of the one before.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::memory::descriptor::Descriptor;
use crate::sys::event::EventFd;
use crate::sys::futex;
use crate::sys::global::Global;

/// How a worker of a pool finds the task that it runs.
#[derive(Debug)]
pub(crate) struct RunningTask {
    /// The word of the task, and what it is as long as the task goes on unasked; `None`: none runs.
    pub(crate) word: fn() -> Option<(&'static AtomicU64, u64)>,
    /// Whether the task that runs was asked to end.
    pub(crate) is_asked: fn() -> bool,
    /// Rung when a task was asked, of whichever worker: all of them have it, so none reads it, and it stays readable from then on. A ring
    /// is an edge (EPOLLET of epoll(7)), after which one looks at the word.
    pub(crate) event: EventFd<Descriptor>,
}

/// `None`: this process is no worker of a pool.
static OWN: Global<RunningTask> = Global::new();

/// From now on this process works for a pool. Called once in a process.
pub(crate) fn apply(task: RunningTask) {
    OWN.set(Box::leak(Box::new(task)));
}

/// Forgets the parent's task in a forked worker, which is of another context.
pub(crate) fn forget() {
    OWN.clear();
}

/// Whether this process runs a task that was asked to end.
pub(crate) fn is_asked() -> bool {
    OWN.get().is_some_and(|own| (own.is_asked)())
}

/// The words on which a waiter of the running task sleeps too (a futex has 32 bits), and what they are until the task is asked.
pub(crate) fn words() -> Option<[(&'static AtomicU32, u32); 2]> {
    (OWN.get()?.word)().map(|(word, unasked)| futex::halves(word, unasked))
}

/// The event of asked tasks, while this process runs one.
pub(crate) fn event() -> Option<BorrowedFd<'static>> {
    let own = OWN.get()?;
    (own.word)().map(|_| own.event.as_fd())
}
