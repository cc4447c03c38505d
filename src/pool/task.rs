//! Task: the handle of one call.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::awaits::Awaits;
use super::delivery::Delivery;
use super::error::{TaskFailed, TaskFailure};
use super::hub::{Hub, Phase};
use super::inbox::Inbox;
use super::label::Ticket;
use super::ledger::State;
use super::occupant::EndedBy;
use crate::queue::QueueError;
use crate::sync::wait_policy::WaitPolicy;

/// A call that a [`Pool`](super::Pool) has taken, whose function returns an `R`.
///
/// Dropping it lets the call go on; what came of it is lost. (When the pool is dropped, such calls are cancelled.)
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::pool::Pool;
///
/// fn square(x: u64) -> anyhow::Result<u64> {
///     Ok(x * x)
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let pool = Pool::new(2)?;
/// let tasks = (0..10).map(|x| pool.submit(square, x)).collect::<Result<Vec<_>, _>>()?;
/// let squares = tasks.into_iter().map(|task| task.join()).collect::<Result<Vec<_>, _>>()?;
/// assert_eq!(squares[9], 81);
/// # Ok(())
/// # }
/// ```
///
/// It is a future, too, for asynchronous programs: `pool.submit(square, 7)?.await?`.
///
/// Many may be on their way, and each may be waited for by another thread. In Python: `AsyncResult`, `Future`.
/// A task in a process that was forked from the pool's never finishes there: [`join`](Self::join) says so at once.
#[must_use = "what came of the call is lost with it"]
pub struct Task<R> {
    hub: Arc<Hub>,
    inbox: Arc<Inbox>,
    function: &'static str,
    cell: u32,
    /// Whether what came of it has been given out.
    is_given: AtomicBool,
    awaits: Awaits,
    result: PhantomData<fn() -> R>,
}

impl<R> Task<R> {
    pub(super) fn new(hub: Arc<Hub>, inbox: Arc<Inbox>, function: &'static str, ticket: Ticket) -> Self {
        let is_given = AtomicBool::new(false);
        let (cell, awaits) = (ticket.cell, Awaits::default());
        Self { hub, inbox, function, cell, is_given, awaits, result: PhantomData }
    }

