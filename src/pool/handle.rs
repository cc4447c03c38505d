//! Pool: the handle of N workers that do many calls.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::alarm::Times;
use super::error::PoolError;
use super::hub::{Hub, Order, Phase, Summary};
use super::inbox::Inbox;
use super::inside;
use super::keeper::Keeper;
use super::label::TaskLabel;
use super::ledger::Ledger;
use super::options::PoolOptions;
use super::serve::{self, Place};
use super::stats::{Stats, WorkerStats};
use super::task::Task;
use crate::Options;
use crate::context::output::Output;
use crate::context::{Planned, plan_for_all};
use crate::error::{Error, WorkerError};
use crate::memory::descriptor::Descriptor;
use crate::queue::{Outgoing, Queue, QueueError};
use crate::sync::wait_policy::WaitPolicy;
use crate::sys::event::EventFd;
use crate::sys::image::Image;
use crate::sys::limits::with_room;
use crate::sys::signal;
use crate::worker::entry::{self, Entry};

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
pub struct Pool(Arc<Owner>);

/// What all clones share. Its end closes the pool.
struct Owner {
    hub: Arc<Hub>,
    thread: Mutex<Option<JoinHandle<()>>>,
    retries: u32,
    limit: Option<Duration>,
    deadline: Option<Duration>,
}

impl Pool {
    /// A pool with this number of workers, started by [`StartMethod::Spawn`](crate::StartMethod::Spawn).
    ///
    /// # Errors
    /// As [`PoolOptions::build`].
    pub fn new(workers: usize) -> Result<Self, PoolError> {
        Self::options(Options::new(workers)).build()
    }

    /// The options of a pool, whose workers are started as [`Options`] say.
    pub fn options(workers: Options) -> PoolOptions {
        PoolOptions::new(workers)
    }

    fn build(options: PoolOptions) -> Result<Self, PoolError> {
        let depth = inside::depth();
        options.check(depth)?;
        let (size, seats) = (options.size(), options.seats());
        let PoolOptions { workers, capacity, retries, limit, deadline, grace, term, memory, .. } = options;
        let queues = (queue(capacity)?, queue(capacity)?);
        let ledger = Ledger::new(capacity, seats)?;
        let system = |doing| move |os| PoolError::System { doing, os };
        let event = || with_room(EventFd::new).map_err(system("make an event of a pool (eventfd)"));
        let copy = |event: &EventFd| event.as_fd().try_clone_to_owned().map(Descriptor::from);
        let copy = |event| with_room(|| copy(event)).map_err(system("copy an event of a pool"));
        let (call, asked) = (event()?, event()?);
        let place = Place {
            tasks: queues.0.clone(),
            results: queues.1.clone(),
            ledger: ledger.clone(),
            full: copy(&call)?,
            asked: copy(&asked)?,
            depth: depth + 1,
            term,
            memory,
        };
        let planned = plan_for_all(serve_entry(), &place, &workers)
            .map_err(|error| PoolError::Start(Box::new(error)))?;
        let pump = planned.output.as_ref().and_then(Output::pump);
        let printer = pump.map_or_else(Weak::new, Arc::downgrade);
        let hub = Arc::new(Hub::new(queues, ledger, (call, asked), grace, (size, printer)));
        let thread = Mutex::new(Some(start(hub.clone(), planned)?));
        Ok(Self(Arc::new(Owner { hub, thread, retries, limit, deadline })))
    }

    pub(super) fn hub(&self) -> &Arc<Hub> {
        &self.0.hub
    }

    /// The times of a task that is given to it now.
    pub(super) fn times(&self) -> Times {
        Times::from_now(self.0.limit, self.0.deadline)
    }

    pub(super) fn retries(&self) -> u32 {
        self.0.retries
    }

    /// How many workers it has, at the most: with [`PoolOptions::min`] it may have fewer at the moment ([`workers`](Self::workers)).
    #[must_use]
    pub fn size(&self) -> usize {
        self.hub().size()
    }

    /// What it has done and has to do.
    #[must_use]
    pub fn stats(&self) -> Stats {
        if self.hub().is_here() {
            self.hub().look();
        }
        self.hub().stats()
    }

