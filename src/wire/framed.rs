//! A message of any size with any number of descriptors, as one packet of a SEQPACKET socket.
//!
//! A packet is a frame of five bytes (where the contents are, and how many descriptors belong to them), then the contents,
//! unless these are in a sealed memfd, which is the packet's first descriptor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec;
use super::fd_passing::{self, FdBatch};
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::map::SharedMap;
use crate::sys::socket::{Attempt, MAX_DESCRIPTORS, Message, Socket};
use crate::sys::{limits, memfd};

/// The most bytes of contents that are in the packet itself. The socket has room for some 200 KiB (net.core.wmem_default), which
/// several senders share.
pub(crate) const INLINE: usize = 32 << 10;
/// Bytes of the frame: the place of the contents, and the number of descriptors as a u32.
pub(super) const FRAME: usize = 5;

pub(super) const IN_PACKET: u8 = 0;
pub(super) const IN_MEMFD: u8 = 1;

/// A message ready to be sent.
#[derive(Debug)]
pub(crate) struct Framed<D> {
    bytes: Vec<u8>,
    /// The sealed memfd of the contents, when these are too large for `bytes`.
    contents: Option<OwnedFd>,
    descriptors: FdBatch<D>,
}

impl<D: AsFd> Framed<D> {
    /// Does all of the work of a message that needs no room in the socket: what is left is one sendmsg(2).
    ///
    /// # Errors
    /// When there is no memory for large contents, or no descriptor.
    pub(super) fn new(contents: [&[u8]; 2], descriptors: FdBatch<D>) -> io::Result<Self> {
        let count = descriptors.count();
        let too_many = || io::Error::other(format!("{count} descriptors are too many for a message"));
        if fd_passing::direct(count) >= MAX_DESCRIPTORS {
            return Err(too_many());
        }
        let count = u32::try_from(count).map_err(|_| too_many())?;
        if contents[0].len() + contents[1].len() <= INLINE {
            let bytes = [&frame(IN_PACKET, count)[..], contents[0], contents[1]].concat();
            return Ok(Self { bytes, contents: None, descriptors });
        }
        let memfd = limits::with_room(|| memfd::sealed_with("phalanx-message", &contents))?;
        Ok(Self { bytes: frame(IN_MEMFD, count).to_vec(), contents: Some(memfd), descriptors })
    }

    /// A plain value, and descriptors that the receiver gets in this order.
    pub(crate) fn of<T: Serialize>(body: &T, descriptors: Vec<D>) -> io::Result<Self> {
        let body = codec::encode_plain(body).map_err(io::Error::other)?;
        Self::new([&body, &[]], FdBatch::new(descriptors))
    }

    /// Sends the message, if the socket has room for it now.
    pub(super) fn try_send(&mut self, socket: &Socket<impl AsFd>) -> io::Result<Attempt> {
        self.descriptors.try_send(socket, &self.bytes, self.contents.as_ref().map(AsFd::as_fd))
    }

    /// Sends the message; waits for room until `deadline`.
    pub(crate) fn send(&mut self, socket: &Socket, deadline: Option<Moment>) -> io::Result<()> {
        self.descriptors.send(socket, &self.bytes, self.contents.as_ref().map(AsFd::as_fd), deadline)
    }
}

fn frame(place: u8, count: u32) -> [u8; FRAME] {
    let [a, b, c, d] = count.to_ne_bytes();
    [place, a, b, c, d]
}

/// The number of descriptors that came with the packet that begins with this frame, and the number that belongs to its contents.
fn counts([place, count @ ..]: [u8; FRAME]) -> (usize, usize) {
    let count = usize::try_from(u32::from_ne_bytes(count)).unwrap_or(usize::MAX);
    (fd_passing::direct(count).saturating_add((place == IN_MEMFD).into()), count)
}

/// A message that arrived.
#[derive(Debug)]
pub(super) struct Frame {
    contents: Contents,
    pub(super) descriptors: Vec<OwnedFd>,
}

#[derive(Debug)]
enum Contents {
    /// Behind the frame.
    Packet(Vec<u8>),
    Memfd(SharedMap),
}

impl Frame {
    pub(super) fn contents(&self) -> &[u8] {
        match &self.contents {
            Contents::Packet(bytes) => bytes.get(FRAME..).unwrap_or_default(),
            Contents::Memfd(map) => map.sealed_bytes().unwrap_or_default(),
        }
    }
}

/// Why no message was received. If there was one, it has been taken out of the socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveFault {
    /// The other end is closed in all processes, and all that was sent has been received.
    #[error("the other end is gone")]
    Ended,
    /// The message had descriptors that did not arrive.
    #[error("{0}")]
    Lost(String),
    /// What arrived is no message of this library.
    #[error("{0}")]
    Damaged(String),
    #[error("{0}")]
    System(io::Error),
}

impl From<io::Error> for ReceiveFault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Ended,
            io::ErrorKind::InvalidData => {
                Self::Damaged(format!("a message has more than {} bytes", FRAME + INLINE))
            }
            _ => Self::System(error),
        }
    }
}

