//! TaskSet: calls whose results are taken as they come.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{PoolError, TaskFailed, TaskFailure};
use super::handle::Pool;
use super::inbox::Inbox;
use super::submit::Order;
use crate::error::WorkerError;
use crate::sync::wait_policy::WaitPolicy;
use crate::worker::entry::{self, task};

/// Calls that belong together, whose results come in the order in which they are there: tokio's `JoinSet`, of a [`Pool`].
///
/// As an iterator it gives the number of a call, and what came of it, and ends when no call is left; after that it takes new calls all the
/// same. Dropping it cancels the calls that have not begun, and asks those that run to end.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::pool::Pool;
///
/// fn len(text: String) -> anyhow::Result<usize> {
///     Ok(text.len())
/// }
///
/// fn half(x: usize) -> anyhow::Result<usize> {
///     Ok(x / 2)
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let pool = Pool::new(2)?;
/// let mut set = pool.task_set();
/// let first = set.submit(len, "seven..".to_owned())?;
/// set.submit(half, 10)?;
/// // What comes of a call may lead to another one.
/// let mut sum = 0;
/// while let Some((number, result)) = set.next() {
///     let value = result?;
///     if number == first {
///         set.submit(half, value)?;
///     }
///     sum += value;
/// }
/// assert_eq!(sum, 7 + 5 + 3);
/// # Ok(())
/// # }
/// ```
///
/// A call that fails, or whose worker dies, gives its failure as others give their values, and the set goes on. It waits for all its calls
/// in [`next`](Iterator::next) and for none elsewhere; to leave it early is to drop it.
#[must_use = "dropping it cancels its calls"]
pub struct TaskSet<R> {
    pool: Pool,
    inbox: Arc<Inbox>,
    /// The functions of the calls whose results have not been given out, by their numbers.
    left: BTreeMap<u64, &'static str>,
    /// The number of the next call.
    next: u64,
    results: PhantomData<fn() -> R>,
}

impl Pool {
    /// An empty set of calls whose functions all return an `R`.
    ///
    /// Several sets of one pool do not see one another. Python's `concurrent.futures.as_completed`, and `wait` with `FIRST_COMPLETED`.
    pub fn task_set<R: Serialize + DeserializeOwned>(&self) -> TaskSet<R> {
        let (inbox, left) = (Arc::default(), BTreeMap::new());
        TaskSet { pool: self.clone(), inbox, left, next: 0, results: PhantomData }
    }
}

impl<R: Serialize + DeserializeOwned> TaskSet<R> {
    /// Adds a call, as [`Pool::submit`]; returns its number: 0 for the first one, and so on. A [`TaskFailed`] names it as its
    /// [item](TaskFailed::item).
    ///
    /// Waits for room as that does, and takes results in meanwhile: those of this set lie in it until they are asked for.
    ///
    /// # Errors
    /// As [`Pool::submit`].
    pub fn submit<F, A, E>(&mut self, f: F, args: A) -> Result<u64, PoolError>
    where
        F: Fn(A) -> Result<R, E> + Copy + Send + 'static,
        A: Serialize + DeserializeOwned,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        let _ = f;
        let entry = task::of_plain::<F, A, R, E>();
        let order = self.pool.order_of(entry, &args)?;
        let (inbox, number) = (self.inbox.clone(), self.next);
        self.pool.hub().submit(Order { inbox, first: Some(number), ..order }, &WaitPolicy::Forever)?;
        self.left.insert(number, entry.name());
        self.next += 1;
        Ok(number)
    }
}

impl<R> TaskSet<R> {
    /// How many calls there are whose results have not been given out.
    ///
    /// With it a server keeps a number of calls on their way:
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(2)?;
    /// let (mut set, mut pages) = (pool.task_set(), (0..20_u32).peekable());
    /// let mut sizes = Vec::new();
    /// while pages.peek().is_some() || !set.is_empty() {
    ///     while let Some(page) = pages.next_if(|_| set.len() < 4) {
    ///         set.submit(|page: u32| anyhow::Ok(page * 10), page)?;
    ///     }
    ///     let (number, size) = set.next().expect("there is a call");
    ///     sizes.push((number, size?));
    /// }
    /// assert_eq!(sizes.iter().map(|(_, size)| size).sum::<u32>(), 1900);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.left.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Cancels the calls that have not begun; returns how many. Each gives [`TaskFailure::Cancelled`].
    ///
    /// Exact, as [`Task::cancel`](super::Task::cancel). The calls stay in the set until their failures have been taken.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::{Pool, TaskFailed, TaskFailure};
    ///
    /// fn search(seed: u64) -> anyhow::Result<u64> {
    ///     Ok(seed)
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(1)?;
    /// let mut set = pool.task_set();
    /// for seed in 0..8 {
    ///     set.submit(search, seed)?;
    /// }
    /// // The first answer is enough.
    /// let (_, found) = set.next().expect("there are calls");
    /// assert!(found? < 8);
    /// let cancelled = set.cancel_queued();
    /// assert_eq!(set.len(), 7);
    /// let is_cancelled = |failed: &TaskFailed| *failed.failure() == TaskFailure::Cancelled;
    /// assert_eq!(set.filter(|(_, result)| result.as_ref().is_err_and(is_cancelled)).count(), cancelled);
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancel_queued(&self) -> usize {
        self.pool.hub().cancel_all(|occupant| Arc::ptr_eq(&occupant.inbox, &self.inbox))
    }
}

impl<R: DeserializeOwned> Iterator for TaskSet<R> {
    type Item = (u64, Result<R, TaskFailed>);

    /// Waits until a call has ended. `None`: all results have been given out.
    fn next(&mut self) -> Option<Self::Item> {
        let &first = self.left.keys().next()?;
        let hub = self.pool.hub();
        let waited = hub.check_here().map_err(|error| error.to_string()).and_then(|()| {
            let come = || self.inbox.take();
            let waited = hub.wait(&WaitPolicy::Forever, come, |thread| self.inbox.wake(thread));
            waited.map_err(|error| error.to_string())
        });
        let (left, unreadable) = (&self.left, TaskFailure::Result);
        let name = |number| left.get(&number).copied().unwrap_or_default();
        let (number, result) = match waited {
            Ok(mut delivery) => delivery.next(|number, reason| {
                TaskFailed::new(name(number), Some(number), true, unreadable(reason))
            })?,
            // Nothing comes any more that could be waited for.
            Err(reason) => {
                let failure = TaskFailure::WaitEnded(reason);
                (first, Err(TaskFailed::new(name(first), Some(first), false, failure)))
            }
        };
        self.left.remove(&number);
        Some((number, result))
    }
}

impl<R> Drop for TaskSet<R> {
    fn drop(&mut self) {
        self.inbox.abandon();
        if !self.left.is_empty() {
            self.pool.hub().abandon(&self.inbox);
        }
    }
}

impl<R> fmt::Debug for TaskSet<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskSet").field("left", &self.left).finish_non_exhaustive()
    }
}
