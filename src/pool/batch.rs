//! A worker at a chunk: it collects results, and puts them into the queue together.
//!
//! The worker does it between the items of a chunk, on its one thread. A result goes to the queue at once where it cannot lie in the tray, where
//! a thread of the pool sleeps until it is told, or where the message has grown to half of what the ring takes in one piece.

use std::mem;

use anyhow::Context;

use super::chunk;
use super::label::{Kind, ResultLabel};
use super::ledger::State;
use super::serve::{Server, Taken};
use super::tray::{Fill, Tray};
use crate::queue::{Outgoing, message_buffer};
use crate::transfer::received::Received;
use crate::wire::codec::Encoded;

impl Server {
    /// Runs the items of a chunk. Each result is in the tray, or in the queue, before the next item begins.
    ///
    /// The word says Running from the first item to the last, so the pool learns from the cell's `item` which one a death has hit. A chunk that was
    /// asked to end, since its map is gone, begins no further item, and says so by one message for all that are left.
    pub(super) fn run_items(&self, task: &Taken<'_>, items: u32, mut bytes: &[u8]) -> anyhow::Result<()> {
        let mut batch = Batch::new(self, task);
        for item in 0..items {
            let (own, rest) =
                chunk::split_item(bytes).context("read an item of a chunk that is cut short")?;
            bytes = rest;
            if task.cell.standing().state == State::Asked {
                batch.flush(item, false)?;
                let dropped = ResultLabel::of(task.label.ticket, Kind::Dropped, item);
                let message = Outgoing::labelled(&dropped.to_bytes(), &(), self.most())?;
                return self.hand_in(task, true, message);
            }
            let is_last = item + 1 == items;
            self.restore_state()?;
            match self.call(task, (item, own), Received::default(), batch.scratch()) {
                Ok(encoded) => batch.add(item, is_last, encoded)?,
                Err(refused) => {
                    batch.flush(item, false)?;
                    self.hand_in(task, is_last, refused?)?;
                }
            }
        }
        Ok(())
    }
}

/// Results of a chunk that go into the queue as one message.
///
/// Each is in two places until then: here, where the message is made, and in the tray, where the pool finds it if this worker dies. The
/// tray is emptied after the message has been put: a death between the two shows the same results twice, and the pool, which counts
/// what it has of each chunk, takes the second ones for what they are.
struct Batch<'a> {
    server: &'a Server,
    /// The chunk.
    task: &'a Taken<'a>,
    /// That of this worker.
    tray: Tray<'a>,
    /// The same results in the tray.
    fill: Fill,
    /// Room for the label, and then the results.
    bytes: Vec<u8>,
    /// How many results there are.
    items: u32,
    /// Where the next result is written first.
    scratch: Vec<u8>,
}

impl<'a> Batch<'a> {
    /// None yet, of a chunk whose first item has not begun.
    fn new(server: &'a Server, task: &'a Taken<'a>) -> Self {
        let tray = server.place.ledger.tray(server.seat.into());
        let fill = tray.begin(task.label.ticket, 0);
        Self { server, task, tray, fill, bytes: vec![0; ResultLabel::LEN], items: 0, scratch: Vec::new() }
    }

    /// Room for the next result. A function that panics takes it along, and the next one gets new memory.
    fn scratch(&mut self) -> Vec<u8> {
        self.scratch.clear();
        mem::take(&mut self.scratch)
    }

    /// Adds the result of an item. One that is large, or has something beside it, is a message of its own.
    ///
    /// It is in the tray before this returns, and with it before the next item begins.
    fn add(&mut self, item: u32, is_last: bool, encoded: Encoded) -> anyhow::Result<()> {
        let most = self.server.most();
        if !encoded.attachments.is_empty() || encoded.bytes.len() > most / 4 {
            self.flush(item, false)?;
            let label = ResultLabel::of(self.task.label.ticket, Kind::Returned, item);
            let bytes = [&label.to_bytes()[..], &encoded.bytes].concat();
            let message = self.server.message_of(self.task, item, Encoded { bytes, ..encoded })?;
            return self.server.hand_in(self.task, is_last, message);
        }
        let begin = self.bytes.len();
        chunk::push_item(&mut self.bytes, &encoded.bytes);
        self.items += 1;
        self.scratch = encoded.bytes;
        let awaited = self.server.place.ledger.awaited();
        let is_due = self.tray.add(&mut self.fill, &self.bytes[begin..], awaited);
        if is_due || is_last || self.bytes.len() > most / 2 {
            self.flush(item + 1, is_last)?;
        }
        Ok(())
    }

    /// Puts what has been collected into the queue. `next`: the item of which the next result will be.
    ///
    /// The label names the first item and how many there are; the pool skips those that it has found in the tray before.
    fn flush(&mut self, next: u32, is_last: bool) -> anyhow::Result<()> {
        if self.items > 0 {
            let first = next - self.items;
            let label = ResultLabel {
                items: self.items,
                ..ResultLabel::of(self.task.label.ticket, Kind::Several, first)
            };
            self.bytes[..ResultLabel::LEN].copy_from_slice(&label.to_bytes());
            let encoded = Encoded { bytes: mem::take(&mut self.bytes), attachments: Default::default() };
            let message = Outgoing::of_encoded(ResultLabel::LEN, encoded, self.server.most())?;
            self.server.hand_in(self.task, is_last, message)?;
        }
        self.bytes = message_buffer();
        self.bytes.resize(ResultLabel::LEN, 0);
        self.items = 0;
        self.fill = self.tray.begin(self.task.label.ticket, next);
        Ok(())
    }
}
