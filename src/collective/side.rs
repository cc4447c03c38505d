//! Places in shared memory from which or to which the elements of a call go.

use std::ops::Range;

use super::reduce::{self, BLOCK, Block, Reduce};
use crate::dtype::DType;
use crate::sys::map::SharedMap;
use crate::tensor::dyn_tensor::DynTensor;

/// What slices of a piece are aligned to: a cache line, so that no two ranks write to one.
const LINE: usize = 64;

/// Elements that lie one after the other: of a tensor, or staged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side<'a> {
    map: &'a SharedMap,
    /// The byte of the map with which they begin.
    at: usize,
    /// The size of the atomics by which this memory is accessed, which is one size for good: that of a tensor's elements, or 8.
    unit: usize,
}

impl<'a> Side<'a> {
    /// The elements of a tensor; `None` when they do not lie one after the other, or are none.
    pub(super) fn of(tensor: &'a DynTensor) -> Option<Self> {
        let unit = tensor.dtype().size();
        let (map, begin) = tensor.storage().bytes().filter(|_| tensor.is_contiguous())?;
        Some(Self { map, at: begin + tensor.offset() * unit, unit })
    }

    /// What begins at the byte `at` of the same storage as a tensor, and is of the same type.
    pub(super) fn beside(tensor: &'a DynTensor, at: usize) -> Option<Self> {
        let (map, begin) = tensor.storage().bytes()?;
        Some(Self { map, at: begin + at, unit: tensor.dtype().size() })
    }

    /// Staging memory from the byte `at` of a map on, a multiple of 8.
    pub(super) fn staged(map: &'a SharedMap, at: usize) -> Self {
        Self { map, at, unit: 8 }
    }

    /// The same from its byte `by` on.
    pub(super) fn from(self, by: usize) -> Self {
        Self { at: self.at + by, ..self }
    }

    /// Copies the `len` bytes from `at` on, at most a block, into a block.
    #[inline]
    fn read(&self, at: usize, len: usize, block: &mut Block) {
        self.map.read(self.at + at, &mut bytemuck::cast_slice_mut(block)[..self.whole(len)], self.unit);
    }

    /// Copies the first `len` bytes of a block to `at`.
    #[inline]
    fn write(&self, at: usize, len: usize, block: &Block) {
        self.map.write(self.at + at, &bytemuck::cast_slice(block)[..self.whole(len)], self.unit);
    }

    /// In whole atomics: of an odd number of small elements the last word of staging memory has room for more. (A tensor's own
    /// atomics are its elements.)
    fn whole(&self, len: usize) -> usize {
        len.next_multiple_of(self.unit)
    }

    /// Copies `len` bytes to another place.
    //
    // Through a block of private memory: the two sides may have atomics of different sizes, and a copy from shared to shared memory
    // would have to be one of both.
    pub(super) fn copy_to(self, other: Self, len: usize) {
        let mut block: Block = [0; BLOCK / 8];
        for (at, len) in blocks(len) {
            self.read(at, len, &mut block);
            other.write(at, len, &block);
        }
    }
}

/// Reduces `len` bytes of elements of all `sources`, by rank, and writes the result to each of the targets.
pub(super) fn reduce(how: (DType, Reduce), sources: &[Side<'_>], targets: &[Side<'_>], len: usize) {
    let mut block: Block = [0; BLOCK / 8];
    for (at, len) in blocks(len) {
        reduce::block(how, sources.len(), len, &mut block, |rank, block| sources[rank].read(at, len, block));
        // While the lines that were read are still in the cache: where these are the sources, no line is fetched twice.
        targets.iter().for_each(|target| target.write(at, len, &block));
    }
}

/// Whether each rank reduces all of a staged piece for itself, and not a share for all: that saves a wait and the way of the result
/// through the areas. All do the same additions in the same order, so the bits are the same.
pub(super) fn is_reduced_by_each(len: usize, ranks: usize) -> bool {
    // Of two ranks each reads no more so than it would copy out. Of more it does, which a small piece does not show.
    ranks <= 2 || len <= BLOCK
}

/// The blocks of `len` bytes: where each begins, and its length.
fn blocks(len: usize) -> impl Iterator<Item = (usize, usize)> {
    pieces(len, BLOCK).map(|piece| (piece.start, piece.len()))
}

/// `len` bytes in pieces of `most`.
pub(super) fn pieces(len: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(most).map(move |start| start..len.min(start + most))
}

/// The bytes of `len` that one of `ranks` reduces for all: whole cache lines, but for the last one.
pub(super) fn share(len: usize, rank: usize, ranks: usize) -> Range<usize> {
    let lines = len.div_ceil(LINE);
    // Not `lines * rank`, which might overflow: the first `lines % ranks` ranks have a line more.
    let begin = |rank: usize| ((lines / ranks * rank + rank.min(lines % ranks)) * LINE).min(len);
    begin(rank)..begin(rank + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_all_bytes_each_once_and_begin_at_lines() {
        for len in [0, 1, 63, 64, 65, 1000, 1 << 20] {
            for ranks in 1..9 {
                let shares: Vec<_> = (0..ranks).map(|rank| share(len, rank, ranks)).collect();
                assert_eq!((shares[0].start, shares[ranks - 1].end), (0, len));
                assert!(shares.windows(2).all(|two| two[0].end == two[1].start));
                assert!(shares.iter().all(|share| share.start % LINE == 0 || share.start == len));
                let sizes = shares.iter().map(ExactSizeIterator::len);
                assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 2 * LINE);
            }
        }
    }

    #[test]
    fn pieces_are_all_bytes() {
        let found: Vec<_> = pieces(10, 4).collect();
        assert_eq!(found, [0..4, 4..8, 8..10]);
        assert_eq!(pieces(0, 4).count(), 0);
    }
}
