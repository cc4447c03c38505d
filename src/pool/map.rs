//! Maps: one function over many items, with a bound for what is on its way.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::marker::PhantomData;
use std::panic;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::answers::Lent;
use super::chunk::ChunkSize;
use super::delivery::Delivery;
use super::errands::NEXT;
use super::error::{PoolError, TaskFailed, TaskFailure};
use super::handle::Pool;
use super::inbox::Inbox;
use super::progress::{Line, Progress, TICK};
use super::submit::{self, Order};
use crate::queue::QueueError;
use crate::sync::wait_policy::WaitPolicy;
use crate::sys::clock::Moment;
use crate::worker::entry::Entry;

/// How many chunks for each worker are on their way, unless [`Map::window`] says how many items.
const CHUNKS: usize = 4;

/// What [`Pool::map`] returns: an iterator over the results, in the order of the items.
///
/// Its options are set before the first step.
///
/// Dropping it cancels the items that have not begun, and asks those that run to end; workers go on. Each step gives one item's result, so
/// `collect::<Result<Vec<_>, _>>()` stops at the first failure, and with it all that is still on its way. After the pool has broken or was
/// closed, the items that had not been given to it fail once, and the iterator ends.
#[must_use = "a map does nothing until it is iterated"]
pub struct Map<I: Iterator, R> {
    pub(super) pool: Pool,
    pub(super) entry: &'static Entry,
    /// What its function has beside the items.
    environment: Option<Lent>,
    /// `None`: it has ended.
    pub(super) items: Option<I>,
    /// The panic in which it has ended.
    pub(super) panic: Option<Box<dyn Any + Send>>,
    window: Option<usize>,
    size: ChunkSize,
    /// How many items have been given to the pool, and how many results have been given out.
    pub(super) submitted: u64,
    given: u64,
    /// How many results have arrived, and how many of them are failures.
    done: u64,
    failed: u64,
    /// When the first item was given to the pool.
    pub(super) began: Option<Moment>,
    line: Option<Line>,
    pub(super) inbox: Arc<Inbox>,
    /// Of a stream: what the pool had no room for, and how many items each has.
    pub(super) unsent: VecDeque<(Order, u32)>,
    /// Whether it is a stream, which may not wait for room.
    pub(super) is_stream: bool,
    arrived: VecDeque<Delivery>,
    /// Of a map in order: the deliveries that have come before their turn, by their first item, and the one whose turn it is.
    early: BTreeMap<u64, Delivery>,
    turn: Option<Delivery>,
    results: PhantomData<fn() -> R>,
}

/// How far a map has come without waiting.
pub(super) enum Step<R> {
    /// The next result, with the number of its item, or the end.
    Gives(Option<(u64, Result<R, TaskFailed>)>),
    Waits,
}

impl<I: Iterator, R> Map<I, R> {
    pub(super) fn new(
        pool: &Pool,
        entry: &'static Entry,
        environment: Option<Lent>,
        items: I,
    ) -> Result<Self, PoolError> {
        pool.hub().check_here()?;
        // The function lies where a worker finds it, or no item could be given to one.
        submit::function(entry)?;
        // The clock of a time limit runs from the begin of an item, so that each has a cell of its own. An item that is late does not
        // begin, and those before it in a chunk had.
        let size = if pool.terms.are_timed() { ChunkSize::fixed(1) } else { ChunkSize::guided() };
        Ok(Self {
            pool: pool.clone(),
            entry,
            environment,
            items: Some(items),
            panic: None,
            window: None,
            size,
            submitted: 0,
            given: 0,
            done: 0,
            failed: 0,
            began: None,
            line: None,
            inbox: Arc::default(),
            unsent: VecDeque::new(),
            is_stream: false,
            arrived: VecDeque::new(),
            early: BTreeMap::new(),
            turn: None,
            results: PhantomData,
        })
    }

    /// The number of what its function has beside the items.
    pub(super) fn environment(&self) -> u32 {
        self.environment.as_ref().map_or(NEXT, |lent| lent.number)
    }

    /// How many items may have been read, and their results not been given out; without it, four chunks for each worker. 0 counts
    /// as 1.
    ///
    /// A bound for memory, and for how far the input is read ahead: joblib's `pre_dispatch`. A result that comes before its turn counts until its
    /// turn has come, so one slow item holds up the others once the window is full; [`unordered`](Self::unordered) has no such wait.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::cell::Cell;
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let read = Cell::new(0);
    /// let lines = (0..1000).map(|n| { read.set(read.get() + 1); format!("line {n}") });
    /// let pool = Pool::new(2)?;
    /// let mut lengths = pool.map(|line: String| anyhow::Ok(line.len()), lines)?.window(8);
    /// assert_eq!(lengths.next().transpose()?, Some(6));
    /// assert!(read.get() <= 8);
    /// assert_eq!(lengths.count(), 999);
    /// # Ok(())
    /// # }
    /// ```
    pub fn window(mut self, items: usize) -> Self {
        self.window = Some(items.max(1));
        self
    }

    /// How many items travel in one message; without it, as many as take a worker half a millisecond, and fewer towards the end. 0
    /// counts as 1. In a pool with a [time limit](super::PoolOptions::timeout) or a [deadline](super::PoolOptions::deadline) it is always 1.
    ///
    /// Python's `chunksize`. A [window](Self::window) of less than two chunks a worker makes chunks smaller, so that each worker has something.
    pub fn chunk(mut self, items: usize) -> Self {
        if !self.pool.terms.are_timed() {
            self.size = ChunkSize::fixed(items);
        }
        self
    }

