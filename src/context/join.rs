//! `ProcessContext`: the user's handle on the workers of one call.

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::group::{Progress, WorkerGroup};
use crate::error::{Error, Outcome, Status};
use crate::sys::clock::Moment;
use crate::sys::signal::Signal;

/// N workers that run one function, whose results are of type `R`.
///
/// It watches them while one of its methods runs; nothing happens behind the program's back. When a worker
/// fails, the next call that joins ends the others: after the grace period if one is set, by SIGTERM, and by
/// SIGKILL when that does not help.
///
/// Dropping it ends its workers: SIGTERM, the grace period (30 s without one), SIGKILL; or SIGKILL at once if
/// they are daemons, or while the thread panics. [`detach`](Self::detach) is the way to leave them alone.
///
/// It is `Send` and `Sync`, and its descriptor ([`AsFd`]) is readable when a worker has ended or hands in memory with its
/// result, when a teardown that is under way has its next deadline, or when it is time to look whether workers exit
/// ([`Options::grace_period`](crate::Options::grace_period)): then call [`join_timeout`](Self::join_timeout) with zero.
///
/// torch's name of the same: `torch.multiprocessing.ProcessContext`.
///
/// ```
/// # phalanx::auto_init!();
/// use std::time::Duration;
/// use phalanx::{Options, Status, start_processes};
///
/// fn work(rank: usize, base: u64) -> anyhow::Result<u64> {
///     Ok(base + rank as u64)
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let mut context = start_processes(work, 40, Options::new(3))?;
/// while !context.join_timeout(Duration::from_millis(100))? {
///     // Something else is done meanwhile.
/// }
/// assert_eq!(context.status(2)?, Status::Succeeded);
/// assert_eq!(context.result(2)?, Some(42));
/// assert_eq!(context.into_results()?, [40, 41, 42]);
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping it ends its workers"]
pub struct ProcessContext<R> {
    workers: WorkerGroup,
    results: PhantomData<fn() -> R>,
}

impl<R> ProcessContext<R> {
    pub(super) fn new(workers: WorkerGroup) -> Self {
        Self { workers, results: PhantomData }
    }

    /// How many workers there are.
    #[must_use]
    pub fn nprocs(&self) -> usize {
        self.workers.nprocs()
    }

