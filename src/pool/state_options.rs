//! How a pool is made whose workers have a state.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::build;
use super::error::PoolError;
use super::kept::Kept;
use super::options::PoolOptions;
use super::serve::{self, Place};
use super::state::StatePool;
use crate::error::WorkerError;
use crate::worker::entry::{self, Entry, zero_sized_function};

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

    /// How long a worker may take from its start until it has made its state; without it, as long as `init` takes. Where it takes longer the
    /// worker is killed and started again, and after three such failures in a row the pool is broken, as where `init` fails. So no call
    /// waits for ever for a state that never comes, as of a server that does not answer. A state that is made again after a panic has
    /// no such limit.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::time::Duration;
    /// use phalanx::Options;
    /// use phalanx::pool::Pool;
    ///
    /// fn connect(_: &()) -> anyhow::Result<u64> {
    ///     loop {
    ///         std::thread::park(); // nobody answers
    ///     }
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let options = Pool::options(Options::new(1)).with_state(connect, ());
    /// let pool = options.init_timeout(Duration::from_millis(50)).build()?;
    /// let failed = match pool.submit(|state: &mut u64, x: u64| anyhow::Ok(*state + x), 1) {
    ///     Ok(task) => task.join().unwrap_err().to_string(),
    ///     Err(broken) => broken.to_string(),
    /// };
    /// assert!(failed.contains("it had not made its state within 50ms"), "{failed}");
    /// # Ok(())
    /// # }
    /// ```
    pub fn init_timeout(mut self, limit: Duration) -> Self {
        self.pool.init_limit = Some(limit);
        self
    }

    /// Makes the pool.
    ///
    /// # Errors
    /// As [`PoolOptions::build`]. Whether `init` succeeds is not waited for.
    pub fn build(self) -> Result<StatePool<S>, PoolError> {
        let Self { pool, args, entry, .. } = self;
        let pool = build::build(pool, entry, |place| (place, args))?;
        Ok(StatePool::of(pool))
    }
}

impl<S, I, F, E> fmt::Debug for StateOptions<S, I, F, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StateOptions").field(&self.pool).finish()
    }
}
