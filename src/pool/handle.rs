//! Pool: the handle of N workers that do many calls.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::alarm::Times;
use super::errands::NEXT;
use super::error::PoolError;
use super::hub::{Hub, Phase, Summary};
use super::label::TaskLabel;
use super::options::PoolOptions;
use super::stats::{Stats, WorkerStats};
use super::submit::{self, Order};
use super::task::Task;
use crate::Options;
use crate::error::WorkerError;
use crate::queue::{Outgoing, QueueError};
use crate::sync::wait_policy::WaitPolicy;
use crate::worker::entry::{self, Entry, task};

/// N workers that do many calls, one after the other.
///
/// Clones are the same pool. It is `Send` and `Sync`: any thread may give it tasks. Dropping the last clone closes it: calls whose
/// [`Task`] the program still holds are done, and the workers end after them; all others are given up. [`join`](Self::join) waits for
/// all. In a process that was forked from this one the pool does nothing.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::pool::{Pool, TaskFailure};
///
/// fn divide((a, b): (u64, u64)) -> anyhow::Result<u64> {
///     anyhow::ensure!(b != 0, "division by zero");
///     Ok(a / b)
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let pool = Pool::new(2)?;
/// let (good, bad) = (pool.submit(divide, (6, 2))?, pool.submit(divide, (6, 0))?);
/// assert_eq!(good.join()?, 3);
/// let failed = bad.join().unwrap_err();
/// let TaskFailure::Raised(error) = failed.failure() else { panic!("{failed}") };
/// assert_eq!(error.message(), "division by zero");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Pool(Arc<Owner>);

/// What all clones share. Its end closes the pool.
struct Owner {
    hub: Arc<Hub>,
    thread: Mutex<Option<JoinHandle<()>>>,
    retries: u32,
    limit: Option<Duration>,
    deadline: Option<Duration>,
}

impl Pool {
    /// A pool with this number of workers, started by [`StartMethod::Spawn`](crate::StartMethod::Spawn).
    ///
    /// # Errors
    /// As [`PoolOptions::build`].
    pub fn new(workers: usize) -> Result<Self, PoolError> {
        Self::options(Options::new(workers)).build()
    }

    /// The options of a pool, whose workers are started as [`Options`] say.
    pub fn options(workers: Options) -> PoolOptions {
        PoolOptions::new(workers)
    }

    pub(super) fn hub(&self) -> &Arc<Hub> {
        &self.0.hub
    }

    /// The handle of a pool that was made, and whose thread runs.
    pub(super) fn of(hub: Arc<Hub>, thread: JoinHandle<()>, options: &PoolOptions) -> Self {
        let &PoolOptions { retries, limit, deadline, .. } = options;
        Self(Arc::new(Owner { hub, thread: Mutex::new(Some(thread)), retries, limit, deadline }))
    }

    /// Whether its tasks have time limits or deadlines.
    pub(super) fn is_timed(&self) -> bool {
        self.0.limit.is_some() || self.0.deadline.is_some()
    }

    /// How many workers it has, at the most: with [`PoolOptions::min`] it may have fewer at the moment ([`workers`](Self::workers)).
    #[must_use]
    pub fn size(&self) -> usize {
        self.hub().size()
    }

    /// What it has done and has to do.
    #[must_use]
    pub fn stats(&self) -> Stats {
        if self.hub().is_here() {
            self.hub().look();
        }
        self.hub().stats()
    }

