//! What stands before a task and before a result in their queues, in bytes that are read before anything is decoded.

/// A task: a cell of the ledger, and which of the tasks that it has had.
///
/// A cell is used again as soon as its task has ended, so that its number alone would name two tasks. Messages, words of the ledger and
/// handles carry both numbers; what names an earlier generation is about a task that is over, and is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ticket {
    /// The number of the cell, from 0.
    pub(super) cell: u32,
    /// How often that cell has changed hands, modulo 2^32.
    pub(super) generation: u32,
}

/// The label of a task: what a worker has to know before it takes the message out of the queue, as whether the task is still wanted.
///
/// | bytes | what |
/// |---|---|
/// | 0 to 3, 4 to 7 | cell and generation |
/// | 8 to 15 | the function |
/// | 16 to 19 | the number of items |
/// | 20 to 23 | the number of the environment, times 2; plus 1: it is timed |
///
/// All numbers are little-endian. Behind the label stand the arguments, or the items of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TaskLabel {
    pub(super) ticket: Ticket,
    /// Where the record of the function lies in the executable.
    pub(super) function: u64,
    /// How many items the message has, one after the other behind their lengths; 0: it is the arguments of one call.
    pub(super) items: u32,
    /// Whether the moments of begins are to be noted, for a time limit or a deadline.
    pub(super) is_timed: bool,
    /// What the function has beside its arguments: the number of the environment of a map, below 2^31; 0: the worker's state, if it has one.
    pub(super) environment: u32,
}

impl TaskLabel {
    /// Bytes of it. Three words, so that what follows is aligned as the message is.
    pub(super) const LEN: usize = 24;

    /// The bytes that go before the arguments.
    pub(super) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.ticket.cell.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.ticket.generation.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.function.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.items.to_le_bytes());
        let last = self.environment << 1 | u32::from(self.is_timed);
        bytes[20..24].copy_from_slice(&last.to_le_bytes());
        bytes
    }

    /// Reads the label of a message, whose other bytes are not looked at. `None`: the bytes are too few.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<{ Self::LEN }>()?;
        Some(Self {
            ticket: Ticket { cell: word(bytes, 0), generation: word(bytes, 4) },
            function: u64::from(word(bytes, 8)) | u64::from(word(bytes, 12)) << 32,
            items: word(bytes, 16),
            is_timed: word(bytes, 20) & 1 != 0,
            environment: word(bytes, 20) >> 1,
        })
    }
}

/// What a result is. A worker states it; the process of the pool decides by it which type the bytes behind the label are read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What the function returned.
    Returned,
    /// Its error or its panic.
    Raised,
    /// Why the arguments could not be read.
    Arguments,
    /// Why what it returned could not be written.
    Result,
    /// Its deadline had passed before the function began.
    Late,
    /// The rest of a chunk whose map is gone was not begun.
    Dropped,
    /// Nothing: it wakes a thread that waits for results.
    Nudge,
    /// What the function returned for several items of a chunk, one after the other.
    Several,
}

/// The label of a result: what the pool has to know to count it and to find its inbox, before it decodes anything of the user's.
///
/// | bytes | what |
/// |---|---|
/// | 0 to 3, 4 to 7 | cell and generation |
/// | 8, 9 to 11 | the kind, and of how many items it is |
/// | 12 to 15 | the item, of several the first |
/// | 16 to 23 | how long the function has run |
///
/// A worker that writes something else here loses its own results; it reaches no other task, since the ledger has another worker there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResultLabel {
    pub(super) ticket: Ticket,
    pub(super) kind: Kind,
    /// Which item of a chunk it is of; of several, the first.
    pub(super) item: u32,
    /// Of how many items it is; fewer than 2^24.
    pub(super) items: u32,
    /// With the last item: how long the function has run for all of them, in nanoseconds.
    pub(super) busy: u64,
}

impl ResultLabel {
    pub(super) const LEN: usize = 24;

    pub(super) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.ticket.cell.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.ticket.generation.to_le_bytes());
        bytes[8..12].copy_from_slice(&(self.kind as u32 | self.items << 8).to_le_bytes());
        bytes[12..16].copy_from_slice(&self.item.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.busy.to_le_bytes());
        bytes
    }

    /// The label of one item.
    pub(super) fn of(ticket: Ticket, kind: Kind, item: u32) -> Self {
        Self { ticket, kind, item, items: 1, busy: 0 }
    }

    /// `None`: no worker has written that.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<{ Self::LEN }>()?;
        let kind = match word(bytes, 8) & 0xff {
            0 => Kind::Returned,
            1 => Kind::Raised,
            2 => Kind::Arguments,
            3 => Kind::Result,
            4 => Kind::Late,
            5 => Kind::Dropped,
            6 => Kind::Nudge,
            7 => Kind::Several,
            _ => return None,
        };
        Some(Self {
            ticket: Ticket { cell: word(bytes, 0), generation: word(bytes, 4) },
            kind,
            item: word(bytes, 12),
            items: word(bytes, 8) >> 8,
            busy: u64::from(word(bytes, 16)) | u64::from(word(bytes, 20)) << 32,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_back_and_short_ones_refused() {
        let ticket = Ticket { cell: 7, generation: u32::MAX };
        let task = TaskLabel {
            ticket,
            function: u64::MAX - 1,
            items: 3,
            is_timed: true,
            environment: (1 << 31) - 1,
        };
        assert_eq!(TaskLabel::read(&task.to_bytes()), Some(task));
        assert_eq!(TaskLabel::read(&task.to_bytes()[1..]), None);
        let kinds = [Kind::Returned, Kind::Raised, Kind::Arguments, Kind::Result, Kind::Dropped, Kind::Nudge];
        for kind in kinds.into_iter().chain([Kind::Late, Kind::Several]) {
            let result = ResultLabel { ticket, kind, item: 9, items: (1 << 24) - 1, busy: 1 << 40 };
            assert_eq!(ResultLabel::read(&result.to_bytes()), Some(result));
        }
        let mut bytes = ResultLabel::of(ticket, Kind::Nudge, 0).to_bytes();
        bytes[8] = 8;
        assert_eq!(ResultLabel::read(&bytes), None);
    }
}
