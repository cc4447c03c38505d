//! What can be chosen when a pool is made.

use std::time::Duration;

use super::error::PoolError;
use crate::Options;

/// How many pools may be around one another: a task that makes a pool for tasks that make a pool …
const DEEPEST: u32 = 8;
/// How long a task that was asked to end has.
const GRACE: Duration = Duration::from_secs(5);
/// How many tasks may be on their way.
const CAPACITY: usize = 16 << 10;
/// More than a cell's word can name.
const MOST_WORKERS: usize = u16::MAX as usize;

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
#[derive(Clone, Debug)]
#[must_use = "a pool is made by build()"]
pub struct PoolOptions {
    pub(super) workers: Options,
    pub(super) capacity: usize,
    pub(super) retries: u32,
    pub(super) limit: Option<Duration>,
    pub(super) grace: Duration,
    pub(super) recycle_after: Option<u64>,
}

impl PoolOptions {
    pub(super) fn new(workers: Options) -> Self {
        Self { workers, capacity: CAPACITY, retries: 0, limit: None, grace: GRACE, recycle_after: None }
    }

    /// How many tasks may be on their way, chunks of a map counting as one; 16,384 without it. [`Pool::submit`](super::Pool::submit) waits when there are
    /// as many.
    pub fn capacity(self, tasks: usize) -> Self {
        Self { capacity: tasks, ..self }
    }

    /// How often a task is begun again when its worker has ended or its time was up; 0 without it: no function is ever called
    /// twice. An error or a panic is an answer, and is not tried again; nor is a task with something in its arguments that travels
    /// beside them, such as a tensor or a [`Shard`](crate::Shard).
    pub fn retries(self, most: u32) -> Self {
        Self { retries: most, ..self }
    }

    /// How long a function may run, from its begin. After that it is ended as by [`Task::kill`](super::Task::kill), and fails with
    /// [`TaskFailure::TimedOut`](super::TaskFailure::TimedOut). Items of maps then travel one by one.
    pub fn timeout(self, limit: Duration) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// How long a task that was asked to end has to do so before its worker is killed; 5 s without it.
    pub fn grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Replaces each worker after this number of tasks and items; with 1 each task has a process of its own. A chunk of a map counts with
    /// all its items, and is not cut.
    pub fn recycle_after(self, tasks: u64) -> Self {
        Self { recycle_after: Some(tasks.max(1)), ..self }
    }

    pub(super) fn check(&self, depth: u32) -> Result<(), PoolError> {
        let workers = self.workers.nprocs();
        let refuse = |reason: String| Err(PoolError::InvalidOption(reason));
        if workers == 0 || workers > MOST_WORKERS {
            return refuse(format!("it can have 1 to {MOST_WORKERS} workers, not {workers}"));
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
        if self.workers.carries_output() {
            return refuse(
                "Options::prefix and Options::stderr_tail are of a context, whose workers all start at once: give the workers of a \
                 pool files (RankOptions::stderr), or let them print to this process's stderr"
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
