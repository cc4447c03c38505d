//! The buffer of a value that is being written: tags, lengths, names, runs of numbers.
//!
//! **Names.** A name is `2 * length + 1` and its bytes, or `2 * place` where it stood before in the message. Places count from
//! the message's first byte, since the buffer may have other bytes before it. Two names are the same if their pointers and
//! lengths are: derived code has one constant for each field, and two copies of a text cost only its bytes once more.
//!
//! **Runs.** If the first item of a sequence of at least [`RUN_FROM`] is a number, it begins a run, with a count of zero in its
//! head. Numbers of the same tag continue the run with their bytes alone; whatever else is written fills in the count and
//! ends it. The count is taken from what was written: the length that a sequence states before its items need not be true.

use std::cell::Cell;

use super::input::width;
use super::{LONGEST_KNOWN, RUN_FROM, tag};

/// The most bytes that are reserved for a run, since the number of its items is only what the type states.
const RESERVE: usize = 16 << 20;
/// Bytes of the count in the head of a run.
const COUNT: usize = 8;

/// The number of names that are searched for one that was written before. Of a type with more names the others are written in full
/// each time: searching all would take time by the square of their number.
const MOST_KNOWN: usize = 1024;

/// Writes values to a buffer.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) out: Vec<u8>,
    /// Where the message begins in the buffer.
    begin: usize,
    /// Whether a sequence or a map has begun: as a rule names come more than once only then, and are worth searching for.
    repeats: bool,
    /// The names that were written since then, and their places in the message.
    names: Vec<(&'static str, usize)>,
    /// The number of the name that probably comes next.
    next_name: usize,
    /// The tag of the run that numbers continue, [`NO_RUN`], or [`READY`].
    run: u8,
    /// The place of the run's count in the buffer; before the run begins, the probable number of items.
    run_at: usize,
}

thread_local! {
    /// An empty list of names with room, so that a message with a struct in it does not allocate one.
    static SPARE: Cell<Vec<(&'static str, usize)>> = const { Cell::new(Vec::new()) };
}

const NO_RUN: u8 = tag::END;
/// A long sequence has begun: a number would begin a run.
const READY: u8 = tag::RUN;

impl Writer {
    #[inline]
    pub(super) fn new(out: Vec<u8>) -> Self {
        Self {
            begin: out.len(),
            out,
            repeats: false,
            names: Vec::new(),
            next_name: 0,
            run: NO_RUN,
            run_at: 0,
        }
    }

    #[inline]
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        if self.names.capacity() > 0 {
            self.names.clear();
            // While a thread ends, its spare list may be gone: then this list is freed.
            let _ = SPARE.try_with(|spare| spare.set(self.names));
        }
        self.out
    }

    /// Writes the tag of anything but a number, and ends a run.
    #[inline]
    pub(super) fn tag(&mut self, tag: u8) {
        self.end_run();
        self.out.push(tag);
    }

    #[inline]
    pub(super) fn length(&mut self, length: usize) {
        varint(&mut self.out, length as u64);
    }

    #[inline]
    pub(super) fn bytes(&mut self, tag: u8, bytes: &[u8]) {
        self.tag(tag);
        self.length(bytes.len());
        self.out.extend_from_slice(bytes);
    }

    #[inline]
    pub(super) fn name(&mut self, name: &'static str) {
        if !self.repeats {
            return self.whole_name(name);
        }
        // In a sequence of structs the names come in the same order again, so the next one is mostly the one after the last.
        match self.names.get(self.next_name) {
            Some(&(next, at)) if std::ptr::eq(next, name) => {
                self.next_name += 1;
                varint(&mut self.out, 2 * at as u64);
            }
            _ => self.other_name(name),
        }
    }

    fn other_name(&mut self, name: &'static str) {
        // Pointers and lengths are compared: comparing texts would take longer than a reference saves.
        if let Some(number) = self.names.iter().position(|(known, _)| std::ptr::eq(*known, name)) {
            self.next_name = number + 1;
            return varint(&mut self.out, 2 * self.names[number].1 as u64);
        }
        let at = self.out.len() - self.begin;
        if self.names.capacity() == 0 {
            // While a thread ends, its spare list may be gone already.
            self.names = SPARE.try_with(Cell::take).unwrap_or_default();
        }
        if name.len() <= LONGEST_KNOWN && self.names.len() < MOST_KNOWN {
            self.names.push((name, at));
        }
        self.whole_name(name);
    }

    #[inline]
    fn whole_name(&mut self, name: &'static str) {
        varint(&mut self.out, 2 * name.len() as u64 + 1);
        self.out.extend_from_slice(name.as_bytes());
    }

    /// Writes a number: only its bytes where it continues a run, else what `alone` writes.
    #[inline]
    pub(super) fn number<const N: usize>(
        &mut self,
        tag: u8,
        bytes: [u8; N],
        alone: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.run == tag {
            self.out.extend_from_slice(&bytes);
        } else if self.run == READY {
            self.begin_run(tag, &bytes);
        } else {
            self.end_run();
            alone(&mut self.out);
        }
    }

    #[cold]
    fn begin_run(&mut self, tag: u8, first: &[u8]) {
        self.out.reserve(self.run_at.saturating_mul(first.len()).min(RESERVE));
        self.out.extend_from_slice(&[tag::RUN, tag]);
        (self.run, self.run_at) = (tag, self.out.len());
        self.out.extend_from_slice(&[0; COUNT]);
        self.out.extend_from_slice(first);
    }

    #[inline]
    pub(super) fn end_run(&mut self) {
        if self.run != NO_RUN {
            self.count_run();
        }
    }

    #[cold]
    fn count_run(&mut self) {
        if let Some(width) = width(self.run) {
            let count = (self.out.len() - self.run_at - COUNT) / width;
            self.out[self.run_at..self.run_at + COUNT].copy_from_slice(&(count as u64).to_le_bytes());
        }
        self.run = NO_RUN;
    }

    /// Begins a sequence of probably `items` items.
    #[inline]
    pub(super) fn begin_sequence(&mut self, items: usize) {
        self.tag(tag::SEQ);
        self.length(items);
        self.repeats = true;
        if items >= RUN_FROM {
            (self.run, self.run_at) = (READY, items);
        }
    }

    /// Begins a map of probably `entries` entries.
    #[inline]
    pub(super) fn begin_map(&mut self, entries: usize) {
        self.tag(tag::MAP);
        self.length(entries);
        self.repeats = true;
    }

    #[inline]
    pub(super) fn variant(&mut self, name: &'static str) {
        self.tag(tag::VARIANT);
        self.name(name);
    }
}

/// LEB128.
#[inline]
pub(super) fn varint(out: &mut Vec<u8>, number: u64) {
    if number < 128 {
        out.push(number as u8);
    } else {
        long_varint(out, number);
    }
}

#[cold]
fn long_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 128 {
        out.push(number as u8 | 128);
        number >>= 7;
    }
    out.push(number as u8);
}
