//! A value on its way through a queue.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::QueueError;
use super::ring::{self, Header, Place};
use crate::sys::limits::with_room;
use crate::sys::memfd;
use crate::sys::socket::{Attempt, Socket};
use crate::transfer::received::Received;
use crate::wire::codec::{self, Encoded};
use crate::wire::framed;
use crate::wire::manifest::{self, OutgoingAttachments};

/// A value ready to be put.
#[derive(Debug)]
pub(crate) struct Outgoing {
    header: Header,
    /// What goes into the ring, in whole words.
    bytes: Vec<u8>,
    /// What goes beside it.
    attached: Option<Box<Attached>>,
}

#[derive(Debug)]
struct Attached {
    attachments: OutgoingAttachments,
    /// All bytes, when they are too many for the ring. A duplicate has the same.
    contents: Option<Arc<OwnedFd>>,
}

impl Outgoing {
    /// Prepares a message for a value. `most`: the most bytes that go into the ring.
    pub(super) fn of<T: Serialize>(value: &T, most: usize) -> Result<Self, QueueError> {
        Self::labelled(&[], value, most)
    }

    /// As [`of`](Self::of), with a label: bytes that a consumer may read before it takes the message.
    pub(crate) fn labelled<T: Serialize>(label: &[u8], value: &T, most: usize) -> Result<Self, QueueError> {
        let mut buffer = ring::message_buffer();
        buffer.extend_from_slice(label);
        // All that can fail or take long is done here, before any mutex is taken: `Serialize` is the user's code, which may
        // panic, sleep or use the same queue.
        let encoded = codec::encode_behind(value, buffer).map_err(|reason| QueueError::Encode { reason })?;
        Self::of_encoded(label.len(), encoded, most)
    }

    /// Prepares a message for an encoded value, before which the bytes have a label of that length.
    pub(crate) fn of_encoded(label: usize, encoded: Encoded, most: usize) -> Result<Self, QueueError> {
        let Encoded { bytes, attachments } = encoded;
        // The usual small value needs no manifest, no socket and no system call.
        if attachments.is_empty() && bytes.len() <= most {
            return Ok(Self::of_bytes(bytes));
        }
        let ready = QueueError::system("make a message ready");
        let attachments = OutgoingAttachments::new(attachments).map_err(ready)?;
        // The manifest says what each descriptor is. It goes first, since the consumer needs it before it can read the value.
        let manifest =
            codec::with_header(attachments.manifest()).map_err(|reason| QueueError::Encode { reason })?;
        let (label, value) = bytes.split_at(label);
        if manifest.len() + bytes.len() <= most {
            let attached = Some(Box::new(Attached { attachments, contents: None }));
            return Ok(Self::in_ring([label, &manifest, value].concat(), Place::Beside, attached));
        }
        // Sealed, so that the consumer reads from the mapping without a copy: F_SEAL_WRITE keeps the bytes as they are while they are
        // checked and decoded, F_SEAL_SHRINK keeps a read from ending in SIGBUS (fcntl(2)).
        let seal = || memfd::sealed_with("phalanx-message", &[&manifest, value]);
        let contents = with_room(seal).map_err(QueueError::system("make a memfd for a large message"))?;
        let attached = Some(Box::new(Attached { attachments, contents: Some(Arc::new(contents)) }));
        Ok(Self::in_ring(label.to_vec(), Place::Memfd, attached))
    }

    /// A message of these bytes, with nothing beside them.
    pub(crate) fn of_bytes(bytes: Vec<u8>) -> Self {
        Self::in_ring(bytes, Place::Ring, None)
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

    /// Its first bytes, to be written over before it is put.
    pub(crate) fn label_mut(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[..len]
    }

    /// What goes into the ring, without its padding; `None`: something goes beside that.
    pub(crate) fn plain_bytes(&self) -> Option<&[u8]> {
        self.attached.is_none().then(|| &self.bytes[..self.header.len as usize])
    }

    /// The same message once more; `None`: something in it only one process may get ([`exclusive`](Self::exclusive)).
    pub(crate) fn duplicate(&self) -> Option<Self> {
        let attached = match &self.attached {
            None => None,
            Some(attached) => {
                let attachments = attached.attachments.duplicate()?;
                Some(Box::new(Attached { attachments, contents: attached.contents.clone() }))
            }
        };
        Some(Self { header: self.header, bytes: self.bytes.clone(), attached })
    }

    /// The kind of a thing in it that only one process may get; `None`: there is no such thing.
    pub(crate) fn exclusive(&self) -> Option<&'static str> {
        self.attached.as_ref()?.attachments.exclusive()
    }

