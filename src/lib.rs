//! phalanx starts N worker processes that run one function, watches them, shares tensors with them and tells the
//! truth about how each one ended. It is to Rust what `torch.multiprocessing` is to Python.
//!
//! ```
//! # phalanx::auto_init!();
//! fn work(rank: usize, scale: f64) -> anyhow::Result<f64> {
//!     Ok(rank as f64 * scale)
//! }
//!
//! # #[expect(clippy::needless_doctest_main, reason = "where init stands is what is shown")]
//! fn main() -> anyhow::Result<()> {
//!     phalanx::init(); // first: a worker never returns from it
//!     let results = phalanx::spawn(work, 0.5, 4)?; // start 4, wait for all, results by rank
//!     assert_eq!(results, [0.0, 0.5, 1.0, 1.5]);
//!     Ok(())
//! }
//! ```
//!
//! # How it works
//!
//! A worker is this same executable, run again. [`init`] finds out that it is one, finds the function, decodes its
//! arguments, calls it, and leaves its result or its error where the launcher reads it. That is why `init` comes
//! first in main, and why the function must be a plain `fn` or a closure that captures nothing: what it needs goes
//! into its arguments, which are any serde type, [`Tensor`]s included. In test crates, whose main is not theirs,
//! [`auto_init!`] takes the place of `init`.
//!
//! # Joining
//!
//! [`spawn`] waits for all. [`start_processes`] returns a [`ProcessContext`], to be polled by
//! [`join_timeout`](ProcessContext::join_timeout), which never waits longer than it was told:
//!
//! ```
//! # phalanx::auto_init!();
//! use std::time::Duration;
//! use phalanx::{Error, Options, start_processes};
//!
//! fn work(rank: usize, _: ()) -> anyhow::Result<()> {
//!     anyhow::ensure!(rank != 1, "rank 1 does not feel well");
//!     Ok(())
//! }
//!
//! # fn run() -> Result<(), Error> {
//! let mut context = start_processes(work, (), Options::new(3).grace_period(Duration::from_secs(1)))?;
//! let error = loop {
//!     match context.join_timeout(Duration::from_millis(50)) {
//!         Ok(finished) => assert!(!finished, "rank 1 fails"),
//!         Err(error) => break error,
//!     }
//! };
//! let Error::ProcessRaised(exception) = error else { panic!("{error}") };
//! assert_eq!(exception.error_index(), 1);
//! assert_eq!(exception.chain(), ["rank 1 does not feel well"]);
//! assert_eq!(exception.outcomes().len(), 3);
//! # Ok(())
//! # }
//! # fn main() { run().unwrap() }
//! ```
//!
//! # Failures
//!
//! The error is the failure that happened first in time, and comes again at every later call.
//! [`ProcessRaisedException`] is an `Err` or a panic, with its chain of causes and a [`Traceback`];
//! [`ProcessExitedException`] is an exit or a signal, with what probably caused it ([`Cause`]) and, for a fatal signal,
//! a traceback too. Either has the [`Outcome`] of every rank beside it.
//!
//! # Lifetimes
//!
//! Workers die with their launcher, however it dies; a worker's own children are ended with it; dropping a
//! [`ProcessContext`] ends its workers.
//!
//! # Start methods
//!
//! [`StartMethod`]: run the executable again (the default), fork in place, or have a [`ForkServer`] fork, which is by far
//! the fastest and can load data once for all workers.
//!
//! # Shared memory
//!
//! A [`Tensor`] in arguments or results is the same memory in every process that has it. Safe access is atomic. Two
//! kinds of slices need no `unsafe`: of a [`FrozenTensor`], whose bytes the kernel lets no process change any more, and of a
//! [`Shard`], which only one process at a time can reach:
//!
//! ```
//! # phalanx::auto_init!();
//! use phalanx::{FrozenTensor, Options, Shard, Tensor, start_processes_with};
//!
//! type Args = (FrozenTensor<f32>, Shard<f32>);
//!
//! fn scale(_rank: usize, (factors, mut rows): Args) -> anyhow::Result<Shard<f32>> {
//!     for row in rows.as_mut_slice()?.chunks_mut(factors.len()) {
//!         row.iter_mut().zip(&*factors).for_each(|(x, factor)| *x *= factor);
//!     }
//!     Ok(rows)
//! }
//!
//! # fn main() -> anyhow::Result<()> {
//! let factors = Tensor::from_slice(&[1.0, 10.0], &[2])?.freeze()?;
//! let table = Tensor::from_slice(&[1.0, 2.0, 3.0, 4.0], &[2, 2])?;
//! let mut shards = table.into_shards(2)?.into_iter();
//! let args = |_| (factors.clone(), shards.next().expect("one a rank"));
//! let scaled = start_processes_with(scale, args, Options::new(2))?.join()?;
//! assert_eq!(Tensor::from_shards(scaled)?.to_vec(), [1.0, 20.0, 3.0, 40.0]);
//! # Ok(())
//! # }
//! ```
//!
//! A [`TensorPool`] makes tensors of memory that no process has any more, for pipelines that make one after the other.
//!
//! [`SharingStrategy`] says how the memory is made: without a name (the default), or with names and one descriptor a process.
//!
//! # Queues, pipes and locks
//!
//! A [`Queue`] has many producers and many consumers in any processes; a [`pipe`] has two ends, and tells when the other
//! process has ended; [`wait`] waits for several of them, and for contexts. [`sync`] has locks, events, barriers and the like.
//! All are given to workers in arguments, or through one another. None hangs or is damaged when a process is killed: what it
//! had put is there, and what it held is told to the next one.
//!
//! ```
//! # phalanx::auto_init!();
//! use phalanx::sync::Lock;
//! use phalanx::{JoinableQueue, Options, start_processes};
//!
//! fn work(_rank: usize, (tasks, best): (JoinableQueue<u64>, Lock<u64>)) -> anyhow::Result<()> {
//!     for task in &tasks {
//!         let found = task? * 7 % 13;
//!         let mut best = best.lock()?; // an error if its last holder died
//!         *best = found.max(*best);
//!         tasks.task_done()?;
//!     }
//!     Ok(())
//! }
//!
//! # fn main() -> anyhow::Result<()> {
//! let (tasks, best) = (JoinableQueue::bounded(4)?, Lock::new(0)?);
//! let workers = start_processes(work, (tasks.clone(), best.clone()), Options::new(2))?;
//! for task in 0..20 {
//!     tasks.put(task)?; // waits while four are in it
//! }
//! tasks.join()?;
//! assert_eq!(*best.lock()?, 12);
//! tasks.close()?; // the workers' loops end
//! workers.join()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Sums over all ranks
//!
//! [`collective`] has torch's collectives for the workers of one context: `all_reduce`, `broadcast`, `reduce_scatter`, `all_gather`,
//! `barrier`, over tensors, with the same bits on every rank, and an error on all when one dies ([how](guide::collective)).
//!
//! # Launching programs
//!
//! [`launch`] starts one program many times, in any language, or one function of this program, with torchrun's environment, carries its
//! output, restarts it, and says whose failure came first; `phalanx run` is the same at the command line. Any worker can ask whether it
//! is to end: [`stopping`].
//!
//! [`cluster`] reads what Slurm, Open MPI or Kubernetes say of the nodes of a job.
//!
//! # Many calls
//!
//! [`pool`] keeps workers and feeds them calls. A death costs exactly the call that ran; everything else goes on.
//!
//! ```
//! # phalanx::auto_init!();
//! use phalanx::pool::Pool;
//!
//! # fn main() -> anyhow::Result<()> {
//! let pool = Pool::new(2)?;
//! let lengths = pool.map(|word: String| anyhow::Ok(word.len()), ["a", "phalanx"].map(str::to_owned))?;
//! assert_eq!(lengths.collect::<Result<Vec<_>, _>>()?, [1, 7]);
//! # Ok(())
//! # }
//! ```
//!
//! # Faults on purpose
//!
//! [`fault`] kills, stops and fails workers at named points of the program, and checks what the program says of it
//! ([how](guide::faults)).
//!
//! # Features
//!
//! All off by default: `ndarray` (views as arrays), `safetensors` (files of tensors), `dlpack` (tensors of other
//! libraries), `stream` (maps of a pool as streams), `cli` (the program `phalanx`; a library's user does not need it).
//!
//! # More
//!
//! The [`guide`] has the pages of `docs/`: [how to begin](guide::howto::start), to [end well on
//! Ctrl-C](guide::howto::ctrl_c), to use it [with tokio](guide::howto::tokio), to
//! [log in workers](guide::howto::tracing), to [test](guide::howto::testing), to [go on after a
//! failure](guide::howto::checkpoint), to [feed a data pipeline](guide::howto::pipelines); a worker's
//! [life](guide::lifecycle), what is sound in [shared memory](guide::memory), how [queues and locks](guide::queues) survive deaths,
//! [`phalanx run`](guide::launcher), and the [differences](guide::differences) from torch's and Python's multiprocessing.
//!
//! Linux only (5.4 or newer, x86-64 and aarch64).

