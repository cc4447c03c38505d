//! Open files that travel beside values.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};

use super::passing;
use crate::sys::fd::{self, Owner};
use crate::sys::limits::with_room;

/// An open file, socket or any other descriptor that can be sent: it may stand anywhere in arguments, results and
/// messages.
///
/// The receiver gets a duplicate (dup(2)): the same open file, whose position and flags both sides share. The sender
/// keeps its own. Clones in a process share one descriptor, which the last of them closes.
///
/// ```
/// # phalanx::auto_init!();
/// use std::fs::File;
/// use std::io::{Read, Seek};
/// use phalanx::Descriptor;
///
/// fn count(_rank: usize, file: Descriptor) -> anyhow::Result<usize> {
///     let mut text = String::new();
///     File::from(file.into_owned()?).read_to_string(&mut text)?;
///     Ok(text.lines().count())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// # let mut file = tempfile::tempfile()?;
/// # std::io::Write::write_all(&mut file, b"one\ntwo\n")?;
/// # file.rewind()?;
/// assert_eq!(phalanx::spawn(count, Descriptor::from(file), 1)?, [2]);
/// # Ok(())
/// # }
/// ```
///
/// One that came into a worker by its fork, as in a static of the launcher, was closed there
/// ([`StartMethod::Fork`](crate::StartMethod::Fork)). It can neither be sent nor taken out, and its number is nobody's or
/// another's: do not use it by [`as_fd`](AsFd::as_fd).
#[derive(Clone)]
pub struct Descriptor(Arc<Owner>);

const CUT_OFF: &str = "this descriptor came into the worker by its fork, which closed it; give it to the worker in its arguments";

impl Descriptor {
    /// Takes it out, or makes a duplicate of it when it has clones.
    ///
    /// # Errors
    /// When there is no room for a duplicate, or it was closed by a fork.
    pub fn into_owned(self) -> io::Result<OwnedFd> {
        match Arc::try_unwrap(self.0) {
            Ok(alone) => alone.into_fd().map_err(|_| cut_off()),
            Err(shared) if shared.is_cut_off() => Err(cut_off()),
            Err(shared) => with_room(|| shared.as_fd().try_clone_to_owned()),
        }
    }

    /// Whether it came by a fork that closed it.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.0.is_cut_off()
    }

    /// The same, but at a number that no process takes for its stdin, stdout or stderr.
    pub(crate) fn beyond_stdio(&self) -> io::Result<Self> {
        if !fd::is_stdio(self.as_fd()) {
            return Ok(self.clone());
        }
        with_room(|| self.as_fd().try_clone_to_owned()).map(Self::from)
    }

    /// What is the same for clones only, as long as they live.
    pub(super) fn address(&self) -> *const Owner {
        Arc::as_ptr(&self.0)
    }
}

fn cut_off() -> io::Error {
    io::Error::other(CUT_OFF)
}

impl From<OwnedFd> for Descriptor {
    fn from(fd: OwnedFd) -> Self {
        Self(Arc::new(Owner::new(fd)))
    }
}

impl From<File> for Descriptor {
    fn from(file: File) -> Self {
        OwnedFd::from(file).into()
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let closed = if self.is_cut_off() { ", closed by a fork" } else { "" };
        write!(f, "Descriptor({}{closed})", self.as_fd().as_raw_fd())
    }
}

/// What crosses to another process in the place of a descriptor.
#[derive(Debug, Serialize, Deserialize)]
struct Handle {
    descriptor: u32,
}

impl Serialize for Descriptor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let descriptor = passing::send_descriptor(self).map_err(ser::Error::custom)?;
        Handle { descriptor }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Descriptor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        passing::check_receiving().map_err(D::Error::custom)?;
        let Handle { descriptor } = Handle::deserialize(deserializer)?;
        passing::receive_descriptor(descriptor).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;
    use crate::encoding;
    use crate::shm::passing::{arrive, collect, provide};

    fn sent<T: Serialize>(value: &T) -> (Vec<u8>, passing::Parcel) {
        collect(|| encoding::write(value).unwrap())
    }

    #[test]
    fn descriptor_that_stands_twice_travels_as_one_and_arrives_as_one() {
        let (one, other) = (Descriptor::from(tempfile::tempfile().unwrap()), tempfile::tempfile().unwrap());
        let (bytes, parcel) = sent(&(&one, Descriptor::from(other), one.clone()));
        assert_eq!(parcel.descriptors.len(), 2);
        let read = || encoding::read::<[Descriptor; 3]>(&bytes);
        let (arrived, rest) = provide(arrive(&parcel), read);
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
        let (bytes, parcel) = sent(&Descriptor::from(tempfile::tempfile().unwrap()));
        let (taken, rest) = provide(arrive(&parcel), || passing::receive_sole_descriptor(0));
        taken.unwrap();
        let (shared, rest) = provide(rest, || encoding::read::<Descriptor>(&bytes).map(drop));
        assert!(shared.unwrap_err().to_string().contains("only once"));
        let beyond = provide(rest, || passing::receive_descriptor(1)).0.unwrap_err();
        assert_eq!(beyond, "descriptor 1 of 1 does not exist");
        // What somebody has already is nobody's alone.
        let alone = provide(arrive(&parcel), || {
            passing::receive_descriptor(0).and_then(|_| passing::receive_sole_descriptor(0))
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
