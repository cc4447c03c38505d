//! Grants: the part of a segment that a received value may use, and whether it shares that part.

use serde::{Deserialize, Serialize};

use crate::dtype::DType;

/// The element size of storages that hold a record. No tensor has it, so that no tensor can lie over a record.
pub(super) const RECORD_UNIT: u8 = 0x80;
/// Every storage is aligned to this many bytes at least, and so to any element.
pub(crate) const MAX_ALIGN: usize = 8;

/// A part of a segment of the same message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Part {
    /// The number of the segment in the message; `None`: the part has no bytes.
    pub(super) segment: Option<u32>,
    pub(super) offset: usize,
    pub(super) len: usize,
    /// The size in bytes of an element of the tensors over it; 0: any.
    pub(super) unit: u8,
}

/// How a part may be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Grant {
    /// All its holders may read and write.
    Shared(Part),
    /// One holder at a time: a shard.
    Exclusive(Part, Cut),
}

/// The place of a shard in its tensor, by which two shards of one tensor are told apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cut {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) index: usize,
    pub(crate) of: usize,
    /// Of the whole tensor: its storage's offset in the segment and length, both in bytes; the number of its first element in the
    /// storage; its shape.
    pub(crate) store_offset: usize,
    pub(crate) store_len: usize,
    pub(crate) start: usize,
    pub(crate) whole_shape: Vec<usize>,
}

impl Cut {
    /// The byte of the segment at which the whole tensor begins. (Hostile numbers may overflow: the wrapped sum matches no shard.)
    pub(crate) fn whole_at(&self) -> usize {
        self.store_offset.wrapping_add(self.start.wrapping_mul(self.dtype.size()))
    }

    pub(crate) fn is_of_same(&self, other: &Self) -> bool {
        *self == Self { shape: self.shape.clone(), index: self.index, ..other.clone() }
    }

    /// The alignment of its elements, in bytes.
    pub(super) fn align(&self) -> usize {
        self.dtype.size()
    }
}