    /// What each worker does, by number.
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
        self.hub().worker_stats()
    }

    /// Gives a call to the workers: one of them will call `f(args)`. Where as many are on their way as the pool takes, it waits for
    /// one to end.
    ///
    /// `f` is a plain function or a closure that captures nothing, as for [`spawn`](crate::spawn()); what it needs goes into `args`.
    /// Tensors, queues, locks and descriptors in `args` and in the result are shared, not copied.
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
        let (entry, function) = function(entry::of_task::<F, A, R, E>())?;
        let most = self.hub().tasks.core().inline();
        let message = Outgoing::labelled(&[0; TaskLabel::LEN], args, most);
        let message = message.map_err(|error| unsent(entry, error))?;
        let inbox = Arc::new(Inbox::default());
        let order = Order {
            entry,
            function,
            message,
            inbox: inbox.clone(),
            first: None,
            items: 0,
            retries: self.0.retries,
            times: self.times(),
        };
        let ticket = self.hub().submit(order, policy)?;
        Ok(Task::new(self.hub().clone(), inbox, entry.name(), ticket))
    }

    /// Takes no more tasks, in all clones. Those that it has are done.
    pub fn close(&self) {
        if self.hub().is_here() {
            self.hub().enter(Phase::Closing);
        }
    }

    /// Cancels all calls that have not begun; returns how many.
    pub fn cancel_queued(&self) -> usize {
        self.hub().cancel_all(|_| true)
    }

    /// Closes the pool, and waits until all its calls are done and its workers have ended.
    ///
    /// # Errors
    /// [`PoolError::Broken`] when it could not keep its workers; [`PoolError::Forked`]; [`PoolError::Queue`] when the wait was
    /// aborted.
    pub fn join(self) -> Result<Summary, PoolError> {
        let hub = self.hub();
        hub.check_here()?;
        self.close();
        hub.wait(&WaitPolicy::Forever, || hub.is_done().then_some(()), |thread| hub.wake_at_end(thread))
            .or_else(|error| if matches!(error, QueueError::Closed) { Ok(()) } else { Err(error) })
            .map_err(PoolError::Queue)?;
        self.0.await_thread();
        hub.summary()
    }

    /// Ends the workers by SIGKILL, and gives up all calls.
    pub fn kill(self) {
        self.0.end(Phase::Ending { kills: true });
    }
}

impl PoolOptions {
    /// Makes the pool, and starts all its workers, or its [`min`](Self::min), or none.
    ///
    /// # Errors
    /// [`PoolError::InvalidOption`] for no workers or more than 32,767, fewer than [`min`](Self::min), for a capacity of 0 or more than 2^20, for
    /// [`StartMethod::Fork`](crate::StartMethod::Fork), since a pool has a thread, and for pools in pools deeper than 8;
    /// [`PoolError::Start`] when a worker cannot be started, as [`start_processes`](crate::start_processes);
    /// [`PoolError::Memory`], [`PoolError::Queue`] and [`PoolError::System`] when the system refuses.
    pub fn build(self) -> Result<Pool, PoolError> {
        Pool::build(self)
    }
}

impl Owner {
    fn await_thread(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // It does not panic; if it did, its children are dead and what was outstanding is told by then.
        let _ = thread.map(JoinHandle::join);
    }

    fn end(&self, phase: Phase) {
        if self.hub.is_here() {
            self.hub.enter(phase);
            self.await_thread();
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // In a fork of the process there is no such thread, and the workers are not its children.
        if !self.hub.is_here() {
            return;
        }
        if thread::panicking() {
            return self.end(Phase::Ending { kills: true });
        }
        self.hub.drain();
        self.hub.cancel_all(|occupant| !occupant.is_wanted());
        if self.hub.is_wanted() {
            self.hub.enter(Phase::Closing);
        } else {
            self.end(Phase::Ending { kills: false });
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.hub().lock();
        f.debug_struct("Pool")
            .field("workers", &self.hub().size())
            .field("outstanding", &state.outstanding())
            .field("succeeded", &state.done)
            .field("failed", &state.failed)
            .finish_non_exhaustive()
    }
}

fn queue<T>(capacity: usize) -> Result<Queue<T>, PoolError> {
    Queue::bounded(capacity).map_err(PoolError::Queue)
}

/// The record of a function, and where it lies in the executable.
pub(super) fn function(entry: &'static Entry) -> Result<(&'static Entry, u64), PoolError> {
    let image = Image::main()
        .map_err(|os| PoolError::System { doing: "identify this executable (/proc/self/exe)", os })?;
    let function = entry.offset(image).map_err(|error| PoolError::Function(Box::new(error)))?;
    Ok((entry, function))
}

/// The error of arguments that cannot be sent.
pub(super) fn unsent(entry: &'static Entry, error: QueueError) -> PoolError {
    match error {
        QueueError::Encode { reason } => PoolError::Arguments { function: entry.name(), reason },
        other => PoolError::Queue(other),
    }
}

fn serve_entry() -> &'static Entry {
    fn of<F>(_: F) -> &'static Entry
    where
        F: Fn(usize, Place) -> anyhow::Result<()> + Copy + Send + 'static,
    {
        entry::of::<F, Place, (), anyhow::Error>()
    }
    of(serve::serve)
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
