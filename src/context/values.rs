//! The values that workers put into a queue, until the last worker has ended.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::join::ProcessContext;
use crate::queue::{Queue, QueueError, wait};

impl<R> ProcessContext<R> {
    /// The values that its workers put into `queue`, as they come. It ends when all workers have ended and the queue is empty,
    /// or when the queue was closed and is empty; so the queue need not be closed, and the loop does not wait for workers that
    /// have died. After a failure the others are ended meanwhile, as [`join_timeout`](Self::join_timeout) does.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::{Options, Queue, start_processes};
    ///
    /// fn work(rank: usize, squares: Queue<usize>) -> anyhow::Result<()> {
    ///     (10 * rank..10 * rank + 10).try_for_each(|n| squares.put(n * n))?;
    ///     anyhow::ensure!(rank != 1, "rank 1 fails at the end");
    ///     Ok(())
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let squares = Queue::bounded(4)?;
    /// let mut context = start_processes(work, squares.clone(), Options::new(2))?;
    /// let mut sum = 0;
    /// for square in context.values_from(&squares) {
    ///     sum += square?;
    /// }
    /// assert!(sum >= (10..20).map(|n| n * n).sum()); // rank 0 may have been ended before it was done
    /// assert!(context.join().unwrap_err().to_string().contains("rank 1 fails"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// An item is an error where [`Queue::get`] gives one, or [`wait`](crate::wait).
    pub fn values_from<'a, T: DeserializeOwned>(
        &'a mut self,
        queue: &'a Queue<T>,
    ) -> impl Iterator<Item = Result<T, QueueError>> + use<'a, R, T> {
        let mut ended = false;
        std::iter::from_fn(move || {
            loop {
                match queue.try_get() {
                    Err(QueueError::Empty) if ended => return None,
                    Err(QueueError::Closed) => return None,
                    Err(QueueError::Empty) => {}
                    value => return Some(value),
                }
                // An error is the failure to report, after all have ended, or one that join() meets too. What the workers had put
                // before they ended is there: the queue is looked at once more.
                ended = self.join_timeout(Duration::ZERO).unwrap_or(true);
                if !ended && let Err(error) = wait(&[queue, &*self], None) {
                    return Some(Err(error));
                }
            }
        })
    }
}
