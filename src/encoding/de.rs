//! Bytes to values: serde's Deserializer. Bytes of any kind give a value or an error, never a panic.
//!
//! The tag, not the type, decides what is read. A method such as `deserialize_u32` first tries the tags that are usual for it; for
//! any other tag [`Reader::value`] gives the visitor what is there, and the visitor accepts it or says what it
//! expected. That is how JSON readers work, and why types written for them work here.

use serde::Deserializer;
use serde::de::value::{BorrowedStrDeserializer, MapAccessDeserializer, SeqDeserializer};
use serde::de::{Error as _, Visitor};

use super::access::{Entries, Fields, OneEntry, Variant};
use super::error::Error;
use super::input::{Integer, Names, Reader};
use super::sequence::{FewItems, Items};
use super::{RUN_FROM, tag};

/// How deeply values may be nested in a type that takes any kind of value, as `serde_json::Value` does, and `flatten`: there the bytes,
/// not the type, say how deep the reader recurses.
const MOST_NESTED: usize = 128;

impl<'de> Reader<'de> {
    /// Reads the value that this tag begins, by the visitor's method for its kind.
    fn value<V: Visitor<'de>>(&mut self, tag: u8, visitor: V) -> Result<V::Value, Error> {
        match self.integer(tag)? {
            Some(Integer::Unsigned(number)) => return visitor.visit_u64(number),
            Some(Integer::Signed(number)) => return visitor.visit_i64(number),
            None => {}
        }
        match tag {
            tag::U128 => visitor.visit_u128(u128::from_le_bytes(self.array()?)),
            tag::I128 => visitor.visit_i128(i128::from_le_bytes(self.array()?)),
            tag::F32 => visitor.visit_f32(f32::from_le_bytes(self.array()?)),
            tag::F64 => visitor.visit_f64(f64::from_le_bytes(self.array()?)),
            tag::STR => visitor.visit_borrowed_str(self.text()?),
            tag::BYTES => visitor.visit_borrowed_bytes(self.slice()?),
            tag::NONE => visitor.visit_none(),
            tag::UNIT => visitor.visit_unit(),
            tag::FALSE | tag::TRUE => visitor.visit_bool(tag == tag::TRUE),
            tag::CHAR => {
                let code = u32::from_le_bytes(self.array()?);
                visitor.visit_char(char::try_from(code).map_err(Error::custom)?)
            }
            tag::UNIT_VARIANT => visitor.visit_borrowed_str(self.variant()?),
            tag::SEQ => self.within(|reader| reader.items(visitor)),
            tag::MAP => self.within(|reader| reader.entries(visitor)),
            tag::STRUCT => self.within(|reader| reader.fields(&[], visitor)),
            tag::VARIANT => self.within(|reader| {
                let mut entry = OneEntry::of(reader.variant()?, reader);
                let value = visitor.visit_map(&mut entry)?;
                entry.end().map(|()| value)
            }),
            _ => Err(Error::new(format!("the bytes are damaged: no value begins with {tag}"))),
        }
    }

    /// Reads the parts of a value in a type that takes any kind of value, and counts how deep these are nested. Values that a type itself
    /// nests, as a linked list does, are not counted: they are as deep as the sender made them.
    fn within<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.nested == MOST_NESTED {
            return Err(Error::new(format!(
                "it is nested more than {MOST_NESTED} deep, in a type that reads whatever there is"
            )));
        }
        self.nested += 1;
        let read = read(self);
        self.nested -= 1;
        read
    }

    #[inline]
    fn items<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        let hint = self.length()?;
        // The writer follows the same rule, so a short sequence has no runs. A damaged one that has some is an error, since `RUN`
        // begins no value.
        if hint < RUN_FROM {
            let mut items = FewItems::of(self, hint);
            let value = visitor.visit_seq(&mut items)?;
            return items.end().map(|()| value);
        }
        let mut items = Items::of(self, hint);
        let value = visitor.visit_seq(&mut items)?;
        items.end().map(|()| value)
    }

    #[inline]
    fn entries<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        let mut entries = Entries::of(self)?;
        let value = visitor.visit_map(&mut entries)?;
        entries.end().map(|()| value)
    }

    #[inline]
    fn fields<V: Visitor<'de>>(&mut self, names: Names, visitor: V) -> Result<V::Value, Error> {
        let mut fields = Fields::of(self, names);
        let value = visitor.visit_map(&mut fields)?;
        fields.end().map(|()| value)
    }

    /// Reads whatever a type may read as a sequence.
    #[inline]
    fn sequence<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        match self.value_tag()? {
            tag::SEQ => self.items(visitor),
            tag::BYTES => {
                let mut bytes = SeqDeserializer::new(self.slice()?.iter().copied());
                let value = visitor.visit_seq(&mut bytes)?;
                bytes.end().map(|()| value)
            }
            other => self.value(other, visitor),
        }
    }
}

