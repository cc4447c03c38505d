//! Pure: the last bytes of an output.

use std::collections::VecDeque;

/// How many bytes are kept.
pub(super) const KEPT: usize = 64 * 1024;

/// The last bytes of what has come, and how many came in all.
#[derive(Debug, Default)]
pub(super) struct Tail {
    kept: VecDeque<u8>,
    total: u64,
}

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let last = &bytes[bytes.len().saturating_sub(KEPT)..];
        let excess = (self.kept.len() + last.len()).saturating_sub(KEPT);
        self.kept.drain(..excess);
        self.kept.extend(last);
        self.total += bytes.len() as u64;
    }

    /// How many bytes came in all: the position of the next one.
    pub(super) fn end(&self) -> u64 {
        self.total
    }

    /// The bytes from a position on, at most `most` of them, and the position of the first one, which is a later one if
    /// those before it are not kept any more.
    pub(super) fn from(&self, position: u64, most: usize) -> (u64, Vec<u8>) {
        let begin = self.total - self.kept.len() as u64;
        let at = position.clamp(begin, self.total);
        let skipped = (at - begin) as usize;
        let end = self.kept.len().min(skipped.saturating_add(most));
        (at, self.kept.range(skipped..end).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_bytes_are_kept_and_positions_count_all() {
        let mut tail = Tail::default();
        assert_eq!((tail.from(0, 9), tail.end()), ((0, Vec::new()), 0));
        tail.push(b"abc");
        tail.push(b"def");
        assert_eq!(tail.from(2, 3), (2, b"cde".to_vec()));
        assert_eq!(tail.from(6, 3), (6, Vec::new()));
        tail.push(&[b'x'; KEPT - 1]);
        assert_eq!(tail.from(0, 2), (5, b"fx".to_vec()));
        tail.push(&[b'y'; KEPT + 7]);
        let begin = 6 + (KEPT as u64 - 1) + 7;
        assert_eq!(tail.from(0, usize::MAX), (begin, vec![b'y'; KEPT]));
        assert_eq!(tail.end(), begin + KEPT as u64);
    }
}