    /// What each worker does, by number.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(2)?;
    /// pool.map(|x: u64| anyhow::Ok(x), 0..100)?.try_for_each(|result| result.map(drop))?;
    /// let begun: u64 = pool.workers().iter().map(|worker| worker.begun).sum();
    /// assert_eq!((pool.workers().len(), begun), (2, 100));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerStats> {
        self.hub().worker_stats()
    }

    /// Gives a call to the workers: one of them will call `f(args)`. Where as many are on their way as the pool takes, it waits for
    /// one to end.
    ///
    /// `f` is a plain function or a closure that captures nothing, as for [`spawn`](crate::spawn()); what it needs goes into `args`.
    /// Tensors, queues, locks and descriptors in `args` and in the result are shared, not copied.
    ///
    /// # Errors
    /// [`PoolError::Arguments`], [`PoolError::Function`], [`PoolError::Closed`], [`PoolError::Broken`], [`PoolError::Forked`], and
    /// [`PoolError::Queue`] when the system refuses.
    pub fn submit<F, A, R, E>(&self, f: F, args: A) -> Result<Task<R>, PoolError>
    where
        F: Fn(A) -> Result<R, E> + Copy + Send + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        self.submit_by(f, &args, &WaitPolicy::Forever)
    }

    /// As [`submit`](Self::submit), but does not wait for room. The arguments come by reference, since they stay here where there is none.
    ///
    /// # Errors
    /// [`PoolError::Full`] when there is none; those of [`submit`](Self::submit).
    pub fn try_submit<F, A, R, E>(&self, f: F, args: &A) -> Result<Task<R>, PoolError>
    where
        F: Fn(A) -> Result<R, E> + Copy + Send + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        self.submit_by(f, args, &WaitPolicy::Never)
    }

    /// As [`submit`](Self::submit), but waits for room no longer than `timeout`.
    ///
    /// # Errors
    /// [`PoolError::Full`] when the time is up; those of [`submit`](Self::submit).
    pub fn submit_timeout<F, A, R, E>(&self, f: F, args: &A, timeout: Duration) -> Result<Task<R>, PoolError>
    where
        F: Fn(A) -> Result<R, E> + Copy + Send + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        self.submit_by(f, args, &WaitPolicy::of(timeout))
    }

    fn submit_by<F, A, R, E>(&self, f: F, args: &A, policy: &WaitPolicy) -> Result<Task<R>, PoolError>
    where
        F: Fn(A) -> Result<R, E> + Copy + Send + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: WorkerError,
    {
        let _ = f;
        self.submit_entry(task::of_plain::<F, A, R, E>(), args, policy)
    }

    pub(super) fn submit_entry<A: Serialize, R>(
        &self,
        entry: &'static Entry,
        args: &A,
        policy: &WaitPolicy,
    ) -> Result<Task<R>, PoolError> {
        self.give(self.order_of(entry, args)?, policy)
    }

    /// A call with these arguments.
    pub(super) fn order_of<A: Serialize>(&self, entry: &'static Entry, args: &A) -> Result<Order, PoolError> {
        let most = self.hub().tasks.core().inline();
        let message = Outgoing::labelled(&[0; TaskLabel::LEN], args, most);
        self.order(entry, message.map_err(|error| submit::unsent(entry.name(), error))?)
    }

    /// A call as the options of the pool have it.
    pub(super) fn order(&self, entry: &'static Entry, message: Outgoing) -> Result<Order, PoolError> {
        Ok(Order {
            entry,
            function: submit::function(entry)?,
            message,
            inbox: Arc::default(),
            first: None,
            items: 0,
            retries: self.0.retries,
            times: Times::from_now(self.0.limit, self.0.deadline),
            seat: None,
            environment: NEXT,
        })
    }

    /// Gives a call to the pool.
    fn give<R>(&self, order: Order, policy: &WaitPolicy) -> Result<Task<R>, PoolError> {
        let (inbox, name) = (order.inbox.clone(), order.entry.name());
        let ticket = self.hub().submit(order, policy)?;
        Ok(Task::new(self.hub().clone(), inbox, name, ticket))
    }

    /// Has each worker that is there at the moment call `f(args)` once, after the call that it runs and before all others, and returns a
    /// [`Task`] for each. A worker that is started later does not: what each must have is for
    /// [`with_state`](PoolOptions::with_state), or for [`Options::on_start`](crate::Options::on_start).
    ///
    /// A worker that ends before it has begun fails its own call. Calls are not [tried again](PoolOptions::retries).
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    /// use phalanx::pool::Pool;
    ///
    /// static LEVEL: AtomicU32 = AtomicU32::new(0);
    ///
    /// fn set_level(level: u32) -> anyhow::Result<usize> {
    ///     LEVEL.store(level, Relaxed);
    ///     Ok(phalanx::pool::worker().map_or(0, |worker| worker.rank))
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(2)?;
    /// let tasks = pool.broadcast(set_level, 3)?;
    /// let workers = tasks.into_iter().map(|task| task.join()).collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(workers, [0, 1]);
    /// assert_eq!(pool.submit(|()| anyhow::Ok(LEVEL.load(Relaxed)), ())?.join()?, 3);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`submit`](Self::submit). [`PoolError::Arguments`], too, for arguments that only one process may have, such as a
    /// [`Shard`](crate::Shard).
    pub fn broadcast<F, A, R, E>(&self, f: F, args: A) -> Result<Vec<Task<R>>, PoolError>
    where
        F: Fn(A) -> Result<R, E> + Copy + Send + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        let _ = f;
        self.broadcast_entry(task::of_plain::<F, A, R, E>(), &args)
    }

    pub(super) fn broadcast_entry<A: Serialize, R>(
        &self,
        entry: &'static Entry,
        args: &A,
    ) -> Result<Vec<Task<R>>, PoolError> {
        self.hub().check_here()?;
        let message = submit::for_several(entry.name(), args)?;
        let give = |seat| {
            let message = message.duplicate().ok_or(PoolError::Closed)?;
            let order = Order { seat: Some(seat), retries: 0, ..self.order(entry, message)? };
            self.give(order, &WaitPolicy::Forever)
        };
        self.hub().present().into_iter().map(give).collect()
    }

    /// Takes no more tasks, in all clones. Those that it has are done.
    pub fn close(&self) {
        if self.hub().is_here() {
            self.hub().enter(Phase::Closing);
        }
    }

    /// Cancels all calls that have not begun; returns how many.
    pub fn cancel_queued(&self) -> usize {
        self.hub().cancel_all(|_| true)
    }

    /// Closes the pool, and waits until all its calls are done and its workers have ended.
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
        self.0.await_thread();
        hub.summary()
    }

    /// Ends the workers by SIGKILL, and gives up all calls.
    pub fn kill(self) {
        self.0.end(Phase::Ending { kills: true });
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

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.hub().lock();
        f.debug_struct("Pool")
            .field("workers", &self.hub().size())
            .field("outstanding", &state.outstanding())
            .field("succeeded", &state.done)
            .field("failed", &state.failed)
            .finish_non_exhaustive()
    }
}
