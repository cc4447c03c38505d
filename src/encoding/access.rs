//! What is in a value that has parts.

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{Deserialize, DeserializeSeed, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde::{Deserializer, forward_to_deserialize_any};

use super::error::{Error, Step};
use super::input::{Names, Reader, cut_short, width};
use super::tag;

/// The items of a sequence.
#[derive(Debug)]
pub(super) struct Items<'a, 'de> {
    reader: &'a mut Reader<'de>,
    /// How many there will probably be.
    hint: usize,
    /// How many were read, with all of the run.
    count: usize,
    run: Run<'de>,
    ended: bool,
}

/// Whether another part comes; goes past the end if it does not.
#[inline]
fn goes_on(reader: &mut Reader<'_>, ended: &mut bool) -> Result<bool, Error> {
    if !*ended && reader.peek()? == tag::END {
        reader.byte()?;
        *ended = true;
    }
    Ok(!*ended)
}

/// The items of a sequence that is too short for runs.
#[derive(Debug)]
pub(super) struct FewItems<'a, 'de> {
    reader: &'a mut Reader<'de>,
    hint: usize,
    count: usize,
    ended: bool,
}

impl<'a, 'de> FewItems<'a, 'de> {
    #[inline]
    pub(super) fn of(reader: &'a mut Reader<'de>, hint: usize) -> Self {
        Self { reader, hint, count: 0, ended: false }
    }

    #[inline]
    fn advance(&mut self) -> Result<bool, Error> {
        goes_on(self.reader, &mut self.ended)
    }

    /// Sees that all were read.
    #[inline]
    pub(super) fn end(mut self) -> Result<(), Error> {
        if self.advance()? { Err(unread()) } else { Ok(()) }
    }
}

impl<'de> SeqAccess<'de> for &mut FewItems<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if !self.advance()? {
            return Ok(None);
        }
        let number = self.count;
        self.count += 1;
        let item = seed.deserialize(&mut *self.reader);
        item.map(Some).map_err(|error| error.within(Step::Item(number)))
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.hint.min(self.reader.rest().len()))
    }
}

/// Numbers of one tag, and what is left of them.
#[derive(Debug)]
struct Run<'de> {
    tag: u8,
    bytes: &'de [u8],
}

impl<'a, 'de> Items<'a, 'de> {
    #[inline]
    pub(super) fn of(reader: &'a mut Reader<'de>, hint: usize) -> Self {
        Self { reader, hint, count: 0, run: Run { tag: tag::U8, bytes: &[] }, ended: false }
    }

    /// Goes to the next item, if there is one: past the head of a run, or the end.
    #[inline]
    fn advance(&mut self) -> Result<bool, Error> {
        while self.run.bytes.is_empty() && !self.ended {
            match self.reader.peek()? {
                tag::END => self.ended = self.reader.byte().is_ok(),
                tag::RUN => self.begin_run()?,
                _ => return Ok(true),
            }
        }
        Ok(!self.ended)
    }

    #[cold]
    fn begin_run(&mut self) -> Result<(), Error> {
        let [_, tag] = self.reader.array()?;
        let count = u64::from_le_bytes(self.reader.array()?);
        let size =
            usize::try_from(count).ok().zip(width(tag)).and_then(|(count, width)| count.checked_mul(width));
        let bytes = size.and_then(|size| self.reader.take(size));
        let bytes =
            bytes.ok_or_else(|| Error::new("the bytes are damaged: a run of numbers that is not there"))?;
        self.run = Run { tag, bytes };
        self.count += count as usize;
        Ok(())
    }

    // Apart, so that the numbers of a run are read in a loop without a call.
    #[inline(never)]
    fn next_tagged<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if !self.advance()? {
            return Ok(None);
        }
        if !self.run.bytes.is_empty() {
            return self.next_bare(seed);
        }
        let number = self.count;
        self.count += 1;
        let item = seed.deserialize(&mut *self.reader);
        item.map(Some).map_err(|error| error.within(Step::Item(number)))
    }

    #[inline]
    fn next_bare<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        match seed.deserialize(Bare(&mut self.run)) {
            Ok(item) => Ok(Some(item)),
            Err(error) => {
                let after = self.run.bytes.len() / width(self.run.tag).unwrap_or(1);
                Err(error.within(Step::Item(self.count - after - 1)))
            }
        }
    }

    /// Sees that all were read.
    #[inline]
    pub(super) fn end(mut self) -> Result<(), Error> {
        if self.advance()? { Err(unread()) } else { Ok(()) }
    }
}

