//! How a worker of a pool comes to its place, and leaves it: by itself, at the end of its term, or since the pool has too many.
//!
//! Three things make it leave: it has done the tasks of its term, it has too much memory after one, or it takes the message that asks one
//! worker to leave. Each time it says so at its desk: before the last call of its term begins, after the call that has left it too large,
//! or while the message that it takes is still in the queue. From then on the pool counts it no more, and starts another one where one is
//! missing.

use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Context;

use super::desk::Desk;
use super::label::{TaskLabel, Ticket};
use super::ledger::Ledger;
use super::seats::Term;
use crate::sync::robust_mutex::Locked;
use crate::sync::wait_policy::WaitPolicy;
use crate::sys::bytes::Bytes;
use crate::sys::clock::Moment;
use crate::sys::{limits, memory};
use crate::worker::crash;

/// The cell, which no pool has, of a message by which the pool asks whichever worker takes it to leave.
const LEAVE: u32 = u32::MAX;
/// How often a worker looks at its memory, at the most: the look costs some microseconds.
const LOOK: Duration = Duration::from_millis(10);

/// The label of the message that asks one worker to leave.
pub(super) fn request() -> TaskLabel {
    TaskLabel {
        ticket: Ticket { cell: LEAVE, generation: 0 },
        function: 0,
        items: 0,
        is_timed: false,
        environment: 0,
    }
}

/// Whether a message is that one.
pub(super) fn is_request(bytes: &[u8]) -> bool {
    TaskLabel::read(bytes).is_some_and(|label| label.ticket.cell == LEAVE)
}

/// The seat of a worker that begins, which the pool has written beside its place.
pub(super) fn seat(ledger: &Ledger, place: usize) -> anyhow::Result<u16> {
    let desk = ledger.desks().get(place).context("there is no such place in the pool")?;
    u16::try_from(desk.seat.load(Relaxed)).context("the seat of a worker")
}

/// Waits until the worker before has left this place. It has it as long as the returned guard lives, or its process.
///
/// # Errors
/// When the mutex cannot be taken: the wait was aborted, or its word is broken. The worker ends with it.
//
// A robust mutex: the kernel gives it to the successor when its owner dies, however that is, and without a look of the pool's thread.
pub(super) fn take_place(ledger: &Ledger, place: usize) -> anyhow::Result<Locked<'_>> {
    let desk = &ledger.desks()[place];
    let locked = Locked::lock(&desk.place, || ledger.pin(), &WaitPolicy::Forever);
    locked
        .map(|(locked, _)| locked)
        .map_err(|error| anyhow::anyhow!("wait for a place in the pool: {error:?}"))
}

/// Limits the memory of this worker, and has it say so when it dies of that.
pub(super) fn limit_memory(bytes: u64) -> anyhow::Result<()> {
    limits::limit_own_memory(bytes).context("limit the memory of a worker of a pool")?;
    crash::set_words_of_failed_allocation(format!(
        "an allocation failed: the pool has a memory_limit of {} for each worker (RLIMIT_DATA)",
        Bytes(bytes)
    ));
    Ok(())
}

/// What a worker has done of its term.
#[derive(Debug)]
pub(super) struct Service {
    term: Term,
    begun: Cell<u64>,
    /// When it looked at its memory.
    looked: Cell<Moment>,
}

impl Service {
    pub(super) fn new(term: Term) -> Self {
        Self { term, begun: Cell::new(0), looked: Cell::new(Moment::now()) }
    }

    /// Counts tasks that are about to begin. True: they are the last ones.
    pub(super) fn begin(&self, tasks: u64) -> bool {
        self.begun.set(self.begun.get() + tasks);
        self.term.tasks.is_some_and(|most| self.begun.get() >= most)
    }

    /// Whether it is to leave for its memory, after a task that began at that moment.
    pub(super) fn is_too_large(&self, began: Moment) -> bool {
        let Some(most) = self.term.bytes else { return false };
        let now = Moment::now();
        // A task that has run for long may have taken much.
        if now.since(began) < LOOK && now.since(self.looked.get()) < LOOK {
            return false;
        }
        self.looked.set(now);
        memory::own_bytes().is_some_and(|bytes| bytes > most)
    }
}

/// Tells the pool that this worker takes no more tasks after the one that it has; true when it had not said so before.
pub(super) fn announce(desk: &Desk) -> bool {
    desk.leaving.swap(1, Relaxed) == 0
}
