//! Reading what values are made of: tags, lengths, integers, texts and names.
//!
//! Each function takes its bytes off the front of what is left, and is an error where there are too few. None indexes and none
//! allocates for what it reads: texts, names and runs are slices of the message.

use serde::de::Error as _;

use super::error::{Error, Step};
use super::{END_OF_NAMES, LONGEST_KNOWN, tag};

/// The names that a type expects.
pub(super) type Names = &'static [&'static str];

/// Reads values from bytes.
#[derive(Debug)]
pub(super) struct Reader<'de> {
    /// The whole message, since a name may refer to an earlier place in it.
    whole: &'de [u8],
    /// The bytes that were not read yet.
    rest: &'de [u8],
    /// How deeply nested the present value is, counting only values of types that take any kind of value; see `within`.
    pub(super) nested: usize,
}

/// The size in bytes of a number with this tag; `None`: it is not the tag of a number.
#[inline]
pub(super) fn width(tag: u8) -> Option<usize> {
    match tag {
        tag::U8 | tag::I8 => Some(1),
        tag::U16 | tag::I16 => Some(2),
        tag::U32 | tag::I32 | tag::F32 => Some(4),
        tag::U64 | tag::I64 | tag::F64 => Some(8),
        _ => None,
    }
}

/// An integer of at most 64 bits as it was written: signed only where it is negative.
#[derive(Clone, Copy)]
pub(super) enum Integer {
    Unsigned(u64),
    Signed(i64),
}

impl<'de> Reader<'de> {
    #[inline]
    pub(super) fn new(bytes: &'de [u8]) -> Self {
        Self { whole: bytes, rest: bytes, nested: 0 }
    }

