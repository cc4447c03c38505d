//! What arrives in an inbox: what came of a call, of an item, or of several items together.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::chunk;
use super::error::TaskFailed;
use super::label::ResultLabel;
use crate::queue::Incoming;
use crate::wire::codec;

/// What came of a task or of items of a map.
#[derive(Debug)]
pub(super) struct Delivery {
    /// The number of the item, of several the first that is still in it; 0 for a task.
    pub(super) item: u64,
    pub(super) results: Results,
    /// With the last item of a chunk: how many it had, and for how long the worker was at it.
    pub(super) chunk: Option<(u32, Duration)>,
}

/// The results of a delivery. They are decoded by the thread that wants them, and not by the one that takes them out of the queue: what
/// decodes is the user's code, which may be slow or panic.
#[derive(Debug)]
pub(super) enum Results {
    /// What the function returned for one call or one item, with what came beside it.
    One(Incoming),
    /// What it returned for items of a chunk, which have nothing beside them.
    Several(Several),
    /// Why there is no value.
    Failed(TaskFailed),
    /// They have been taken.
    Taken,
}

/// Values one after the other in one piece of memory, so that an item that does nothing costs no allocation. Each is as
/// [`chunk::push_item`] writes it.
#[derive(Debug)]
pub(super) struct Several {
    /// The whole message, its label too, or what lay in a tray.
    bytes: Vec<u8>,
    /// Where the next one begins.
    at: usize,
    /// How many have not been taken. A message that has fewer values than it says gives errors for those that are not there.
    left: u32,
}

impl Several {
    /// `left` values behind the first `at` bytes and `skipped` other values.
    pub(super) fn new(bytes: Vec<u8>, at: usize, skipped: u32, left: u32) -> Self {
        let mut several = Self { bytes, at, left };
        for _ in 0..skipped {
            several.advance();
        }
        several
    }

    /// The bytes of the next one; none where there are fewer than its length says.
    fn advance(&mut self) -> &[u8] {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let (own, behind) = chunk::split_item(rest).unwrap_or_default();
        self.at = self.bytes.len() - behind.len();
        own
    }

    /// Takes the next one; the error says why it is no `R`, and the one behind it can be taken all the same.
    fn decode<R: DeserializeOwned>(&mut self) -> Result<R, String> {
        self.left -= 1;
        codec::decode_plain(self.advance())
    }
}

impl Delivery {
    /// Takes the next result, with the number of its item. `unreadable` makes the failure of one that cannot be decoded. `None`: all
    /// have been taken.
    pub(super) fn next<R: DeserializeOwned>(
        &mut self,
        unreadable: impl FnOnce(u64, String) -> TaskFailed,
    ) -> Option<(u64, Result<R, TaskFailed>)> {
        let item = self.item;
        self.item += 1;
        let decoded = match &mut self.results {
            Results::Several(several) if several.left > 0 => several.decode(),
            Results::Several(_) | Results::Taken => return None,
            Results::One(_) | Results::Failed(_) => {
                match std::mem::replace(&mut self.results, Results::Taken) {
                    Results::One(message) => decode(message),
                    Results::Failed(failed) => return Some((item, Err(failed))),
                    Results::Several(_) | Results::Taken => return None,
                }
            }
        };
        Some((item, decoded.map_err(|reason| unreadable(item, reason))))
    }

    /// How many results there are, and how many of them are known to be failures.
    pub(super) fn count(&self) -> (u64, u64) {
        match &self.results {
            Results::One(_) => (1, 0),
            Results::Several(several) => (several.left.into(), 0),
            Results::Failed(_) => (1, 1),
            Results::Taken => (0, 0),
        }
    }

    /// Whether all results have been taken.
    pub(super) fn is_taken(&self) -> bool {
        match &self.results {
            Results::Several(several) => several.left == 0,
            Results::Taken => true,
            Results::One(_) | Results::Failed(_) => false,
        }
    }
}

/// The value of a result that came alone.
fn decode<R: DeserializeOwned>(message: Incoming) -> Result<R, String> {
    let value = message.open(ResultLabel::LEN, |bytes, received| match received {
        None => codec::decode_plain(bytes),
        Some(received) => codec::decode(bytes, received).0,
    });
    value.and_then(|value| value)
}
