//! What can be chosen when a pool is made.

use std::time::Duration;

use super::error::PoolError;
use super::seats::{Size, Term};
use super::terms::CallTerms;
use crate::Options;

/// How many pools may be around one another: a task that makes a pool for tasks that make a pool …
const DEEPEST: u32 = 8;
/// How long a task that was asked to end has.
const GRACE: Duration = Duration::from_secs(5);
/// How many tasks may be on their way.
const CAPACITY: usize = 16 << 10;
/// More than a cell's word can name, two for each place.
const MOST_WORKERS: usize = u16::MAX as usize / 2;

/// How a pool is made: [`Pool::options`](super::Pool::options).
///
/// ```
/// # phalanx::auto_init!();
/// use std::time::Duration;
/// use phalanx::Options;
/// use phalanx::pool::Pool;
///
/// # fn main() -> anyhow::Result<()> {
/// let workers = Options::new(2).name("grid").env("OMP_NUM_THREADS", "1");
/// let pool = Pool::options(workers).retries(1).timeout(Duration::from_secs(60)).build()?;
/// # drop(pool);
/// # Ok(())
/// # }
/// ```
///
/// In force without further options: all workers are started at once and stay, calls have neither limit nor deadline, and none is tried again.
#[derive(Clone, Debug)]
#[must_use = "a pool is made by build()"]
pub struct PoolOptions {
    pub(super) workers: Options,
    pub(super) capacity: usize,
    /// Of the calls of its handle, and of those that change nothing of it.
    pub(super) terms: CallTerms,
    pub(super) grace: Duration,
    pub(super) term: Term,
    pub(super) min: Option<usize>,
    pub(super) idle_after: Option<Duration>,
    pub(super) memory: Option<u64>,
    /// How long the set-up of a worker may take.
    pub(super) init_limit: Option<Duration>,
}

impl PoolOptions {
    pub(super) fn new(workers: Options) -> Self {
        Self {
            workers,
            capacity: CAPACITY,
            terms: CallTerms::default(),
            grace: GRACE,
            term: Term::default(),
            min: None,
            idle_after: None,
            memory: None,
            init_limit: None,
        }
    }

    /// How many tasks may be on their way, chunks of a map counting as one; 16,384 without it. [`Pool::submit`](super::Pool::submit)
    /// waits when there are as many.
    ///
    /// From 1 to 2^20. It is a bound for what lies in the queue and in workers' hands together: a call counts until its result has been
    /// taken in. Each has a cell of 64 bytes in shared memory, whose page is not used before as many calls were on their way at a time.
    pub fn capacity(self, tasks: usize) -> Self {
        Self { capacity: tasks, ..self }
    }

