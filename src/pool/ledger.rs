//! The ledger: which worker holds which task. A cell of shared memory for each task that is on its way, and a word in it that every change
//! goes through. Each change is one compare-and-swap, so of a worker, a canceller and a killer one wins, and the others learn it.
//!
//! | from | to | which process, and when |
//! |---|---|---|
//! | Free | Queued | the submitter, before the task goes into the queue |
//! | Queued | Claimed | a worker, before it takes the task out of the queue |
//! | Claimed | Claimed | another worker, which finds the task still in the queue: the first one has died |
//! | Claimed | Running | the worker, before it decodes the arguments |
//! | Running | Asked | a canceller, or a time limit: the function may see it and end |
//! | Running, Asked | Condemned | the pool, before it kills the worker |
//! | Running, Asked | Sending | the worker, when the function has ended |
//! | Queued, Claimed | Free | a canceller |
//! | any | Free, Queued | the pool, when the result has come or the worker is dead |
//!
//! A worker that finds its task Condemned takes no other one, and waits for its end: so a SIGKILL after that change can hit that
//! task only.

#[cfg(all(test, loom))]
mod models;

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::desk::Desk;
use super::tray::{TRAY, Tray};
use super::word::Word;
use crate::error::MemoryError;
use crate::sys::atomic_record::atomic_record;
use crate::sys::clock::Moment;
use crate::sys::futex;
use crate::sys::robust::MapPin;
use crate::transfer::record::{Handle, Record, TypeTag};

/// Where a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The cell has no task.
    Free,
    Queued,
    /// A worker takes it out of the queue, or has, but the function has not begun.
    Claimed,
    Running,
    /// The function has begun, and is to end.
    Asked,
    /// The worker is to be killed.
    Condemned,
    /// The function has ended, and the worker hands in what came of it.
    Sending,
}

/// What the word of a cell says: 32 bits of the generation, 16 of the worker, 8 of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// How often the cell has changed hands: a message with another number is about a task that is over.
    pub(super) generation: u32,
    /// The worker that has it; of no meaning in `Free` and `Queued`.
    pub(super) worker: u16,
    pub(super) state: State,
}

impl Standing {
    pub(super) fn to_word(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.worker) << 16 | self.state as u64
    }

    fn from_word(word: u64) -> Self {
        let state = match word & 0xff {
            1 => State::Queued,
            2 => State::Claimed,
            3 => State::Running,
            4 => State::Asked,
            5 => State::Condemned,
            6 => State::Sending,
            // The word is in shared memory, and any number may stand there.
            _ => State::Free,
        };
        Self { generation: (word >> 32) as u32, worker: (word >> 16) as u16, state }
    }

    /// The same task in another state.
    fn now(self, state: State) -> Self {
        Self { state, ..self }
    }

    /// Whether its function has begun in this worker.
    pub(super) fn has_begun(self) -> bool {
        self.is_held() && self.state != State::Claimed
    }

    /// Whether the worker has the task in its hands.
    pub(super) fn is_held(self) -> bool {
        !matches!(self.state, State::Free | State::Queued)
    }
}

/// Changes the word as long as the task is this one and `next` allows it; returns what it was before.
fn change(
    word: &impl Word,
    generation: u32,
    next: impl Fn(Standing) -> Option<Standing>,
) -> Option<Standing> {
    let mut seen = word.load(Acquire);
    loop {
        let standing = Standing::from_word(seen);
        let next = next(standing).filter(|_| standing.generation == generation)?;
        // Acquire and Release: the process that finds the new state sees what was stored before it, as the number of the message in `claim`, or
        // the moment of the begin.
        match word.replace(seen, next.to_word(), AcqRel) {
            Ok(_) => return Some(standing),
            Err(now) => seen = now,
        }
    }
}

/// A worker claims a task that it is about to take out of the queue, whose mutex it owns. False: the task is over, as when it was
/// cancelled, and the message is to be dropped.
pub(super) fn claim(word: &impl Word, generation: u32, worker: u16) -> bool {
    // Another worker's claim does not stand in the way: only one process at a time owns the mutex, and the message is still in the
    // queue, so the other one has died between its claim and its take.
    let next = |standing: Standing| match standing.state {
        State::Queued | State::Claimed => Some(Standing { worker, ..standing.now(State::Claimed) }),
        _ => None,
    };
    change(word, generation, next).is_some()
}

