//! Many calls on few workers, where a death costs exactly one call.
//!
//! A [`Pool`] keeps N worker processes and feeds them calls. [`Pool::submit`] gives it one call, and returns a [`Task`] to wait for.
//! When a worker is killed, crashes, or exits in the middle of a call, that call fails with [`TaskFailed`], which says how the worker
//! ended; the worker is replaced, and all other calls go on. No function is called twice unless [`PoolOptions::retries`] allows it.
//!
//! ```
//! # phalanx::auto_init!();
//! use phalanx::pool::Pool;
//!
//! fn work(n: u64) -> anyhow::Result<u64> {
//!     if n == 3 {
//!         std::process::abort(); // a crash takes its own call along, and nothing else
//!     }
//!     Ok(n * n)
//! }
//!
//! # fn main() -> anyhow::Result<()> {
//! let pool = Pool::new(2)?;
//! let tasks = (0..6).map(|n| pool.submit(work, n)).collect::<Result<Vec<_>, _>>()?;
//! let results: Vec<_> = tasks.into_iter().map(|task| task.join()).collect();
//! assert_eq!(results.iter().flatten().copied().collect::<Vec<_>>(), [0, 1, 4, 16, 25]);
//! let failed = results[3].as_ref().unwrap_err();
//! assert!(failed.to_string().contains("SIGABRT"), "{failed}");
//! # Ok(())
//! # }
//! ```
//!
//! # Which call for which work
//!
//! | work | call | its name elsewhere |
//! |---|---|---|
//! | one call, its result later | [`Pool::submit`], [`Task::join`] | Python's `apply_async` and `get`; `Executor.submit` and `Future.result` |
//! | one function, many items, results in their order | [`Pool::map`] | `imap`; `starmap` with tuples; joblib's `Parallel(return_as="generator")` |
//! | the same, results as they come | [`Map::unordered`] | `imap_unordered`; joblib's `"generator_unordered"` |
//! | the same, beside a large value that all items need | [`Pool::map_with`] | a global that `initializer` sets |
//! | calls of several functions, results as they come | [`Pool::task_set`] | `concurrent.futures.as_completed`; tokio's `JoinSet` |
//! | a model, a connection or a cache in each worker | [`PoolOptions::with_state`] | `initializer`, `initargs` |
//! | one call in each worker | [`Pool::broadcast`] | dask's `Client.run` |
//! | functions that leak memory | [`PoolOptions::recycle_after`], [`recycle_above`](PoolOptions::recycle_above) | `maxtasksperchild` |
//! | requests that are worth nothing after a while | [`PoolOptions::deadline`], [`Pool::try_submit`] | a server's load shedding |
//! | the end, with all calls done; the end at once | [`Pool::join`]; [`Pool::kill`] | `close` and `join`; `terminate` |
//!
//! `concurrent.futures` fails all futures with `BrokenProcessPool` when one worker dies, and `multiprocessing.Pool` never gives the result of
//! a call whose worker was killed. Here the call that ran fails, and the pool goes on.
//!
//! # What a function gets and returns
//!
//! Functions are named, not sent: a worker is the same executable, and finds the function at the same place in it. So a function is a
//! plain `fn` or a closure that captures nothing, and what it needs is an argument. Arguments and results are serialised by serde.
//! Tensors, queues, locks and descriptors in them are shared with the worker, not copied.
//!
//! # After a fork
//!
//! A pool belongs to the process that made it. A process that was forked from that one has copies of the handles: they give no calls
//! ([`PoolError::Forked`]), cancel none, and do nothing to the workers when they are dropped.

// From a call to its result:
//
// - `handle`, `options`, `task`: the public handles
// - `terms`: retries, time limits and deadlines of the calls of one handle
// - `with_terms`: handles that have others
// - `build`: a pool is made
// - `state`, `state_options`: a pool whose workers have a state
// - `hub`: what they share in the process that made the pool
// - `submit`: how a task is given to the workers
// - `waiting`: one thread takes results for all that wait
// - `occupant`: a task on its way, and what becomes of it when its worker has died
// - `inbox`, `delivery`: where results arrive, and as what
// - `ledger`: which worker holds which task, in memory that the workers share
// - `desk`: what a worker says of itself there
// - `tray`: results of a chunk that its worker has not put into the queue yet
// - `label`: what stands before tasks and results in their queues
// - `serve`: a worker
// - `errands`, `answers`: what one worker is to have or to do, and no other, and how the pool hands it out
// - `fetch`: how a worker gets that
// - `kept`: its state
// - `batch`: a worker at a chunk
// - `inside`: what a task can ask while it runs
// - `keeper`: the thread that starts and replaces workers, and keeps time
// - `seats`: pure: how many workers there are to be, and which are to be started
// - `leaving`: how a worker comes to its place and leaves it
// - `early`: workers that do not come to their first task
// - `staffing`: it starts workers, and asks some to leave
// - `settle`: what the end of a worker means for its tasks
// - `stats`: what the workers do at this moment
// - `times`: time limits and deadlines, and how a task is ended
// - `alarm`: moments at which that thread looks at a task
// - `closing`: the end of a pool, from its handles
// - `broadcast`: the same call for each worker
// - `items`, `map`, `unordered`, `set`: many items, many calls
// - `progress`: how far a map is, as data and as a line at the bottom of the terminal
// - `awaits`: what futures wait by
// - `stream`: maps as streams
// - `feed`: how a map's items are given to the pool
// - `chunk`: pure: several items in one message

mod alarm;
mod answers;
mod awaits;
mod batch;
mod broadcast;
mod build;
mod chunk;
mod closing;
mod delivery;
mod desk;
mod early;
mod errands;
mod error;
mod feed;
mod fetch;
mod handle;
mod hub;
mod inbox;
mod inside;
mod items;
mod keeper;
mod kept;
mod label;
mod leaving;
mod ledger;
mod map;
mod occupant;
mod options;
mod progress;
mod seats;
mod serve;
mod set;
mod settle;
mod staffing;
mod state;
mod state_options;
mod stats;
#[cfg(feature = "stream")]
mod stream;
mod submit;
mod task;
mod terms;
mod times;
mod tray;
mod unordered;
mod waiting;
mod with_terms;
mod word;

pub use error::{PoolError, TaskFailed, TaskFailure};
pub use handle::Pool;
pub use hub::Summary;
pub use inside::{cancelled, progress, worker};
pub use map::Map;
pub use options::PoolOptions;
pub use progress::Progress;
pub use set::TaskSet;
pub use state::StatePool;
pub use state_options::StateOptions;
pub use stats::{Stats, WorkerStats};
#[cfg(feature = "stream")]
pub use stream::MapStream;
pub use task::Task;
pub use unordered::Unordered;
