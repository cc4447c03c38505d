//! The parts of a value to bytes: serde's SerializeSeq, SerializeStruct and the like.
//!
//! Items, and the keys and values of a map, are written one after the other and end with `END`; fields are a name and a value
//! each and end with the end of names.

use serde::ser::{self, Serialize};

use super::error::{Error, Step};
use super::writer::{Writer, varint};
use super::{END_OF_NAMES, tag};

/// Writes the parts of a value. Their number is that of the parts which come, whatever a type has stated before.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) writer: &'a mut Writer,
    /// In a sequence, the number of the next item; in a map, the place of the last key in the buffer.
    pub(super) at: usize,
}

impl Parts<'_> {
    #[inline]
    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        let number = self.at;
        self.at += 1;
        value.serialize(&mut *self.writer).map_err(|error| error.within(Step::Item(number)))
    }

    #[inline]
    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
        self.writer.name(name);
        value.serialize(&mut *self.writer).map_err(|error| error.within(Step::Field(name.to_owned())))
    }

    #[inline]
    fn end_items(self) {
        self.writer.tag(tag::END);
    }

    #[inline]
    fn end_fields(self) {
        // No run can be open here: a long sequence in the last field has ended its own with `END`.
        varint(&mut self.writer.out, END_OF_NAMES);
    }
}

macro_rules! parts {
    (items { $($items:ident, $item:ident;)* } fields { $($fields:ident;)* }) => {
        $(impl ser::$items for Parts<'_> {
            type Ok = ();
            type Error = Error;

            #[inline]
            fn $item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                self.item(value)
            }

            #[inline]
            fn end(self) -> Result<(), Error> {
                self.end_items();
                Ok(())
            }
        })*
        $(impl ser::$fields for Parts<'_> {
            type Ok = ();
            type Error = Error;

            #[inline]
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), Error> {
                self.field(name, value)
            }

            #[inline]
            fn end(self) -> Result<(), Error> {
                self.end_fields();
                Ok(())
            }
        })*
    };
}

parts! {
    items {
        SerializeSeq, serialize_element;
        SerializeTuple, serialize_element;
        SerializeTupleStruct, serialize_field;
        SerializeTupleVariant, serialize_field;
    }
    fields {
        SerializeStruct;
        SerializeStructVariant;
    }
}

impl ser::SerializeMap for Parts<'_> {
    type Ok = ();
    type Error = Error;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.at = self.writer.out.len();
        key.serialize(&mut *self.writer).map_err(|error| error.within(Step::Key("a key".to_owned())))
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        let wrote = value.serialize(&mut *self.writer);
        wrote.map_err(|error| error.within(Step::key(&self.writer.out[self.at..])))
    }

    #[inline]
    fn end(self) -> Result<(), Error> {
        self.end_items();
        Ok(())
    }
}
