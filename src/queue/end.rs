//! An end of a pipe: how it is in one process at a time.
//!
//! A claim marks the end as sent when it is serialised into a message. If the message is delivered, the claim makes the
//! descriptor mean /dev/null here; if the message is dropped, the claim takes the mark back. So after a failed send the end is
//! still in this process, and after a successful one its peer reads EOF when the new owner ends.

use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};

use super::error::{CUT_OFF, QueueError};
use super::packet::Announced;
use crate::memory::descriptor::Descriptor;
use crate::sys::fd;
use crate::sys::limits::with_room;
use crate::sys::socket::Socket;
use crate::transfer::attachments::Claim;
use crate::transfer::context;

/// An end of a pipe, which one process has at a time.
#[derive(Debug)]
pub(super) struct End {
    socket: Socket<Descriptor>,
    announced: Announced,
    /// Whether the last wait for a message was longer than [`SHORT`](crate::sync::parker::SHORT): the next one does not spin.
    pub(super) skips_spin: AtomicBool,
    /// How many calls use it, or [`SENT`].
    uses: AtomicU32,
}

/// The value of `uses` when the end was put into a message: it is gone from here, unless the message is not delivered.
const SENT: u32 = u32::MAX;

const SENT_AWAY: &str = "it was sent to another process";
const IN_USE: &str =
    "this connection is used by another thread, so it cannot be sent: end the call that waits first";

impl End {
    pub(super) fn new(descriptor: Descriptor, announced: Announced) -> Self {
        let (socket, skips_spin) = (Socket::from_descriptor(descriptor), AtomicBool::new(false));
        Self { socket, announced, skips_spin, uses: AtomicU32::new(0) }
    }

    pub(super) fn announced(&self) -> &Announced {
        &self.announced
    }

    pub(super) fn socket(&self) -> &Socket<Descriptor> {
        &self.socket
    }

    pub(super) fn is_sent(&self) -> bool {
        self.uses.load(Acquire) == SENT
    }

    /// Begins a call that uses the end, which cannot be sent away as long as the result lives.
    ///
    /// # Errors
    /// [`QueueError::Gone`] when it was sent away, or came into this worker by its fork, which closed it.
    pub(super) fn enter(&self) -> Result<Use<'_>, QueueError> {
        if self.socket.descriptor().is_cut_off() {
            return Err(QueueError::Gone { reason: CUT_OFF });
        }
        // Uses and the mark share one word, so that a call cannot begin between the check and the mark of `claim`: else it would
        // sleep on a descriptor that is about to become /dev/null. `checked_add` and the filter keep a count from turning into
        // the mark.
        let more = |uses: u32| uses.checked_add(1).filter(|&uses| uses != SENT);
        match self.uses.fetch_update(AcqRel, Acquire, more) {
            Ok(_) => Ok(Use(self)),
            Err(_) => Err(QueueError::Gone { reason: SENT_AWAY }),
        }
    }

    /// Marks it as sent, which only one caller can. The error says why it cannot be sent: it was sent, or a call uses it.
    fn claim(this: &Arc<Self>) -> Result<Claimed, String> {
        // Opened now, when an error can still be returned. Once the message is delivered (`keep`), there is no way back.
        let null = with_room(fd::null)
            .map_err(|error| format!("a connection cannot be sent: /dev/null: {error}"))?;
        // Only from 0: another thread that still waits on this socket would take messages that are meant for the new owner.
        // Acquire pairs with the Release in `Use::drop`: what those calls did to the socket is over.
        match this.uses.compare_exchange(0, SENT, AcqRel, Acquire) {
            Ok(_) => Ok(Claimed { end: this.clone(), null, delivered: false }),
            Err(SENT) => Err(QueueError::Gone { reason: SENT_AWAY }.to_string()),
            Err(_) => Err(IN_USE.to_owned()),
        }
    }

    /// Puts it into the message that is being made.
    pub(super) fn serialize<Z: Serializer>(this: &Arc<Self>, serializer: Z) -> Result<Z::Ok, Z::Error> {
        let claim = Self::claim(this).map_err(ser::Error::custom)?;
        let sent = context::send_sole_descriptor(this.socket.descriptor(), claim);
        let descriptor = sent.map_err(ser::Error::custom)?;
        Handle { descriptor, announced: &this.announced }.serialize(serializer)
    }

    /// Takes it out of the message that is being read.
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Asked first, so that the error says where a connection can be read, and not which field of the handle is wrong.
        context::check_receiving().map_err(D::Error::custom)?;
        let Handle { descriptor, announced } = Handle::deserialize(deserializer)?;
        // Once only: a message that named one descriptor twice would else make two ends of the one.
        let descriptor = context::receive_sole_descriptor(descriptor).map_err(D::Error::custom)?;
        Ok(Self::new(descriptor, announced))
    }
}

