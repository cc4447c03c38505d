//! Calls of one function with many items.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::errands::NEXT;
use super::error::PoolError;
use super::handle::Pool;
use super::label::{TaskLabel, Ticket};
use super::map::Map;
use super::submit;
use crate::error::WorkerError;
use crate::worker::entry::{self, task};

impl Pool {
    /// Calls `f` with each item, in the workers, and returns an iterator over what it returns, in the order of the items. Nothing is
    /// read from `items` before the iterator is asked, and never more than a [window](Map::window) ahead of what it has given out.
    ///
    /// A step of the iterator gives the value of one item, or how that item failed; the others go on. Items travel in
    /// [chunks](Map::chunk), but a death costs its own item only. Dropping the iterator cancels what has not begun, and asks what
    /// runs to end. A panic of `items` comes out of the iterator, after all items before it.
    ///
    /// Python's names of the same: `imap`; with tuples as items, `starmap`; `imap_unordered` is [`Map::unordered`].
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
    /// let squares = pool.map(square, 0..1000)?.collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(squares[999], 998_001);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// An error or a panic of `f` is the result of its item, and its worker goes on. A worker that dies costs the item that it ran
    /// ([`TaskFailure::WorkerEnded`](super::TaskFailure::WorkerEnded)); items behind it in its chunk go to another worker, those before it have
    /// been given out. Items are serialised by the thread that iterates, one at a time: one that cannot be fails alone, with
    /// [`TaskFailure::Arguments`](super::TaskFailure::Arguments).
    ///
    /// # Errors
    /// [`PoolError::Function`] and [`PoolError::Forked`]. A pool that is closed or broken fails the items.
    pub fn map<F, I, R, E>(&self, f: F, items: I) -> Result<Map<I::IntoIter, R>, PoolError>
    where
        F: Fn(I::Item) -> Result<R, E> + Copy + Send + 'static,
        I: IntoIterator,
        I::Item: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        let _ = f;
        Map::new(self, task::of_plain::<F, I::Item, R, E>(), None, items.into_iter())
    }

    /// As [`map`](Self::map), with something that all items need: the workers call `f(&environment, item)`. The environment is
    /// serialised once, here, and read once by each worker that gets an item, which keeps it until the map is dropped. Tensors in it are
    /// shared, not copied.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::{FrozenTensor, Tensor};
    /// use phalanx::pool::Pool;
    ///
    /// fn dot(weights: &FrozenTensor<f64>, row: Vec<f64>) -> anyhow::Result<f64> {
    ///     Ok(weights.iter().zip(row).map(|(weight, x)| weight * x).sum())
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(2)?;
    /// let weights = Tensor::from_slice(&[0.5, 2.0], &[2])?.freeze()?;
    /// let rows = (0..100).map(|x| vec![f64::from(x), 1.0]);
    /// let sums = pool.map_with(weights, dot, rows)?.collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(sums[10], 7.0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A worker that takes the place of one that has died reads it anew. Where a worker cannot read it, each item that it takes fails with
    /// [`TaskFailure::Arguments`](super::TaskFailure::Arguments).
    ///
    /// # Errors
    /// As [`map`](Self::map). [`PoolError::Arguments`] when the environment cannot be serialised, or only one process may have something
    /// in it.
    pub fn map_with<V, F, I, R, E>(
        &self,
        environment: V,
        f: F,
        items: I,
    ) -> Result<Map<I::IntoIter, R>, PoolError>
    where
        V: Serialize + DeserializeOwned + 'static,
        F: Fn(&V, I::Item) -> Result<R, E> + Copy + Send + 'static,
        I: IntoIterator,
        I::Item: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        let _ = f;
        self.hub().check_here()?;
        let read = task::of_environment::<V>();
        let mut message = submit::for_several(read.name(), &environment)?;
        let ticket = Ticket { cell: 0, generation: 0 };
        let function = submit::function(read)?;
        let label = TaskLabel { ticket, function, items: 0, is_timed: false, environment: NEXT };
        message.label_mut(TaskLabel::LEN).copy_from_slice(&label.to_bytes());
        let lent = self.hub().lend(message);
        Map::new(self, task::of_environed::<F, V, I::Item, R, E>(), Some(lent), items.into_iter())
    }
}
