//! The thread that starts the workers of a caller which may end before them.
//!
//! The parent-death signal is bound to the thread that started the child, not to its process (prctl(2)): a worker
//! started from a thread of a pool would die with that thread. So another thread starts them and lives as long as they do.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::error::Error;
use crate::supervise::parent::ParentThread;
use crate::sys::signal;

/// Runs `work` in a new thread, which then lives until the returned handle is dropped.
pub(super) fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<(T, ParentThread), Error> {
    // With room for the answer, so that the thread need not wait until the caller takes it.
    let (reply, answer) = mpsc::sync_channel(1);
    let over = Arc::new(AtomicBool::new(false));
    let live = {
        let over = over.clone();
        move || {
            // An error does no harm: a handler of the program's might then run on this thread.
            let _ = signal::block_all_in_thread();
            // The receiver waits below, and gets a panic too.
            let _ = reply.send(panic::catch_unwind(AssertUnwindSafe(work)));
            // std::thread::park may return without an unpark, so the flag decides.
            while !over.load(Ordering::Acquire) {
                thread::park();
            }
        }
    };
    // New for each call, and not kept for the next one. Linux keeps much for each thread: nice value, scheduling policy, timer
    // slack, I/O priority, affinity, memory policy, credentials, no_new_privs, seccomp filters, namespaces, with
    // unshare(CLONE_FS) also umask and working directory. A new thread has all of it from the thread that creates it, and hands
    // it on to the workers, as the caller would.
    let thread = thread::Builder::new().name("phalanx-start".into()).spawn(live);
    let thread = thread.map_err(Error::system("create the thread that starts workers"))?;
    let parent = ParentThread::new(thread.thread().clone(), over);
    let lost = |_| std::io::Error::other("the thread has ended");
    match answer.recv().map_err(lost).map_err(Error::system("hear from the starting thread"))? {
        Ok(result) => Ok((result, parent)),
        // The work runs on another thread, but it is the caller's: its panic goes on where the caller would have met it.
        Err(payload) => panic::resume_unwind(payload),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, TryRecvError};

    use super::*;

    /// Says on a channel when the thread that has it ends.
    struct AtEnd(Sender<&'static str>);

    impl Drop for AtEnd {
        fn drop(&mut self) {
            self.0.send("ended").unwrap();
        }
    }

    thread_local! {
        static AT_END: std::cell::RefCell<Option<AtEnd>> = const { std::cell::RefCell::new(None) };
    }

    #[test]
    fn thread_lives_until_its_handle_is_dropped() {
        let (told, ends) = mpsc::channel();
        let work = move || {
            AT_END.set(Some(AtEnd(told)));
            thread::current().id()
        };
        let (id, parent) = run(work).unwrap();
        assert_ne!(id, thread::current().id());
        assert_eq!(ends.try_recv(), Err(TryRecvError::Empty));
        drop(parent);
        assert_eq!(ends.recv(), Ok("ended"));
    }

    #[test]
    fn panic_of_the_work_comes_to_the_caller() {
        let caught = panic::catch_unwind(|| run(|| -> () { panic::panic_any("no luck") }));
        assert_eq!(*caught.unwrap_err().downcast::<&str>().unwrap(), "no luck");
    }
}