    /// Sends it through a socket instead, without waiting. It is one that was prepared with no bytes for the ring, so that its label is
    /// all there is beside the descriptors.
    pub(crate) fn try_send(mut self, socket: &Socket) -> std::io::Result<Attempt> {
        let Some(attached) = &mut self.attached else { return socket.try_send(&self.bytes, &[]) };
        let Attached { attachments, contents } = &mut **attached;
        let sent = attachments.try_send(socket, &self.bytes, contents.as_deref().map(AsFd::as_fd))?;
        if sent == Attempt::Sent {
            self.deliver();
        }
        Ok(sent)
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
        let contents: Option<BorrowedFd<'_>> = contents.as_deref().map(AsFd::as_fd);
        // The memfd goes first, where `unpack_memfd` looks for it. The ticket is all the bytes that the packet has, so that a look
        // at it (MSG_PEEK) says whose descriptors these are.
        attachments.try_send(socket, &ticket.to_ne_bytes(), contents)
    }

    /// Says that it was put.
    pub(crate) fn deliver(self) {
        if let Some(attached) = self.attached {
            // Shards and connections leave this process now. Dropped without this, as after an error, they stay.
            attached.attachments.deliver();
        }
        ring::keep_buffer(self.bytes);
    }
}

/// A value that was taken out.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(super) place: Place,
    pub(crate) bytes: Vec<u8>,
    /// What came beside it, or why it did not.
    pub(super) descriptors: Result<Vec<OwnedFd>, String>,
}

impl Incoming {
    /// What [`Outgoing::try_send`] has sent: its label, and the descriptors.
    pub(crate) fn of_sent(label: Vec<u8>, descriptors: Vec<OwnedFd>) -> Self {
        Self { place: Place::Memfd, bytes: label, descriptors: Ok(descriptors) }
    }

    pub(super) fn decode<T: DeserializeOwned>(self) -> Result<T, QueueError> {
        // No mutex is owned here: `Deserialize` is the user's code, as in `Outgoing::of`.
        let value = self.open(0, |bytes, received| match received {
            None => codec::decode_plain(bytes),
            Some(received) => codec::decode(bytes, received).0,
        });
        value.and_then(|value| value).map_err(|reason| QueueError::Decode { reason })
    }

    /// Gives the bytes behind a label of that length to `read`, with what came beside them if something did.
    ///
    /// # Errors
    /// What of the message did not arrive, or why it cannot be read.
    pub(crate) fn open<T>(
        self,
        label: usize,
        read: impl FnOnce(&[u8], Option<Received>) -> T,
    ) -> Result<T, String> {
        let Self { place, bytes, descriptors } = self;
        // A message that is shorter than its label has no bytes behind it, which is an error of the decoder.
        let behind = bytes.get(label..).unwrap_or_default();
        let found = match place {
            Place::Ring => Ok(read(behind, None)),
            Place::Beside => descriptors.and_then(|descriptors| unpack(behind, descriptors, read)),
            Place::Memfd => descriptors.and_then(|descriptors| unpack_memfd(descriptors, read)),
        };
        ring::keep_buffer(bytes);
        found
    }
}

fn unpack_memfd<T>(
    mut descriptors: Vec<OwnedFd>,
    read: impl FnOnce(&[u8], Option<Received>) -> T,
) -> Result<T, String> {
    if descriptors.is_empty() {
        return Err("the memfd that it is in did not arrive".to_owned());
    }
    // Mapped only if it is sealed: otherwise its sender could change the bytes, or cut the file off, while they are read.
    let map = framed::map(descriptors.remove(0)).map_err(|fault| fault.to_string())?;
    unpack(map.sealed_bytes().unwrap_or_default(), descriptors, read)
}

/// Reads a manifest, and gives the value after it to `read`.
fn unpack<T>(
    bytes: &[u8],
    descriptors: Vec<OwnedFd>,
    read: impl FnOnce(&[u8], Option<Received>) -> T,
) -> Result<T, String> {
    let (manifest, value_at) = codec::read_header(bytes)?;
    let received = manifest::receive(&manifest, descriptors)?;
    // `value_at` comes out of the message: a lie leads to no bytes, and so to an error of the decoder.
    Ok(read(bytes.get(value_at..).unwrap_or_default(), Some(received)))
}
