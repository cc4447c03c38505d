//! The thread from which workers are started when the caller may end before them.
//!
//! The parent-death signal is bound to the thread that started the child, not to its process (prctl(2)): a
//! worker started from a thread of a pool would die with that thread. So there is one that never ends.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::thread;

use crossbeam::channel::{self, Sender};

use crate::error::Error;
use crate::sys::affinity::Affinity;
use crate::sys::signal;

type Task = Box<dyn FnOnce() + Send>;

/// The way to the thread, and the process it belongs to: a process that the user forked does not have it.
static THREAD: Mutex<Option<(u32, Sender<Task>)>> = Mutex::new(None);

/// Runs `work` in the immortal thread and returns its result.
pub(super) fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let (reply, answer) = channel::bounded(1);
    // Workers inherit the processors of the thread that starts them, which are to be the caller's.
    let affinity = Affinity::of_caller();
    let task: Task = Box::new(move || {
        if let Ok(affinity) = &affinity {
            // It was the caller's a moment ago; if the system has taken it away since, its own is as good.
            let _ = affinity.take_on();
        }
        // The receiver waits below; a panic goes there too, and the thread lives on.
        let _ = reply.send(panic::catch_unwind(AssertUnwindSafe(work)));
    });
    let lost = |_| std::io::Error::other("the thread has ended");
    tasks()?.send(task).map_err(|_| lost(())).map_err(Error::system("hand over to the starting thread"))?;
    match answer.recv().map_err(|_| lost(())).map_err(Error::system("hear from the starting thread"))? {
        Ok(result) => Ok(result),
        Err(payload) => panic::resume_unwind(payload),
    }
}

fn tasks() -> Result<Sender<Task>, Error> {
    let mut known = THREAD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let pid = std::process::id();
    if let Some((_, tasks)) = known.as_ref().filter(|(owner, _)| *owner == pid) {
        return Ok(tasks.clone());
    }
    let (tasks, inbox) = channel::unbounded::<Task>();
    let live = move || {
        // Best effort: unblocked, a signal handler of the program might run here, which does no harm to us.
        let _ = signal::block_all_in_thread();
        inbox.into_iter().for_each(|task| task());
    };
    let thread = thread::Builder::new().name("phalanx-start".into()).spawn(live);
    thread.map_err(Error::system("create the thread that starts workers"))?;
    *known = Some((pid, tasks.clone()));
    Ok(tasks)
}
