//! Results with memory beside them: a worker sends the descriptors through a socket that all workers of a context share,
//! or puts names where the launcher looks, and writes the bytes into its report slot after that.
//!
//! What was sent is in the socket when its sender is dead. The launcher takes it out whenever it looks at its workers, so
//! that none of them waits for room in it for long.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::codec::{self, Encoded};
use super::freight::Load;
use super::message::Manifest;
use crate::memory::named::Place;
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::limits;
use crate::sys::socket::{MAX_DESCRIPTORS, Message, Socket};

/// The launcher's end, with what has arrived.
#[derive(Debug)]
pub(crate) struct Returns {
    inbox: Socket,
    /// What the workers inherit; kept here too, so that the inbox never comes to an end.
    outbox: Socket,
    /// By rank.
    arrived: HashMap<u64, Vec<OwnedFd>>,
}

impl Returns {
    pub(crate) fn new() -> io::Result<Self> {
        let (inbox, outbox) = Socket::pair()?;
        Ok(Self { inbox, outbox, arrived: HashMap::new() })
    }

    /// The number under which a worker inherits its end.
    pub(crate) fn number(&self) -> RawFd {
        self.outbox.as_fd().as_raw_fd()
    }

    /// What a worker inherits.
    pub(crate) fn outbox(&self) -> BorrowedFd<'_> {
        self.outbox.as_fd()
    }

    /// Takes out all that is there, without waiting.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        while wait_readable(self.inbox.as_fd(), Some(Moment::now()))? {
            // What there is no room for would be lost.
            limits::make_room_for_descriptors(MAX_DESCRIPTORS);
            match self.inbox.try_receive() {
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

impl AsFd for Returns {
    /// Readable when something has arrived.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inbox.as_fd()
    }
}

/// Sends what goes beside the bytes of a rank's result; returns what goes into the report slot.
pub(crate) fn send(
    rank: usize,
    result: Encoded,
    outbox: &Socket,
    place: Option<&Place>,
) -> Result<Vec<u8>, String> {
    let Encoded { bytes, mut parcel } = result;
    let failed = |error: io::Error| format!("its memory cannot be sent: {error}");
    let load = Load::of(&parcel, place).map_err(failed)?;
    for batch in load.descriptors.chunks(MAX_DESCRIPTORS) {
        let batch: Vec<_> = batch.iter().map(AsFd::as_fd).collect();
        outbox.send(&(rank as u64).to_ne_bytes(), &batch, None).map_err(failed)?;
    }
    let header = codec::with_header(&load.manifest)?;
    // This process ends with its result: what it lends nobody here asks for any more.
    let _lent = parcel.deliver();
    Ok([header, bytes].concat())
}

/// What a result says of the memory beside it, and where its bytes begin.
pub(crate) fn open(body: &[u8]) -> Result<(Manifest, usize), String> {
    codec::read_header(body)
}
