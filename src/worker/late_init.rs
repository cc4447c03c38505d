//! A worker whose main has started a runtime before `init`, as `#[tokio::main]` does: its function would run inside of it,
//! where it can start no runtime of its own.

use std::io;

use crate::error::{Callee, Captured, Traceback};
use crate::sys::{thread, trace};

/// What the paths of tokio's functions begin with that run a future on the runtime with several threads.
const MULTI_THREAD: &str = "tokio::runtime::scheduler::multi_thread::";

/// Refuses to begin inside of a runtime. Threads alone are no reason: profilers, allocators and preloaded libraries may have started
/// some before main.
///
/// # Errors
/// With the names of the threads, when a tokio runtime is on this thread's stack.
pub(super) fn refuse_inside_of_a_runtime() -> io::Result<()> {
    // Naming the stack takes long, so it is done only where there may be a runtime. A thread that was given a name takes it when it
    // first runs. Until then, and if it was given none, it has the name of the thread that made it.
    let threads = thread::names()?;
    if threads.is_empty() {
        return Ok(());
    }
    let own = thread::name()?;
    if threads.iter().filter(|name| **name == own).count() < 2 && !has_tokios(&threads) {
        return Ok(());
    }
    let stack = Traceback::new(Captured::here(trace::here()), Callee::default());
    let is_on_stack = |path: &str| stack.frames().iter().any(|frame| frame.function.contains(path));
    // Either sign is enough. The compiler may have inlined the scheduler's functions, so that they are not on the stack; and a thread
    // that has not run yet has no name of its own. The names are asked for again: resolving the stack took time, in which threads ran.
    let threads = thread::names()?;
    let has_threads = is_on_stack(MULTI_THREAD) || has_tokios(&threads);
    if !has_threads || !is_on_stack("tokio::runtime::") {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "phalanx::init() was called inside of a tokio runtime ({} threads: {}): call it first in main, and start the runtime \
         after it, in a plain `fn main` without #[tokio::main]",
        threads.len(),
        threads.join(", ")
    )))
}

fn has_tokios(threads: &[String]) -> bool {
    threads.iter().any(|name| name.starts_with("tokio-"))
}
