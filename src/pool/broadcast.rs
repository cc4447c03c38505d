//! The same call for each worker of a pool.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::PoolError;
use super::handle::Pool;
use super::submit::{self, Order};
use super::task::Task;
use crate::error::WorkerError;
use crate::sync::wait_policy::WaitPolicy;
use crate::worker::entry::{self, Entry, task};

impl Pool {
    /// Has each worker that is there at the moment call `f(args)` once, after the call that it runs and before all others, and returns a
    /// [`Task`] for each. A worker that is started later does not: what each must have is for
    /// [`with_state`](super::PoolOptions::with_state), or for [`Options::on_start`](crate::Options::on_start).
    ///
    /// A worker that ends before it has begun fails its own call. Calls are not [tried again](super::PoolOptions::retries).
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
}
