//! Several items of a map in one message: how many, and how they lie there. Pure.
//!
//! A chunk should take a worker about half a millisecond: long enough that its message, some microseconds, does not count, and short enough that
//! workers end together. How long an item takes is not known before one has come back, so the first chunks have one item, and the length follows what
//! is measured.

use std::time::Duration;

use super::label::{TaskLabel, Ticket};

/// How long a chunk is to take: much longer than a message, much shorter than anybody waits.
const CHUNK: Duration = Duration::from_micros(500);
/// Bytes of the length of an item.
const LENGTH: usize = 4;
/// The most items of a chunk.
const MOST: usize = 4096;

/// The length of the chunks of one map.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkSize {
    fixed: Option<usize>,
    /// How long an item takes, in nanoseconds, by the chunks that have come back; `None`: none has.
    item: Option<f64>,
}

impl ChunkSize {
    pub(super) fn guided() -> Self {
        Self { fixed: None, item: None }
    }

    pub(super) fn fixed(items: usize) -> Self {
        Self { fixed: Some(items.max(1)), item: None }
    }

    /// Takes in how long a chunk has run, and how many items it had.
    pub(super) fn note(&mut self, items: u32, busy: Duration) {
        let took = busy.as_nanos() as f64 / f64::from(items.max(1));
        // The newer half counts: a map's items may grow.
        self.item = Some(self.item.map_or(took, |known| (known + took) / 2.0));
    }

    /// How many items the next chunk has at most. `left`: how many items there are still, if the input knows it.
    pub(super) fn next(&self, workers: usize, left: Option<usize>) -> usize {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        // Until the first has come back nothing is known, and one item is the smallest mistake.
        let Some(item) = self.item else { return 1 };
        let by_time = (CHUNK.as_nanos() as f64 / item.max(1.0)) as usize;
        // Towards the end chunks grow smaller, so that all workers end together.
        let by_rest = left.map_or(MOST, |left| left / (4 * workers.max(1)));
        by_time.min(by_rest).clamp(1, MOST)
    }
}

/// Items one after the other, each behind its length.
pub(super) struct Chunk {
    /// Room for the label, and then the items.
    pub(super) bytes: Vec<u8>,
    pub(super) items: u32,
}

impl Default for Chunk {
    fn default() -> Self {
        Self { bytes: vec![0; TaskLabel::LEN], items: 0 }
    }
}

impl Chunk {
    pub(super) fn push(&mut self, item: &[u8]) {
        push_item(&mut self.bytes, item);
        self.items += 1;
    }
}

/// Adds an item, or a result: its length, its bytes, and zeros up to a whole word.
pub(super) fn push_item(bytes: &mut Vec<u8>, item: &[u8]) {
    let end = bytes.len() + item_len(item.len());
    // Shorter than a quarter of the ring.
    bytes.extend_from_slice(&(item.len() as u32).to_le_bytes());
    bytes.extend_from_slice(item);
    bytes.resize(end, 0);
}

/// How many bytes an item of that length takes.
fn item_len(len: usize) -> usize {
    (LENGTH + len).next_multiple_of(8)
}

/// Takes the first item off.
pub(super) fn split_item(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = u32::from_le_bytes(*bytes.first_chunk::<LENGTH>()?) as usize;
    let (item, rest) = bytes.split_at_checked(item_len(len))?;
    Some((&item[LENGTH..LENGTH + len], rest))
}

/// The bytes of a chunk's message without its first items, for another ticket.
pub(super) fn without_items(message: &[u8], skipped: u32, ticket: Ticket, items: u32) -> Vec<u8> {
    let (label, mut rest) = message.split_at(TaskLabel::LEN.min(message.len()));
    for _ in 0..skipped {
        rest = split_item(rest).map_or(&[][..], |(_, rest)| rest);
    }
    let label = TaskLabel::read(label).map(|label| TaskLabel { ticket, items, ..label }.to_bytes());
    [&label.unwrap_or_default()[..], rest].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_grows_with_short_items_and_shrinks_towards_the_end() {
        let mut size = ChunkSize::guided();
        assert_eq!(size.next(4, None), 1);
        size.note(1, Duration::from_micros(5));
        assert_eq!(size.next(4, None), 100);
        assert_eq!(size.next(4, Some(160)), 10);
        assert_eq!(size.next(4, Some(3)), 1);
        size.note(100, Duration::from_millis(100));
        assert_eq!(size.next(4, None), 1);
        size.note(1, Duration::ZERO);
        size.note(1, Duration::ZERO);
        assert!(size.next(1, None) <= MOST);
        assert_eq!(ChunkSize::fixed(0).next(4, Some(0)), 1);
        assert_eq!(ChunkSize::fixed(7).next(4, Some(2)), 7);
    }

    #[test]
    fn items_are_taken_off_and_the_rest_keeps_its_bytes() {
        let mut chunk = Chunk::default();
        [&b"a"[..], b"", b"ccc"].iter().for_each(|item| chunk.push(item));
        let ticket = Ticket { cell: 3, generation: 4 };
        let label = TaskLabel { ticket, function: 5, items: 3, is_timed: false, environment: 9 };
        chunk.bytes[..TaskLabel::LEN].copy_from_slice(&label.to_bytes());
        let again = Ticket { generation: 5, ..ticket };
        let rest = without_items(&chunk.bytes, 1, again, 2);
        assert_eq!(TaskLabel::read(&rest), Some(TaskLabel { ticket: again, items: 2, ..label }));
        let (item, rest) = split_item(&rest[TaskLabel::LEN..]).unwrap();
        assert_eq!((item, split_item(rest).unwrap()), (&b""[..], (&b"ccc"[..], &b""[..])));
        assert_eq!(split_item(&rest[..rest.len() - 1]), None);
        assert_eq!(without_items(&chunk.bytes, 9, again, 0).len(), TaskLabel::LEN);
    }
}
