//! The end of a pool: it is closed, its calls are cancelled, and its workers are waited for or killed.

use std::sync::PoisonError;
use std::thread::{self, JoinHandle};

use super::error::PoolError;
use super::handle::{Owner, Pool};
use super::hub::{Phase, Summary};
use crate::queue::QueueError;
use crate::sync::wait_policy::WaitPolicy;

impl Pool {
    /// Takes no more tasks, in all clones. Those that it has are done.
    ///
    /// Returns at once. A [`submit`](Self::submit) that waits for room returns [`PoolError::Closed`]; a [`Map`](super::Map) ends with items that
    /// fail with [`TaskFailure::PoolEnded`](super::TaskFailure::PoolEnded). A worker that dies is replaced as long as there are calls.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::{Pool, PoolError};
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(1)?;
    /// let last = pool.submit(|x: u64| anyhow::Ok(x * x), 3)?;
    /// pool.close();
    /// assert!(matches!(pool.submit(|x: u64| anyhow::Ok(x), 4), Err(PoolError::Closed)));
    /// assert_eq!(last.join()?, 9);
    /// # Ok(())
    /// # }
    /// ```
    pub fn close(&self) {
        if self.hub().is_here() {
            self.hub().enter(Phase::Closing);
        }
    }

    /// Cancels all calls that have not begun; returns how many.
    ///
    /// Items of maps count one by one. Each of them fails with [`TaskFailure::Cancelled`](super::TaskFailure::Cancelled); what runs goes on. As
    /// exact as [`Task::cancel`](super::Task::cancel): none of their functions is ever called.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::Pool;
    ///
    /// fn answer(request: u64) -> anyhow::Result<u64> {
    ///     Ok(request * 2)
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(1)?;
    /// let tasks = (0..4).map(|n| pool.submit(answer, n)).collect::<Result<Vec<_>, _>>()?;
    /// // The service is to stop soon: what runs is done, the rest is given up.
    /// let given_up = pool.cancel_queued();
    /// let done = tasks.into_iter().map(|task| task.join()).filter(Result::is_ok).count();
    /// assert_eq!(given_up + done, 4);
    /// assert_eq!(pool.join()?.failed, given_up as u64);
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancel_queued(&self) -> usize {
        self.hub().cancel_all(|_| true)
    }

    /// Closes the pool, and waits until all its calls are done and its workers have ended.
    ///
    /// Calls whose [`Task`](super::Task) was dropped are done too: give the calls, drop the handles, and join. Threads that hold other clones
    /// can submit no more. In Python: `close` and `join`, or `shutdown(wait=True)`.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::Pool;
    ///
    /// fn send(attempt: u32) -> anyhow::Result<()> {
    ///     anyhow::ensure!(attempt != 7, "refused");
    ///     Ok(())
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(2)?;
    /// for attempt in 0..10 {
    ///     drop(pool.submit(send, attempt)?);
    /// }
    /// let summary = pool.join()?;
    /// assert_eq!((summary.succeeded, summary.failed), (9, 1));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`PoolError::Broken`] when it could not keep its workers; [`PoolError::Forked`]; [`PoolError::Queue`] when the wait was
    /// aborted.
    pub fn join(self) -> Result<Summary, PoolError> {
        let hub = self.hub();
        hub.check_here()?;
        self.close();
        hub.wait(&WaitPolicy::Forever, || hub.is_done().then_some(()), |thread| hub.wake_at_end(thread))
            .or_else(|error| if matches!(error, QueueError::Closed) { Ok(()) } else { Err(error) })
            .map_err(PoolError::Queue)?;
        self.owner.await_thread();
        hub.summary()
    }

    /// Ends the workers by SIGKILL, and gives up all calls. In Python: `terminate`.
    ///
    /// Returns when the workers have ended. A call that ran fails with [`TaskFailure::WorkerEnded`](super::TaskFailure::WorkerEnded), one that
    /// no worker had taken, or that could have been [tried again](super::PoolOptions::retries), with
    /// [`TaskFailure::PoolEnded`](super::TaskFailure::PoolEnded).
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::Pool;
    ///
    /// fn hang(_: ()) -> anyhow::Result<()> {
    ///     loop {
    ///         std::thread::park();
    ///     }
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(1)?;
    /// let task = pool.submit(hang, ())?;
    /// pool.kill();
    /// assert!(task.join().is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn kill(self) {
        self.owner.end(Phase::Ending { kills: true });
    }
}

impl Owner {
    fn await_thread(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // It does not panic; if it did, its children are dead and what was outstanding is told by then.
        let _ = thread.map(JoinHandle::join);
    }

    fn end(&self, phase: Phase) {
        if self.hub.is_here() {
            self.hub.enter(phase);
            self.await_thread();
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // In a fork of the process there is no such thread, and the workers are not its children.
        if !self.hub.is_here() {
            return;
        }
        if thread::panicking() {
            return self.end(Phase::Ending { kills: true });
        }
        self.hub.drain();
        self.hub.cancel_all(|occupant| !occupant.is_wanted());
        if self.hub.is_wanted() {
            self.hub.enter(Phase::Closing);
        } else {
            self.end(Phase::Ending { kills: false });
        }
    }
}