    #[inline]
    pub(super) fn rest(&self) -> &'de [u8] {
        self.rest
    }

    #[inline]
    pub(super) fn peek(&self) -> Result<u8, Error> {
        self.rest.first().copied().ok_or_else(cut_short)
    }

    #[inline]
    pub(super) fn byte(&mut self) -> Result<u8, Error> {
        let (&byte, rest) = self.rest.split_first().ok_or_else(cut_short)?;
        self.rest = rest;
        Ok(byte)
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (&array, rest) = self.rest.split_first_chunk().ok_or_else(cut_short)?;
        self.rest = rest;
        Ok(array)
    }

    /// LEB128.
    #[inline]
    fn varint(&mut self) -> Result<u64, Error> {
        match self.byte()? {
            byte @ ..128 => Ok(byte.into()),
            byte => self.long_varint(byte),
        }
    }

    #[cold]
    fn long_varint(&mut self, first: u8) -> Result<u64, Error> {
        let mut number = u64::from(first & 127);
        for shift in (7..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(number);
            }
        }
        Err(Error::new("the bytes are damaged: a length of more than 64 bits"))
    }

    #[inline]
    pub(super) fn length(&mut self) -> Result<usize, Error> {
        usize::try_from(self.varint()?).map_err(Error::custom)
    }

    /// The next `length` bytes, if they are there.
    #[inline]
    pub(super) fn take(&mut self, length: usize) -> Option<&'de [u8]> {
        let (slice, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(slice)
    }

    #[inline]
    pub(super) fn slice(&mut self) -> Result<&'de [u8], Error> {
        let length = self.length()?;
        self.take(length).ok_or_else(cut_short)
    }

    #[inline]
    pub(super) fn text(&mut self) -> Result<&'de str, Error> {
        std::str::from_utf8(self.slice()?).map_err(Error::custom)
    }

    /// A name; `None` at the end of names. `expected` is the likeliest name: one that equals it need not be checked to be UTF-8.
    #[inline]
    pub(super) fn name(&mut self, expected: &'static str) -> Result<Option<&'de str>, Error> {
        const END: u8 = END_OF_NAMES as u8;
        match self.rest.split_first() {
            Some((&END, rest)) => {
                self.rest = rest;
                return Ok(None);
            }
            // The usual case: the expected name in full, with a head of one byte. One comparison finds that out.
            Some((&head @ ..128, rest)) if usize::from(head) == 2 * expected.len() + 1 => {
                if let Some((name, rest)) = rest.split_at_checked(expected.len())
                    && name == expected.as_bytes()
                {
                    self.rest = rest;
                    return Ok(Some(expected));
                }
            }
            _ => {}
        }
        self.other_name(expected)
    }

    fn other_name(&mut self, expected: &'static str) -> Result<Option<&'de str>, Error> {
        let head = self.varint()?;
        if head == END_OF_NAMES {
            return Ok(None);
        }
        let half = usize::try_from(head / 2).map_err(Error::custom)?;
        let name = if head % 2 == 1 { self.take(half) } else { self.known_name(half) };
        let name = name.ok_or_else(cut_short)?;
        if name == expected.as_bytes() {
            return Ok(Some(expected));
        }
        std::str::from_utf8(name).map(Some).map_err(Error::custom)
    }

    /// The name that stands at this place of the message. A damaged place may point at any byte, also at one that begins no name:
    /// then the result is some other name or none, never a slice outside of the message. A reference is never followed to
    /// another reference (even heads are refused), so references cannot form a circle.
    #[inline]
    fn known_name(&self, at: usize) -> Option<&'de [u8]> {
        let (&head, name) = self.whole.get(at..)?.split_first()?;
        let length = usize::from(head / 2);
        name.get(..length).filter(|_| head % 2 == 1 && length <= LONGEST_KNOWN)
    }

    #[inline]
    pub(super) fn variant(&mut self) -> Result<&'de str, Error> {
        self.name("")?.ok_or_else(|| Error::new("the bytes are damaged: a variant without a name"))
    }

    /// The tag of a value, after any [`tag::SOME`]: a type that asks for a number where `Some` of a number was written gets the number,
    /// as with JSON. A loop, since a recursion would let hostile bytes exhaust the stack.
    #[inline]
    pub(super) fn value_tag(&mut self) -> Result<u8, Error> {
        loop {
            match self.byte()? {
                tag::SOME => {}
                tag => return Ok(tag),
            }
        }
    }

    /// The integer that this tag begins; `None`: the tag is not that of an integer of at most 64 bits.
    #[inline]
    pub(super) fn integer(&mut self, tag: u8) -> Result<Option<Integer>, Error> {
        Ok(Some(match tag {
            ..tag::SMALL => Integer::Unsigned(tag.into()),
            tag::U8 => Integer::Unsigned(self.byte()?.into()),
            tag::U16 => Integer::Unsigned(u16::from_le_bytes(self.array()?).into()),
            tag::U32 => Integer::Unsigned(u32::from_le_bytes(self.array()?).into()),
            tag::U64 => Integer::Unsigned(u64::from_le_bytes(self.array()?)),
            tag::I8 => Integer::Signed(i8::from_le_bytes(self.array()?).into()),
            tag::I16 => Integer::Signed(i16::from_le_bytes(self.array()?).into()),
            tag::I32 => Integer::Signed(i32::from_le_bytes(self.array()?).into()),
            tag::I64 => Integer::Signed(i64::from_le_bytes(self.array()?)),
            _ => return Ok(None),
        }))
    }
}

impl Step {
    /// The key that begins these bytes.
    pub(super) fn key(bytes: &[u8]) -> Self {
        Self::Key(key_text(bytes))
    }
}

/// The key of a map as text, for an error.
fn key_text(bytes: &[u8]) -> String {
    let mut reader = Reader::new(bytes);
    match reader.value_tag() {
        Ok(tag::STR) => reader.text().map(|text| format!("{text:?}")),
        Ok(tag::UNIT_VARIANT) => reader.variant().map(str::to_owned),
        Ok(tag) => reader.integer(tag).map(|integer| match integer {
            Some(Integer::Unsigned(number)) => number.to_string(),
            Some(Integer::Signed(number)) => number.to_string(),
            _ => "…".to_owned(),
        }),
        Err(error) => Err(error),
    }
    .unwrap_or_else(|_| "…".to_owned())
}

#[cold]
pub(super) fn cut_short() -> Error {
    Error::new("the bytes end in the middle of a value")
}
