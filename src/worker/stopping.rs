//! Whether a worker is being ended.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use crate::wire::stop_pipe::OwnStopPipe;
use crate::wire::stop_word;

/// The stop pipe of the job that this process is a part of, looked for at the first question.
static OF_JOB: OnceLock<Option<OwnStopPipe>> = OnceLock::new();

fn of_job() -> Option<&'static OwnStopPipe> {
    OF_JOB.get_or_init(OwnStopPipe::find).as_ref()
}

/// Whether this worker is being ended: a loop that asks now and then can save its state and return before SIGTERM or SIGKILL comes.
///
/// - In a worker of [`spawn`](crate::spawn) and its kin it is true from the moment when the teardown begins: when another
///   worker's failure is joined ([`join`](crate::ProcessContext::join), [`join_timeout`](crate::ProcessContext::join_timeout)), or
///   the context is dropped. [`Options::grace_period`](crate::Options::grace_period) is the time that is left until SIGTERM; without
///   it there is none. Asking takes a few nanoseconds.
/// - In a program or a function that [`launch::Launch`](crate::launch::Launch) or `phalanx run` has started it is true from the
///   moment when the attempt is being stopped: a worker has failed, the launcher was told to stop, or the launcher is gone. SIGTERM,
///   or the signal that was passed on, comes in the same moment, so handle that too
///   ([`Launch::shutdown_timeout`](crate::launch::Launch::shutdown_timeout) is the time that is left until SIGKILL). Asking takes a
///   system call, less than a microsecond, until it is true.
///
/// False in every other process, and in a worker that only was sent a signal. Nothing that waits is woken by it, unless
/// [`Options::abort_on_failure`](crate::Options::abort_on_failure) says so; wait for [`stop_fd`] too.
///
/// ```
/// # phalanx::auto_init!();
/// use std::time::Duration;
/// use phalanx::{Options, Queue, start_processes};
///
/// fn work(rank: usize, saved: Queue<usize>) -> anyhow::Result<()> {
///     anyhow::ensure!(rank != 1, "out of luck");
///     while !phalanx::stopping() {
///         // … one more step …
///         std::thread::yield_now();
///     }
///     Ok(saved.put(rank)?)
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let saved = Queue::bounded(1)?;
/// let options = Options::new(2).grace_period(Duration::from_secs(60));
/// start_processes(work, saved.clone(), options)?.join().unwrap_err();
/// assert_eq!(saved.get()?, 0);
/// assert!(!phalanx::stopping());
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn stopping() -> bool {
    stop_word::is_set().unwrap_or_else(|| of_job().is_some_and(OwnStopPipe::has_begun))
}

/// A descriptor that is readable once [`stopping`] is true, for [`wait`](crate::wait), poll(2) and event loops; `None` in a process that
/// is no worker. Do not read from it: other workers have it too.
///
/// ```
/// # phalanx::auto_init!();
/// use std::time::Duration;
/// use phalanx::{Options, Queue, start_processes, wait};
///
/// fn work(rank: usize, tasks: Queue<u8>) -> anyhow::Result<()> {
///     anyhow::ensure!(rank != 1, "out of luck");
///     let stop = phalanx::stop_fd().expect("this is a worker");
///     assert_eq!(wait(&[&tasks, &stop], None)?, [1]); // no task comes
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let options = Options::new(2).grace_period(Duration::from_secs(60));
/// let error = start_processes(work, Queue::bounded(1)?, options)?.join().unwrap_err();
/// assert!(error.to_string().contains("out of luck"), "{error}");
/// assert!(phalanx::stop_fd().is_none());
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn stop_fd() -> Option<BorrowedFd<'static>> {
    stop_word::event().or_else(|| of_job().map(AsFd::as_fd))
}