/// The worker begins the function. False: the task was cancelled meanwhile.
pub(super) fn begin(word: &impl Word, generation: u32, worker: u16) -> bool {
    let claimed = Standing { generation, worker, state: State::Claimed };
    change(word, generation, |standing| (standing == claimed).then(|| standing.now(State::Running))).is_some()
}

/// The function has ended. False: the worker is condemned.
pub(super) fn finish(word: &impl Word, generation: u32) -> bool {
    let next = |standing: Standing| match standing.state {
        State::Running | State::Asked => Some(standing.now(State::Sending)),
        _ => None,
    };
    change(word, generation, next).is_some()
}

/// Cancels a task that has not begun. True: its function will never begin, and the cell is free.
pub(super) fn cancel(word: &impl Word, generation: u32) -> bool {
    let next = |standing: Standing| match standing.state {
        // The next generation: the message, which is in the queue or in a worker's hands, is about nothing any more.
        State::Queued | State::Claimed => Some(freed(standing)),
        _ => None,
    };
    change(word, generation, next).is_some()
}

/// Asks the function to end. True: it runs, and had not been asked.
fn ask(word: &impl Word, generation: u32) -> bool {
    let next = |standing: Standing| (standing.state == State::Running).then(|| standing.now(State::Asked));
    change(word, generation, next).is_some()
}

/// Condemns the worker that runs a task; returns it. `None`: the function has ended, or has not begun.
pub(super) fn condemn(word: &impl Word, generation: u32) -> Option<u16> {
    let next = |standing: Standing| match standing.state {
        State::Running | State::Asked => Some(standing.now(State::Condemned)),
        _ => None,
    };
    change(word, generation, next).map(|before| before.worker)
}

/// What a dead worker had begun cannot be asked to end any more. Another worker may claim what it had only claimed, and begin it, at this
/// moment: that one is not touched.
pub(super) fn seize(word: &impl Word, generation: u32, dead: u16) {
    let next = |standing: Standing| match standing.state {
        State::Running | State::Asked if standing.worker == dead => Some(standing.now(State::Condemned)),
        _ => None,
    };
    change(word, generation, next);
}

/// The pool takes a task back, whose worker is dead or has handed it in. `queued`: it is to be given out anew. False: it is another
/// task by now, or another worker has claimed it.
pub(super) fn take_back(word: &impl Word, before: Standing, queued: bool) -> bool {
    let next = |standing: Standing| {
        let state = if queued { State::Queued } else { State::Free };
        (standing == before).then(|| freed(standing).now(state))
    };
    change(word, before.generation, next).is_some()
}

fn freed(standing: Standing) -> Standing {
    Standing { generation: standing.generation.wrapping_add(1), worker: 0, state: State::Free }
}

atomic_record! {
    /// What workers and the pool share about one task.
    pub(super) struct Cell {
        pub(super) word: AtomicU64,
        /// The number of the message in the queue, which the worker that claims it writes before.
        number: AtomicU64,
        /// Which item of a chunk has begun.
        item: AtomicU64,
        /// When the function, or the item, began; nanoseconds of CLOCK_MONOTONIC. Only of tasks with a time limit
        /// or a deadline.
        since: AtomicU64,
        /// After which moment it is not to begin, in nanoseconds of CLOCK_MONOTONIC; 0: it has no deadline.
        deadline: AtomicU64,
    }
}

impl Cell {
    pub(super) fn standing(&self) -> Standing {
        Standing::from_word(self.word.load(Acquire))
    }

    /// Asks the running function to end, and ends what waits in it: see [`ask`].
    pub(super) fn ask(&self, generation: u32) -> bool {
        let is_asked = ask(&self.word, generation);
        if is_asked {
            // After the change: one that is about to sleep finds the word changed. Waiters sleep on both halves, so one is enough.
            let [(half, _), _] = futex::halves(&self.word, 0);
            futex::wake_all(half);
        }
        is_asked
    }

    /// Queues a new task in a free cell; returns its generation. Only the pool that made the ledger calls it.
    pub(super) fn queue(&self, deadline: Option<Moment>) -> u32 {
        let free = self.standing();
        self.item.store(0, Relaxed);
        self.since.store(0, Relaxed);
        self.deadline.store(deadline.map_or(0, Moment::as_nanos), Relaxed);
        // Release: the worker that claims the task sees these stores.
        self.word.store(free.now(State::Queued).to_word(), Release);
        free.generation
    }

