//! Reading the items of a sequence, and the numbers of a run.
//!
//! A sequence is a hint of its length, items, and `END`. A long one may begin with a run: `RUN`, the tag that all its numbers have,
//! their count in 8 bytes, and their bytes. Items that do not fit into the run follow it, each with its tag. The reader takes
//! runs anywhere in the sequence. A short sequence has no runs, and so it has a simpler reader.

use serde::de::{DeserializeSeed, SeqAccess, Visitor};
use serde::{Deserializer, forward_to_deserialize_any};

use super::access::{UntilEnd, unread};
use super::error::{Error, Step};
use super::input::{Reader, cut_short, width};
use super::tag;

/// The items of a sequence.
#[derive(Debug)]
pub(super) struct Items<'a, 'de> {
    reader: &'a mut Reader<'de>,
    /// How many items the sender expected to write.
    hint: usize,
    /// How many items were read, counting a run as a whole when it begins.
    count: usize,
    run: Run<'de>,
    ended: bool,
}

/// The items of a sequence that is too short for runs.
#[derive(Debug)]
pub(super) struct FewItems<'a, 'de> {
    parts: UntilEnd<'a, 'de>,
    /// How many items were read, for errors.
    count: usize,
}

impl<'a, 'de> FewItems<'a, 'de> {
    #[inline]
    pub(super) fn of(reader: &'a mut Reader<'de>, hint: usize) -> Self {
        Self { parts: UntilEnd::of(reader, hint), count: 0 }
    }

    #[inline]
    pub(super) fn end(self) -> Result<(), Error> {
        self.parts.end()
    }
}

impl<'de> SeqAccess<'de> for &mut FewItems<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if !self.parts.goes_on()? {
            return Ok(None);
        }
        let number = self.count;
        self.count += 1;
        let item = seed.deserialize(&mut *self.parts.reader);
        item.map(Some).map_err(|error| error.within(Step::Item(number)))
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.parts.size_hint()
    }
}

/// The rest of a run: the tag that all its numbers have, and the bytes of those that were not read yet.
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

    /// Goes to the next item, if there is one, past the heads of runs; or past the end.
    #[inline]
    fn advance(&mut self) -> Result<bool, Error> {
        // A loop, since damaged bytes may have runs of no numbers.
        while self.run.bytes.is_empty() && !self.ended {
            match self.reader.peek()? {
                tag::END => self.ended = self.reader.byte().is_ok(),
                tag::RUN => self.begin_run()?,
                _ => return Ok(true),
            }
        }
        Ok(!self.ended)
    }

    /// Reads the head of a run. Its bytes are cut out of the message here, so a count that is too high is an error before a
    /// visitor could allocate for it.
    #[cold]
    fn begin_run(&mut self) -> Result<(), Error> {
        let [_, tag] = self.reader.array()?;
        let count = u64::from_le_bytes(self.reader.array()?);
        let size =
            usize::try_from(count).ok().zip(width(tag)).and_then(|(count, width)| count.checked_mul(width));
        let bytes = size.and_then(|size| self.reader.take(size));
        let bytes = bytes.ok_or_else(|| {
            let left = self.reader.rest().len();
            Error::new(format!("the bytes are damaged: {count} numbers of tag {tag} in {left} bytes"))
        })?;
        self.run = Run { tag, bytes };
        self.count += count as usize;
        Ok(())
    }

    // Not inlined, so that the loop over the numbers of a run has no call in it.
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
                // `count` includes the whole run: the index of this item is that without the numbers after it, and itself.
                let after = self.run.bytes.len() / width(self.run.tag).unwrap_or(1);
                Err(error.within(Step::Item(self.count - after - 1)))
            }
        }
    }

    /// Returns an error unless all items were read.
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
        // Each item has at least one byte.
        Some(self.hint.min(self.run.bytes.len() + self.reader.rest().len()))
    }
}

/// The next number of a run. It has no tag of its own, so it can be read as a number only, or as a newtype or `Some` of one;
/// anything else is an error of the visitor, which is shown the number.
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
                // The usual case: a number is read as the type that it was written as.
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
