//! A worker whose main has started a runtime before `init`, as `#[tokio::main]` does: its function would run inside of it,
//! where it can start no runtime of its own.

use std::io;

use crate::error::{Callee, Captured, Traceback};
use crate::sys::{process, trace};

/// Refuses to begin inside of a runtime. Threads alone are no reason: profilers, allocators and preloaded libraries may have
/// started some before main.
pub(super) fn refuse_inside_of_a_runtime() -> io::Result<()> {
    let threads = process::thread_names()?;
    // Naming the stack takes long, so it is only done where there is a runtime somewhere.
    if !threads.iter().any(|name| name.starts_with("tokio-")) {
        return Ok(());
    }
    let stack = Traceback::new(Captured::here(trace::here()), Callee::default());
    if !stack.frames().iter().any(|frame| frame.function.contains("tokio::runtime::")) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "phalanx::init() was called inside of a tokio runtime ({} threads: {}): call it first in main, and start the runtime \
         after it, in a plain `fn main` without #[tokio::main]",
        threads.len(),
        threads.join(", ")
    )))
}
