//! Values to bytes and back, with shared memory riding beside them.

use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::shm::passing::{self, Arrivals, Parcel};

/// A value as bytes, and what goes beside them.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) bytes: Vec<u8>,
    pub(crate) parcel: Parcel,
}

/// Serialises a value with its tensors.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Encoded, String> {
    encode_into(value, Vec::new())
}

/// As [`encode`], into a buffer that may have been used before.
pub(crate) fn encode_into<T: Serialize>(value: &T, mut buffer: Vec<u8>) -> Result<Encoded, String> {
    buffer.clear();
    let serialise = || postcard::serialize_with_flavor(value, Growing(buffer));
    let (bytes, parcel) = passing::collect(serialise);
    match bytes {
        Ok(bytes) => Ok(Encoded { bytes, parcel }),
        Err(error) => {
            // What the value is asked once more must not find its shards in a message.
            drop(parcel);
            Err(passing::collect(|| reason(value, &error)).0)
        }
    }
}

/// Bytes as they come. (postcard has it only for a vector of its own.)
struct Growing(Vec<u8>);

impl Flavor for Growing {
    type Output = Vec<u8>;

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

/// Serialises a value; one with tensors is an error outside of [`encode`].
pub(crate) fn encode_plain<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    postcard::to_stdvec(value).map_err(|error| reason(value, &error))
}

fn reason<T: Serialize>(value: &T, error: &postcard::Error) -> String {
    let told = if *error == postcard::Error::SerdeSerCustom { refusal(value) } else { None };
    told.unwrap_or_else(|| error.to_string())
}

/// What a type said when it refused to be serialised: postcard forgets the text, serde_json keeps it.
fn refusal<T: Serialize>(value: &T) -> Option<String> {
    const OF_JSON_ONLY: &str = "key must be a string";
    let text = serde_json::to_writer(std::io::sink(), value).err()?.to_string();
    (text != OF_JSON_ONLY).then_some(text)
}

/// Deserialises a value that has nothing beside it.
pub(crate) fn decode_plain<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    decode(bytes, Arrivals::default()).0
}

/// Deserialises a value, whose tensors are found in `arrivals`; what is left of those comes back.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], arrivals: Arrivals) -> (Result<T, String>, Arrivals) {
    passing::provide(arrivals, || match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(misfit(&format!("{} of {} bytes were left over", rest.len(), bytes.len()))),
        Err(error) => Err(passing::take_reason().unwrap_or_else(|| misfit(&error.to_string()))),
    })
}

fn misfit(what: &str) -> String {
    format!(
        "{what}; the type must read what it writes, which with serde's flatten, untagged, internally tagged or \
         skip_serializing_if it does not in a compact format"
    )
}

/// A header, for what follows it: its length (8 bytes, little-endian), and itself.
pub(crate) fn with_header<T: Serialize>(header: &T) -> Result<Vec<u8>, String> {
    let header = encode_plain(header)?;
    Ok([&(header.len() as u64).to_le_bytes()[..], &header].concat())
}

/// Reads such a header; says where what follows it begins.
pub(crate) fn read_header<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), String> {
    let cut_short = || "it is cut short".to_owned();
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(cut_short)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| cut_short())?;
    let header = rest.get(..length).ok_or_else(cut_short)?;
    Ok((decode_plain(header)?, 8 + length))
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serializer, ser};

    use super::*;
    use crate::shm::{Shard, Tensor};

    struct Refuses;

    impl Serialize for Refuses {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(ser::Error::custom("not today"))
        }
    }

    #[derive(Serialize, Deserialize)]
    struct Skips {
        #[serde(skip_serializing_if = "Option::is_none")]
        a: Option<u8>,
        b: u8,
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
        assert!(decode_plain::<String>(&bytes).unwrap_err().contains("left over"));
    }

    #[test]
    fn type_that_skips_fields_is_an_error_with_a_hint() {
        let bytes = encode(&Skips { a: None, b: 9 }).unwrap().bytes;
        assert!(decode_plain::<Skips>(&bytes).err().unwrap().contains("skip_serializing_if"));
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
