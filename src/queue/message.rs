//! A value on its way through a queue.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::QueueError;
use super::ring::{self, Header, Place};
use crate::sys::limits::with_room;
use crate::sys::memfd;
use crate::sys::socket::{Attempt, Socket};
use crate::wire::codec::{self, Encoded};
use crate::wire::framed;
use crate::wire::manifest::{self, OutgoingAttachments};

/// A value ready to be put.
#[derive(Debug)]
pub(super) struct Outgoing {
    header: Header,
    /// What goes into the ring, in whole words.
    bytes: Vec<u8>,
    /// What goes beside it.
    attached: Option<Box<Attached>>,
}

#[derive(Debug)]
struct Attached {
    attachments: OutgoingAttachments,
    /// All bytes, when they are too many for the ring.
    contents: Option<OwnedFd>,
}

impl Outgoing {
    /// Prepares a message for a value. `most`: the most bytes that go into the ring.
    pub(super) fn of<T: Serialize>(value: &T, most: usize) -> Result<Self, QueueError> {
        // All that can fail or take long is done here, before any mutex is taken: `Serialize` is the user's code, which may
        // panic, sleep or use the same queue.
        let encoded = codec::encode_into(value, ring::take_buffer());
        let Encoded { bytes, attachments } = encoded.map_err(|reason| QueueError::Encode { reason })?;
        // The usual small value needs no manifest, no socket and no system call.
        if attachments.is_empty() && bytes.len() <= most {
            return Ok(Self::in_ring(bytes, Place::Ring, None));
        }
        let ready = QueueError::system("make a message ready");
        let attachments = OutgoingAttachments::new(attachments).map_err(ready)?;
        // The manifest says what each descriptor is. It goes first, since the consumer needs it before it can read the value.
        let manifest =
            codec::with_header(attachments.manifest()).map_err(|reason| QueueError::Encode { reason })?;
        if manifest.len() + bytes.len() <= most {
            let attached = Some(Box::new(Attached { attachments, contents: None }));
            return Ok(Self::in_ring([manifest, bytes].concat(), Place::Beside, attached));
        }
        // Sealed, so that the consumer reads from the mapping without a copy: F_SEAL_WRITE keeps the bytes as they are while they are
        // checked and decoded, F_SEAL_SHRINK keeps a read from ending in SIGBUS (fcntl(2)).
        let seal = || memfd::sealed_with("phalanx-message", &[&manifest, &bytes]);
        let contents = with_room(seal).map_err(QueueError::system("make a memfd for a large message"))?;
        let attached = Some(Box::new(Attached { attachments, contents: Some(contents) }));
        Ok(Self::in_ring(Vec::new(), Place::Memfd, attached))
    }

    fn in_ring(mut bytes: Vec<u8>, place: Place, attached: Option<Box<Attached>>) -> Self {
        // No more than the ring's size, which is a u32.
        let header = Header { len: bytes.len() as u32, place, ticket: 0 };
        ring::pad(&mut bytes);
        Self { header, bytes, attached }
    }

    pub(super) fn header(&self) -> Header {
        self.header
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether descriptors have to be sent before it is put.
    pub(super) fn has_attachments(&self) -> bool {
        self.attached.is_some()
    }

    /// Sends what goes beside it, with its ticket.
    pub(super) fn try_send_attachments(
        &mut self,
        ticket: u32,
        socket: &Socket<impl AsFd>,
    ) -> std::io::Result<Attempt> {
        // The ring's header gets the ticket too, by which the consumer finds these descriptors again.
        self.header.ticket = ticket;
        let Some(attached) = &mut self.attached else { return Ok(Attempt::Sent) };
        let Attached { attachments, contents } = &mut **attached;
        let contents: Option<BorrowedFd<'_>> = contents.as_ref().map(AsFd::as_fd);
        // The memfd goes first, where `unpack_memfd` looks for it. The ticket is all the bytes that the packet has, so that a look
        // at it (MSG_PEEK) says whose descriptors these are.
        attachments.try_send(socket, &ticket.to_ne_bytes(), contents)
    }

    /// Says that it was put.
    pub(super) fn deliver(self) {
        if let Some(attached) = self.attached {
            // Shards and connections leave this process now. Dropped without this, as after an error, they stay.
            attached.attachments.deliver();
        }
        ring::keep_buffer(self.bytes);
    }
}

/// A value that was taken out.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) place: Place,
    pub(super) bytes: Vec<u8>,
    /// What came beside it, or why it did not.
    pub(super) descriptors: Result<Vec<OwnedFd>, String>,
}

impl Incoming {
    pub(super) fn decode<T: DeserializeOwned>(self) -> Result<T, QueueError> {
        let Self { place, bytes, descriptors } = self;
        // No mutex is owned here: `Deserialize` is the user's code, as in `Outgoing::of`.
        let value = match place {
            Place::Ring => codec::decode_plain(&bytes),
            Place::Beside => descriptors.and_then(|descriptors| unpack(&bytes, descriptors)),
            Place::Memfd => descriptors.and_then(unpack_memfd),
        };
        ring::keep_buffer(bytes);
        value.map_err(|reason| QueueError::Decode { reason })
    }
}

fn unpack_memfd<T: DeserializeOwned>(mut descriptors: Vec<OwnedFd>) -> Result<T, String> {
    if descriptors.is_empty() {
        return Err("the memfd that it is in did not arrive".to_owned());
    }
    // Mapped only if it is sealed: otherwise its sender could change the bytes, or cut the file off, while they are read.
    let map = framed::map(descriptors.remove(0)).map_err(|fault| fault.to_string())?;
    unpack(map.sealed_bytes().unwrap_or_default(), descriptors)
}

/// Reads a manifest, and the value after it.
fn unpack<T: DeserializeOwned>(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<T, String> {
    let (manifest, value_at) = codec::read_header(bytes)?;
    let received = manifest::receive(&manifest, descriptors)?;
    // `value_at` comes out of the message: a lie leads to no bytes, and so to an error of the decoder.
    codec::decode(bytes.get(value_at..).unwrap_or_default(), received).0
}
