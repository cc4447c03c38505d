//! Unordered: a map whose results come in any order.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::TaskFailed;
use super::map::Map;
use super::progress::Progress;

impl<I: Iterator, R> Map<I, R> {
    /// The results as they come, each with the number of its item, from 0.
    ///
    /// No order is promised, not even within a chunk. Python's `imap_unordered`.
    pub fn unordered(self) -> Unordered<I, R> {
        Unordered(self)
    }
}

/// What [`Map::unordered`] returns: an iterator over the results as they come, each with the number of its item.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::pool::Pool;
///
/// fn half(x: u64) -> anyhow::Result<u64> {
///     anyhow::ensure!(x % 2 == 0, "odd");
///     Ok(x / 2)
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let pool = Pool::new(2)?;
/// for (item, half) in pool.map(half, 0..10_u64)?.unordered() {
///     assert_eq!(half.is_ok(), item % 2 == 0);
/// }
/// # Ok(())
/// # }
/// ```
///
/// Failures come by the same way, with the number of their item. Dropping it is dropping the [`Map`].
#[must_use = "a map does nothing until it is iterated"]
pub struct Unordered<I: Iterator, R>(pub(super) Map<I, R>);

impl<I: Iterator, R> Unordered<I, R> {
    /// How far it is, as [`Map::progress`] tells.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(2)?;
    /// let mut lengths = pool.map(|x: String| anyhow::Ok(x.len()), ["a", "bc"].map(str::to_owned))?.unordered();
    /// while let Some((item, length)) = lengths.next() {
    ///     println!("{item}: {}, {}", length?, lengths.progress());
    /// }
    /// assert_eq!(lengths.progress().done, 2);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.0.progress()
    }
}

impl<I, R> Iterator for Unordered<I, R>
where
    I: Iterator,
    I::Item: Serialize,
    R: DeserializeOwned,
{
    type Item = (u64, Result<R, TaskFailed>);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next_by(Map::any)
    }
}

impl<I: Iterator, R> fmt::Debug for Unordered<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
