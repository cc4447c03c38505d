//! Values to bytes: serde's Serializer.
//!
//! Each method writes a tag and what belongs to it (see [`tag`]). A newtype struct is what it holds, as in JSON; a tuple is a
//! sequence. The tag of everything but numbers is written by [`Writer::tag`], which ends a run first. A method that pushed its tag
//! into the buffer itself would put it among the run's numbers.

use serde::ser::{self, Serialize};

use super::error::{Error, Step};
use super::parts::Parts;
use super::tag;
use super::writer::Writer;

#[inline]
fn sequence(writer: &mut Writer, items: Option<usize>) -> Parts<'_> {
    writer.begin_sequence(items.unwrap_or(0));
    Parts { writer, at: 0 }
}

#[inline]
fn structure(writer: &mut Writer) -> Parts<'_> {
    writer.tag(tag::STRUCT);
    Parts { writer, at: 0 }
}

fn tagged<const N: usize>(out: &mut Vec<u8>, tag: u8, bytes: [u8; N]) {
    out.push(tag);
    out.extend_from_slice(&bytes);
}

/// Writes an integer in as few bytes as it fits into.
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
        // Numbers of 128 bits have no runs.
        self.end_run();
        // A number that fits into 64 bits is written as one, so that types without 128 bits can read it too.
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
        Ok(sequence(self, len))
    }

    #[inline]
    fn serialize_tuple(self, len: usize) -> Result<Parts<'a>, Error> {
        Ok(sequence(self, Some(len)))
    }

    #[inline]
    fn serialize_tuple_struct(self, _name: &'static str, len: usize) -> Result<Parts<'a>, Error> {
        Ok(sequence(self, Some(len)))
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
        Ok(sequence(self, Some(len)))
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Parts<'a>, Error> {
        self.begin_map(len.unwrap_or(0));
        Ok(Parts { writer: self, at: 0 })
    }

    #[inline]
    fn serialize_struct(self, _name: &'static str, _len: usize) -> Result<Parts<'a>, Error> {
        Ok(structure(self))
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
        Ok(structure(self))
    }
}
