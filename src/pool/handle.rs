//! Pool: the handle of N workers that do many calls.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::alarm::Times;
use super::errands::NEXT;
use super::error::PoolError;
use super::hub::Hub;
use super::label::TaskLabel;
use super::options::PoolOptions;
use super::stats::{Stats, WorkerStats};
use super::submit::{self, Order};
use super::task::Task;
use super::terms::CallTerms;
use crate::Options;
use crate::error::WorkerError;
use crate::queue::Outgoing;
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
pub struct Pool {
    pub(super) owner: Arc<Owner>,
    /// Of the calls that are given through this handle.
    pub(super) terms: CallTerms,
}

/// What all clones share. Its end closes the pool.
pub(super) struct Owner {
    pub(super) hub: Arc<Hub>,
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
}

impl Pool {
    /// A pool with this number of workers, started by [`StartMethod::Spawn`](crate::StartMethod::Spawn).
    ///
    /// It returns when the processes have been started, and does not wait until they can take calls. In Python: `multiprocessing.Pool(n)`,
    /// `ProcessPoolExecutor(max_workers=n)`.
    ///
    /// # Errors
    /// As [`PoolOptions::build`].
    pub fn new(workers: usize) -> Result<Self, PoolError> {
        Self::options(Options::new(workers)).build()
    }

    /// The options of a pool, whose workers are started as [`Options`] say.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::Options;
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let workers = Options::new(2).name("thumbnails").stderr_tail(20);
    /// let pool = Pool::options(workers).memory_limit(1 << 30).build()?;
    /// assert_eq!(pool.submit(|x: u64| anyhow::Ok(x + 1), 1)?.join()?, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn options(workers: Options) -> PoolOptions {
        PoolOptions::new(workers)
    }

    pub(super) fn hub(&self) -> &Arc<Hub> {
        &self.owner.hub
    }

    /// The handle of a pool that was made, and whose thread runs.
    pub(super) fn of(hub: Arc<Hub>, thread: JoinHandle<()>, terms: CallTerms) -> Self {
        Self { owner: Arc::new(Owner { hub, thread: Mutex::new(Some(thread)) }), terms }
    }

    /// How many workers it has, at the most: with [`PoolOptions::min`] it may have fewer at the moment ([`workers`](Self::workers)).
    #[must_use]
    pub fn size(&self) -> usize {
        self.hub().size()
    }

    /// What it has done and has to do.
    ///
    /// Results that lie in the queue are taken in first, unless another thread is at that, so the numbers are those of this moment.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(1)?;
    /// pool.submit(|x: u64| anyhow::Ok(x), 1)?.join()?;
    /// let failed = pool.submit(|_: u64| -> anyhow::Result<()> { anyhow::bail!("no") }, 1)?.join();
    /// assert!(failed.is_err());
    /// let stats = pool.stats();
    /// assert_eq!((stats.outstanding, stats.succeeded, stats.failed), (0, 1, 1));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        if !self.hub().is_here() {
            return Stats::default();
        }
        self.hub().look();
        self.hub().stats()
    }

    /// What each worker does, by number.
    ///
    /// Read from shared memory and two files of /proc for each worker: no worker is asked, and none is held up. A number whose worker has
    /// ended and has no successor yet is left out.
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
        if self.hub().is_here() { self.hub().worker_stats() } else { Vec::new() }
    }

    /// Gives a call to the workers: one of them will call `f(args)`. Where as many are on their way as the pool takes, it waits for
    /// one to end.
    ///
    /// `f` is a plain function or a closure that captures nothing, as for [`spawn`](crate::spawn()); what it needs goes into `args`.
    /// Tensors, queues, locks and descriptors in `args` and in the result are shared, not copied.
    ///
    /// It returns when the call lies in the queue, which says nothing about its begin. Workers take calls in the order in which they were
    /// submitted; they end in any order. `args` are serialised by the calling thread. While it waits for room it takes results in, so a
    /// program that submits without ever joining does not wait for itself.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::{Pool, PoolError};
    ///
    /// /// How well a model does that was trained at this point of the grid.
    /// fn loss((rate, depth): (f64, u32)) -> anyhow::Result<f64> {
    ///     anyhow::ensure!(rate < 1.0, "the training diverges");
    ///     Ok((rate - 0.1).abs() + f64::from(depth.abs_diff(3)))
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(2)?;
    /// let grid = [0.01, 0.1, 1.0].into_iter().flat_map(|rate| [2, 3].map(|depth| (rate, depth)));
    /// let tasks = grid.map(|point| Ok((point, pool.submit(loss, point)?))).collect::<Result<Vec<_>, PoolError>>()?;
    /// // A point that fails costs itself alone.
    /// let losses = tasks.into_iter().filter_map(|(point, task)| Some((point, task.join().ok()?)));
    /// let best = losses.min_by(|(_, a), (_, b)| a.total_cmp(b));
    /// assert_eq!(best, Some(((0.1, 3), 0.0)));
    /// # Ok(())
    /// # }
    /// ```
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
    /// It takes no results in either: a call that has ended keeps its room until a thread has taken its result out of the queue, by a
    /// [`join`](Task::join), [`is_finished`](Task::is_finished) or [`stats`](Self::stats) of any call.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::Options;
    /// use phalanx::pool::{Pool, PoolError};
    ///
    /// fn answer(request: String) -> anyhow::Result<usize> {
    ///     Ok(request.len())
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::options(Options::new(1)).capacity(1).build()?;
    /// let first = pool.try_submit(answer, &"first".to_owned())?;
    /// // The second client hears now that the server is busy, and not in a minute.
    /// let second = "second".to_owned();
    /// assert!(matches!(pool.try_submit(answer, &second), Err(PoolError::Full { queued: 1 })));
    /// assert_eq!(first.join()?, 5);
    /// assert_eq!(pool.try_submit(answer, &second)?.join()?, 6);
    /// # Ok(())
    /// # }
    /// ```
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
    /// It takes results in while it waits, as [`submit`](Self::submit); a timeout of zero is [`try_submit`](Self::try_submit).
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::time::Duration;
    /// use phalanx::Options;
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::options(Options::new(1)).capacity(1).build()?;
    /// let first = pool.submit(|x: u64| anyhow::Ok(x), 1)?;
    /// // Its room becomes free when the first one has ended.
    /// let second = pool.submit_timeout(|x: u64| anyhow::Ok(x), &2, Duration::from_secs(600))?;
    /// assert_eq!((first.join()?, second.join()?), (1, 2));
    /// # Ok(())
    /// # }
    /// ```
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
            retries: self.terms.retries,
            retry_if: self.terms.retry_if,
            times: Times::from_now(self.terms.limit, self.terms.deadline),
            seat: None,
            environment: NEXT,
        })
    }

    /// Gives a call to the pool.
    pub(super) fn give<R>(&self, order: Order, policy: &WaitPolicy) -> Result<Task<R>, PoolError> {
        let (inbox, name) = (order.inbox.clone(), order.entry.name());
        let ticket = self.hub().submit(order, policy)?;
        Ok(Task::new(self.hub().clone(), inbox, name, ticket))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.hub().is_here() {
            return f.write_str("Pool { of another process }");
        }
        let state = self.hub().lock();
        f.debug_struct("Pool")
            .field("workers", &self.hub().size())
            .field("outstanding", &state.outstanding())
            .field("succeeded", &state.done)
            .field("failed", &state.failed)
            .finish_non_exhaustive()
    }
}
