//! How a descriptor travels beside a value.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};

use super::context;
use crate::memory::descriptor::Descriptor;

/// What crosses to another process in the place of a descriptor.
#[derive(Debug, Serialize, Deserialize)]
struct Handle {
    descriptor: u32,
}

impl Serialize for Descriptor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let descriptor = context::send_descriptor(self).map_err(ser::Error::custom)?;
        Handle { descriptor }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Descriptor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        context::check_receiving().map_err(D::Error::custom)?;
        let Handle { descriptor } = Handle::deserialize(deserializer)?;
        context::receive_descriptor(descriptor).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::{AsFd, AsRawFd};

    use super::super::context::{self, arrive, collect, provide};
    use super::*;
    use crate::encoding;
    use crate::transfer::attachments::Attachments;

    fn sent<T: Serialize>(value: &T) -> (Vec<u8>, Attachments) {
        collect(|| encoding::write(value).unwrap())
    }

    #[test]
    fn descriptor_that_stands_twice_travels_as_one_and_arrives_as_one() {
        let (one, other) = (Descriptor::from(tempfile::tempfile().unwrap()), tempfile::tempfile().unwrap());
        let (bytes, attachments) = sent(&(&one, Descriptor::from(other), one.clone()));
        assert_eq!(attachments.descriptors.len(), 2);
        let read = || encoding::read::<[Descriptor; 3]>(&bytes);
        let (arrived, rest) = provide(arrive(&attachments), read);
        let [first, second, third] = arrived.unwrap();
        assert_eq!(first.address(), third.address());
        assert_ne!(first.address(), second.address());
        assert_ne!(first.as_fd().as_raw_fd(), one.as_fd().as_raw_fd());
        // Read again it is the same.
        assert_eq!(provide(rest, read).0.unwrap()[0].address(), first.address());
        let mut file = File::from(first.into_owned().unwrap());
        file.write_all(b"here").unwrap();
        let (mut text, mut file) = (String::new(), File::from(one.into_owned().unwrap()));
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "here");
    }

    #[test]
    fn numbers_that_do_not_exist_or_are_taken_are_errors() {
        let (bytes, attachments) = sent(&Descriptor::from(tempfile::tempfile().unwrap()));
        let (taken, rest) = provide(arrive(&attachments), || context::receive_sole_descriptor(0));
        taken.unwrap();
        let (shared, rest) = provide(rest, || encoding::read::<Descriptor>(&bytes).map(drop));
        assert!(shared.unwrap_err().to_string().contains("only once"));
        let beyond = provide(rest, || context::receive_descriptor(1)).0.unwrap_err();
        assert_eq!(beyond, "descriptor 1 of 1 does not exist");
        // A descriptor that was received as a shared one cannot be taken as an exclusive one.
        let alone = provide(arrive(&attachments), || {
            context::receive_descriptor(0).and_then(|_| context::receive_sole_descriptor(0))
        });
        assert!(alone.0.is_err());
    }

    #[test]
    fn serialising_outside_is_an_error_with_a_sentence() {
        let file = Descriptor::from(tempfile::tempfile().unwrap());
        let error = serde_json::to_string(&file).unwrap_err().to_string();
        assert!(error.contains("descriptor or connection can be serialised only in"), "{error}");
        let error = serde_json::from_str::<Descriptor>(r#"{"descriptor":0}"#).unwrap_err().to_string();
        assert!(error.contains("can be deserialised only from"), "{error}");
    }
}
