//! The thread that has started children, where it is not the main thread: their death signal is bound to it (prctl(2)).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;

/// A thread that has started children and lives until this is dropped.
#[derive(Debug)]
pub(crate) struct ParentThread {
    thread: Thread,
    over: Arc<AtomicBool>,
}

impl ParentThread {
    /// The thread parks until `over`.
    pub(crate) fn new(thread: Thread, over: Arc<AtomicBool>) -> Self {
        Self { thread, over }
    }
}

impl Drop for ParentThread {
    fn drop(&mut self) {
        // No lock is taken here: in a fork of this process, which has no such thread, it must do nothing.
        self.over.store(true, Ordering::Release);
        self.thread.unpark();
    }
}
