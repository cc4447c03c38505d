//! Values to bytes.

use std::cell::Cell;

use serde::ser::{self, Serialize};

use super::error::{Error, Step};
use super::input::width;
use super::parts::Parts;
use super::{LONGEST_KNOWN, RUN_FROM, tag};

/// What is reserved at the most for a run: how many items it has is only what the type says.
const RESERVE: usize = 16 << 20;
/// Bytes of the count in the head of a run.
const COUNT: usize = 8;

/// How many names are looked through for one that was there before.
const MOST_KNOWN: usize = 1024;

/// Writes values to a buffer.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) out: Vec<u8>,
    /// Where the message begins.
    begin: usize,
    /// The names that were written, and where in the message.
    names: Vec<(&'static str, usize)>,
    /// The number of the name that probably comes next.
    next_name: usize,
    /// The tag of the run that numbers continue, [`NO_RUN`], or [`READY`].
    run: u8,
    /// Where the run's count stands; before it begins, how many items there will probably be.
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
        Self { begin: out.len(), out, names: Vec::new(), next_name: 0, run: NO_RUN, run_at: 0 }
    }

    #[inline]
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        if self.names.capacity() > 0 {
            self.names.clear();
            // Where it is gone, so is this one.
            let _ = SPARE.try_with(|spare| spare.set(self.names));
        }
        self.out
    }

    /// Begins what is no number.
    #[inline]
    pub(super) fn tag(&mut self, tag: u8) {
        self.end_run();
        self.out.push(tag);
    }

    #[inline]
    fn length(&mut self, length: usize) {
        varint(&mut self.out, length as u64);
    }

    #[inline]
    fn bytes(&mut self, tag: u8, bytes: &[u8]) {
        self.tag(tag);
        self.length(bytes.len());
        self.out.extend_from_slice(bytes);
    }

    #[inline]
    pub(super) fn name(&mut self, name: &'static str) {
        // Names come in the same order again.
        match self.names.get(self.next_name) {
            Some(&(next, at)) if std::ptr::eq(next, name) => {
                self.next_name += 1;
                varint(&mut self.out, 2 * at as u64);
            }
            _ => self.other_name(name),
        }
    }

    fn other_name(&mut self, name: &'static str) {
        // The very same string: to compare texts would take longer than it saves.
        if let Some(number) = self.names.iter().position(|(known, _)| std::ptr::eq(*known, name)) {
            self.next_name = number + 1;
            return varint(&mut self.out, 2 * self.names[number].1 as u64);
        }
        let at = self.out.len() - self.begin;
        if self.names.capacity() == 0 {
            // While a thread ends, its own may be gone already.
            self.names = SPARE.try_with(Cell::take).unwrap_or_default();
        }
        if name.len() <= LONGEST_KNOWN && self.names.len() < MOST_KNOWN {
            self.names.push((name, at));
        }
        varint(&mut self.out, 2 * name.len() as u64 + 1);
        self.out.extend_from_slice(name.as_bytes());
    }

    /// A number: in a run its bytes, else what `alone` writes.
    #[inline]
    fn number<const N: usize>(&mut self, tag: u8, bytes: [u8; N], alone: impl FnOnce(&mut Vec<u8>)) {
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
    fn end_run(&mut self) {
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

    #[inline]
    fn sequence(&mut self, items: Option<usize>) -> Parts<'_> {
        let items = items.unwrap_or(0);
        self.tag(tag::SEQ);
        self.length(items);
        if items >= RUN_FROM {
            (self.run, self.run_at) = (READY, items);
        }
        Parts { writer: self, at: 0 }
    }

    #[inline]
    fn structure(&mut self) -> Parts<'_> {
        self.tag(tag::STRUCT);
        Parts { writer: self, at: 0 }
    }

    #[inline]
    fn variant(&mut self, name: &'static str) {
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

fn tagged<const N: usize>(out: &mut Vec<u8>, tag: u8, bytes: [u8; N]) {
    out.push(tag);
    out.extend_from_slice(&bytes);
}

/// In as few bytes as it fits into.
#[inline]
fn unsigned(out: &mut Vec<u8>, number: u64) {
    if number < tag::SMALL.into() {
        out.push(number as u8);
    } else if let Ok(number) = u8::try_from(number) {
        tagged(out, tag::U8, number.to_le_bytes());
    } else if let Ok(number) = u16::try_from(number) {
        tagged(out, tag::U16, number.to_le_bytes());
    } else if let Ok(number) = u32::try_from(number) {
        tagged(out, tag::U32, number.to_le_bytes());
    } else {
        tagged(out, tag::U64, number.to_le_bytes());
    }
}

#[inline]
fn signed(out: &mut Vec<u8>, number: i64) {
    if let Ok(number) = u64::try_from(number) {
        unsigned(out, number);
    } else if let Ok(number) = i8::try_from(number) {
        tagged(out, tag::I8, number.to_le_bytes());
    } else if let Ok(number) = i16::try_from(number) {
        tagged(out, tag::I16, number.to_le_bytes());
    } else if let Ok(number) = i32::try_from(number) {
        tagged(out, tag::I32, number.to_le_bytes());
    } else {
        tagged(out, tag::I64, number.to_le_bytes());
    }
}

macro_rules! numbers {
    ($($method:ident, $type:ty, $tag:ident, $alone:expr;)*) => {$(
        #[inline]
        fn $method(self, number: $type) -> Result<(), Error> {
            let alone: fn(&mut Vec<u8>, $type) = $alone;
            self.number(tag::$tag, number.to_le_bytes(), |out| alone(out, number));
            Ok(())
        }
    )*};
}

impl<'a> ser::Serializer for &'a mut Writer {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Parts<'a>;
    type SerializeTuple = Parts<'a>;
    type SerializeTupleStruct = Parts<'a>;
    type SerializeTupleVariant = Parts<'a>;
    type SerializeMap = Parts<'a>;
    type SerializeStruct = Parts<'a>;
    type SerializeStructVariant = Parts<'a>;

    numbers! {
        serialize_u8, u8, U8, |out, number| unsigned(out, number.into());
        serialize_u16, u16, U16, |out, number| unsigned(out, number.into());
        serialize_u32, u32, U32, |out, number| unsigned(out, number.into());
        serialize_u64, u64, U64, unsigned;
        serialize_i8, i8, I8, |out, number| signed(out, number.into());
        serialize_i16, i16, I16, |out, number| signed(out, number.into());
        serialize_i32, i32, I32, |out, number| signed(out, number.into());
        serialize_i64, i64, I64, signed;
        serialize_f32, f32, F32, |out, number| tagged(out, tag::F32, number.to_le_bytes());
        serialize_f64, f64, F64, |out, number| tagged(out, tag::F64, number.to_le_bytes());
    }

    fn serialize_u128(self, number: u128) -> Result<(), Error> {
        self.end_run();
        // What fits is written as any other integer, which types without a number of 128 bits can read too.
        match u64::try_from(number) {
            Ok(number) => unsigned(&mut self.out, number),
            Err(_) => tagged(&mut self.out, tag::U128, number.to_le_bytes()),
        }
        Ok(())
    }

    fn serialize_i128(self, number: i128) -> Result<(), Error> {
        self.end_run();
        match (u64::try_from(number), i64::try_from(number)) {
            (Ok(number), _) => unsigned(&mut self.out, number),
            (_, Ok(number)) => signed(&mut self.out, number),
            _ => tagged(&mut self.out, tag::I128, number.to_le_bytes()),
        }
        Ok(())
    }

    #[inline]
    fn serialize_bool(self, value: bool) -> Result<(), Error> {
        self.tag(if value { tag::TRUE } else { tag::FALSE });
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<(), Error> {
        self.tag(tag::CHAR);
        self.out.extend_from_slice(&u32::from(value).to_le_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_str(self, text: &str) -> Result<(), Error> {
        self.bytes(tag::STR, text.as_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), Error> {
        self.bytes(tag::BYTES, bytes);
        Ok(())
    }

    #[inline]
    fn serialize_none(self) -> Result<(), Error> {
        self.tag(tag::NONE);
        Ok(())
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.tag(tag::SOME);
        value.serialize(self)
    }

    #[inline]
    fn serialize_unit(self) -> Result<(), Error> {
        self.tag(tag::UNIT);
        Ok(())
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), Error> {
        self.serialize_unit()
    }

    #[inline]
    fn serialize_unit_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
    ) -> Result<(), Error> {
        self.tag(tag::UNIT_VARIANT);
        self.name(variant);
        Ok(())
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        value.serialize(self)
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.variant(variant);
        value.serialize(self).map_err(|error| error.within(Step::Field(variant.to_owned())))
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Parts<'a>, Error> {
        Ok(self.sequence(len))
    }

    #[inline]
    fn serialize_tuple(self, len: usize) -> Result<Parts<'a>, Error> {
        Ok(self.sequence(Some(len)))
    }

    #[inline]
    fn serialize_tuple_struct(self, _name: &'static str, len: usize) -> Result<Parts<'a>, Error> {
        Ok(self.sequence(Some(len)))
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Parts<'a>, Error> {
        self.variant(variant);
        Ok(self.sequence(Some(len)))
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Parts<'a>, Error> {
        self.tag(tag::MAP);
        self.length(len.unwrap_or(0));
        Ok(Parts { writer: self, at: 0 })
    }

    #[inline]
    fn serialize_struct(self, _name: &'static str, _len: usize) -> Result<Parts<'a>, Error> {
        Ok(self.structure())
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        _len: usize,
    ) -> Result<Parts<'a>, Error> {
        self.variant(variant);
        Ok(self.structure())
    }
}