/// Receives the next message, if one is in the socket. Does not wait.
pub(super) fn try_receive(socket: &Socket<impl AsFd>) -> Result<Option<Frame>, ReceiveFault> {
    let Some(frame) = socket.peek::<FRAME>()? else { return Ok(None) };
    let (direct, _) = counts(frame);
    if direct > 0 {
        // The kernel drops the descriptors for which there is no room (MSG_CTRUNC).
        limits::make_room_for_descriptors(direct.min(MAX_DESCRIPTORS));
    }
    socket.try_receive_up_to(FRAME + INLINE)?.map(open).transpose()
}

pub(super) fn open(message: Message<Vec<u8>>) -> Result<Frame, ReceiveFault> {
    let Message { bytes, mut descriptors } = message;
    let damaged = |what: &str| ReceiveFault::Damaged(format!("a message of {} bytes {what}", bytes.len()));
    let frame = *bytes.first_chunk::<FRAME>().ok_or_else(|| damaged("has no frame"))?;
    let (direct, count) = counts(frame);
    if descriptors.len() != direct {
        return Err(ReceiveFault::Lost(fd_passing::lost(descriptors.len(), direct)));
    }
    let contents = match frame[0] {
        IN_PACKET => Contents::Packet(bytes),
        IN_MEMFD => Contents::Memfd(map(descriptors.remove(0))?),
        _ => return Err(damaged("does not say where its contents are")),
    };
    let descriptors = fd_passing::unpack(descriptors, count).map_err(ReceiveFault::Lost)?;
    Ok(Frame { contents, descriptors })
}

/// Maps the memfd of a message's contents, once it is found to be sealed: a sender that could still write would change bytes that were
/// already checked.
pub(crate) fn map(fd: OwnedFd) -> Result<SharedMap, ReceiveFault> {
    let (_, size) = memfd::identity(fd.as_fd()).map_err(|error| ReceiveFault::Damaged(error.to_string()))?;
    if !memfd::is_content_sealed(fd.as_fd()) {
        return Err(ReceiveFault::Damaged("the contents of a message are not sealed".to_owned()));
    }
    let map =
        usize::try_from(size).map_err(io::Error::other).and_then(|size| SharedMap::sealed(fd.as_fd(), size));
    map.map_err(ReceiveFault::System)
}

/// Receives what [`Framed::of`] was given; waits for it until `deadline`. `None`: the other end is closed.
///
/// # Errors
/// `InvalidData` when the message did not come whole, as when this process had no numbers left for its descriptors: it has been taken
/// out of the socket, and the next one can be received. Any other error when no message came in time, or the socket failed.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: &Socket,
    deadline: Option<Moment>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let frame = loop {
        if !wait_readable(socket.as_fd(), deadline)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match try_receive(socket) {
            Ok(Some(frame)) => break frame,
            Ok(None) => {}
            Err(ReceiveFault::Ended) => return Ok(None),
            Err(ReceiveFault::System(error)) => return Err(error),
            Err(fault @ (ReceiveFault::Lost(_) | ReceiveFault::Damaged(_))) => return Err(damaged(fault)),
        }
    };
    let body = codec::decode_plain(frame.contents()).map_err(damaged)?;
    Ok(Some((body, frame.descriptors)))
}

fn damaged(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn message_of_any_size_with_any_number_of_descriptors_arrives_whole() {
        let (here, there) = Socket::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        for size in [0, 1 << 20] {
            let text = "x".repeat(size);
            for count in [0, 252, 253, 600] {
                let message = Framed::of(&(count, &text), vec![file.as_fd(); count]);
                message.unwrap().send(&there, None).unwrap();
                let ((told, text), descriptors) = receive::<(usize, String)>(&here, None).unwrap().unwrap();
                assert_eq!((told, descriptors.len(), text.len()), (count, count, size));
            }
        }
        let soon = Moment::now().checked_add(Duration::from_millis(1));
        assert_eq!(receive::<u8>(&here, soon).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(there);
        assert!(receive::<u8>(&here, None).unwrap().is_none());
    }

    #[test]
    fn message_after_a_damaged_one_is_read() {
        let (here, there) = Socket::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        // As the kernel hands over a message for whose descriptors there is no room.
        there.send(&frame(IN_PACKET, 70), &[file.as_fd(); 69], None).unwrap();
        // Its contents are no sealed memfd, or no value.
        there.send(&frame(IN_MEMFD, 0), &[file.as_fd()], None).unwrap();
        there.send(&frame(IN_PACKET, 0), &[], None).unwrap();
        Framed::<OwnedFd>::of(&7_u8, Vec::new()).unwrap().send(&there, None).unwrap();
        let lost = receive::<u8>(&here, None).unwrap_err();
        assert_eq!(lost.kind(), io::ErrorKind::InvalidData);
        assert!(
            lost.to_string().starts_with("only 69 of its 70 descriptors arrived: RLIMIT_NOFILE is "),
            "{lost}"
        );
        for _ in 0..2 {
            assert_eq!(receive::<u8>(&here, None).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        assert_eq!(receive::<u8>(&here, None).unwrap().unwrap().0, 7);
    }
}
