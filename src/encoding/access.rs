//! Reading what is in a map, a struct or a variant: serde's MapAccess, EnumAccess and VariantAccess.
//!
//! A map is keys and values in turn up to `END`; a key may be any value. A struct is names and values in turn up to the end of
//! names. A variant is its name and one value.
//!
//! Each reader here remembers that it has met the end, because visitors may ask again after it: without that the second question
//! would read into what follows. And each has an `end`, which its owner calls when the visitor is done: a visitor that stops
//! early would leave parts unread, and the next value would be read from the middle of this one.

use serde::Deserializer;
use serde::de::value::BorrowedStrDeserializer;
use serde::de::{Deserialize, DeserializeSeed, EnumAccess, MapAccess, VariantAccess, Visitor};

use super::error::{Error, Step};
use super::input::{Names, Reader};
use super::tag;

/// The parts before an `END`: the items of a sequence without runs, or the entries of a map.
#[derive(Debug)]
pub(super) struct UntilEnd<'a, 'de> {
    pub(super) reader: &'a mut Reader<'de>,
    /// How many the sender expected to write.
    hint: usize,
    ended: bool,
}

impl<'a, 'de> UntilEnd<'a, 'de> {
    #[inline]
    pub(super) fn of(reader: &'a mut Reader<'de>, hint: usize) -> Self {
        Self { reader, hint, ended: false }
    }

    /// Whether another part comes. If none does, the end mark is read.
    #[inline]
    pub(super) fn goes_on(&mut self) -> Result<bool, Error> {
        if !self.ended && self.reader.peek()? == tag::END {
            self.reader.byte()?;
            self.ended = true;
        }
        Ok(!self.ended)
    }

    /// Returns an error unless all parts were read.
    #[inline]
    pub(super) fn end(mut self) -> Result<(), Error> {
        if self.goes_on()? { Err(unread()) } else { Ok(()) }
    }

    /// The number of parts for which a visitor may reserve room: no more than there are bytes left, since each part has at least one.
    #[inline]
    pub(super) fn size_hint(&self) -> Option<usize> {
        Some(self.hint.min(self.reader.rest().len()))
    }
}

#[cold]
pub(super) fn unread() -> Error {
    Error::new("its `Deserialize` has not read all parts that were written")
}

/// The entries of a map.
#[derive(Debug)]
pub(super) struct Entries<'a, 'de> {
    parts: UntilEnd<'a, 'de>,
    /// The message from the last key on. Its text is made only for an error: a key may be long, and errors are rare.
    key: &'de [u8],
}

impl<'a, 'de> Entries<'a, 'de> {
    #[inline]
    pub(super) fn of(reader: &'a mut Reader<'de>) -> Result<Self, Error> {
        let hint = reader.length()?;
        Ok(Self { parts: UntilEnd::of(reader, hint), key: &[] })
    }

    #[inline]
    pub(super) fn end(self) -> Result<(), Error> {
        self.parts.end()
    }
}

impl<'de> MapAccess<'de> for &mut Entries<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        if !self.parts.goes_on()? {
            return Ok(None);
        }
        self.key = self.parts.reader.rest();
        let key = seed.deserialize(&mut *self.parts.reader);
        key.map(Some).map_err(|error| error.within(Step::key(self.key)))
    }

    #[inline]
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(&mut *self.parts.reader).map_err(|error| error.within(Step::key(self.key)))
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.parts.size_hint()
    }
}

/// The fields of a struct.
#[derive(Debug)]
pub(super) struct Fields<'a, 'de> {
    reader: &'a mut Reader<'de>,
    /// The names of the type's fields that come next, if fields come in the type's order. They come in another order if some were
    /// skipped or have aliases, which stand among the names too. Then each later name is checked to be UTF-8; nothing else depends on
    /// the order.
    names: Names,
    /// The name of the last field, for errors.
    name: &'de str,
    ended: bool,
}

impl<'a, 'de> Fields<'a, 'de> {
    #[inline]
    pub(super) fn of(reader: &'a mut Reader<'de>, names: Names) -> Self {
        Self { reader, names, name: "", ended: false }
    }

    #[inline]
    fn advance(&mut self) -> Result<bool, Error> {
        if !self.ended {
            let (&expected, names) = self.names.split_first().unwrap_or((&"", &[]));
            self.names = names;
            match self.reader.name(expected)? {
                Some(name) => self.name = name,
                None => self.ended = true,
            }
        }
        Ok(!self.ended)
    }

    #[inline]
    pub(super) fn end(mut self) -> Result<(), Error> {
        if self.advance()? { Err(unread()) } else { Ok(()) }
    }
}

impl<'de> MapAccess<'de> for &mut Fields<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        if !self.advance()? {
            return Ok(None);
        }
        seed.deserialize(name(self.name)).map(Some)
    }

    #[inline]
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let value = seed.deserialize(&mut *self.reader);
        value.map_err(|error| error.within(Step::Field(self.name.to_owned())))
    }
}

/// A name as a value.
fn name(name: &str) -> BorrowedStrDeserializer<'_, Error> {
    BorrowedStrDeserializer::new(name)
}

/// A variant that holds a value.
#[derive(Debug)]
pub(super) struct Variant<'a, 'de> {
    name: &'de str,
    reader: &'a mut Reader<'de>,
}

impl<'a, 'de> Variant<'a, 'de> {
    #[inline]
    pub(super) fn of(name: &'de str, reader: &'a mut Reader<'de>) -> Self {
        Self { name, reader }
    }

    #[inline]
    fn hold<T>(self, read: impl FnOnce(&mut Reader<'de>) -> Result<T, Error>) -> Result<T, Error> {
        let Self { name, reader } = self;
        read(reader).map_err(|error| error.within(Step::Field(name.to_owned())))
    }
}

impl<'de> EnumAccess<'de> for Variant<'_, 'de> {
    type Error = Error;
    type Variant = Self;

    #[inline]
    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        Ok((seed.deserialize(name(self.name))?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, 'de> {
    type Error = Error;

    // Reads a unit, and not nothing: the writer has put a value here, though the type expects a variant without one.
    #[inline]
    fn unit_variant(self) -> Result<(), Error> {
        self.hold(|reader| Deserialize::deserialize(reader))
    }

    #[inline]
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        self.hold(|reader| seed.deserialize(reader))
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        self.hold(|reader| reader.deserialize_tuple(len, visitor))
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.hold(|reader| reader.deserialize_struct("", fields, visitor))
    }
}

/// A variant that holds a value in the form that JSON has for it: a map of one entry.
#[derive(Debug)]
pub(super) struct OneEntry<'a, 'de> {
    name: &'de str,
    reader: &'a mut Reader<'de>,
    next: Next,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Key,
    Value,
    Nothing,
}

impl<'a, 'de> OneEntry<'a, 'de> {
    #[inline]
    pub(super) fn of(name: &'de str, reader: &'a mut Reader<'de>) -> Self {
        Self { name, reader, next: Next::Key }
    }

    #[inline]
    pub(super) fn end(self) -> Result<(), Error> {
        if self.next == Next::Nothing { Ok(()) } else { Err(unread()) }
    }
}

impl<'de> MapAccess<'de> for &mut OneEntry<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        if self.next != Next::Key {
            return Ok(None);
        }
        self.next = Next::Value;
        seed.deserialize(name(self.name)).map(Some)
    }

    #[inline]
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        self.next = Next::Nothing;
        let value = seed.deserialize(&mut *self.reader);
        value.map_err(|error| error.within(Step::Field(self.name.to_owned())))
    }
}
