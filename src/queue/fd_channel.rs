//! What goes beside the messages of a queue: descriptors, through a socket that all its handles share.

use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::QueueError;
use super::message::Outgoing;
use super::ring;
use crate::memory::descriptor::Descriptor;
use crate::sys::limits::{self, with_room};
use crate::sys::socket::{Attempt, MAX_DESCRIPTORS, Socket};

/// Both ends of the socket. The sender owns the producers' mutex, the receiver that of receivers.
#[derive(Debug)]
pub(super) struct FdChannel {
    into: Socket<Descriptor>,
    out: Socket<Descriptor>,
}

const NOT_THERE: &str = "its descriptors are not there";

impl FdChannel {
    pub(super) fn new() -> Result<Self, QueueError> {
        let pair =
            with_room(Socket::pair).map_err(QueueError::system("make a queue's socket (socketpair)"))?;
        Ok(Self::over(pair.0.into_descriptor().into(), pair.1.into_descriptor().into()))
    }

    fn over(into: Descriptor, out: Descriptor) -> Self {
        Self { into: Socket::from_descriptor(into), out: Socket::from_descriptor(out) }
    }

    /// Whether its descriptors were closed by a fork.
    #[inline]
    pub(super) fn is_cut_off(&self) -> bool {
        self.into.descriptor().is_cut_off()
    }

    /// Sends what goes beside a message before that is in the ring, with a ticket, if there is room. What its producer had sent when
    /// it died stays in the socket, an orphan: nobody has its ticket.
    pub(super) fn try_send(&self, message: &mut Outgoing, ticket: u32) -> Result<Attempt, QueueError> {
        let sent = message.try_send_attachments(ticket, &self.into);
        sent.map_err(QueueError::system("send descriptors beside a message (sendmsg)"))
    }

    /// Drops the orphans that stand before what has the ticket `first`, of the first message in the ring that has one; all there are
    /// if none has. Locked the gates of producers and of receivers.
    pub(super) fn drop_orphans(&self, first: Option<u32>) -> Result<(), QueueError> {
        let failed = || QueueError::system("drop what a dead producer has sent (recvmsg)");
        loop {
            let next = self.out.peek().map_err(failed())?.map(u32::from_ne_bytes);
            let is_orphan = |next| first.is_none_or(|first| ring::is_later(first, next));
            if !next.is_some_and(is_orphan) {
                return Ok(());
            }
            match self.out.try_receive::<4>() {
                Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(failed()(error)),
                // Closed with what it came in.
                _ => {}
            }
        }
    }

    /// Takes what came beside the message with that ticket. Before it there may be what belongs to one that was never finished,
    /// or whose taker died.
    pub(super) fn take(&self, ticket: u32) -> Result<Vec<OwnedFd>, String> {
        let failed = |error: io::Error| format!("its descriptors cannot be received: {error}");
        limits::make_room_for_descriptors(MAX_DESCRIPTORS);
        loop {
            let first = self.out.peek().map_err(failed)?.map(u32::from_ne_bytes);
            if first.is_none_or(|first| ring::is_later(first, ticket)) {
                return Err(NOT_THERE.to_owned());
            }
            match self.out.try_receive::<4>() {
                Ok(Some(message)) if u32::from_ne_bytes(message.bytes) == ticket => {
                    return Ok(message.descriptors);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

impl Serialize for FdChannel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.into.descriptor(), self.out.descriptor()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for FdChannel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Deserialize::deserialize(deserializer).map(|(into, out)| Self::over(into, out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;

    fn message(tensor: &Tensor<u8>) -> Outgoing {
        Outgoing::of(tensor, 1000).unwrap()
    }

    fn send(channel: &FdChannel, message: &mut Outgoing, ticket: u32) {
        assert_eq!(channel.try_send(message, ticket).unwrap(), Attempt::Sent);
    }

    #[test]
    fn cargo_of_a_message_that_was_never_finished_is_dropped() {
        let (channel, tensor) = (FdChannel::new().unwrap(), Tensor::from_slice(&[7], &[1]).unwrap());
        let file = || Descriptor::from(tempfile::tempfile().unwrap());
        for ticket in [ring::TICKETS - 2, ring::TICKETS - 1] {
            let mut never_finished = Outgoing::of(&(file(), file()), 1000).unwrap();
            send(&channel, &mut never_finished, ticket);
        }
        for ticket in [0, 1] {
            send(&channel, &mut message(&tensor), ticket);
        }
        // Two came with those.
        assert_eq!(channel.take(0).unwrap().len(), 1);
        assert_eq!(channel.take(1).unwrap().len(), 1);
    }

    #[test]
    fn orphans_are_dropped_up_to_the_first_message_that_is_in_the_ring() {
        let (channel, tensor) = (FdChannel::new().unwrap(), Tensor::from_slice(&[7], &[1]).unwrap());
        let first = ring::TICKETS - 1;
        for ticket in [first - 2, first - 1, first, 0] {
            send(&channel, &mut message(&tensor), ticket);
        }
        channel.drop_orphans(Some(first)).unwrap();
        channel.drop_orphans(Some(first)).unwrap();
        assert_eq!(channel.out.peek().unwrap(), Some(first.to_ne_bytes()));
        channel.drop_orphans(None).unwrap();
        assert_eq!(channel.out.peek::<4>().unwrap(), None);
    }

    #[test]
    fn cargo_that_is_not_there_is_an_error_and_that_of_the_next_message_stays() {
        let (channel, tensor) = (FdChannel::new().unwrap(), Tensor::from_slice(&[7], &[1]).unwrap());
        assert_eq!(channel.take(1).unwrap_err(), NOT_THERE);
        send(&channel, &mut message(&tensor), 2);
        assert_eq!(channel.take(1).unwrap_err(), NOT_THERE);
        assert!(channel.take(2).is_ok());
    }
}
