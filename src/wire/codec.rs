//! Values to bytes and back, with storages riding beside them.

use std::os::fd::OwnedFd;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::shm::{Storage, passing};

/// A value as bytes, and the storages that it refers to by number.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) bytes: Vec<u8>,
    pub(crate) storages: Vec<Storage>,
}

/// Serialises a value with its storages.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Encoded, String> {
    let (bytes, storages) = passing::collect(|| encode_plain(value));
    Ok(Encoded { bytes: bytes?, storages })
}

/// Serialises a value; one with storages is an error outside of [`encode`].
pub(crate) fn encode_plain<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    postcard::to_stdvec(value).map_err(|error| match error {
        postcard::Error::SerdeSerCustom => refusal(value).unwrap_or_else(|| error.to_string()),
        error => error.to_string(),
    })
}

/// What a type said when it refused to be serialised: postcard forgets the text, serde_json keeps it.
fn refusal<T: Serialize>(value: &T) -> Option<String> {
    const OF_JSON_ONLY: &str = "key must be a string";
    let text = serde_json::to_writer(std::io::sink(), value).err()?.to_string();
    (text != OF_JSON_ONLY).then_some(text)
}

/// Deserialises a value, whose storages are found in `descriptors` by number.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<T, String> {
    passing::provide(descriptors, || match postcard::take_from_bytes(bytes) {
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

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serializer, ser};

    use super::*;

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
    fn refusing_type_keeps_its_words() {
        assert!(encode(&vec![Refuses]).unwrap_err().contains("not today"));
    }

    #[test]
    fn decode_of_damage_is_an_error() {
        let bytes = encode(&("text", 5_u64)).unwrap().bytes;
        assert_eq!(decode::<(String, u64)>(&bytes, Vec::new()), Ok(("text".to_owned(), 5)));
        assert!(decode::<(String, u64)>(&bytes[1..], Vec::new()).is_err());
        assert!(decode::<String>(&bytes, Vec::new()).unwrap_err().contains("left over"));
    }

    #[test]
    fn type_that_skips_fields_is_an_error_with_a_hint() {
        let bytes = encode(&Skips { a: None, b: 9 }).unwrap().bytes;
        assert!(decode::<Skips>(&bytes, Vec::new()).err().unwrap().contains("skip_serializing_if"));
    }
}
