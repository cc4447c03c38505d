//! What a value may do with memory that travels beside it.

use serde::{Deserialize, Serialize};

use crate::dtype::DType;

/// What storages of records have for the size of an element, which no tensor has.
pub(super) const RECORD_UNIT: u8 = 0x80;
/// To what a storage is aligned at the least, so that it fits any element.
pub(crate) const MAX_ALIGN: usize = 8;

/// A part of a segment of the same message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Which segment. `None`: no bytes.
    pub(super) segment: Option<u32>,
    pub(super) offset: usize,
    pub(super) len: usize,
    /// Bytes of an element of the tensors over it.
    pub(super) unit: u8,
}

/// What may be done with a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Grant {
    /// Everybody who has it may read and write.
    Shared(Part),
    /// Only who takes it may.
    Exclusive(Part, Cut),
}

/// Which shard of which tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cut {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) index: usize,
    pub(crate) of: usize,
    /// Of the whole tensor: its storage's place in the segment, its first element in that, its shape.
    pub(crate) store_offset: usize,
    pub(crate) store_len: usize,
    pub(crate) start: usize,
    pub(crate) whole_shape: Vec<usize>,
}

impl Cut {
    /// Where the whole begins in the segment. (A sum that overflows is that of no shard.)
    pub(crate) fn whole_at(&self) -> usize {
        self.store_offset.wrapping_add(self.start.wrapping_mul(self.dtype.size()))
    }

    pub(crate) fn is_of_same(&self, other: &Self) -> bool {
        *self == Self { shape: self.shape.clone(), index: self.index, ..other.clone() }
    }

    /// To what its bytes must be aligned.
    pub(super) fn align(&self) -> usize {
        self.dtype.size()
    }
}
