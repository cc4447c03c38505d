//! How a value crosses the socket of a pipe: one packet, received by one system call unless it has descriptors.
//!
//! | first byte | what |
//! |---|---|
//! | [`PLAIN`] | the bytes of a value with nothing beside them |
//! | [`ANNOUNCES`] | nothing: from the next packet on, packets may have descriptors |
//! | another | a [`ValueMessage`] |
//!
//! The kernel drops descriptors for which the receiver has no room (MSG_CTRUNC of unix(7)). So where a packet may have some, the receiver
//! looks at it first (MSG_PEEK), and raises its limit. That is a second system call for each packet, which pipes without descriptors
//! do not need: so the first packet with descriptors is announced, and whoever receives the announcement looks first from then on.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ring;
use crate::memory::descriptor::Descriptor;
use crate::sys::socket::{Attempt, Socket};
use crate::wire::codec::{self, Encoded};
use crate::wire::framed::{INLINE, ReceiveFault};
use crate::wire::value_message::{self, ReceivedMessage, ValueMessage};

/// [`ValueMessage`] has other ones.
const PLAIN: u8 = 0x50;
pub(super) const ANNOUNCES: u8 = 0x51;

type PipeSocket = Socket<Descriptor>;

/// What an end knows of the packets with descriptors. It goes with the end to another process.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Announced {
    /// Whether this end has announced its own. Owned while a packet is announced, so that none goes before its announcement.
    sent: Mutex<bool>,
    /// Whether the other end has. Owned while a packet is received, so that no thread receives a packet as a plain one that stands behind the
    /// announcement.
    received: Mutex<bool>,
}

fn lock(known: &Mutex<bool>) -> MutexGuard<'_, bool> {
    // Each change is one store.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A value ready to be sent.
#[derive(Debug)]
pub(super) enum Packet {
    Plain(Vec<u8>),
    Message(Box<ValueMessage>),
}

impl Packet {
    /// A buffer into which a value is encoded, behind the first byte of a plain one.
    pub(super) fn buffer() -> Vec<u8> {
        let mut buffer = ring::message_buffer();
        buffer.push(PLAIN);
        buffer
    }

    /// Does all of the work that needs no room in the socket, for a value that was encoded into a [`buffer`](Self::buffer).
    ///
    /// # Errors
    /// When there is no memory for large contents, or no descriptor.
    pub(super) fn new(Encoded { bytes, attachments }: Encoded) -> std::io::Result<Self> {
        if attachments.is_empty() && bytes.len() <= INLINE {
            return Ok(Self::Plain(bytes));
        }
        let message = ValueMessage::new(bytes.get(1..).unwrap_or_default(), attachments)?;
        Ok(Self::Message(Box::new(message)))
    }

    /// Sends it, if the socket has room for it now.
    pub(super) fn try_send(
        &mut self,
        socket: &PipeSocket,
        announced: &Announced,
    ) -> std::io::Result<Attempt> {
        let message = match self {
            Self::Plain(bytes) => return socket.try_send_bytes(bytes),
            Self::Message(message) => message,
        };
        let mut is_announced = lock(&announced.sent);
        if !*is_announced {
            match socket.try_send_bytes(&[ANNOUNCES])? {
                Attempt::Sent => *is_announced = true,
                attempt => return Ok(attempt),
            }
        }
        drop(is_announced);
        message.try_send(socket)
    }

    /// Notes that it was sent: shards and connections in it leave this process now.
    pub(super) fn deliver(self) {
        match self {
            Self::Plain(bytes) => ring::keep_buffer(bytes),
            Self::Message(message) => message.deliver(),
        }
    }
}

/// A value that has arrived.
#[derive(Debug)]
pub(super) enum Arrived {
    Plain(Vec<u8>),
    Message(Box<ReceivedMessage>),
}

impl Arrived {
    pub(super) fn decode<T: DeserializeOwned>(self) -> Result<T, String> {
        match self {
            Self::Plain(bytes) => {
                let value = codec::decode_plain(bytes.get(1..).unwrap_or_default());
                ring::keep_buffer(bytes);
                value
            }
            Self::Message(message) => message.decode(),
        }
    }
}

/// Receives the next value, if one is in the socket. Does not wait.
pub(super) fn try_receive(
    socket: &PipeSocket,
    announced: &Announced,
) -> Result<Option<Arrived>, ReceiveFault> {
    let mut is_announced = lock(&announced.received);
    while !*is_announced {
        let mut bytes = ring::take_buffer();
        if !socket.try_receive_bytes(&mut bytes, INLINE)? {
            ring::keep_buffer(bytes);
            return Ok(None);
        }
        match bytes.first() {
            Some(&PLAIN) => return Ok(Some(Arrived::Plain(bytes))),
            Some(&ANNOUNCES) if bytes.len() == 1 => *is_announced = true,
            _ => {
                return Err(ReceiveFault::Damaged(format!(
                    "a message of {} bytes begins with no known byte",
                    bytes.len()
                )));
            }
        }
    }
    receive_announced(socket)
}

/// As [`try_receive`], where a packet may have descriptors.
fn receive_announced(socket: &PipeSocket) -> Result<Option<Arrived>, ReceiveFault> {
    match socket.peek::<1>()? {
        None => Ok(None),
        Some([PLAIN]) => {
            let mut bytes = ring::take_buffer();
            socket.try_receive_bytes(&mut bytes, INLINE)?;
            Ok(Some(Arrived::Plain(bytes)))
        }
        Some(_) => {
            let arrived = value_message::try_receive(socket)?;
            Ok(arrived.map(|message| Arrived::Message(Box::new(message))))
        }
    }
}

/// Takes an announcement out, if one is next: it makes the socket readable, and is nothing that a call could return.
pub(super) fn take_announcement(socket: &PipeSocket, announced: &Announced) -> std::io::Result<bool> {
    let mut is_announced = lock(&announced.received);
    if *is_announced || socket.peek::<1>()? != Some([ANNOUNCES]) {
        return Ok(false);
    }
    socket.try_receive_bytes(&mut Vec::new(), 1)?;
    *is_announced = true;
    Ok(true)
}
