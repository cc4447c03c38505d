//! File descriptor passing (unix(7), SCM_RIGHTS): any number of descriptors beside one message.
//!
//! The kernel takes 253 of them with a message (SCM_MAX_FD). When there are more, they are queued in socketpairs first, and
//! the receiving ends of these travel. So a value is one message still: messages of several senders do not mix, and a sender
//! that dies leaves no half of a message.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::clock::Moment;
use crate::sys::limits::{self, with_room};
use crate::sys::socket::{Attempt, MAX_DESCRIPTORS, Socket};

/// The most descriptors of a batch that travel with the message itself. One less than the kernel takes: the sender may add one.
const DIRECT: usize = MAX_DESCRIPTORS - 1;
/// The number of descriptors that are queued in one socketpair. An unread socket has room for some 270 messages
/// (net.core.wmem_default), of which each takes MAX_DESCRIPTORS; 128 of them leave room where the sysctl is lower.
const PER_SOCKET: usize = 128 * MAX_DESCRIPTORS;

/// The descriptors of one message, ready to be sent.
#[derive(Debug)]
pub(crate) struct FdBatch<D> {
    descriptors: Vec<D>,
    /// The receiving ends of the socketpairs, once the descriptors are queued in them.
    sockets: Vec<OwnedFd>,
}

impl<D: AsFd> FdBatch<D> {
    pub(super) fn new(descriptors: Vec<D>) -> Self {
        Self { descriptors, sockets: Vec::new() }
    }

    /// The descriptors.
    pub(super) fn all(&self) -> &[D] {
        &self.descriptors
    }

    /// How many descriptors there are.
    pub(super) fn count(&self) -> usize {
        self.descriptors.len()
    }

    /// Sends them with these bytes as one message, and before them one descriptor of the caller's own, if that can be done
    /// without waiting.
    pub(super) fn try_send(
        &mut self,
        socket: &Socket<impl AsFd>,
        bytes: &[u8],
        first: Option<BorrowedFd<'_>>,
    ) -> io::Result<Attempt> {
        let attempt = self.attempt(socket, bytes, first)?;
        if attempt != Attempt::Crowded {
            return Ok(attempt);
        }
        // The kernel lets a user have as many descriptors on their way as the soft limit of the sender allows (unix(7)).
        limits::make_room_for_descriptors(usize::MAX);
        self.attempt(socket, bytes, first)
    }

    fn attempt(
        &mut self,
        socket: &Socket<impl AsFd>,
        bytes: &[u8],
        first: Option<BorrowedFd<'_>>,
    ) -> io::Result<Attempt> {
        if self.count() <= DIRECT {
            let own = self.descriptors.iter().map(AsFd::as_fd);
            return socket.try_send(bytes, &first.into_iter().chain(own).collect::<Vec<_>>());
        }
        if self.sockets.is_empty() {
            match fill_sockets(&self.descriptors)? {
                Ok(sockets) => self.sockets = sockets,
                Err(attempt) => return Ok(attempt),
            }
        }
        let sockets = self.sockets.iter().map(AsFd::as_fd);
        socket.try_send(bytes, &first.into_iter().chain(sockets).collect::<Vec<_>>())
    }

    /// As [`try_send`](Self::try_send); waits for room until `deadline`.
    pub(super) fn send(
        &mut self,
        socket: &Socket,
        bytes: &[u8],
        first: Option<BorrowedFd<'_>>,
        deadline: Option<Moment>,
    ) -> io::Result<()> {
        socket.until_sent(deadline, || self.try_send(socket, bytes, first))
    }
}

/// The number of descriptors that the message itself carries for a batch of `count`: the batch, or its socketpairs.
pub(super) fn direct(count: usize) -> usize {
    if count <= DIRECT { count } else { count.div_ceil(PER_SOCKET) }
}