pub mod cluster;
pub mod collective;
mod context;
mod dtype;
mod encoding;
mod error;
pub mod fault;
#[cfg(any(doc, doctest))]
pub mod guide;
mod init;
mod injection;
pub mod launch;
mod memory;
mod point;
pub mod pool;
mod queue;
mod reactor;
pub mod shm;
mod start;
mod supervise;
pub mod sync;
mod sys;
mod tensor;
mod transfer;
mod wire;
mod worker;

pub use context::{
    Options, OutputFile, ProcessContext, RankOptions, spawn, start_processes, start_processes_with,
};
pub use error::{
    Cause, Culprit, Error, FailureKind, Frame, MemoryError, OomScope, Outcome, Peer, ProcessExitedException,
    ProcessRaisedException, RaisedError, ResourceUsage, Standing, Status, Traceback, WorkerError,
};
pub use init::init;
#[doc(hidden)]
pub use init::init_before_main;
pub use memory::descriptor::Descriptor;
pub use memory::storage::Storage;
pub use memory::strategy::{
    SharingStrategy, get_all_sharing_strategies, get_sharing_strategy, set_sharing_strategy,
};
#[cfg(fuzzing)]
#[doc(hidden)]
pub use queue::fuzz_message;
pub use queue::{
    Connection, JoinableQueue, Never, Queue, QueueError, QueueIter, SimpleQueue, TaskIter, Waitable, one_way,
    pipe, wait,
};
pub use start::StartMethod;
pub use start::forkserver::ForkServer;
pub use supervise::prefix::{Prefix, PrefixError};
pub use sys::signal::Signal;
pub use tensor::dyn_tensor::DynTensor;
pub use tensor::frozen::FrozenTensor;
pub use tensor::recycled::TensorPool;
pub use tensor::shard::Shard;
pub use tensor::typed::Tensor;
pub use worker::{WorkerInfo, after_fork, seed, stop_fd, stopping, worker_info};
