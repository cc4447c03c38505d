//! A message of any size with any number of descriptors, over a socket that takes 253 of them at a time.
//!
//! The body goes as a sealed memfd, which is the first descriptor; each part says how many descriptors are left, its own among
//! them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec;
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::map::SharedMap;
use crate::sys::socket::{MAX_DESCRIPTORS, Socket};
use crate::sys::{limits, memfd};

/// A body ready to be sent.
#[derive(Debug)]
pub(crate) struct Sealed(OwnedFd);

/// Writes a body.
pub(crate) fn seal<T: Serialize>(body: &T) -> io::Result<Sealed> {
    let body = codec::encode_plain(body).map_err(io::Error::other)?;
    memfd::sealed_with("phalanx-letter", &[&body]).map(Sealed)
}

/// Sends a message, for whose room it waits until `deadline`. After an error the other end may have a part of it.
pub(crate) fn send(
    socket: &Socket,
    body: &Sealed,
    descriptors: &[BorrowedFd<'_>],
    deadline: Option<Moment>,
) -> io::Result<()> {
    let all: Vec<_> = std::iter::once(body.0.as_fd()).chain(descriptors.iter().copied()).collect();
    let mut left = all.len();
    for part in all.chunks(MAX_DESCRIPTORS) {
        socket.send(&(left as u64).to_ne_bytes(), part, deadline)?;
        left -= part.len();
    }
    Ok(())
}

/// Receives a message, for which it waits until `deadline`. `None`: the other end is closed.
///
/// # Errors
/// `InvalidData` when it did not come whole, as for want of descriptors: it has been taken out of the socket, and the next
/// one can be received. Any other when it does not come in time, or the socket fails.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: &Socket,
    deadline: Option<Moment>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let (mut descriptors, mut expected) = (Vec::new(), 0);
    loop {
        if !wait_readable(socket.as_fd(), deadline)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let message = match socket.try_receive::<8>() {
            Ok(Some(message)) => message,
            Ok(None) => continue,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        descriptors.extend(message.descriptors);
        let left = usize::try_from(u64::from_ne_bytes(message.bytes)).unwrap_or(0);
        expected = expected.max(left);
        if left <= MAX_DESCRIPTORS {
            break;
        }
    }
    if descriptors.len() != expected || descriptors.is_empty() {
        return Err(lost(descriptors.len(), expected));
    }
    let body = descriptors.remove(0);
    Ok(Some((read(body.as_fd()).map_err(damaged)?, descriptors)))
}

fn read<T: DeserializeOwned>(body: BorrowedFd<'_>) -> io::Result<T> {
    let (_, size) = memfd::identity(body)?;
    let map = SharedMap::sealed(body, usize::try_from(size).map_err(io::Error::other)?)?;
    codec::decode_plain(map.sealed_bytes().unwrap_or_default()).map_err(io::Error::other)
}

fn lost(came: usize, expected: usize) -> io::Error {
    let limit = limits::descriptors_text().unwrap_or_default();
    damaged(format!("{came} descriptors of a message arrived of the {expected} that were to come: {limit}"))
}

fn damaged(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn letter_of_many_parts_arrives_whole() {
        let (here, there) = Socket::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let long = "x".repeat(1 << 20);
        for count in [0, 252, 253, 600] {
            send(&there, &seal(&(count, &long)).unwrap(), &vec![file.as_fd(); count], None).unwrap();
            let ((told, text), descriptors) = receive::<(usize, String)>(&here, None).unwrap().unwrap();
            assert_eq!((told, descriptors.len(), text.len()), (count, count, 1 << 20));
        }
        let soon = Moment::now().checked_add(Duration::from_millis(1));
        assert_eq!(receive::<u8>(&here, soon).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(there);
        assert!(receive::<u8>(&here, None).unwrap().is_none());
    }

    #[test]
    fn letter_whose_descriptors_were_lost_is_an_error_with_its_numbers() {
        let (here, there) = Socket::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        // As the kernel hands over a message for which there is no room.
        there.send(&70_u64.to_ne_bytes(), &[file.as_fd(); 69], None).unwrap();
        let error = receive::<u8>(&here, None).unwrap_err().to_string();
        assert!(error.starts_with("69 descriptors of a message arrived of the 70 "), "{error}");
        assert!(error.contains("RLIMIT_NOFILE is "), "{error}");
    }

    #[test]
    fn letter_after_a_damaged_one_is_read() {
        let (here, there) = Socket::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let parts = [(323_u64, 200), (70, 70)];
        for (left, count) in parts {
            there.send(&left.to_ne_bytes(), &vec![file.as_fd(); count], None).unwrap();
        }
        // Its body is no sealed memfd.
        there.send(&1_u64.to_ne_bytes(), &[file.as_fd()], None).unwrap();
        send(&there, &seal(&7_u8).unwrap(), &[], None).unwrap();
        let damaged = receive::<u8>(&here, None).unwrap_err();
        assert_eq!(damaged.kind(), io::ErrorKind::InvalidData);
        assert!(
            damaged.to_string().starts_with("270 descriptors of a message arrived of the 323 "),
            "{damaged}"
        );
        assert_eq!(receive::<u8>(&here, None).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(receive::<u8>(&here, None).unwrap().unwrap().0, 7);
    }
}
