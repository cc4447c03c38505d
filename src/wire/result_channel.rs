//! The result channel: a socket that all workers of a context share, for the descriptors of their results. A worker sends the
//! descriptors, or links its named memory into a directory that the launcher reads, and then writes the bytes of the result into its
//! report slot.
//!
//! What a worker has sent stays in the socket when the worker is dead. The launcher receives it whenever it looks at its workers,
//! so that none of them waits for room for long.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::codec::{self, Encoded};
use super::manifest::{Link, Manifest, OutgoingAttachments};
use crate::error::with_hint;
use crate::memory::named::{self, ProcessDir};
use crate::memory::segment::{Segment, Transport};
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::limits;
use crate::sys::socket::{MAX_DESCRIPTORS, Message, Socket};

/// The launcher's end of the socket, with the descriptors that have arrived.
#[derive(Debug)]
pub(crate) struct ResultChannel {
    receiver: Socket,
    /// The end that workers inherit. It stays open here, so that the receiver never sees the end of the stream.
    sender: Socket,
    /// The descriptors that have arrived, by the rank that sent them.
    arrived: HashMap<u64, Vec<OwnedFd>>,
}

impl ResultChannel {
    /// A channel for the workers of one context.
    pub(crate) fn new() -> io::Result<Self> {
        let (receiver, sender) = Socket::pair()?;
        Ok(Self { receiver, sender, arrived: HashMap::new() })
    }

    /// The number of the end that workers inherit.
    pub(crate) fn number(&self) -> RawFd {
        self.sender.as_fd().as_raw_fd()
    }

    /// The end that workers inherit.
    pub(crate) fn sender(&self) -> BorrowedFd<'_> {
        self.sender.as_fd()
    }

    /// Receives all that is there, without waiting.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        while wait_readable(self.receiver.as_fd(), Some(Moment::now()))? {
            // The kernel drops the descriptors for which there is no room (MSG_CTRUNC).
            limits::make_room_for_descriptors(MAX_DESCRIPTORS);
            match self.receiver.try_receive() {
                Ok(Some(message)) => self.keep(message),
                Ok(None) => break,
                // No message of a worker: a child of one has the socket too, and may send anything.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn keep(&mut self, Message { bytes, descriptors }: Message<[u8; 8]>) {
        self.arrived.entry(u64::from_ne_bytes(bytes)).or_default().extend(descriptors);
    }

    /// Removes and returns the descriptors that a rank has sent.
    pub(crate) fn take(&mut self, rank: usize) -> Vec<OwnedFd> {
        self.arrived.remove(&(rank as u64)).unwrap_or_default()
    }
}

impl AsFd for ResultChannel {
    /// Readable when something has arrived.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

/// Sends the attachments of a rank's result; returns the body of its report.
pub(crate) fn send(
    rank: usize,
    result: Encoded,
    sender: &Socket,
    process_dir: Option<&ProcessDir>,
) -> Result<Vec<u8>, String> {
    let Encoded { bytes, attachments } = result;
    let failed =
        |error: io::Error| format!("the memory of its tensors cannot be sent: {}", with_hint(&error));
    let named = attachments.segments.iter().any(|segment| matches!(segment.transport(), Transport::Name));
    let out = process_dir.filter(|_| named).map(ProcessDir::make_out).transpose().map_err(failed)?.flatten();
    let link = out.map(|out| move |number, segment: &Segment| segment.link(&named::result_in(&out, number)));
    let link = link.as_ref().map(|link| link as Link<'_>);
    let mut outgoing = OutgoingAttachments::with_links(attachments, link).map_err(failed)?;
    let header = codec::with_header(outgoing.manifest())?;
    if outgoing.manifest().count() > 0 {
        outgoing.send(sender, &(rank as u64).to_ne_bytes(), None).map_err(failed)?;
    }
    // The loans are dropped at once: this process ends with its result, so nothing is frozen or divided here while others write.
    outgoing.deliver();
    Ok([header, bytes].concat())
}

/// The manifest of a result, and the offset of its bytes.
pub(crate) fn open(body: &[u8]) -> Result<(Manifest, usize), String> {
    codec::read_header(body)
}
