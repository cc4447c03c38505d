//! The bytes of a value.
//!
//! The encoding is self-describing, because many types need that: serde's `flatten`, untagged and tagged enums, fields
//! that are skipped, `serde_json::Value`. A reader calls the same methods of a type's visitor as serde_json does for the same
//! value, so a type that serde_json carries comes back. What JSON cannot tell apart stays apart: `None`, `Some(None)`
//! and `Some(())`, NaN and infinities, bytes, keys that are no strings, integers of 128 bits.
//!
//! A value is a tag (a byte, see [`tag`]) and what belongs to it; an integer below 128 is its own tag. Integers and floats are
//! little-endian, lengths are in LEB128. Fields and variants go by name, because their numbers differ
//! between `Serialize` and `Deserialize` where some are skipped; a name is written once, and later ones refer to it. Many numbers of one type in a row have one tag for all (a *run*).

mod access;
mod de;
mod error;
mod input;
mod parts;
mod sequence;
mod ser;
#[cfg(test)]
mod tests;
mod writer;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use self::error::Error;

/// What a value begins with. Bytes below 128 are integers.
mod tag {
    pub(super) const SMALL: u8 = 128;
    pub(super) const NONE: u8 = 128;
    /// Then the value.
    pub(super) const SOME: u8 = 129;
    pub(super) const UNIT: u8 = 130;
    pub(super) const FALSE: u8 = 131;
    pub(super) const TRUE: u8 = 132;
    // Numbers: then their bytes.
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
    /// Then a u32.
    pub(super) const CHAR: u8 = 145;
    // Then the length, and the bytes.
    pub(super) const STR: u8 = 146;
    pub(super) const BYTES: u8 = 147;
    /// Then how many items there will probably be, the items, and [`END`].
    pub(super) const SEQ: u8 = 148;
    /// Among the items of a sequence: then a number's tag, how many there are (8 bytes), and their bytes without tags.
    pub(super) const RUN: u8 = 149;
    /// Then how many entries there will probably be, keys and values in turn, and [`END`].
    pub(super) const MAP: u8 = 150;
    /// Then names and values in turn, and the end of names.
    pub(super) const STRUCT: u8 = 151;
    /// Then the variant's name.
    pub(super) const UNIT_VARIANT: u8 = 152;
    /// Then the variant's name, and what it holds.
    pub(super) const VARIANT: u8 = 153;
    pub(super) const END: u8 = 255;
}

/// How a name begins: with 0 there is none any more; an odd number is the length of the name, times two; an even one says
/// where in the message the name stood before, times two.
const END_OF_NAMES: u64 = 0;

/// How many items a sequence has at the least whose numbers become a run: the head of one has 10 bytes.
const RUN_FROM: usize = 8;

/// Only names that begin with one byte are referred to, so that nobody can make a reader go over a long name again and again.
const LONGEST_KNOWN: usize = 63;

/// The bytes of a value.
pub(crate) fn write<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Error> {
    write_into(Vec::new(), value)
}

/// As [`write`], after what is in a buffer.
pub(crate) fn write_into<T: Serialize + ?Sized>(buffer: Vec<u8>, value: &T) -> Result<Vec<u8>, Error> {
    let mut writer = writer::Writer::new(buffer);
    value.serialize(&mut writer)?;
    Ok(writer.into_bytes())
}

/// Reads a value, which is all that there is.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let mut reader = input::Reader::new(bytes);
    let value = T::deserialize(&mut reader)?;
    match reader.rest() {
        [] => Ok(value),
        rest => Err(Error::new(format!("{} of {} bytes were left over", rest.len(), bytes.len()))),
    }
}
