//! A pool is made: its queues, its ledger, and the thread that starts its workers.

use std::os::fd::AsFd;
use std::sync::{Arc, Weak, mpsc};
use std::thread::{self, JoinHandle};

use serde::Serialize;

use super::errands;
use super::error::PoolError;
use super::handle::Pool;
use super::hub::{Hub, Parts};
use super::inside;
use super::keeper::Keeper;
use super::ledger::Ledger;
use super::options::PoolOptions;
use super::serve::{self, Place};
use crate::context::output::Output;
use crate::context::{Planned, plan_for_all};
use crate::error::Error;
use crate::memory::descriptor::Descriptor;
use crate::queue::Queue;
use crate::sys::event::EventFd;
use crate::sys::limits::with_room;
use crate::sys::signal;
use crate::worker::entry::{self, Entry};

impl PoolOptions {
    /// Makes the pool, and starts all its workers, or its [`min`](Self::min), or none.
    ///
    /// It returns when their processes have been started. What goes wrong later, in a worker's own set-up, fails the calls with
    /// [`PoolError::Broken`] once three workers in a row have ended before they could take one.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::{Options, StartMethod};
    /// use phalanx::pool::{Pool, PoolError};
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let refused = Pool::options(Options::new(2)).min(3).build();
    /// assert!(matches!(refused, Err(PoolError::InvalidOption(_))));
    /// let refused = Pool::options(Options::new(2).start_method(StartMethod::Fork)).build().unwrap_err();
    /// assert!(refused.to_string().contains("use Spawn or ForkServer"), "{refused}");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`PoolError::InvalidOption`] for no workers or more than 32,767, fewer than [`min`](Self::min), for a capacity of 0 or more than 2^20, for
    /// [`StartMethod::Fork`](crate::StartMethod::Fork), since a pool has a thread, and for pools in pools deeper than 8;
    /// [`PoolError::Start`] when a worker cannot be started, as [`start_processes`](crate::start_processes);
    /// [`PoolError::Memory`], [`PoolError::Queue`] and [`PoolError::System`] when the system refuses.
    pub fn build(self) -> Result<Pool, PoolError> {
        build(self, serve_entry(), |place| place)
    }
}

impl Pool {
    /// A pool with a worker for each processor that this process may use, by its affinity and the CPU quota of its cgroup
    /// ([`std::thread::available_parallelism`]). In a worker of a pool it is one, since the workers beside it share the processors.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::with_default_size()?;
    /// assert_eq!(pool.size(), std::thread::available_parallelism()?.get());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`PoolOptions::build`]; [`PoolError::System`] when the number of processors cannot be found out.
    pub fn with_default_size() -> Result<Self, PoolError> {
        let processors = if inside::depth() > 0 {
            1
        } else {
            thread::available_parallelism()
                .map_err(PoolError::system("find out how many processors there are"))?
                .get()
        };
        Self::new(processors)
    }
}

/// Makes a pool whose workers run the function of `entry`, with the arguments that `args` makes of their place.
pub(super) fn build<A: Serialize>(
    options: PoolOptions,
    entry: &'static Entry,
    args: impl FnOnce(Place) -> A,
) -> Result<Pool, PoolError> {
    let depth = inside::depth();
    options.check(depth)?;
    let (parts, place) = parts(&options, depth)?;
    let planned = plan_for_all(entry, &args(place), &options.workers)
        .map_err(|error| PoolError::Start(Box::new(error)))?;
    let pump = planned.output.as_ref().and_then(Output::pump);
    let printer = pump.map_or_else(Weak::new, Arc::downgrade);
    let hub = Arc::new(Hub::new(parts, &options, printer));
    let thread = start(hub.clone(), planned)?;
    Ok(Pool::of(hub, thread, options.terms))
}

/// What the pool shares with its workers, and the same as they get it.
fn parts(options: &PoolOptions, depth: u32) -> Result<(Parts, Place), PoolError> {
    let (tasks, results) = (queue(options.capacity)?, queue(options.capacity)?);
    let ledger = Ledger::new(options.capacity, options.seats())?;
    let event = || with_room(EventFd::new).map_err(PoolError::system("make an event of a pool (eventfd)"));
    let copy = |event: &EventFd| event.as_fd().try_clone_to_owned().map(Descriptor::from);
    let copy = |event| with_room(|| copy(event)).map_err(PoolError::system("copy an event of a pool"));
    let (call, asked) = (event()?, event()?);
    let requests =
        errands::channel().map_err(PoolError::system("make the socket of a pool's workers (socketpair)"))?;
    let place = Place {
        tasks: tasks.clone(),
        results: results.clone(),
        ledger: ledger.clone(),
        full: copy(&call)?,
        asked: copy(&asked)?,
        requests: requests.1.into_descriptor().into(),
        depth: depth + 1,
        term: options.term,
        memory: options.memory,
    };
    Ok((Parts { tasks, results, ledger, call, asked, requests: requests.0 }, place))
}

fn queue<T>(capacity: usize) -> Result<Queue<T>, PoolError> {
    Queue::bounded(capacity).map_err(PoolError::Queue)
}

fn serve_entry() -> &'static Entry {
    fn of<F>(_: F) -> &'static Entry
    where
        F: Fn(usize, Place) -> anyhow::Result<()> + Copy + Send + 'static,
    {
        entry::of::<F, Place, (), anyhow::Error>()
    }
    of(|rank, place| serve::serve(rank, place, None))
}

/// Starts the pool's thread, which starts the workers: the parent-death signal of a worker comes when the thread ends that started it
/// (prctl(2), PR_SET_PDEATHSIG).
fn start(hub: Arc<Hub>, planned: Planned) -> Result<JoinHandle<()>, PoolError> {
    let (tell, told) = mpsc::sync_channel::<Result<(), Error>>(1);
    let keep = move || {
        // Best effort: unblocked, a signal handler of the program might run here, which does no harm to us.
        let _ = signal::block_all_in_thread();
        match Keeper::start(hub, planned) {
            Ok(keeper) => {
                let _ = tell.send(Ok(()));
                keeper.run();
            }
            Err(error) => drop(tell.send(Err(error))),
        }
    };
    let thread = thread::Builder::new().name("phalanx-pool".into()).spawn(keep);
    let thread = thread.map_err(|os| PoolError::System { doing: "create a pool's thread", os })?;
    match told.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => {
            let _ = thread.join();
            Err(PoolError::Start(Box::new(error)))
        }
        Err(_) => Err(PoolError::System {
            doing: "hear from a pool's thread",
            os: std::io::Error::other("it has ended"),
        }),
    }
}