/// Queues the descriptors in socketpairs and returns the receiving ends. If the kernel takes no more now, no socketpair is kept: two
/// senders that each had half of their descriptors on the way would wait for one another.
fn fill_sockets(descriptors: &[impl AsFd]) -> io::Result<Result<Vec<OwnedFd>, Attempt>> {
    let mut sockets = Vec::new();
    for some in descriptors.chunks(PER_SOCKET) {
        let (end, into) = with_room(Socket::pair)?;
        for batch in some.chunks(MAX_DESCRIPTORS) {
            let batch: Vec<_> = batch.iter().map(AsFd::as_fd).collect();
            match into.try_send(&[0], &batch)? {
                Attempt::Sent => {}
                Attempt::Full => {
                    return Err(io::Error::other(format!(
                        "a socket has no room for {} descriptors: net.core.wmem_default is too small",
                        some.len()
                    )));
                }
                Attempt::Crowded => return Ok(Err(Attempt::Crowded)),
            }
        }
        sockets.push(end.into_descriptor());
    }
    Ok(Ok(sockets))
}

/// The whole batch of `count` descriptors, of which `descriptors` came with the message itself.
///
/// # Errors
/// When some were lost, as when this process had no numbers left for them (RLIMIT_NOFILE).
pub(crate) fn unpack(descriptors: Vec<OwnedFd>, count: usize) -> Result<Vec<OwnedFd>, String> {
    let descriptors = if count > DIRECT { empty_sockets(descriptors, count) } else { descriptors };
    if descriptors.len() == count { Ok(descriptors) } else { Err(lost(descriptors.len(), count)) }
}

fn empty_sockets(sockets: Vec<OwnedFd>, count: usize) -> Vec<OwnedFd> {
    limits::make_room_for_descriptors(count);
    // The count is its sender's word: nothing is reserved for it.
    let mut descriptors = Vec::new();
    for socket in sockets.into_iter().map(Socket::from_descriptor) {
        // The sender queued all before it sent the socket, so that an empty one will stay empty.
        while descriptors.len() < count
            && let Ok(Some(message)) = socket.try_receive::<1>()
            && !message.descriptors.is_empty()
        {
            descriptors.extend(message.descriptors);
        }
    }
    descriptors
}

/// The error of a message of which only `came` descriptors arrived.
pub(super) fn lost(came: usize, count: usize) -> String {
    let limit = limits::descriptors_text().unwrap_or_default();
    format!("only {came} of its {count} descriptors arrived: {limit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_has_the_bytes_and_the_first_descriptor_of_its_sender() {
        let (here, there) = Socket::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        for (count, expected) in [(0, 0), (252, 252), (253, 1), (600, 1)] {
            let mut batch = FdBatch::new(vec![file.as_fd(); count]);
            assert_eq!((batch.count(), direct(count)), (count, expected));
            assert_eq!(batch.try_send(&there, b"ticket", Some(file.as_fd())).unwrap(), Attempt::Sent);
            let mut message = here.try_receive::<6>().unwrap().unwrap();
            assert_eq!((&message.bytes, message.descriptors.len()), (b"ticket", 1 + expected));
            message.descriptors.remove(0);
            assert_eq!(unpack(message.descriptors, count).unwrap().len(), count);
        }
    }

    #[test]
    fn descriptors_that_are_missing_in_a_socket_are_told() {
        let file = tempfile::tempfile().unwrap();
        for came in [0, 1, 253, 299, 301] {
            let (end, into) = Socket::pair().unwrap();
            for batch in vec![file.as_fd(); came].chunks(MAX_DESCRIPTORS) {
                assert_eq!(into.try_send(&[0], batch).unwrap(), Attempt::Sent);
            }
            let error = unpack(vec![end.into_descriptor()], 300).unwrap_err();
            assert!(error.starts_with(&format!("only {came} of its 300 descriptors arrived: ")), "{error}");
        }
        let no_socket = unpack(vec![file.into()], 300).unwrap_err();
        assert!(no_socket.starts_with("only 0 of its 300 "), "{no_socket}");
    }
}
