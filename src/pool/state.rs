//! State: a value that each worker makes once, and keeps for the calls that it gets.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::PoolError;
use super::handle::Pool;
use super::hub::Summary;
use super::map::Map;
use super::task::Task;
use crate::error::WorkerError;
use crate::sync::wait_policy::WaitPolicy;
use crate::worker::entry::{self, task};

/// A pool whose workers each have a state of type `S`: a model, a connection, a cache, which is made once a worker and not once a call.
///
/// It takes calls with functions that get `&mut S`; all else is the [`pool`](Self::pool)'s.
///
/// ```
/// # phalanx::auto_init!();
/// use std::collections::HashMap;
/// use phalanx::Options;
/// use phalanx::pool::Pool;
///
/// /// What each worker makes once.
/// struct Squares { known: HashMap<u64, u64>, computed: u64 }
///
/// fn init(known: &Vec<u64>) -> anyhow::Result<Squares> {
///     Ok(Squares { known: known.iter().map(|x| (*x, x * x)).collect(), computed: 0 })
/// }
///
/// fn square(squares: &mut Squares, x: u64) -> anyhow::Result<u64> {
///     Ok(*squares.known.entry(x).or_insert_with(|| { squares.computed += 1; x * x }))
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let pool = Pool::options(Options::new(2)).with_state(init, vec![1, 2, 3]).build()?;
/// assert_eq!(pool.submit(square, 7)?.join()?, 49);
/// assert_eq!(pool.map(square, 0..100)?.sum::<Result<u64, _>>()?, 328_350);
/// pool.join()?;
/// # Ok(())
/// # }
/// ```
///
/// Clones are the same pool, as those of [`Pool`]. The pool ends with the last clone of this handle and of [`pool`](Self::pool).
pub struct StatePool<S> {
    pool: Pool,
    state: PhantomData<fn() -> S>,
}

impl<S> StatePool<S> {
    /// The handle of a pool whose workers have such a state.
    pub(super) fn of(pool: Pool) -> Self {
        Self { pool, state: PhantomData }
    }
}

impl<S: 'static> StatePool<S> {
    /// The pool: what its workers do, how it is closed, and calls of functions that need no state.
    ///
    /// A clone of it keeps the pool open as any other handle does.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::Options;
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::options(Options::new(1)).with_state(|_: &()| anyhow::Ok(1_u64), ()).build()?;
    /// assert_eq!(pool.pool().submit(|x: u64| anyhow::Ok(x), 7)?.join()?, 7);
    /// assert_eq!(pool.pool().stats().succeeded, 1);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// As [`Pool::submit`]: one of the workers will call `f(&mut state, args)`.
    ///
    /// # Errors
    /// As [`Pool::submit`].
    pub fn submit<F, A, R, E>(&self, f: F, args: A) -> Result<Task<R>, PoolError>
    where
        F: Fn(&mut S, A) -> Result<R, E> + Copy + Send + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        self.submit_by(f, &args, &WaitPolicy::Forever)
    }

    /// As [`Pool::try_submit`].
    ///
    /// # Errors
    /// As [`Pool::try_submit`].
    pub fn try_submit<F, A, R, E>(&self, f: F, args: &A) -> Result<Task<R>, PoolError>
    where
        F: Fn(&mut S, A) -> Result<R, E> + Copy + Send + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        self.submit_by(f, args, &WaitPolicy::Never)
    }

    /// As [`Pool::submit_timeout`].
    ///
    /// # Errors
    /// As [`Pool::submit_timeout`].
    pub fn submit_timeout<F, A, R, E>(&self, f: F, args: &A, timeout: Duration) -> Result<Task<R>, PoolError>
    where
        F: Fn(&mut S, A) -> Result<R, E> + Copy + Send + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        self.submit_by(f, args, &WaitPolicy::of(timeout))
    }

    fn submit_by<F, A, R, E>(&self, f: F, args: &A, policy: &WaitPolicy) -> Result<Task<R>, PoolError>
    where
        F: Fn(&mut S, A) -> Result<R, E> + Copy + Send + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: WorkerError,
    {
        let _ = f;
        self.pool.submit_entry(task::of_stateful::<F, S, A, R, E>(), args, policy)
    }

    /// As [`Pool::map`]: the workers call `f(&mut state, item)`.
    ///
    /// Which worker's state an item meets is not known beforehand: results must not depend on it. Items of one worker meet it one after the other.
    ///
    /// # Errors
    /// As [`Pool::map`].
    pub fn map<F, T, R, E>(&self, f: F, items: T) -> Result<Map<T::IntoIter, R>, PoolError>
    where
        F: Fn(&mut S, T::Item) -> Result<R, E> + Copy + Send + 'static,
        T: IntoIterator,
        T::Item: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        let _ = f;
        Map::new(&self.pool, task::of_stateful::<F, S, T::Item, R, E>(), None, items.into_iter())
    }

    /// As [`Pool::broadcast`]: each worker calls `f(&mut state, args)` once.
    ///
    /// What all states are to take on, such as new weights. A worker that is started later makes its state by `init` alone.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::Options;
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::options(Options::new(2)).with_state(|_: &()| anyhow::Ok(1_u64), ()).build()?;
    /// let set = |scale: &mut u64, new: u64| { *scale = new; anyhow::Ok(()) };
    /// pool.broadcast(set, 10)?.into_iter().try_for_each(|task| task.join())?;
    /// assert_eq!(pool.map(|scale: &mut u64, x: u64| anyhow::Ok(*scale * x), 0..10)?.sum::<Result<u64, _>>()?, 450);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Pool::broadcast`].
    pub fn broadcast<F, A, R, E>(&self, f: F, args: A) -> Result<Vec<Task<R>>, PoolError>
    where
        F: Fn(&mut S, A) -> Result<R, E> + Copy + Send + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        let _ = f;
        self.pool.broadcast_entry(task::of_stateful::<F, S, A, R, E>(), &args)
    }

    /// As [`Pool::join`]: closes the pool, and waits until all calls are done and the workers have given up their states.
    ///
    /// # Errors
    /// As [`Pool::join`]; [`PoolError::Retire`].
    pub fn join(self) -> Result<Summary, PoolError> {
        self.pool.join()
    }

    /// As [`Pool::kill`].
    ///
    /// States are neither retired nor dropped: their processes are killed.
    pub fn kill(self) {
        self.pool.kill();
    }
}

impl<S> Clone for StatePool<S> {
    fn clone(&self) -> Self {
        Self::of(self.pool.clone())
    }
}

impl<S> fmt::Debug for StatePool<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StatePool").field(&self.pool).finish()
    }
}
