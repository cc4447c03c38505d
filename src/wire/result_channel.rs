//! Results with memory beside them: a worker sends the descriptors through a socket that all workers of a context share,
//! or puts names where the launcher looks, and writes the bytes into its report slot after that.
//!
//! What was sent is in the socket when its sender is dead. The launcher takes it out whenever it looks at its workers, so
//! that none of them waits for room in it for long.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::codec::{self, Encoded};
use super::manifest::{Link, Manifest, OutgoingAttachments};
use crate::memory::named::{self, ProcessDir};
use crate::memory::segment::{Segment, Transport};
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::limits;
use crate::sys::socket::{MAX_DESCRIPTORS, Message, Socket};

/// The launcher's end, with what has arrived.
#[derive(Debug)]
pub(crate) struct ResultChannel {
    receiver: Socket,
    /// What the workers inherit; kept here too, so that the receiver never comes to an end.
    sender: Socket,
    /// By rank.
    arrived: HashMap<u64, Vec<OwnedFd>>,
}

impl ResultChannel {
    pub(crate) fn new() -> io::Result<Self> {
        let (receiver, sender) = Socket::pair()?;
        Ok(Self { receiver, sender, arrived: HashMap::new() })
    }

    /// The number under which a worker inherits its end.
    pub(crate) fn number(&self) -> RawFd {
        self.sender.as_fd().as_raw_fd()
    }

    /// What a worker inherits.
    pub(crate) fn sender(&self) -> BorrowedFd<'_> {
        self.sender.as_fd()
    }

    /// Takes out all that is there, without waiting.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        while wait_readable(self.receiver.as_fd(), Some(Moment::now()))? {
            // What there is no room for would be lost.
            limits::make_room_for_descriptors(MAX_DESCRIPTORS);
            match self.receiver.try_receive() {
                Ok(Some(message)) => self.keep(message),
                Ok(None) => break,
                // Not from a worker of ours: some child of theirs that has the descriptor.
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

    /// What a rank has sent.
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

/// Sends what goes beside the bytes of a rank's result; returns what goes into the report slot.
pub(crate) fn send(
    rank: usize,
    result: Encoded,
    sender: &Socket,
    process_dir: Option<&ProcessDir>,
) -> Result<Vec<u8>, String> {
    let Encoded { bytes, attachments } = result;
    let failed = |error: io::Error| format!("its memory cannot be sent: {error}");
    let named = attachments.segments.iter().any(|segment| matches!(segment.transport(), Transport::Name));
    let out = process_dir.filter(|_| named).map(ProcessDir::make_out).transpose().map_err(failed)?.flatten();
    let link = out.map(|out| move |number, segment: &Segment| segment.link(&named::result_in(&out, number)));
    let link = link.as_ref().map(|link| link as Link<'_>);
    let mut outgoing = OutgoingAttachments::with_links(attachments, link).map_err(failed)?;
    let header = codec::with_header(outgoing.manifest())?;
    if outgoing.manifest().count() > 0 {
        outgoing.send(sender, &(rank as u64).to_ne_bytes(), None).map_err(failed)?;
    }
    // This process ends with its result: nobody here asks for what it has lent.
    outgoing.deliver();
    Ok([header, bytes].concat())
}

/// What a result says of the memory beside it, and where its bytes begin.
pub(crate) fn open(body: &[u8]) -> Result<(Manifest, usize), String> {
    codec::read_header(body)
}
