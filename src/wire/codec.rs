//! Values to bytes and attachments, and back.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::encoding;
use crate::transfer::attachments::Attachments;
use crate::transfer::context;
use crate::transfer::received::Received;

/// A value as bytes, and what travels beside them.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) bytes: Vec<u8>,
    pub(crate) attachments: Attachments,
}

/// Serialises a value; its tensors, queues and descriptors become attachments.
///
/// # Errors
/// What the value's type or serde said, with the path of the field.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Encoded, String> {
    encode_behind(value, Vec::new())
}

/// As [`encode`], behind the bytes that a buffer has: a queue's producer keeps one, so that a put allocates nothing.
pub(crate) fn encode_behind<T: Serialize>(value: &T, buffer: Vec<u8>) -> Result<Encoded, String> {
    let (bytes, attachments) = context::collect(|| encoding::write_into(buffer, value));
    let bytes = bytes.map_err(|error| error.of_type::<T>())?;
    Ok(Encoded { bytes, attachments })
}

/// Serialises a value; one with tensors is an error outside of [`encode`].
pub(crate) fn encode_plain<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    encoding::write(value).map_err(|error| error.of_type::<T>())
}

/// Deserialises a value without attachments; a tensor in it is an error.
pub(crate) fn decode_plain<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    context::provide_nothing(|| encoding::read(bytes)).map_err(|error| error.of_type::<T>())
}

/// Deserialises a value, which finds its tensors in `received`; returns what is left of that too.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], received: Received) -> (Result<T, String>, Received) {
    let (value, rest) = context::provide(received, || encoding::read(bytes));
    (value.map_err(|error| error.of_type::<T>()), rest)
}

/// An encoded header as it stands before other bytes: its length (8 bytes, little-endian), then its bytes.
pub(crate) fn with_header<T: Serialize>(header: &T) -> Result<Vec<u8>, String> {
    let header = encode_plain(header)?;
    Ok([&(header.len() as u64).to_le_bytes()[..], &header].concat())
}

/// Reads what [`with_header`] wrote; returns the header and the offset of the byte behind it.
pub(crate) fn read_header<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), String> {
    let cut_short = || "it is cut short".to_owned();
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(cut_short)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| cut_short())?;
    let header = rest.get(..length).ok_or_else(cut_short)?;
    Ok((decode_plain(header)?, 8 + length))
}

#[cfg(test)]
mod tests {
    use serde::{Serializer, ser};

    use super::*;
    use crate::{Shard, Tensor};

    struct Refuses;

    impl Serialize for Refuses {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(ser::Error::custom("not today"))
        }
    }

    #[test]
    fn refusing_type_keeps_its_words_and_its_shards() {
        assert!(encode(&vec![Refuses]).unwrap_err().contains("not today"));
        let shard = Tensor::<f32>::zeros(&[2]).unwrap().into_shards(1).unwrap().remove(0);
        let mut both: (Shard<f32>, Refuses) = (shard, Refuses);
        assert!(encode(&both).unwrap_err().contains("not today"));
        assert!(both.0.as_mut_slice().is_ok());
    }

    #[test]
    fn decode_of_damage_is_an_error() {
        let bytes = encode(&("text", 5_u64)).unwrap().bytes;
        assert_eq!(decode_plain::<(String, u64)>(&bytes), Ok(("text".to_owned(), 5)));
        assert!(decode_plain::<(String, u64)>(&bytes[1..]).is_err());
        assert!(
            decode_plain::<String>(&bytes).unwrap_err().starts_with("alloc::string::String: invalid type")
        );
        assert!(
            decode_plain::<(String, u64)>(&[bytes, vec![0]].concat()).unwrap_err().contains("were not read")
        );
    }

    #[test]
    fn header_is_read_back_and_a_damaged_one_is_an_error() {
        let bytes = [with_header(&(7_u8, "x")).unwrap(), b"rest".to_vec()].concat();
        let (header, at) = read_header::<(u8, String)>(&bytes).unwrap();
        assert_eq!((header, &bytes[at..]), ((7, "x".to_owned()), &b"rest"[..]));
        for damaged in [&b""[..], b"1234567", b"\xff\xff\xff\xff\xff\xff\xff\xff123", b"\x02\0\0\0\0\0\0\0ab"]
        {
            assert!(read_header::<(u8, String)>(damaged).is_err(), "{damaged:?}");
        }
    }
}