impl<'de> SeqAccess<'de> for &mut Items<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if self.run.bytes.is_empty() { self.next_tagged(seed) } else { self.next_bare(seed) }
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        // An item has a byte at the least.
        Some(self.hint.min(self.run.bytes.len() + self.reader.rest().len()))
    }
}

/// A number of a run.
struct Bare<'a, 'de>(&'a mut Run<'de>);

macro_rules! bare {
    ($($method:ident, $type:ty, $tag:ident, $visit:ident;)*) => {
        impl<'de> Bare<'_, 'de> {
            #[inline]
            fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
                let (&array, rest) = self.0.bytes.split_first_chunk().ok_or_else(cut_short)?;
                self.0.bytes = rest;
                Ok(array)
            }

            fn value<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Error> {
                match self.0.tag {
                    $(tag::$tag => visitor.$visit(<$type>::from_le_bytes(self.array()?)),)*
                    other => Err(Error::new(format!("the bytes are damaged: no number begins with {other}"))),
                }
            }
        }

        impl<'de> Deserializer<'de> for Bare<'_, 'de> {
            type Error = Error;

            fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
                self.value(visitor)
            }

            $(#[inline]
            fn $method<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Error> {
                // Mostly it is read as what it was written.
                if self.0.tag == tag::$tag {
                    return visitor.$visit(<$type>::from_le_bytes(self.array()?));
                }
                self.value(visitor)
            })*

            fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
                visitor.visit_some(self)
            }

            #[inline]
            fn deserialize_newtype_struct<V: Visitor<'de>>(
                self,
                _name: &'static str,
                visitor: V,
            ) -> Result<V::Value, Error> {
                visitor.visit_newtype_struct(self)
            }

            forward_to_deserialize_any! {
                bool i128 u128 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct enum
                identifier ignored_any
            }
        }
    };
}

bare! {
    deserialize_u8, u8, U8, visit_u8;
    deserialize_u16, u16, U16, visit_u16;
    deserialize_u32, u32, U32, visit_u32;
    deserialize_u64, u64, U64, visit_u64;
    deserialize_i8, i8, I8, visit_i8;
    deserialize_i16, i16, I16, visit_i16;
    deserialize_i32, i32, I32, visit_i32;
    deserialize_i64, i64, I64, visit_i64;
    deserialize_f32, f32, F32, visit_f32;
    deserialize_f64, f64, F64, visit_f64;
}

/// The entries of a map.
#[derive(Debug)]
pub(super) struct Entries<'a, 'de> {
    reader: &'a mut Reader<'de>,
    hint: usize,
    /// Begins with the last key.
    key: &'de [u8],
    ended: bool,
}

impl<'a, 'de> Entries<'a, 'de> {
    #[inline]
    pub(super) fn of(reader: &'a mut Reader<'de>) -> Result<Self, Error> {
        let hint = reader.length()?;
        Ok(Self { reader, hint, key: &[], ended: false })
    }

    #[inline]
    fn advance(&mut self) -> Result<bool, Error> {
        goes_on(self.reader, &mut self.ended)
    }

    #[inline]
    pub(super) fn end(mut self) -> Result<(), Error> {
        if self.advance()? { Err(unread()) } else { Ok(()) }
    }
}

impl<'de> MapAccess<'de> for &mut Entries<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        if !self.advance()? {
            return Ok(None);
        }
        self.key = self.reader.rest();
        let key = seed.deserialize(&mut *self.reader);
        key.map(Some).map_err(|error| error.within(Step::key(self.key)))
    }

    #[inline]
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(&mut *self.reader).map_err(|error| error.within(Step::key(self.key)))
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.hint.min(self.reader.rest().len()))
    }
}

/// The fields of a struct.
#[derive(Debug)]
pub(super) struct Fields<'a, 'de> {
    reader: &'a mut Reader<'de>,
    /// Those that are expected.
    names: Names,
    /// Of the last one.
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
            let (expected, names) = self.names.split_first().unwrap_or((&"", &[]));
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

#[cold]
fn unread() -> Error {
    Error::new("not all of it was read")
}

/// A variant that holds something.
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

/// A variant that holds something, as JSON has it: a map of one entry.
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
