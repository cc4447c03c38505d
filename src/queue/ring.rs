//! Messages one after the other in a ring of bytes.
//!
//! Nothing in it is taken on trust: whoever has the memory may have written there.

use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;

use crate::sys::map::SharedMap;

/// How far one side is: how many messages and how many bytes it has put in or taken out, both modulo 2^32.
//
// Both counts share one word, because one store has to put a message in, or take it out: a process that dies between two stores would
// leave a count of messages that does not fit the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) messages: u32,
    bytes: u32,
}

impl Position {
    #[inline]
    pub(super) fn from_word(word: u64) -> Self {
        Self { messages: (word >> 32) as u32, bytes: word as u32 }
    }

    #[inline]
    pub(super) fn to_word(self) -> u64 {
        (u64::from(self.messages) << 32) | u64::from(self.bytes)
    }

    /// After one more message.
    #[inline]
    pub(super) fn after(self, header: Header) -> Self {
        Self {
            // Both wrap. Differences of two positions stay right, since there are never 2^32 messages or bytes between the sides.
            messages: self.messages.wrapping_add(1),
            bytes: self.bytes.wrapping_add(header.record_len() as u32),
        }
    }

    /// How many messages are between an earlier position and this one.
    #[inline]
    pub(super) fn messages_since(self, earlier: Self) -> u32 {
        self.messages.wrapping_sub(earlier.messages)
    }
}

/// What stands before a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes in the ring.
    pub(super) len: u32,
    /// Where the rest of it is.
    pub(super) place: Place,
    /// What tells its descriptors from those of a message that was never finished.
    pub(super) ticket: u32,
}

/// Where the parts of a message are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// All in the ring.
    Ring,
    /// Its manifest is in the ring too, and descriptors come beside it.
    Beside,
    /// All is in a memfd, which is the first of its descriptors.
    Memfd,
}

/// Bytes of a header in the ring.
//
// A record is whole words, so each header lies on a word boundary, in one piece: it never wraps around the end of the ring, whose
// size is a multiple of a word too.
const HEADER: usize = size_of::<u64>();
const WORD: usize = size_of::<u64>();

/// How many tickets there are.
//
// They wrap around after as many messages with descriptors. At a time some hundreds are in use, those in the socket and in the ring,
// so that a ticket from before the wrap is not taken for one after it.
pub(super) const TICKETS: u32 = 1 << 30;

/// Whether one ticket was given out after another.
pub(super) fn is_later(ticket: u32, than: u32) -> bool {
    // As sequence numbers of TCP are compared: of two numbers on a circle the later one is less than half of it ahead.
    let ahead = ticket.wrapping_sub(than) % TICKETS;
    ahead != 0 && ahead < TICKETS / 2
}

impl Header {
    #[inline]
    fn record_len(self) -> usize {
        HEADER + (self.len as usize).next_multiple_of(WORD)
    }

    fn to_word(self) -> u64 {
        // Bits 0 to 31 are the length, 32 and 33 the place, 34 to 63 the ticket. All in one word: a header is read with one load.
        let place = match self.place {
            Place::Ring => 0,
            Place::Beside => 1,
            Place::Memfd => 2,
        };
        (u64::from(self.ticket % TICKETS) << 34) | (place << 32) | u64::from(self.len)
    }

    fn from_word(word: u64) -> Option<Self> {
        let place = match (word >> 32) & 3 {
            0 => Place::Ring,
            1 => Place::Beside,
            2 => Place::Memfd,
            // Any process that has the memory may have written this word.
            _ => return None,
        };
        Some(Self { len: word as u32, place, ticket: (word >> 34) as u32 })
    }
}

/// The ring: `size` bytes of a map, a power of two, for at most `most` messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring<'a> {
    pub(super) map: &'a SharedMap,
    pub(super) begin: usize,
    pub(super) size: usize,
    pub(super) most: u32,
}

/// What lies in the ring was not written by this library.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Corrupt(pub(super) String);

