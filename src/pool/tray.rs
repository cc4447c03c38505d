//! Trays: results of a chunk that its worker has not put into the queue yet.
//!
//! A message for each item would cost more than an item that does nothing. So a worker collects the results of a chunk, and puts
//! them into the queue as one message when the chunk has ended. Until then they lie in its tray, a piece of shared memory that the
//! pool reads when the worker has died, and before it falls asleep: a death costs no item that had ended, and no result waits for
//! the end of a long item behind it.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

use super::label::Ticket;
use super::word::Word;
use crate::sys::atomic_record::atomic_record;
use crate::sys::map::SharedMap;

atomic_record! {
    /// What stands before the results.
    pub(super) struct TrayHead {
        /// How far the worker is: see [`Fill`].
        filled: AtomicU64,
        /// Whose results they are: the ticket's cell, and below it its generation.
        ticket: AtomicU64,
        /// Which item of the task the first result is of.
        first: AtomicU64,
    }
}

/// Bytes of a tray, its head among them. It has no memory until it is used.
pub(super) const TRAY: usize = 64 << 10;
/// Bytes of results that it takes.
const ROOM: usize = TRAY - size_of::<TrayHead>();

/// How far a tray is filled, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fill {
    /// How often the tray has been emptied, modulo 2^24.
    round: u32,
    /// How many results it has.
    pub(super) items: u16,
    /// How many bytes they have; fewer than 2^24.
    bytes: u32,
}

impl Fill {
    fn to_word(self) -> u64 {
        u64::from(self.round & 0xff_ffff) << 40 | u64::from(self.items) << 24 | u64::from(self.bytes)
    }

    fn from_word(word: u64) -> Self {
        Self { round: (word >> 40) as u32, items: (word >> 24) as u16, bytes: word as u32 & 0xff_ffff }
    }

    /// Empty, for the next results.
    fn emptied(self) -> Self {
        Self { round: (self.round + 1) & 0xff_ffff, items: 0, bytes: 0 }
    }

    /// With one more result; `None`: there is no room for it.
    pub(super) fn with(self, bytes: usize) -> Option<Self> {
        let bytes = self.bytes as usize + bytes;
        let items = self.items.checked_add(1)?;
        (bytes <= ROOM).then_some(Self { items, bytes: bytes as u32, ..self })
    }
}

/// The worker empties its tray: what was in it is in the queue.
pub(super) fn empty(filled: &impl Word) -> Fill {
    let next = Fill::from_word(filled.load(Relaxed)).emptied();
    filled.store(next.to_word(), Relaxed);
    // Before what the worker writes next: a reader that sees any of that finds another round at its second look.
    next
}

/// The worker has written one more result. True: a thread of the pool sleeps until it is told, so the results are to be put into the
/// queue now.
pub(super) fn publish(filled: &impl Word, fill: Fill, awaited: &impl Word, fence: impl Fn()) -> bool {
    filled.store(fill.to_word(), Release);
    // As in `await_results`: either that thread sees the result, or this one sees that it sleeps.
    fence();
    awaited.load(Relaxed) != 0
}

/// A thread of the pool is about to sleep until it is told, or a future to be `Pending`. It has to look into all trays after this.
pub(super) fn await_results(awaited: &impl Word, fence: impl Fn()) {
    awaited.add(1);
    fence();
}

/// The tray of one worker.
#[derive(Clone, Copy)]
pub(super) struct Tray<'a> {
    pub(super) map: &'a SharedMap,
    /// Where it begins in the map.
    pub(super) at: usize,
}

/// What the pool has found in a tray.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) ticket: Ticket,
    /// Which item the first result is of.
    pub(super) first: u32,
    pub(super) items: u32,
    /// The results, each as [`push_item`](super::chunk::push_item) writes it.
    pub(super) bytes: Vec<u8>,
}