/// A call that uses an end. Its drop ends the call.
#[derive(Debug)]
pub(super) struct Use<'a>(&'a End);

impl Deref for Use<'_> {
    type Target = End;

    fn deref(&self) -> &End {
        self.0
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        // Release, for the Acquire of `claim`.
        self.0.uses.fetch_sub(1, Release);
    }
}

/// An end that was put into a message. Dropped before the message was delivered, it gives the end back to this process.
#[derive(Debug)]
struct Claimed {
    end: Arc<End>,
    null: OwnedFd,
    delivered: bool,
}

impl Claim for Claimed {
    fn noun(&self) -> &'static str {
        "connection"
    }

    /// Closes what this process has of the end.
    fn keep(mut self: Box<Self>) {
        self.delivered = true;
        // A copy that stayed open here would keep the peer from ever reading EOF, so it would not learn that the new owner has
        // ended. The number itself is not closed, but made to mean /dev/null (dup3(2), in one step): a `BorrowedFd` of it may be
        // alive in another thread (`AsFd`), and the next open(2) would give a closed number to some other file. dup3 of two open
        // numbers cannot fail.
        let _ = fd::replace(self.end.socket.as_fd(), self.null.as_fd());
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if !self.delivered {
            self.end.uses.store(0, Release);
        }
    }
}

/// What crosses to another process in the place of a connection.
#[derive(Debug, Serialize, Deserialize)]
struct Handle<A> {
    descriptor: u32,
    announced: A,
}

#[cfg(test)]
mod tests {
    use super::super::{Connection, QueueError, pipe};
    use crate::encoding;
    use crate::transfer::context;

    type Numbers = Connection<u8, u8>;

    #[test]
    fn end_in_a_message_is_gone_until_that_is_dropped_and_for_good_when_it_is_delivered() {
        let (one, other): (Numbers, Numbers) = pipe().unwrap();
        let encode = || context::collect(|| encoding::write(&other));
        let (bytes, attachments) = encode();
        bytes.unwrap();
        assert!(matches!(other.try_recv(), Err(QueueError::Gone { .. })));
        assert!(encode().0.is_err());
        drop(attachments);
        assert!(matches!(other.try_recv(), Err(QueueError::Empty)));
        let (_, mut attachments) = encode();
        attachments.deliver();
        drop(attachments);
        assert!(matches!(other.try_recv(), Err(QueueError::Gone { .. })));
        // No other process had it.
        assert!(matches!(one.try_recv(), Err(QueueError::Disconnected)));
    }

    #[test]
    fn serialising_outside_is_an_error_with_a_sentence_and_changes_nothing() {
        let (one, other): (Numbers, Numbers) = pipe().unwrap();
        let error = serde_json::to_string(&other).unwrap_err().to_string();
        assert!(error.contains("descriptor or connection can be serialised only in"), "{error}");
        let error = serde_json::from_str::<Numbers>(r#"{"descriptor":0}"#).unwrap_err().to_string();
        assert!(error.contains("can be deserialised only from"), "{error}");
        one.send(3).unwrap();
        assert_eq!(other.recv().unwrap(), 3);
    }
}
