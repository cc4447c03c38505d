//! Maps: one function over many items, with a bound for what is on its way.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::marker::PhantomData;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::chunk::{Chunk, ChunkSize};
use super::delivery::{Delivery, Results};
use super::error::{PoolError, TaskFailed, TaskFailure};
use super::handle::{self, Pool};
use super::hub::Order;
use super::inbox::Inbox;
use super::label::TaskLabel;
use crate::error::WorkerError;
use crate::queue::{Outgoing, QueueError};
use crate::sync::wait_policy::WaitPolicy;
use crate::wire::codec::{self, Encoded};
use crate::worker::entry::{self, Entry};

/// How many chunks for each worker are on their way, unless [`Map::window`] says how many items.
const CHUNKS: usize = 4;

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
        self.hub().check_here()?;
        let (entry, function) = handle::function(entry::of_task::<F, I::Item, R, E>())?;
        Ok(Map::new(self.clone(), entry, function, items.into_iter()))
    }
}

/// What [`Pool::map`] returns: an iterator over the results, in the order of the items.
///
/// Its options are set before the first step.
#[must_use = "a map does nothing until it is iterated"]
pub struct Map<I: Iterator, R> {
    pool: Pool,
    entry: &'static Entry,
    function: u64,
    /// `None`: it has ended.
    items: Option<I>,
    /// The panic in which it has ended.
    panic: Option<Box<dyn Any + Send>>,
    window: Option<usize>,
    size: ChunkSize,
    /// How many items have been given to the pool, and how many results have been given out.
    submitted: u64,
    given: u64,
    inbox: Arc<Inbox>,
    arrived: VecDeque<Delivery>,
    /// Of a map in order: the deliveries that have come before their turn, by their first item, and the one whose turn it is.
    early: BTreeMap<u64, Delivery>,
    turn: Option<Delivery>,
    results: PhantomData<fn() -> R>,
}

impl<I: Iterator, R> Map<I, R> {
    fn new(pool: Pool, entry: &'static Entry, function: u64, items: I) -> Self {
        // The clock of a time limit runs from the begin of an item, so that each has a cell of its own.
        let size = if pool.limit().is_some() { ChunkSize::fixed(1) } else { ChunkSize::guided() };
        Self {
            pool,
            entry,
            function,
            items: Some(items),
            panic: None,
            window: None,
            size,
            submitted: 0,
            given: 0,
            inbox: Arc::default(),
            arrived: VecDeque::new(),
            early: BTreeMap::new(),
            turn: None,
            results: PhantomData,
        }
    }

    /// How many items may have been read, and their results not been given out; without it, four chunks for each worker. 0 counts
    /// as 1.
    pub fn window(mut self, items: usize) -> Self {
        self.window = Some(items.max(1));
        self
    }

    /// How many items travel in one message; without it, as many as take a worker half a millisecond, and fewer towards the end. 0
    /// counts as 1. In a pool with a [time limit](super::PoolOptions::timeout) it is always 1.
    pub fn chunk(mut self, items: usize) -> Self {
        if self.pool.limit().is_none() {
            self.size = ChunkSize::fixed(items);
        }
        self
    }

    /// How many items the next chunk has, and how many may be on their way.
    fn sizes(&self) -> (usize, usize) {
        let workers = self.pool.size();
        let left = self.items.as_ref().and_then(|items| items.size_hint().1);
        let size = self.size.next(workers, left);
        match self.window {
            None => (size, CHUNKS * workers * size),
            // Small enough that all workers have something.
            Some(window) => (size.min(window.div_ceil(2 * workers)), window),
        }
    }

    fn on_their_way(&self) -> usize {
        (self.submitted - self.given) as usize
    }
}