impl Tray<'_> {
    fn head(&self) -> &TrayHead {
        self.map.record(self.at)
    }

    fn results(&self) -> usize {
        self.at + size_of::<TrayHead>()
    }

    /// Empties it, for results of a task from an item on. Only its worker calls it.
    pub(super) fn begin(&self, ticket: Ticket, first: u32) -> Fill {
        let head = self.head();
        let fill = empty(&head.filled);
        // A reader that sees one of the stores below, or of those of the results, sees the new round too when it looks again.
        fence(Release);
        head.ticket.store(u64::from(ticket.cell) << 32 | u64::from(ticket.generation), Relaxed);
        head.first.store(first.into(), Relaxed);
        fill
    }

    /// Adds a result, whose bytes are whole words, behind those of `fill`. True: it is to be put into the queue now.
    pub(super) fn add(&self, fill: &mut Fill, result: &[u8], awaited: &AtomicU64) -> bool {
        let Some(next) = fill.with(result.len()) else { return true };
        self.map.write(self.results() + fill.bytes as usize, result, 8);
        *fill = next;
        publish(&self.head().filled, next, awaited, || fence(SeqCst))
    }

    /// What is in it. `None`: nothing, or the worker has emptied it meanwhile, and so put it into the queue.
    pub(super) fn read(&self) -> Option<Found> {
        let head = self.head();
        // Acquire: what the worker wrote before it published that many is seen.
        let before = Fill::from_word(head.filled.load(Acquire));
        let (ticket, first) = (head.ticket.load(Relaxed), head.first.load(Relaxed));
        if before.items == 0 || before.bytes as usize > ROOM {
            return None;
        }
        let mut bytes = vec![0; (before.bytes as usize).next_multiple_of(8).min(ROOM)];
        self.map.read(self.results(), &mut bytes, 8);
        // As a reader of a seqlock: with the fence of `begin`, bytes of a later round are not taken for these.
        fence(Acquire);
        let after = Fill::from_word(head.filled.load(Relaxed));
        let ticket = Ticket { cell: (ticket >> 32) as u32, generation: ticket as u32 };
        let found = Found { ticket, first: first as u32, items: before.items.into(), bytes };
        (after.round == before.round).then_some(found)
    }
}

#[cfg(all(test, loom))]
mod models {
    use std::sync::Arc;
    use std::sync::atomic::Ordering::SeqCst;

    use loom::sync::atomic::{AtomicU64, fence};
    use loom::thread;

    use super::*;

    #[test]
    fn loom_result_is_seen_by_the_thread_that_falls_asleep_or_put_into_the_queue() {
        loom::model(|| {
            let (filled, awaited) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
            let worker = thread::spawn({
                let (filled, awaited) = (filled.clone(), awaited.clone());
                move || {
                    let fill = empty(&*filled).with(8).unwrap();
                    publish(&*filled, fill, &*awaited, || fence(SeqCst))
                }
            });
            await_results(&*awaited, || fence(SeqCst));
            let is_seen = Fill::from_word(filled.load(SeqCst)).items > 0;
            assert!(worker.join().unwrap() || is_seen);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::chunk;
    use crate::pool::ledger::Ledger;

    const TICKET: Ticket = Ticket { cell: 3, generation: 9 };

    fn result(bytes: &[u8]) -> Vec<u8> {
        let mut result = Vec::new();
        chunk::push_item(&mut result, bytes);
        result
    }

    #[test]
    fn results_are_found_until_the_tray_is_emptied() {
        let ledger = Ledger::new(1, 2).unwrap();
        let (tray, awaited) = (ledger.tray(1), ledger.awaited());
        let mut fill = tray.begin(TICKET, 5);
        assert_eq!(tray.read(), None);
        assert!(!tray.add(&mut fill, &result(b"one"), awaited));
        assert!(!tray.add(&mut fill, &result(b"three"), awaited));
        let bytes = [result(b"one"), result(b"three")].concat();
        assert_eq!(tray.read(), Some(Found { ticket: TICKET, first: 5, items: 2, bytes }));
        assert_eq!(ledger.tray(0).read(), None);
        tray.begin(TICKET, 7);
        assert_eq!(tray.read(), None);
    }

    #[test]
    fn result_is_to_be_put_when_it_is_awaited_or_has_no_room() {
        let ledger = Ledger::new(1, 1).unwrap();
        let (tray, awaited) = (ledger.tray(0), ledger.awaited());
        let mut fill = tray.begin(TICKET, 0);
        assert!(tray.add(&mut fill, &vec![0; TRAY], awaited));
        assert_eq!(tray.read(), None);
        await_results(awaited, || fence(SeqCst));
        assert!(tray.add(&mut fill, &result(b"one"), awaited));
        assert_eq!(tray.read().map(|found| found.items), Some(1));
    }

    #[test]
    fn words_are_read_back_and_rounds_begin_anew() {
        let fill = Fill { round: 0xff_ffff, items: u16::MAX, bytes: ROOM as u32 };
        assert_eq!(Fill::from_word(fill.to_word()), fill);
        assert_eq!(fill.with(0), None);
        assert_eq!(fill.emptied(), Fill::default());
        assert_eq!(Fill::default().with(ROOM).map(|fill| fill.items), Some(1));
        assert_eq!(Fill::default().with(ROOM + 1), None);
    }
}
