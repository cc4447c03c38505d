//! How the items of a map are given to the pool: in chunks, or alone.
//!
//! All of it runs on the thread that iterates the map (or polls the stream), before that looks for a result: so the input is read no faster
//! than results are taken, and needs not be `Send`. The program's code runs here, the input's `next` and `Serialize`, so no lock of the pool
//! is held. A chunk is cut where its bytes would be more than half of what the ring takes in one piece, since a longer message would have to go as
//! a memfd, which costs more than the chunk saves.

use std::panic::{self, AssertUnwindSafe};

use serde::Serialize;

use super::chunk::Chunk;
use super::delivery::{Delivery, Results};
use super::error::{PoolError, TaskFailed, TaskFailure};
use super::label::TaskLabel;
use super::map::Map;
use super::submit::Order;
use crate::queue::{Outgoing, QueueError};
use crate::sync::wait_policy::WaitPolicy;
use crate::sys::clock::Moment;
use crate::wire::codec::{self, Encoded};

impl<I, R> Map<I, R>
where
    I: Iterator,
    I::Item: Serialize,
{
    /// Gives items to the pool, as long as the window has room for a whole chunk.
    pub(super) fn fill(&mut self) {
        self.send_unsent();
        loop {
            let (size, window) = self.sizes();
            if self.items.is_none() || self.on_their_way() + size > window || !self.unsent.is_empty() {
                return;
            }
            self.submit_chunk(size);
        }
    }

    /// Reads up to `size` items, and gives them to the pool as one message, or as several. Items keep their order: what was collected before an
    /// item that travels alone, or fails, is given first, since the number of an item is how many were given before it.
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

    /// Gives a chunk to the pool, unless it is empty. It never has anything beside its bytes, so it can be kept, and given out again.
    fn submit(&mut self, chunk: Chunk) {
        let items = chunk.items;
        if items > 0 {
            let encoded = Encoded { bytes: chunk.bytes, attachments: Default::default() };
            self.order(items, Outgoing::of_encoded(TaskLabel::LEN, encoded, usize::MAX));
        }
    }

    /// Gives one item to the pool, with its tensors and descriptors. The cell has one item, so a death while it runs costs nothing else.
    fn submit_alone(&mut self, encoded: Encoded) {
        let Encoded { bytes, attachments } = encoded;
        let encoded = Encoded { bytes: [&[0; TaskLabel::LEN][..], &bytes].concat(), attachments };
        let most = self.pool.hub().tasks.core().inline();
        self.order(0, Outgoing::of_encoded(TaskLabel::LEN, encoded, most));
    }

    /// Gives a message to the pool. `items`: how many it has; 0: it is one item alone.
    ///
    /// In an iterator this waits for room as [`Pool::submit`](super::Pool::submit), and takes results in meanwhile. A stream must not wait: its
    /// order is kept in `unsent`, and counts as submitted, so the window bounds what is kept, too.
    fn order(&mut self, items: u32, message: Result<Outgoing, QueueError>) {
        self.began.get_or_insert_with(Moment::now);
        let first = self.submitted;
        let order = message.map_err(PoolError::Queue).and_then(|message| {
            let (inbox, environment) = (self.inbox.clone(), self.environment());
            let order = self.pool.order(self.entry, message)?;
            Ok(Order { inbox, first: Some(first), items, environment, ..order })
        });
        let submitted = match order {
            Ok(order) if self.is_stream => {
                self.unsent.push_back((order, items));
                self.submitted += u64::from(items.max(1));
                return self.send_unsent();
            }
            order => order.and_then(|order| self.pool.hub().submit(order, &WaitPolicy::Forever)),
        };
        match submitted {
            Ok(_) => self.submitted += u64::from(items.max(1)),
            // The pool is closed or broken, or the system refuses: for the next items too.
            Err(error) => {
                self.items = None;
                (0..items.max(1)).for_each(|_| self.fail(TaskFailure::PoolEnded(error.to_string())));
            }
        }
    }

    /// Gives what a stream has kept to the pool, as far as that has room now. Each end of a task makes room, and wakes the stream.
    fn send_unsent(&mut self) {
        while let Some((mut order, items)) = self.unsent.pop_front() {
            let first = order.first.unwrap_or_default();
            match self.pool.hub().try_submit(&mut order) {
                Ok(Some(_)) => order.message.deliver(),
                Ok(None) => return self.unsent.push_front((order, items)),
                Err(error) => {
                    self.items = None;
                    let reason = error.to_string();
                    let failed = |item| self.fail_item(item, TaskFailure::PoolEnded(reason.clone()));
                    (first..first + u64::from(items.max(1))).for_each(failed);
                }
            }
        }
    }

    /// Fails the next item, which was not given to the pool.
    ///
    /// It counts as submitted, and its failure lies in the inbox like any result, so that it is given out when its turn has come.
    fn fail(&mut self, failure: TaskFailure) {
        self.submitted += 1;
        self.fail_item(self.submitted - 1, failure);
    }

    fn fail_item(&self, item: u64, failure: TaskFailure) {
        let failed = TaskFailed::new(self.entry.name(), Some(item), false, failure);
        self.inbox.put(Delivery { item, results: Results::Failed(failed), chunk: None });
    }
}