    /// Whether it has ended, so that [`join`](Self::join) does not wait.
    ///
    /// It takes results in that lie in the queue, unless another thread is at that, so a loop that only asks comes to its end.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(1)?;
    /// let task = pool.submit(|x: u64| anyhow::Ok(x * x), 12)?;
    /// let mut frames = 0;
    /// while !task.is_finished() {
    ///     frames += 1; // the window is drawn meanwhile
    ///     std::thread::yield_now();
    /// }
    /// assert_eq!(task.join()?, 144);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_finished(&self) -> bool {
        if self.is_given.load(Relaxed) {
            return true;
        }
        if self.inbox.is_empty() && self.hub.is_here() {
            self.hub.look();
        }
        !self.inbox.is_empty()
    }

    /// Whether a worker has begun it. True, too, when it has ended, also by a [`cancel`](Self::cancel).
    ///
    /// False again while a call that is [tried again](super::PoolOptions::retries) waits for its next attempt.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        let Some(ticket) = self.ticket() else { return true };
        !matches!(self.hub.cell(ticket).standing().state, State::Queued | State::Claimed)
    }

    /// How far the function says that it is, by [`progress`](super::progress()): from 0.0 to 1.0. `None`: it does not run, or has not said it.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::{self, Pool};
    ///
    /// fn train(_: ()) -> anyhow::Result<()> {
    ///     pool::progress(0.5);
    ///     while !pool::cancelled() {
    ///         std::thread::yield_now();
    ///     }
    ///     Ok(())
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(1)?;
    /// let task = pool.submit(train, ())?;
    /// while task.progress() != Some(0.5) {
    ///     std::thread::yield_now();
    /// }
    /// assert!(task.kill());
    /// task.join()?;
    /// assert_eq!(pool.workers()[0].progress, None);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn progress(&self) -> Option<f64> {
        self.ticket().and_then(|ticket| self.hub.progress_of(ticket))
    }

    /// Cancels the call if it has not begun. Exact: after `true` the function is never called, and [`join`](Self::join) returns
    /// [`TaskFailure::Cancelled`].
    ///
    /// False: it has begun, or has ended. A function that runs is not touched: [`kill`](Self::kill) ends it, too.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::{self, Pool, TaskFailure};
    ///
    /// fn wait(_: ()) -> anyhow::Result<()> {
    ///     while !pool::cancelled() {
    ///         std::thread::yield_now();
    ///     }
    ///     Ok(())
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(1)?;
    /// let (first, second) = (pool.submit(wait, ())?, pool.submit(wait, ())?);
    /// while !first.has_begun() {
    ///     std::thread::yield_now();
    /// }
    /// assert!(!first.cancel() && second.cancel());
    /// assert_eq!(second.join().unwrap_err().failure(), &TaskFailure::Cancelled);
    /// assert!(first.kill());
    /// first.join()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancel(&self) -> bool {
        self.ticket().is_some_and(|ticket| self.hub.cancel(ticket))
    }

    /// Ends the call: cancels it if it has not begun; else asks its function to end, which [`cancelled`](super::cancelled) tells,
    /// and kills its worker after the pool's [grace](super::PoolOptions::grace). True: this has begun to end it. False: it had ended, or is being
    /// ended already, by an earlier `kill`, a time limit or a deadline.
    ///
    /// A result that comes before the kill is kept. The kill hits this call and no other, however the race between them ends. A call that is
    /// killed is not [tried again](super::PoolOptions::retries). It returns at once: [`join`](Self::join) waits for what comes of it.
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
    /// let pool = Pool::options(Options::new(1)).grace(Duration::ZERO).build()?;
    /// let task = pool.submit(hang, ())?;
    /// while !task.has_begun() {
    ///     std::thread::yield_now();
    /// }
    /// assert!(task.kill() && !task.kill());
    /// let failed = task.join().unwrap_err();
    /// assert!(matches!(failed.failure(), TaskFailure::Killed(_)), "{failed}");
    /// // Another worker has its place.
    /// assert_eq!(pool.submit(|x: u64| anyhow::Ok(x), 5)?.join()?, 5);
    /// # Ok(())
    /// # }
    /// ```
    pub fn kill(&self) -> bool {
        // Queued tasks may begin between the two, running ones may end.
        self.ticket()
            .is_some_and(|ticket| self.hub.cancel(ticket) || self.hub.end_task(ticket, EndedBy::Kill))
    }

    fn ticket(&self) -> Option<Ticket> {
        // In a fork of the process the lock may be another thread's, which is not there.
        self.hub.is_here().then(|| self.hub.ticket_of(self.cell, &self.inbox)).flatten()
    }

    fn wait(&self, policy: &WaitPolicy) -> Result<Delivery, QueueError> {
        self.hub.wait(policy, || self.inbox.take(), |thread| self.inbox.wake(thread))
    }

    fn failed(&self, began: bool, failure: TaskFailure) -> TaskFailed {
        TaskFailed::new(self.function, None, began, failure)
    }
}

impl<R: DeserializeOwned> Task<R> {
    /// Waits until it has ended, and returns what its function returned.
    ///
    /// The calling thread decodes the result, and may take in those of other calls while it waits. In a function of a pool that was itself asked
    /// to end, the wait ends with [`TaskFailure::WaitEnded`].
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::{Pool, TaskFailure};
    ///
    /// fn parse(text: String) -> anyhow::Result<u64> {
    ///     Ok(text.parse()?)
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(2)?;
    /// let failed = pool.submit(parse, "x".to_owned())?.join().unwrap_err();
    /// match failed.failure() {
    ///     TaskFailure::Raised(error) => assert!(error.message().contains("invalid digit"), "{error}"),
    ///     TaskFailure::WorkerEnded(outcome) => panic!("worker {} has ended: {}", outcome.pid(), outcome.status()),
    ///     _ => panic!("{failed}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`TaskFailed`]: the function failed, or its worker ended; which, when and why.
    pub fn join(self) -> Result<R, TaskFailed> {
        self.check()?;
        let delivery = self.wait(&WaitPolicy::Forever);
        self.open(delivery.map_err(|error| self.failed(false, TaskFailure::WaitEnded(error.to_string())))?)
    }