    /// How often a task is begun again when its worker has ended or its time was up; 0 without it: no function is ever called
    /// twice. It is begun again at once, then after pauses of 10 ms, 100 ms, and 1 s each time; what came of each attempt is in
    /// [`TaskFailed::earlier_attempts`](super::TaskFailed::earlier_attempts).
    ///
    /// An error or a panic is an answer, and is not tried again; nor is what [`Pool::with_retry_if`](super::Pool::with_retry_if) refuses, nor
    /// a task in whose arguments there is something that only one process
    /// can have, a [`Shard`](crate::Shard) or a [`Connection`](crate::Connection): the failure says so. With this the process of the pool keeps
    /// the arguments of each task that has not ended, with the tensors in them.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::Options;
    /// use phalanx::pool::Pool;
    /// use phalanx::sync::Value;
    ///
    /// fn flaky(begun: Value<u32>) -> anyhow::Result<String> {
    ///     if begun.fetch_add(1) == 0 {
    ///         std::process::abort(); // the first attempt only
    ///     }
    ///     Ok("done".to_owned())
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::options(Options::new(1)).retries(2).build()?;
    /// let begun = Value::new(0)?;
    /// assert_eq!(pool.submit(flaky, begun.clone())?.join()?, "done");
    /// assert_eq!(begun.get(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn retries(mut self, most: u32) -> Self {
        self.terms.retries = most;
        self
    }

    /// How long a function may run, from its begin. After that it is ended as by [`Task::kill`](super::Task::kill), and fails with
    /// [`TaskFailure::TimedOut`](super::TaskFailure::TimedOut). Items of maps then travel one by one.
    ///
    /// Time in the queue does not count; that is what a [deadline](Self::deadline) is for. A call that ends within the
    /// [grace](Self::grace) after it was asked gives what it returns, late as it is. With [retries](Self::retries) each attempt has the
    /// whole limit.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::time::Duration;
    /// use phalanx::Options;
    /// use phalanx::pool::{Pool, TaskFailure};
    ///
    /// fn hang(_: ()) -> anyhow::Result<()> {
    ///     loop {
    ///         std::thread::park();
    ///     }
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let options = Pool::options(Options::new(1)).timeout(Duration::from_millis(20));
    /// let pool = options.grace(Duration::ZERO).build()?;
    /// let failed = pool.submit(hang, ())?.join().unwrap_err();
    /// assert!(matches!(failed.failure(), TaskFailure::TimedOut { .. }), "{failed}");
    /// # Ok(())
    /// # }
    /// ```
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.terms.limit = Some(limit);
        self
    }

    /// How long after it was given to the pool a task may still begin, and run: what a server needs whose callers have gone by then. A
    /// task that has not begun by that moment never does; one that runs is ended as by [`timeout`](Self::timeout). Both fail with
    /// [`TaskFailure::DeadlinePassed`](super::TaskFailure::DeadlinePassed), and [retries](Self::retries) do not prolong it. The time is
    /// that of CLOCK_MONOTONIC, and a wait for room is part of it; there is no deadline without this. Items of maps then travel one by
    /// one, and the time of each counts from when it was read and given to the pool.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::time::Duration;
    /// use phalanx::Options;
    /// use phalanx::pool::{Pool, TaskFailure};
    ///
    /// fn answer(_: ()) -> anyhow::Result<u32> {
    ///     Ok(42)
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::options(Options::new(1)).deadline(Duration::ZERO).build()?;
    /// let failed = pool.submit(answer, ())?.join().unwrap_err();
    /// assert!(matches!(failed.failure(), TaskFailure::DeadlinePassed { outcome: None, .. }), "{failed}");
    /// assert!(!failed.began());
    /// # Ok(())
    /// # }
    /// ```
    pub fn deadline(mut self, after: Duration) -> Self {
        self.terms.deadline = Some(after);
        self
    }

    /// How long a task that was asked to end has to do so before its worker is killed; 5 s without it.
    ///
    /// With none it is killed at once. A function uses it to leave files and locks in order: it polls [`cancelled`](super::cancelled), or learns
    /// it from a wait that returns `Aborted`. It is not the time that workers have when the pool ends: that is
    /// [`Options::grace_period`](crate::Options::grace_period).
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::time::Duration;
    /// use phalanx::{Options, Queue, QueueError};
    /// use phalanx::pool::Pool;
    /// use phalanx::sync::AbortedBy;
    ///
    /// fn sum(numbers: Queue<u64>) -> anyhow::Result<u64> {
    ///     let mut sum = 0;
    ///     loop {
    ///         match numbers.get() {
    ///             Ok(number) => sum += number,
    ///             Err(QueueError::Aborted { by: AbortedBy::Pool, .. }) => return Ok(sum),
    ///             Err(error) => return Err(error.into()),
    ///         }
    ///     }
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::options(Options::new(1)).grace(Duration::from_secs(60)).build()?;
    /// let numbers = Queue::bounded(2)?;
    /// let task = pool.submit(sum, numbers.clone())?;
    /// numbers.put(3)?;
    /// numbers.put(4)?;
    /// while !numbers.is_empty() {
    ///     std::thread::yield_now();
    /// }
    /// // Nothing more comes. The wait in the function ends, and not its worker.
    /// assert!(task.kill());
    /// assert_eq!(task.join()?, 7);
    /// # Ok(())
    /// # }
    /// ```
    pub fn grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// How many workers there are at the least; without it all are started at once, and stay. With it the pool starts with that number,
    /// which may be 0, and starts another one, up to the number of its [`Options`], when it has more calls and chunks than workers.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::time::Duration;
    /// use phalanx::Options;
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::options(Options::new(4)).min(0).idle_after(Duration::from_secs(10)).build()?;
    /// assert_eq!((pool.size(), pool.workers().len()), (4, 0));
    /// pool.submit(|()| anyhow::Ok(()), ())?.join()?;
    /// assert_eq!(pool.workers().len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn min(self, workers: usize) -> Self {
        Self { min: Some(workers), ..self }
    }

    /// Ends workers above [`min`](Self::min) that were not needed for so long; without it they stay. The pool looks once in that time
    /// how many calls and chunks it has had at once at the most, and ends as many workers as were more than that: idle ones, each as
    /// after its last call. A worker that is not needed ends after one to two such times.
    ///
    /// A time of zero is refused by [`build`](Self::build). The look is taken by the pool's thread, which wakes for it only while there are more
    /// workers than `min`.
    pub fn idle_after(self, time: Duration) -> Self {
        Self { idle_after: Some(time), ..self }
    }

    /// Replaces each worker after this number of tasks and items; with 1 each task has a process of its own. A chunk of a map counts with
    /// all its items, and is not cut. With more than 10 each worker has up to a tenth more or less, so that not all leave at once.
    ///
    /// The successor is started when the last task begins, and takes tasks as soon as its predecessor has handed in that one's result.
    /// With [`StartMethod::ForkServer`](crate::StartMethod::ForkServer), and [spares](crate::ForkServer::spares), it starts soonest.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::Options;
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::options(Options::new(1)).recycle_after(1).build()?;
    /// let pid = |()| anyhow::Ok(std::process::id());
    /// assert_ne!(pool.submit(pid, ())?.join()?, pool.submit(pid, ())?.join()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn recycle_after(mut self, tasks: u64) -> Self {
        self.term.tasks = Some(tasks.max(1));
        self
    }

    /// Replaces a worker that has more memory of its own than this number of bytes after a task: RssAnon of proc_pid_status(5), which shared
    /// tensors and the executable do not count for. It looks after each task of 10 ms or more, and after shorter ones once in 10 ms. The
    /// task that has taken the memory is done; one that must not take so much needs [`memory_limit`](Self::memory_limit).
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::Options;
    /// use phalanx::pool::Pool;
    ///
    /// fn leak(_: ()) -> anyhow::Result<u32> {
    ///     Box::leak(vec![1_u8; 1 << 20].into_boxed_slice());
    ///     Ok(std::process::id())
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::options(Options::new(1)).recycle_above(4 << 20).build()?;
    /// let first = pool.submit(leak, ())?.join()?;
    /// // Sooner or later its worker is found too large, and another one has its place.
    /// while pool.submit(leak, ())?.join()? == first {}
    /// # Ok(())
    /// # }
    /// ```
    pub fn recycle_above(mut self, bytes: u64) -> Self {
        self.term.bytes = Some(bytes);
        self
    }

    /// How much memory of its own a worker may have, in bytes: RLIMIT_DATA of getrlimit(2), which counts all private memory that can be
    /// written, used or not, stacks of threads and the library's some hundred KiB too; shared tensors do not count. A Rust program
    /// that gets no memory aborts: the call fails, [says](super::TaskFailed) so and names the limit, and the worker is replaced. Code
    /// that asks (`try_reserve`, malloc(3)) sees that there is none. It holds for what a worker starts, too, for each process alone.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::Options;
    /// use phalanx::pool::Pool;
    ///
    /// fn fill(bytes: usize) -> anyhow::Result<usize> {
    ///     Ok(vec![1_u8; bytes].len())
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::options(Options::new(1)).memory_limit(256 << 20).build()?;
    /// let failed = pool.submit(fill, 1 << 30)?.join().unwrap_err();
    /// assert!(failed.to_string().contains("memory_limit of 256.0 MiB"), "{failed}");
    /// assert_eq!(pool.submit(fill, 1 << 20)?.join()?, 1 << 20);
    /// # Ok(())
    /// # }
    /// ```
    pub fn memory_limit(self, bytes: u64) -> Self {
        Self { memory: Some(bytes), ..self }
    }

    /// How many workers there may be, and when there are fewer.
    pub(super) fn size(&self) -> Size {
        let most = self.workers.nprocs();
        Size { min: self.min.unwrap_or(most).min(most), most, idle_after: self.idle_after }
    }

    /// One seat a worker, or two, where workers are replaced as they work.
    pub(super) fn seats(&self) -> usize {
        self.workers.nprocs() * if self.term.has_end() { 2 } else { 1 }
    }

    pub(super) fn check(&self, depth: u32) -> Result<(), PoolError> {
        let workers = self.workers.nprocs();
        let refuse = |reason: String| Err(PoolError::InvalidOption(reason));
        if workers == 0 || workers > MOST_WORKERS {
            return refuse(format!("it can have 1 to {MOST_WORKERS} workers, not {workers}"));
        }
        if self.min.is_some_and(|min| min > workers) {
            let min = self.min.unwrap_or(0);
            return refuse(format!("it can have {workers} workers, so min cannot be {min}"));
        }
        if self.idle_after == Some(Duration::ZERO) {
            return refuse("idle_after of no time would end workers between any two calls".to_owned());
        }
        if self.capacity == 0 || self.capacity > 1 << 20 {
            return refuse(format!("its capacity can be 1 to 1048576 tasks, not {}", self.capacity));
        }
        if self.workers.method() == crate::StartMethod::Fork {
            return refuse(
                "StartMethod::Fork copies a process of one thread, and a pool has a thread: use Spawn or ForkServer"
                    .to_owned(),
            );
        }
        if depth >= DEEPEST {
            return refuse(format!(
                "it would be the pool of a task of a pool, {depth} deep: {DEEPEST} at most"
            ));
        }
        Ok(())
    }
}

impl From<Options> for PoolOptions {
    fn from(workers: Options) -> Self {
        Self::new(workers)
    }
}
