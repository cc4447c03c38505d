//! Maps as streams.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::awaits::Awaits;
use super::error::TaskFailed;
use super::hub::Hub;
use super::map::{Map, Step};
use super::unordered::Unordered;
use super::waiting::Awaiting;
use crate::queue::QueueError;

/// A [`Map`] or an [`Unordered`] as a stream, for asynchronous programs: [`Map::into_stream`], [`Unordered::into_stream`]. (Feature `stream`.)
///
/// It gives what the iterator would, with the same window, and neither needs nor blocks a runtime; what wakes it is said at
/// [`Queue::get_async`](crate::Queue::get_async). The items come from an iterator, whose `next` is called in the poll. Dropping the
/// stream drops the map.
#[must_use = "a stream does nothing until it is polled"]
pub struct MapStream<M> {
    map: M,
    awaits: Awaits,
    /// While it is not ready, workers tell of each item at once, and not of a chunk when that has ended.
    awaiting: Option<Awaiting<Arc<Hub>>>,
}

impl<I: Iterator, R> Map<I, R> {
    /// The same as a stream. (Feature `stream`.)
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::pin::pin;
    /// use std::task::{Context, Poll, Waker};
    /// use futures_core::Stream;
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(2)?;
    /// let mut squares = pin!(pool.map(|x: u64| anyhow::Ok(x * x), 0..100)?.into_stream());
    /// // `while let Some(square) = squares.next().await` with the futures crate; this is what a runtime does.
    /// let (mut context, mut sum) = (Context::from_waker(Waker::noop()), 0);
    /// loop {
    ///     match squares.as_mut().poll_next(&mut context) {
    ///         Poll::Ready(Some(square)) => sum += square?,
    ///         Poll::Ready(None) => break,
    ///         Poll::Pending => std::thread::yield_now(),
    ///     }
    /// }
    /// assert_eq!(sum, 328_350);
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_stream(mut self) -> MapStream<Self> {
        self.is_stream = true;
        MapStream::new(self)
    }
}

impl<I: Iterator, R> Unordered<I, R> {
    /// The same as a stream, whose items have their numbers with them. (Feature `stream`.)
    pub fn into_stream(mut self) -> MapStream<Self> {
        self.0.is_stream = true;
        MapStream::new(self)
    }
}

// Nothing in it is pinned.
impl<M> Unpin for MapStream<M> {}

impl<M> MapStream<M> {
    fn new(map: M) -> Self {
        Self { map, awaits: Awaits::default(), awaiting: None }
    }

    /// The map: its [`progress`](Map::progress).
    #[must_use]
    pub fn get_ref(&self) -> &M {
        &self.map
    }

    /// Polls with what has the map in it and how its results are chosen.
    fn poll_by<I, R>(
        &mut self,
        context: &mut Context<'_>,
        map: impl Fn(&mut M) -> &mut Map<I, R>,
        choose: impl Fn(&mut Map<I, R>) -> Option<(u64, Result<R, TaskFailed>)> + Copy,
    ) -> Poll<Option<(u64, Result<R, TaskFailed>)>>
    where
        I: Iterator,
        I::Item: Serialize,
        R: DeserializeOwned,
    {
        let Self { map: of, awaits, awaiting } = self;
        let map = map(of);
        let mut step = map.step(choose);
        if matches!(step, Step::Waits) {
            let hub = map.pool.hub().clone();
            awaiting.get_or_insert_with(|| Awaiting::begin(hub.clone()));
            let armed = hub.check_here().map_err(|_| QueueError::Closed);
            step = match armed.and_then(|()| awaits.arm(&hub, &map.inbox, context)) {
                Ok(()) => {
                    hub.look_everywhere();
                    map.step(choose)
                }
                Err(error) => Step::Gives(Some(map.give_up(error))),
            };
        }
        match step {
            Step::Waits => Poll::Pending,
            Step::Gives(next) => {
                *awaiting = None;
                Poll::Ready(next)
            }
        }
    }
}

impl Hub {
    /// As [`look`](Self::look), and into the trays of the workers, for a caller that has [`Awaiting`].
    fn look_everywhere(&self) {
        self.look();
        let Some(pumping) = self.begin_to_pump() else { return };
        let has_found = self.has_chunks() && self.look_into_trays();
        drop(pumping);
        if has_found {
            // What was put meanwhile has rung before this looked.
            self.look();
        }
    }
}

impl<I, R> Stream for MapStream<Map<I, R>>
where
    I: Iterator,
    I::Item: Serialize,
    R: DeserializeOwned,
{
    type Item = Result<R, TaskFailed>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.poll_by(context, |map| map, Map::in_turn);
        polled.map(|next| next.map(|(_, result)| result))
    }
}

impl<I, R> Stream for MapStream<Unordered<I, R>>
where
    I: Iterator,
    I::Item: Serialize,
    R: DeserializeOwned,
{
    type Item = (u64, Result<R, TaskFailed>);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_by(context, |Unordered(map)| map, Map::any)
    }
}

impl<M: fmt::Debug> fmt::Debug for MapStream<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MapStream").field(&self.map).finish()
    }
}