    /// As [`join`](Self::join), for no longer than `timeout`. `None`: the time is up; the call goes on, and can be joined later. What
    /// came of a call is given out once: after `Some` each further call returns [`TaskFailure::WaitEnded`].
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::time::Duration;
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(1)?;
    /// let task = pool.submit(|x: u64| anyhow::Ok(x + 1), 1)?;
    /// let result = loop {
    ///     match task.join_timeout(Duration::from_millis(100)) {
    ///         Some(result) => break result?,
    ///         None => eprintln!("still at it"),
    ///     }
    /// };
    /// assert_eq!(result, 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As those of [`join`](Self::join).
    pub fn join_timeout(&self, timeout: Duration) -> Option<Result<R, TaskFailed>> {
        if let Err(failed) = self.check() {
            return Some(Err(failed));
        }
        match self.wait(&WaitPolicy::of(timeout)) {
            Ok(delivery) => Some(self.give_out(delivery)),
            Err(QueueError::TimedOut { .. }) => None,
            Err(error) => Some(Err(self.failed(false, TaskFailure::WaitEnded(error.to_string())))),
        }
    }

    /// An error where nothing will ever arrive.
    fn check(&self) -> Result<(), TaskFailed> {
        let ended = |reason| Err(self.failed(false, TaskFailure::WaitEnded(reason)));
        match self.hub.check_here() {
            Err(error) => ended(error.to_string()),
            Ok(()) if self.is_given.load(Relaxed) => ended("it was given out already".to_owned()),
            Ok(()) => Ok(()),
        }
    }

    /// Gives out what came of it, once.
    fn give_out(&self, delivery: Delivery) -> Result<R, TaskFailed> {
        self.is_given.store(true, Relaxed);
        self.open(delivery)
    }

    fn open(&self, mut delivery: Delivery) -> Result<R, TaskFailed> {
        let unreadable = |_, reason| self.failed(true, TaskFailure::Result(reason));
        let nothing = || Err(self.failed(true, TaskFailure::Result("its message has no result".to_owned())));
        delivery.next(unreadable).map_or_else(nothing, |(_, result)| result)
    }
}

impl<R: DeserializeOwned> Future for Task<R> {
    type Output = Result<R, TaskFailed>;

    /// Ready when the call has ended, with what [`join`](Task::join) would return. It needs no runtime, and blocks none: phalanx's thread
    /// `phalanx-async` wakes it, which is there while something is awaited and for a second after that. A `&mut Task` can be awaited too,
    /// so that a time limit of the runtime leaves the task as it was.
    ///
    /// After it was ready each further poll gives [`TaskFailure::WaitEnded`].
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let task = self.get_mut();
        task.check()?;
        let mut delivery = task.inbox.take();
        if delivery.is_none() {
            let armed = task.awaits.arm(&task.hub, &task.inbox, context);
            armed.map_err(|error| task.failed(false, TaskFailure::WaitEnded(error.to_string())))?;
            delivery = task.inbox.take();
        }
        let Some(delivery) = delivery else { return Poll::Pending };
        task.awaits = Awaits::default();
        Poll::Ready(task.give_out(delivery))
    }
}

impl<R> Drop for Task<R> {
    fn drop(&mut self) {
        self.inbox.abandon();
        // A pool that was dropped goes on for its tasks: its thread is to see that this one needs it no longer.
        if self.hub.is_here() && self.hub.lock().phase != Phase::Open {
            self.hub.call.ring();
        }
    }
}

impl<R> fmt::Debug for Task<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("function", &self.function)
            .field("finished", &!self.inbox.is_empty())
            .finish_non_exhaustive()
    }
}