    /// Keeps a line at the bottom of the terminal while the map is iterated, such as `label: 120 of 1000 done, 4 running, 35.2/s, 0:00:25
    /// left`; ten times a second at most. There is none where stderr is no terminal, or one that this process has not in its foreground.
    ///
    /// A thread draws it, which ends with the map; with [`Options::prefix`](crate::Options::prefix) or
    /// [`Options::stderr_tail`](crate::Options::stderr_tail) the one that carries what the workers print, below that. What is
    /// printed to the terminal by other means overwrites the line, until it is drawn again.
    pub fn status_line(mut self, label: impl Into<String>) -> Self {
        self.line = Some(Line::new(label.into(), self.pool.hub().printer.clone()));
        self
    }

    /// How far it is.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(2)?;
    /// let mut squares = pool.map(|x: u64| anyhow::Ok(x * x), 0..100)?;
    /// while let Some(square) = squares.next() {
    ///     square?;
    ///     let progress = squares.progress();
    ///     assert!(progress.done > 0 && progress.failed == 0 && progress.total == Some(100));
    /// }
    /// assert_eq!(squares.progress().done, 100);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn progress(&self) -> Progress {
        let left = self.items.as_ref().map_or(Some(0), |items| match items.size_hint() {
            (least, Some(most)) if least == most => Some(least as u64),
            _ => None,
        });
        Progress {
            done: self.done,
            failed: self.failed,
            running: self.pool.hub().running_of(&self.inbox),
            total: left.map(|left| self.submitted + left),
            elapsed: self.began.map_or(Duration::ZERO, |began| Moment::now().since(began)),
        }
    }

    /// Draws the line anew, if there is one.
    fn show(&mut self) {
        let Some(mut line) = self.line.take() else { return };
        line.show(|| self.progress());
        self.line = Some(line);
    }

    /// How many items the next chunk has, and how many may be on their way.
    pub(super) fn sizes(&self) -> (usize, usize) {
        let workers = self.pool.size();
        let left = self.items.as_ref().and_then(|items| items.size_hint().1);
        let size = self.size.next(workers, left);
        match self.window {
            None => (size, CHUNKS * workers * size),
            // Small enough that all workers have something.
            Some(window) => (size.min(window.div_ceil(2 * workers)), window),
        }
    }

    pub(super) fn on_their_way(&self) -> usize {
        (self.submitted - self.given) as usize
    }
}

impl<I, R> Map<I, R>
where
    I: Iterator,
    I::Item: Serialize,
    R: DeserializeOwned,
{
    /// Waits for the next result that `choose` takes, with the number of its item. `None`: all have been given out.
    pub(super) fn next_by(
        &mut self,
        choose: impl Fn(&mut Self) -> Option<(u64, Result<R, TaskFailed>)>,
    ) -> Option<(u64, Result<R, TaskFailed>)> {
        loop {
            if let Step::Gives(next) = self.step(&choose) {
                return next;
            }
            if let Err(failed) = self.await_delivery() {
                return Some(self.give_up(failed));
            }
        }
    }

    /// Goes on as far as it can without waiting.
    pub(super) fn step(
        &mut self,
        choose: impl Fn(&mut Self) -> Option<(u64, Result<R, TaskFailed>)>,
    ) -> Step<R> {
        loop {
            self.fill();
            self.show();
            if let Some(result) = choose(self) {
                self.given += 1;
                return Step::Gives(Some(result));
            }
            if self.take_in() {
                continue;
            }
            if self.on_their_way() > 0 {
                return Step::Waits;
            }
            self.line = None;
            // Only now: all items before it have been given out.
            if let Some(payload) = self.panic.take() {
                panic::resume_unwind(payload);
            }
            return Step::Gives(None);
        }
    }

    /// Takes what has arrived, and counts it; says whether there was something.
    fn take_in(&mut self) -> bool {
        let known = self.arrived.len();
        let has_arrived = self.inbox.take_all(&mut self.arrived);
        for delivery in self.arrived.range(known..) {
            let (results, failed) = delivery.count();
            self.done += results;
            self.failed += failed;
        }
        has_arrived
    }

    /// Sleeps until something has arrived, and takes in what has come with it.
    fn await_delivery(&self) -> Result<(), QueueError> {
        let hub = self.pool.hub();
        hub.check_here().map_err(|_| QueueError::Closed)?;
        let arrived = || (!self.inbox.is_empty()).then_some(());
        // The line goes on while nothing arrives.
        let policy = if self.line.is_some() { WaitPolicy::of(TICK) } else { WaitPolicy::Forever };
        match hub.wait(&policy, arrived, |thread| self.inbox.wake(thread)) {
            Err(QueueError::TimedOut { .. }) => return Ok(()),
            waited => waited?,
        }
        hub.look();
        Ok(())
    }

    /// The last result of a map whose results cannot be waited for.
    pub(super) fn give_up(&mut self, error: QueueError) -> (u64, Result<R, TaskFailed>) {
        let item = self.given;
        (self.items, self.submitted) = (None, item + 1);
        self.arrived.clear();
        self.given += 1;
        let failure = TaskFailure::WaitEnded(error.to_string());
        (item, Err(TaskFailed::new(self.entry.name(), Some(item), false, failure)))
    }

    /// The next result of those that have arrived.
    pub(super) fn any(&mut self) -> Option<(u64, Result<R, TaskFailed>)> {
        if self.turn.is_none() {
            self.turn = self.arrival();
        }
        self.read_turn()
    }

    /// The result whose turn it is.
    pub(super) fn in_turn(&mut self) -> Option<(u64, Result<R, TaskFailed>)> {
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
            |item, reason| TaskFailed::new(name.name(), Some(item), true, TaskFailure::Result(reason));
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