    /// Their processes, by rank, also of those that have ended.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.workers.pids()
    }

    /// Waits at most `timeout`: true when all workers have succeeded, false when something still runs. Zero asks
    /// without waiting.
    ///
    /// It never waits longer than `timeout`, also while workers are being ended after a failure: it says false then,
    /// until the last of them is gone, and returns the error after that. (To read a report of many megabytes takes its
    /// own time.)
    ///
    /// # Errors
    /// The failure that happened first in time. Asking again gives the same one.
    pub fn join_timeout(&mut self, timeout: Duration) -> Result<bool, Error> {
        let deadline = Moment::now().checked_add(timeout);
        self.wait(deadline).map(|progress| progress == Progress::Finished)
    }

    fn wait(&mut self, deadline: Option<Moment>) -> Result<Progress, Error> {
        let progress = self.workers.wait(deadline)?;
        self.workers.failure().map_or(Ok(progress), Err)
    }

    /// How a worker is now. This looks which workers have ended, and ends none.
    ///
    /// # Errors
    /// [`Error::NoSuchRank`], or when the system refuses to tell.
    pub fn status(&mut self, rank: usize) -> Result<Status, Error> {
        self.workers.refresh()?;
        self.workers.status(rank).ok_or(Error::NoSuchRank { rank, nprocs: self.nprocs() })
    }

    /// How every worker ended or that it still runs, by rank. This looks which workers have ended, and ends none.
    ///
    /// # Errors
    /// When the system refuses to tell.
    pub fn outcomes(&mut self) -> Result<Vec<Outcome>, Error> {
        self.workers.refresh()?;
        Ok(self.workers.outcomes())
    }

    /// Sends a signal to a worker; to one that has ended it does nothing.
    ///
    /// # Errors
    /// [`Error::NoSuchRank`], or [`Error::Signal`] when the system refuses.
    pub fn signal(&mut self, rank: usize, signal: Signal) -> Result<(), Error> {
        // One that has ended already has not ended of this.
        self.workers.refresh()?;
        self.workers.signal(rank, signal)
    }

    /// Sends SIGTERM to all workers that run.
    ///
    /// # Errors
    /// [`Error::Signal`] when the system refuses.
    pub fn terminate(&mut self) -> Result<(), Error> {
        self.signal_all(Signal::TERM)
    }

    /// Sends SIGKILL to all workers that run.
    ///
    /// # Errors
    /// [`Error::Signal`] when the system refuses.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.signal_all(Signal::KILL)
    }

    fn signal_all(&mut self, signal: Signal) -> Result<(), Error> {
        self.workers.refresh()?;
        // Who may not be signalled keeps no other from it.
        let refused = (0..self.nprocs()).filter_map(|rank| self.workers.signal(rank, signal).err());
        let refused: Vec<_> = refused.collect();
        refused.into_iter().next().map_or(Ok(()), Err)
    }

    /// Leaves the workers alone: they go on until they end by themselves, or until this process does. A thread
    /// reaps them, so that no zombie is left.
    ///
    /// # Errors
    /// When that thread cannot be created; the workers are ended then.
    pub fn detach(self) -> Result<(), Error> {
        let workers = self.workers;
        workers.check_owner()?;
        // A drop has no caller to return an error to; the children's own drop reaps them then.
        let reap_all = move || drop(workers.wait_without_ending());
        let thread = thread::Builder::new().name("phalanx-reap".into()).spawn(reap_all);
        thread.map(drop).map_err(Error::system("create the thread that reaps detached workers"))
    }
}

impl<R: DeserializeOwned> ProcessContext<R> {
    /// Waits until all workers have succeeded, and returns their results by rank.
    ///
    /// # Errors
    /// The failure that happened first in time, after all other workers were ended.
    pub fn join(mut self) -> Result<Vec<R>, Error> {
        self.wait(None)?;
        self.into_results()
    }

    /// The results by rank, when [`join_timeout`](Self::join_timeout) has said true.
    ///
    /// # Errors
    /// [`Error::StillRunning`] when it has not; the workers are ended then, as by any drop. The first failure, if
    /// there was one.
    pub fn into_results(mut self) -> Result<Vec<R>, Error> {
        if self.wait(Some(Moment::now()))? == Progress::Running && self.workers.running() > 0 {
            return Err(Error::StillRunning { running: self.workers.running(), nprocs: self.nprocs() });
        }
        // What they have printed may be on its way still.
        self.wait(None)?;
        (0..self.nprocs())
            .map(|rank| {
                self.result(rank)?.ok_or_else(|| Error::Result { rank, reason: "there is none".into() })
            })
            .collect()
    }

    /// What a rank returned, also when others have failed; `None` when it has not succeeded, or not yet.
    ///
    /// Asked again it gives the same, and tensors that are the same memory; but a [`Shard`](crate::Shard) is there only
    /// once. The context keeps the memory of what it has given out until it is dropped.
    ///
    /// # Errors
    /// [`Error::NoSuchRank`], or [`Error::Result`] when the result cannot be read.
    pub fn result(&self, rank: usize) -> Result<Option<R>, Error> {
        let Some(returned) = self.workers.result(rank)? else { return Ok(None) };
        returned.decode().map(Some).map_err(|reason| Error::Result { rank, reason })
    }
}

impl<R> AsFd for ProcessContext<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.workers.as_fd()
    }
}

impl<R> AsRawFd for ProcessContext<R> {
    /// The descriptor of [`AsFd`], for event loops that want a number.
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl<R> fmt::Debug for ProcessContext<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workers, results: _ } = self;
        f.debug_struct("ProcessContext")
            .field("pids", &workers.pids())
            .field("running", &workers.running())
            .finish()
    }
}