    /// Claims the task of the message with that number: see [`claim`].
    pub(super) fn claim(&self, generation: u32, worker: u16, number: u32) -> bool {
        // Before the claim, by which the pool finds it. In a cell of another task it does no harm: the worker of that one is past
        // the point where it matters, or writes its own when it claims.
        if self.standing().generation != generation {
            return false;
        }
        self.number.store(number.into(), Relaxed);
        claim(&self.word, generation, worker)
    }

    /// The number of the message that was claimed.
    pub(super) fn number(&self) -> u32 {
        self.number.load(Relaxed) as u32
    }

    /// Notes that an item of a chunk begins.
    pub(super) fn set_item(&self, item: u32) {
        self.item.store(item.into(), Release);
    }

    pub(super) fn item(&self) -> u32 {
        self.item.load(Acquire) as u32
    }

    /// Whether the function is not to begin any more.
    pub(super) fn is_late(&self, now: Moment) -> bool {
        let deadline = self.deadline.load(Relaxed);
        deadline != 0 && deadline < now.as_nanos()
    }

    /// Notes when the function begins.
    pub(super) fn set_since(&self, at: Moment) {
        self.since.store(at.as_nanos(), Release);
    }

    /// When the function began, if it has.
    pub(super) fn since(&self) -> Option<Moment> {
        Some(self.since.load(Acquire)).filter(|&nanos| nanos != 0).map(Moment::from_nanos)
    }
}

atomic_record! {
    struct Head {
        /// How many cells and desks there are.
        cells: AtomicU64,
        desks: AtomicU64,
        /// Not 0: a thread of the pool sleeps until a result is in the queue.
        awaited: AtomicU64,
    }
}

/// The cells of a pool, and a desk and a tray for each seat, in one piece of memory.
///
/// In the record's room lie the cells, then the desks, then the trays, each as an array: their places follow from the two numbers.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    record: Record<Head>,
    /// How many there are. They were read once, so that what another process writes there later has no effect.
    cells: usize,
    desks: usize,
}

const KIND: &str = "ledger of a pool";

/// Bytes of cells, desks and trays; `None`: more than there are addresses.
fn room(cells: usize, desks: usize) -> Option<usize> {
    let desks = desks.checked_mul(size_of::<Desk>() + TRAY)?;
    cells.checked_mul(size_of::<Cell>())?.checked_add(desks)
}

impl Ledger {
    pub(super) fn new(cells: usize, desks: usize) -> Result<Self, MemoryError> {
        let record = Record::<Head>::new(TypeTag::of::<()>(KIND), room(cells, desks).unwrap_or(usize::MAX))?;
        // No other process has the record yet. The message that carries it there orders these stores.
        record.fields().cells.store(cells as u64, Relaxed);
        record.fields().desks.store(desks as u64, Relaxed);
        Ok(Self { record, cells, desks })
    }

    #[inline]
    pub(super) fn cells(&self) -> &[Cell] {
        let (map, at) = self.record.room();
        map.records(at, self.cells)
    }

    /// Keeps the desks mapped for the owner of a place.
    pub(super) fn pin(&self) -> MapPin {
        self.record.lender_pin()
    }

    /// One for each seat. That of a place is also its first seat's.
    pub(super) fn desks(&self) -> &[Desk] {
        let (map, at) = self.record.room();
        map.records(at + self.cells * size_of::<Cell>(), self.desks)
    }

    /// The tray of a seat.
    ///
    /// # Panics
    /// When there is no seat of that number.
    pub(super) fn tray(&self, seat: usize) -> Tray<'_> {
        assert!(seat < self.desks, "seat {seat} of {}", self.desks);
        let (map, at) = self.record.room();
        let trays = at + self.cells * size_of::<Cell>() + self.desks * size_of::<Desk>();
        Tray { map, at: trays + seat * TRAY }
    }

    /// The word by which workers know that a thread of the pool sleeps until a result is in the queue.
    pub(super) fn awaited(&self) -> &AtomicU64 {
        &self.record.fields().awaited
    }
}

impl Serialize for Ledger {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.record.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Ledger {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let record = Record::<Head>::receive(Handle::deserialize(deserializer)?, TypeTag::of::<()>(KIND), 0);
        let record = record.map_err(D::Error::custom)?;
        let [cells, desks] =
            [&record.fields().cells, &record.fields().desks].map(|count| count.load(Relaxed) as usize);
        if room(cells, desks).is_none_or(|room| room > record.room_len()) {
            return Err(D::Error::custom("the ledger of a pool has fewer bytes than it says"));
        }
        Ok(Self { record, cells, desks })
    }
}