macro_rules! integers {
    ($($method:ident, $type:ty, $visit:ident;)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let tag = self.value_tag()?;
            if tag < tag::SMALL {
                return visitor.$visit(tag as $type);
            }
            let Some(integer) = self.integer(tag)? else { return self.value(tag, visitor) };
            // An integer is written in as few bytes as it fits into, so its tag does not tell its type. A visitor may have the
            // `visit_` method of the requested type only, so that method is called if the number fits its type.
            match integer {
                Integer::Unsigned(number) => match <$type>::try_from(number) {
                    Ok(number) => visitor.$visit(number),
                    Err(_) => visitor.visit_u64(number),
                },
                Integer::Signed(number) => match <$type>::try_from(number) {
                    Ok(number) => visitor.$visit(number),
                    Err(_) => visitor.visit_i64(number),
                },
            }
        }
    )*};
}

/// The usual tag comes first and is inlined into the type's code; `value`, with its branch for each tag, is not.
macro_rules! by_tag {
    ($($method:ident, $tag:pat, |$reader:ident, $visitor:ident| $usual:expr;)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, $visitor: V) -> Result<V::Value, Error> {
            let $reader = self;
            match $reader.value_tag()? {
                $tag => $usual,
                other => $reader.value(other, $visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.peek()? != tag::SOME {
            let tag = self.byte()?;
            return self.value(tag, visitor);
        }
        // `Some` of a value that would be read as `None` itself is given to the visitor as `Some`. Every other `Some` is read as the
        // value that it holds, as in JSON, since few visitors have `visit_some`.
        let inside = self.rest().iter().find(|&&tag| tag != tag::SOME);
        if matches!(inside, Some(&(tag::NONE | tag::UNIT))) {
            self.byte()?;
            return self.within(|reader| visitor.visit_some(reader));
        }
        let tag = self.value_tag()?;
        self.value(tag, visitor)
    }

    integers! {
        deserialize_u8, u8, visit_u8;
        deserialize_u16, u16, visit_u16;
        deserialize_u32, u32, visit_u32;
        deserialize_u64, u64, visit_u64;
        deserialize_u128, u128, visit_u128;
        deserialize_i8, i8, visit_i8;
        deserialize_i16, i16, visit_i16;
        deserialize_i32, i32, visit_i32;
        deserialize_i64, i64, visit_i64;
        deserialize_i128, i128, visit_i128;
    }

    by_tag! {
        deserialize_f32, tag::F32, |reader, visitor| visitor.visit_f32(f32::from_le_bytes(reader.array()?));
        deserialize_f64, tag::F64, |reader, visitor| visitor.visit_f64(f64::from_le_bytes(reader.array()?));
        deserialize_str, tag::STR, |reader, visitor| visitor.visit_borrowed_str(reader.text()?);
        deserialize_string, tag::STR, |reader, visitor| visitor.visit_borrowed_str(reader.text()?);
        deserialize_identifier, tag::STR, |reader, visitor| visitor.visit_borrowed_str(reader.text()?);
        deserialize_bytes, tag::STR, |reader, visitor| visitor.visit_borrowed_bytes(reader.text()?.as_bytes());
        deserialize_byte_buf, tag::STR, |reader, visitor| visitor.visit_borrowed_bytes(reader.text()?.as_bytes());
        deserialize_unit, tag::UNIT | tag::NONE, |_reader, visitor| visitor.visit_unit();
        deserialize_char, tag::CHAR, |reader, visitor| reader.value(tag::CHAR, visitor);
    }

    #[inline]
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value_tag()? {
            tag::FALSE => visitor.visit_bool(false),
            tag::TRUE => visitor.visit_bool(true),
            other => self.value(other, visitor),
        }
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek()? {
            tag::NONE | tag::UNIT => self.byte().and_then(|_| visitor.visit_none()),
            tag::SOME => self.byte().and_then(|_| visitor.visit_some(self)),
            // No tag of `Some`: the value was not written as an `Option`, as when `Serialize` writes a field bare if it is there.
            _ => visitor.visit_some(self),
        }
    }

    #[inline]
    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.sequence(visitor)
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        self.sequence(visitor)
    }

    #[inline]
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.sequence(visitor)
    }

    #[inline]
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value_tag()? {
            tag::STRUCT => self.fields(&[], visitor),
            tag::MAP => self.entries(visitor),
            other => self.value(other, visitor),
        }
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        names: Names,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.value_tag()? {
            tag::STRUCT => self.fields(names, visitor),
            tag::MAP => self.entries(visitor),
            other => self.value(other, visitor),
        }
    }

    #[inline]
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.value_tag()? {
            tag::UNIT_VARIANT => visitor.visit_enum(BorrowedStrDeserializer::new(self.variant()?)),
            tag::STR => visitor.visit_enum(BorrowedStrDeserializer::new(self.text()?)),
            tag::VARIANT => visitor.visit_enum(Variant::of(self.variant()?, self)),
            // A map of one entry is a variant in JSON's form, which some types write.
            tag::MAP => {
                let mut entries = Entries::of(self)?;
                let value = visitor.visit_enum(MapAccessDeserializer::new(&mut entries))?;
                entries.end().map(|()| value)
            }
            tag::STRUCT => {
                let mut fields = Fields::of(self, &[]);
                let value = visitor.visit_enum(MapAccessDeserializer::new(&mut fields))?;
                fields.end().map(|()| value)
            }
            other => self.value(other, visitor),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }
}
