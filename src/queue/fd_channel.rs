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

/// Both ends of the socket. The owner of the producers' mutex sends, the owner of the receiving end's mutex receives.
//
// Each handle has both ends, so the socket lives as long as any process has the queue, and what is in it survives the death of its
// sender: the kernel has it in the receive queue of the other end. It is one of SOCK_SEQPACKET: a message with its descriptors
// is sent as a whole or not at all, so no producer leaves half of one.
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

    /// Whether the fork that made this process has closed its descriptors.
    #[inline]
    pub(super) fn is_cut_off(&self) -> bool {
        self.into.descriptor().is_cut_off()
    }

    /// Sends what goes beside a message, with a ticket, if there is room. The message is not in the ring yet.
    pub(super) fn try_send(&self, message: &mut Outgoing, ticket: u32) -> Result<Attempt, QueueError> {
        // The kernel takes a reference to each open file when it is sent (SCM_RIGHTS), so from here on the descriptors are in the
        // queue even if this process closes its own or dies. If it dies before its message is in the ring, no message has this
        // ticket: an orphan.
        let sent = message.try_send_attachments(ticket, &self.into);
        sent.map_err(QueueError::system("send descriptors beside a message (sendmsg)"))
    }

    /// Drops the orphans in front of the ticket `first`, or all that is in the socket when it is `None`. The caller owns the mutexes of
    /// producers and of receivers, and `first` is the first ticket in the ring.
    pub(super) fn drop_orphans(&self, first: Option<u32>) -> Result<(), QueueError> {
        let failed = || QueueError::system("drop what a dead producer has sent (recvmsg)");
        loop {
            // MSG_PEEK leaves the message, with its descriptors, in the socket. To receive it first would make descriptors in
            // this process, and what turns out not to be an orphan could not be put back in front.
            let next = self.out.peek().map_err(failed())?.map(u32::from_ne_bytes);
            // Tickets go up in the socket and in the ring. A ticket before the first one of the ring is that of a put which was never
            // finished, or of a message that its consumer took out and died with.
            let is_orphan = |next| first.is_none_or(|first| ring::is_later(first, next));
            if !next.is_some_and(is_orphan) {
                return Ok(());
            }
            match self.out.try_receive::<4>() {
                Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(failed()(error)),
                // The orphan's descriptors were made here by the kernel, and close when the message is dropped. A message of another
                // length (InvalidData) is none of ours, and goes in the same way.
                _ => {}
            }
        }
    }

    /// Takes what came beside the message with that ticket. The caller owns the mutex of receivers.
    pub(super) fn take(&self, ticket: u32) -> Result<Vec<OwnedFd>, String> {
        let failed = |error: io::Error| format!("its descriptors cannot be received: {error}");
        // The kernel installs descriptors up to the soft limit of the receiver (RLIMIT_NOFILE), drops the others and only sets
        // MSG_CTRUNC (unix(7)). They cannot be asked for again, so there has to be room before the call.
        limits::make_room_for_descriptors(MAX_DESCRIPTORS);
        loop {
            let first = self.out.peek().map_err(failed)?.map(u32::from_ne_bytes);
            // A later ticket belongs to a later message, which must not lose its descriptors because those of this one are
            // missing: so it is looked at before it is received.
            if first.is_none_or(|first| ring::is_later(first, ticket)) {
                return Err(NOT_THERE.to_owned());
            }
            match self.out.try_receive::<4>() {
                Ok(Some(message)) if u32::from_ne_bytes(message.bytes) == ticket => {
                    return Ok(message.descriptors);
                }
                // An earlier ticket: an orphan, or what was left by a consumer that died with its message.
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
        // Tickets 0 and 1 come after the wrap: they are later than TICKETS - 1.
        // One descriptor: those of the messages that were never finished had two.
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
        // The second call finds the first ticket of the ring in front, and must leave it there.
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