impl Ring<'_> {
    /// Whether there is room for a message behind those between these positions.
    #[inline]
    pub(super) fn fits(&self, head: Position, tail: Position, header: Header) -> bool {
        let used = tail.bytes.wrapping_sub(head.bytes) as usize;
        // `used` is at most 2^32 and a record little more, so their sum does not overflow 64 bits, whatever the positions are.
        used + header.record_len() <= self.size && tail.messages_since(head) < self.most
    }

    /// Whether these can be the positions of both sides at all.
    pub(super) fn check(&self, head: Position, tail: Position) -> Result<(), Corrupt> {
        let used = tail.bytes.wrapping_sub(head.bytes) as usize;
        // The words of both positions are in shared memory. What passes here keeps every later offset within the ring.
        let whole = ((head.bytes | tail.bytes) as usize).is_multiple_of(WORD);
        if whole && used <= self.size && tail.messages_since(head) <= self.most {
            return Ok(());
        }
        let (messages, size, most) = (tail.messages_since(head), self.size, self.most);
        Err(Corrupt(format!("{messages} messages of at most {most}, with {used} bytes in a ring of {size}")))
    }

    /// Writes a message, which fits, at `tail`. `padded`: its bytes, and as many zeros as make whole words.
    #[inline]
    pub(super) fn write(&self, tail: Position, header: Header, padded: &[u8]) {
        // Relaxed, as the copies below: no other process looks behind the tail. The swap that moves the tail over this message
        // (`Core::put`) is the Release for all of it.
        self.map.u64(self.place(tail.bytes)).store(header.to_word(), Relaxed);
        let at = self.place(tail.bytes.wrapping_add(HEADER as u32));
        // A message may go over the end of the ring, and then continues at its begin.
        let (first, rest) = padded.split_at(padded.len().min(self.begin + self.size - at));
        self.map.write(at, first, WORD);
        if !rest.is_empty() {
            self.map.write(self.begin, rest, WORD);
        }
    }

    /// The header of the message at `head`, which is not at `tail`.
    #[inline]
    pub(super) fn header(&self, head: Position, tail: Position) -> Result<Header, Corrupt> {
        let used = tail.bytes.wrapping_sub(head.bytes) as usize;
        match Header::from_word(self.map.u64(self.place(head.bytes)).load(Relaxed)) {
            // The length is checked before a buffer of that size is made, and before `read`, which goes around the end only once.
            Some(header) if used <= self.size && header.record_len() <= used => Ok(header),
            _ => Err(Corrupt(format!(
                "a message that does not lie in the {used} bytes of a ring of {}",
                self.size
            ))),
        }
    }

    /// The ticket of the first message between these positions that has something beside it.
    pub(super) fn first_ticket(&self, mut head: Position, tail: Position) -> Result<Option<u32>, Corrupt> {
        self.check(head, tail)?;
        // `check` has limited the number of messages, so headers that lie cannot keep this going; and `header` refuses a record that
        // would lead past the tail.
        while head.messages != tail.messages {
            let header = self.header(head, tail)?;
            if header.place != Place::Ring {
                return Ok(Some(header.ticket));
            }
            head = head.after(header);
        }
        Ok(None)
    }

    /// Fills `buffer` with the bytes of the message at `head`.
    #[inline]
    pub(super) fn read(&self, head: Position, header: Header, buffer: &mut Vec<u8>) {
        let len = header.record_len() - HEADER;
        buffer.clear();
        // Whole words, as the copy needs them; the padding is cut off below.
        buffer.resize(len, 0);
        let at = self.place(head.bytes.wrapping_add(HEADER as u32));
        let (first, rest) = buffer.split_at_mut(len.min(self.begin + self.size - at));
        self.map.read(at, first, WORD);
        if !rest.is_empty() {
            self.map.read(self.begin, rest, WORD);
        }
        buffer.truncate(header.len as usize);
    }

    #[inline]
    fn place(&self, bytes: u32) -> usize {
        // Masked to the ring and to words, so that no position at all leads out of the map or to an unaligned load.
        self.begin + (bytes as usize & (self.size - 1) & !(WORD - 1))
    }
}

/// Makes bytes whole words.
pub(super) fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(WORD), 0);
}

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A buffer that this thread has used before: small messages come often.
pub(super) fn take_buffer() -> Vec<u8> {
    // While a thread ends, its buffer may be gone already: another thread-local's destructor may put a value.
    BUFFER.try_with(Cell::take).unwrap_or_default()
}

/// An empty buffer for a message.
pub(crate) fn message_buffer() -> Vec<u8> {
    let mut buffer = take_buffer();
    buffer.clear();
    buffer
}

/// Keeps it for the next time, unless it is large.
pub(super) fn keep_buffer(buffer: Vec<u8>) {
    const KEPT: usize = 64 << 10;
    // One large value should not cost its memory in each thread that it passed through, for good.
    if buffer.capacity() <= KEPT {
        let _ = BUFFER.try_with(|kept| kept.set(buffer));
    }
}