impl<I, R> Map<I, R>
where
    I: Iterator,
    I::Item: Serialize,
    R: DeserializeOwned,
{
    /// Gives items to the pool, as long as the window has room for a whole chunk.
    fn fill(&mut self) {
        loop {
            let (size, window) = self.sizes();
            if self.items.is_none() || self.on_their_way() + size > window {
                return;
            }
            self.submit_chunk(size);
        }
    }

    fn submit_chunk(&mut self, size: usize) {
        let most = self.pool.hub().tasks.core().inline();
        let mut chunk = Chunk::default();
        for _ in 0..size {
            if chunk.bytes.len() > most / 2 {
                self.submit(std::mem::take(&mut chunk));
            }
            let Some(item) = self.next_item() else { break };
            match codec::encode(&item) {
                Ok(encoded) if encoded.attachments.is_empty() && encoded.bytes.len() < most / 4 => {
                    chunk.push(&encoded.bytes);
                }
                // What does not fit, or has something beside it, is a message of its own.
                Ok(encoded) => {
                    self.submit(std::mem::take(&mut chunk));
                    self.submit_alone(encoded);
                }
                Err(reason) => {
                    self.submit(std::mem::take(&mut chunk));
                    self.fail(TaskFailure::Arguments(reason));
                }
            }
        }
        self.submit(chunk);
    }

    /// The next item. A panic of the iterator ends it, and is kept for later.
    fn next_item(&mut self) -> Option<I::Item> {
        let items = self.items.as_mut()?;
        let next = panic::catch_unwind(AssertUnwindSafe(|| items.next())).unwrap_or_else(|payload| {
            self.panic = Some(payload);
            None
        });
        if next.is_none() {
            self.items = None;
        }
        next
    }

    fn submit(&mut self, chunk: Chunk) {
        let items = chunk.items;
        if items > 0 {
            let encoded = Encoded { bytes: chunk.bytes, attachments: Default::default() };
            self.order(items, Outgoing::of_encoded(TaskLabel::LEN, encoded, usize::MAX));
        }
    }

    fn submit_alone(&mut self, encoded: Encoded) {
        let Encoded { bytes, attachments } = encoded;
        let encoded = Encoded { bytes: [&[0; TaskLabel::LEN][..], &bytes].concat(), attachments };
        let most = self.pool.hub().tasks.core().inline();
        self.order(0, Outgoing::of_encoded(TaskLabel::LEN, encoded, most));
    }

    /// Gives a message to the pool. `items`: how many it has; 0: it is one item alone.
    fn order(&mut self, items: u32, message: Result<Outgoing, QueueError>) {
        let first = self.submitted;
        let submitted = message.map_err(PoolError::Queue).and_then(|message| {
            let order = Order {
                entry: self.entry,
                function: self.function,
                message,
                inbox: self.inbox.clone(),
                first: Some(first),
                items,
                retries: self.pool.retries(),
                limit: self.pool.limit(),
            };
            self.pool.hub().submit(order, &WaitPolicy::Forever)
        });
        match submitted {
            Ok(_) => self.submitted += u64::from(items.max(1)),
            Err(error) => {
                // The pool is closed or broken, or the system refuses: for the next items too.
                self.items = None;
                (0..items.max(1)).for_each(|_| self.fail(TaskFailure::PoolEnded(error.to_string())));
            }
        }
    }

    /// Fails the next item, which was not given to the pool.
    fn fail(&mut self, failure: TaskFailure) {
        let item = self.submitted;
        self.submitted += 1;
        let failed = TaskFailed::new(self.entry.name(), Some(item), 0, false, failure);
        self.inbox.put(Delivery { item, results: Results::Failed(failed), chunk: None });
    }

    /// Waits for the next result that `choose` takes, with the number of its item. `None`: all have been given out.
    pub(super) fn next_by(
        &mut self,
        choose: impl Fn(&mut Self) -> Option<(u64, Result<R, TaskFailed>)>,
    ) -> Option<(u64, Result<R, TaskFailed>)> {
        loop {
            self.fill();
            if let Some(result) = choose(self) {
                self.given += 1;
                return Some(result);
            }
            if self.inbox.take_all(&mut self.arrived) {
                continue;
            }
            if self.on_their_way() == 0 {
                // Only now: all items before it have been given out.
                if let Some(payload) = self.panic.take() {
                    panic::resume_unwind(payload);
                }
                return None;
            }
            if let Err(failed) = self.await_delivery() {
                (self.items, self.submitted) = (None, self.given + 1);
                self.arrived.clear();
                return Some(self.give_up(failed));
            }
        }
    }

    /// Sleeps until something has arrived, and takes in what has come with it.
    fn await_delivery(&self) -> Result<(), QueueError> {
        let hub = self.pool.hub();
        hub.check_here().map_err(|_| QueueError::Closed)?;
        let arrived = || (!self.inbox.is_empty()).then_some(());
        hub.wait(&WaitPolicy::Forever, arrived, |thread| self.inbox.wake(thread))?;
        hub.look();
        Ok(())
    }

    /// The last result of a map whose results cannot be waited for.
    fn give_up(&mut self, error: QueueError) -> (u64, Result<R, TaskFailed>) {
        let item = self.given;
        self.given += 1;
        let failure = TaskFailure::WaitEnded(error.to_string());
        (item, Err(TaskFailed::new(self.entry.name(), Some(item), 0, false, failure)))
    }

    /// The next result of those that have arrived.
    pub(super) fn any(&mut self) -> Option<(u64, Result<R, TaskFailed>)> {
        if self.turn.is_none() {
            self.turn = self.arrival();
        }
        self.read_turn()
    }

    /// The result whose turn it is.
    fn in_turn(&mut self) -> Option<(u64, Result<R, TaskFailed>)> {
        if self.turn.is_none() {
            self.turn = self.early.remove(&self.given);
        }
        while self.turn.is_none() {
            let delivery = self.arrival()?;
            if delivery.item == self.given {
                self.turn = Some(delivery);
            } else {
                self.early.insert(delivery.item, delivery);
            }
        }
        self.read_turn()
    }

    /// The next delivery of those that have arrived.
    fn arrival(&mut self) -> Option<Delivery> {
        let delivery = self.arrived.pop_front()?;
        if let Some((items, busy)) = delivery.chunk {
            self.size.note(items, busy);
        }
        Some(delivery)
    }

    /// Takes the next result of the delivery whose turn it is.
    fn read_turn(&mut self) -> Option<(u64, Result<R, TaskFailed>)> {
        let name = self.entry;
        let turn = self.turn.as_mut()?;
        let unreadable =
            |item, reason| TaskFailed::new(name.name(), Some(item), 1, true, TaskFailure::Result(reason));
        let result = turn.next(unreadable);
        if turn.is_taken() {
            self.turn = None;
        }
        result
    }
}

impl<I, R> Iterator for Map<I, R>
where
    I: Iterator,
    I::Item: Serialize,
    R: DeserializeOwned,
{
    type Item = Result<R, TaskFailed>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_by(Self::in_turn).map(|(_, result)| result)
    }
}

impl<I: Iterator, R> Drop for Map<I, R> {
    fn drop(&mut self) {
        self.inbox.abandon();
        if self.on_their_way() > 0 {
            self.pool.hub().abandon(&self.inbox);
        }
    }
}

impl<I: Iterator, R> fmt::Debug for Map<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("function", &self.entry.name())
            .field("submitted", &self.submitted)
            .field("given", &self.given)
            .finish_non_exhaustive()
    }
}
