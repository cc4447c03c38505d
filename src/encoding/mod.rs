//! The bytes of a value.
//!
//! The encoding is self-describing, because many types need that: serde's `flatten`, untagged and tagged enums, fields
//! that are skipped, `serde_json::Value`. A reader calls the same methods of a type's visitor as serde_json does for the same
//! value, so a type that serde_json carries comes back. What JSON cannot tell apart stays apart: `None`, `Some(None)`
//! and `Some(())`, NaN and infinities, bytes, keys that are no strings, integers of 128 bits.
//!
//! A value is a tag (a byte, see [`tag`]) and what belongs to it; an integer below 128 is its own tag. Integers and floats are
//! little-endian, lengths are in LEB128. Fields and variants go by name, because their numbers differ
//! between `Serialize` and `Deserialize` where some are skipped; a name that comes again refers to where it stood before. Many
//! numbers of one type in a row have one tag for all (a *run*).
//!
//! `Point { x: 5, y: 300 }` is 10 bytes, and `vec![1.5_f32; 1000]` is 4,014:
//!
//! ```text
//! STRUCT  3 'x'  5            3 'y'  U16 2C 01  0
//!         name   itself       name   300        end of names
//!
//! SEQ  E8 07   RUN F32  E8 03 00 00 00 00 00 00   00 00 C0 3F ...   END
//!      about   of this  1,000 (the count is        the numbers,
//!      1,000   tag      filled in at the end)      without tags
//! ```
//!
//! Two rules hold everywhere. A length or count *before* parts is a hint, since a type may say one number and write another: the
//! parts end at an end mark, and a reader reserves no more for a hint than there are bytes left. And a reader takes nothing on
//! trust, since bytes come from other processes: whatever they are, it returns a value or an [`Error`].

mod access;
mod de;
mod error;
mod input;
mod parts;
mod sequence;
mod ser;
mod writer;
#[cfg(test)]
mod tests {
    mod hostile;
    mod round_trips;
    mod values;
}

use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use self::error::Error;

/// What a value begins with. Bytes below 128 are integers.
mod tag {
    pub(super) const SMALL: u8 = 128;
    pub(super) const NONE: u8 = 128;
    /// Followed by the value.
    pub(super) const SOME: u8 = 129;
    pub(super) const UNIT: u8 = 130;
    pub(super) const FALSE: u8 = 131;
    pub(super) const TRUE: u8 = 132;
    // Numbers, each followed by its bytes.
    pub(super) const U8: u8 = 133;
    pub(super) const U16: u8 = 134;
    pub(super) const U32: u8 = 135;
    pub(super) const U64: u8 = 136;
    pub(super) const U128: u8 = 137;
    pub(super) const I8: u8 = 138;
    pub(super) const I16: u8 = 139;
    pub(super) const I32: u8 = 140;
    pub(super) const I64: u8 = 141;
    pub(super) const I128: u8 = 142;
    pub(super) const F32: u8 = 143;
    pub(super) const F64: u8 = 144;
    /// Followed by a u32.
    pub(super) const CHAR: u8 = 145;
    // Followed by the length and the bytes.
    pub(super) const STR: u8 = 146;
    pub(super) const BYTES: u8 = 147;
    /// Followed by a hint of how many items there are, the items, and [`END`].
    pub(super) const SEQ: u8 = 148;
    /// Among the items of a sequence: followed by the tag of all numbers of the run, their count (8 bytes), and their bytes without tags.
    pub(super) const RUN: u8 = 149;
    /// Followed by a hint of how many entries there are, keys and values in turn, and [`END`].
    pub(super) const MAP: u8 = 150;
    /// Followed by names and values in turn, and [`END_OF_NAMES`](super::END_OF_NAMES).
    pub(super) const STRUCT: u8 = 151;
    /// Followed by the variant's name.
    pub(super) const UNIT_VARIANT: u8 = 152;
    /// Followed by the variant's name and the value that it holds.
    pub(super) const VARIANT: u8 = 153;
    pub(super) const END: u8 = 255;
}

/// The head of a name (LEB128): 0 where names end; an odd number is twice the name's length plus one, and the name follows; an even
/// number is twice the place in the message where the name stood before.
const END_OF_NAMES: u64 = 0;

/// Sequences of at least this many items may have runs. A run saves a byte for each number and has a head of 10 bytes.
const RUN_FROM: usize = 8;

/// The length in bytes of the longest name that is referred to. With 63 its head is one byte (2 * 63 + 1 = 127). The limit also
/// bounds the work for hostile bytes: each reference makes the reader check the whole name once more.
const LONGEST_KNOWN: usize = 63;

/// The bytes of a value.
pub(crate) fn write<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Error> {
    write_into(Vec::new(), value)
}

/// Writes a value as [`write`] does, behind the bytes that a buffer has already.
pub(crate) fn write_into<T: Serialize + ?Sized>(buffer: Vec<u8>, value: &T) -> Result<Vec<u8>, Error> {
    let mut writer = writer::Writer::new(buffer);
    value.serialize(&mut writer)?;
    Ok(writer.into_bytes())
}

/// Reads a value. Bytes that are left over are an error.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let mut reader = input::Reader::new(bytes);
    let value = T::deserialize(&mut reader)?;
    match reader.rest() {
        [] => Ok(value),
        rest => Err(Error::new(format!("{} of {} bytes were not read", rest.len(), bytes.len()))),
    }
}
