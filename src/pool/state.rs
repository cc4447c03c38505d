//! State: a value that each worker makes once, and keeps for the calls that it gets.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::build;
use super::error::PoolError;
use super::handle::Pool;
use super::hub::Summary;
use super::kept::Kept;
use super::map::Map;
use super::options::PoolOptions;
use super::serve::{self, Place};
use super::task::Task;
use crate::error::WorkerError;
use crate::sync::wait_policy::WaitPolicy;
use crate::worker::entry::{self, Entry, task, zero_sized_function};

/// How a pool is made whose workers have a state: [`PoolOptions::with_state`].
///
/// A state lives as long as its worker, and never leaves its process: it need not be serialisable, nor `Send`. What workers are to share goes
/// into the arguments of `init`.
#[must_use = "a pool is made by build()"]
pub struct StateOptions<S, I, F, E> {
    pool: PoolOptions,
    args: I,
    entry: &'static Entry,
    state: PhantomData<fn() -> S>,
    init: PhantomData<fn() -> (F, E)>,
}

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

impl PoolOptions {
    /// Has each worker make a state by `init(&args)` before its first call. `init` is a plain function or a closure that captures
    /// nothing; a [`FrozenTensor`](crate::FrozenTensor) in `args` is shared, not copied.
    ///
    /// A call that panics may leave the state half changed: it is dropped, and made again before the next call of that worker. A call
    /// that returns an error leaves it as it is. When `init` fails, by an error, a panic or a death of its worker, the worker is started
    /// again, and after three failures without a worker that could begin the pool is broken, with the last failure's own text and
    /// traceback ([`PoolError::Broken`]).
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::Options;
    /// use phalanx::pool::Pool;
    ///
    /// struct Connection { server: String, queries: u32 }
    ///
    /// fn connect(server: &String) -> anyhow::Result<Connection> {
    ///     Ok(Connection { server: server.clone(), queries: 0 })
    /// }
    ///
    /// fn query(connection: &mut Connection, rows: u32) -> anyhow::Result<String> {
    ///     assert!(rows > 0, "nothing is asked for");
    ///     connection.queries += 1;
    ///     let nth = if connection.queries > 1 { format!(", query {}", connection.queries) } else { String::new() };
    ///     Ok(format!("{rows} rows of {}{nth}", connection.server))
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::options(Options::new(1)).with_state(connect, "db.example".to_owned()).build()?;
    /// assert!(pool.submit(query, 0)?.join().is_err());
    /// // The panic has cost the worker its connection, and it has made another one.
    /// assert_eq!(pool.submit(query, 3)?.join()?, "3 rows of db.example");
    /// assert_eq!(pool.submit(query, 5)?.join()?, "5 rows of db.example, query 2");
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_state<F, I, S, E>(self, init: F, args: I) -> StateOptions<S, I, F, E>
    where
        F: Fn(&I) -> Result<S, E> + Copy + Send + 'static,
        I: Serialize + DeserializeOwned + 'static,
        S: 'static,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        let _ = init;
        let entry = entry_of(|rank, place, args: I| {
            let (init, retire) = (zero_sized_function::<F>(), |_: S| anyhow::Ok(()));
            serve::serve(rank, place, Some(Box::new(Kept::new(args, init, retire))))
        });
        StateOptions { pool: self, args, entry, state: PhantomData, init: PhantomData }
    }
}

/// The record of a worker's function.
fn entry_of<F, I>(serve: F) -> &'static Entry
where
    F: Fn(usize, Place, I) -> anyhow::Result<()> + Copy + Send + 'static,
    I: DeserializeOwned,
{
    fn of<G, I>(_: G) -> &'static Entry
    where
        G: Fn(usize, (Place, I)) -> anyhow::Result<()> + Copy + Send + 'static,
        I: DeserializeOwned,
    {
        entry::of::<G, (Place, I), (), anyhow::Error>()
    }
    let _ = serve;
    of(|rank, (place, args)| zero_sized_function::<F>()(rank, place, args))
}

impl<S, I, F, E> StateOptions<S, I, F, E>
where
    F: Fn(&I) -> Result<S, E> + Copy + Send + 'static,
    I: Serialize + DeserializeOwned + 'static,
    S: 'static,
    E: WorkerError,
{
    /// Has each worker call `retire` with its state at its end: when the pool is closed and all calls are done, and when the worker is
    /// recycled or not needed any more. A worker that is killed, or dies, does not; nor does one whose pool is dropped while calls are
    /// left. Without it the state is dropped at these moments. If `retire` fails, [`StatePool::join`] returns
    /// [`PoolError::Retire`].
    ///
    /// What the workers have collected can so be handed in once each, and not once a call:
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::{Options, Queue};
    /// use phalanx::pool::Pool;
    ///
    /// struct Sum { own: u64, sums: Queue<u64> }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let sums = Queue::bounded(2)?;
    /// let init = |sums: &Queue<u64>| anyhow::Ok(Sum { own: 0, sums: sums.clone() });
    /// let options = Pool::options(Options::new(2)).with_state(init, sums.clone());
    /// let pool = options.on_retire(|sum: Sum| sum.sums.put(sum.own)).build()?;
    /// let add = |sum: &mut Sum, x: u64| { sum.own += x; anyhow::Ok(()) };
    /// pool.map(add, 0..100)?.try_for_each(|result| result)?;
    /// pool.join()?;
    /// assert_eq!(sums.try_get()? + sums.try_get()?, 4950);
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_retire<G, E2>(self, retire: G) -> Self
    where
        G: Fn(S) -> Result<(), E2> + Copy + Send + 'static,
        E2: WorkerError,
    {
        const { entry::assert_plain::<G>() }
        let _ = retire;
        let entry = entry_of(|rank, place, args: I| {
            let (init, retire) = (zero_sized_function::<F>(), zero_sized_function::<G>());
            serve::serve(rank, place, Some(Box::new(Kept::new(args, init, retire))))
        });
        Self { entry, ..self }
    }

    /// Makes the pool.
    ///
    /// # Errors
    /// As [`PoolOptions::build`]. Whether `init` succeeds is not waited for.
    pub fn build(self) -> Result<StatePool<S>, PoolError> {
        let Self { pool, args, entry, .. } = self;
        let pool = build::build(pool, entry, |place| (place, args))?;
        Ok(StatePool { pool, state: PhantomData })
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
        Self { pool: self.pool.clone(), state: PhantomData }
    }
}

impl<S> fmt::Debug for StatePool<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StatePool").field(&self.pool).finish()
    }
}

impl<S, I, F, E> fmt::Debug for StateOptions<S, I, F, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StateOptions").field(&self.pool).finish()
    }
}
