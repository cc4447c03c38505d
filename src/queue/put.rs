//! Putting a message into a queue: inside the producers' mutex, with what goes beside the message sent first.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::core::Core;
use super::error::QueueError;
use super::message::Outgoing;
use super::ring::{Header, Position};
use crate::sync::wait_policy::WaitPolicy;

/// What nobody did when the time of a wait for room is up.
const NOT_TAKEN: &str = "nobody took a value out of the full queue";

impl Core {
    /// Puts a message, for whose room it waits.
    pub(super) fn put(&self, mut message: Outgoing, policy: &WaitPolicy) -> Result<(), QueueError> {
        self.check_here()?;
        let fields = self.fields();
        let header = message.header();
        let has_room = || {
            let (head, tail) = self.positions();
            self.is_closed() || self.ring().fits(head, tail, header)
        };
        let inside = fields.put.enter(&fields.no_room, policy, || !has_room());
        let producer =
            || fields.put.awaited(has_room(), "there is room, but the producers' side is", NOT_TAKEN);
        let inside = inside.map_err(|stop| QueueError::stopped(stop, QueueError::Full, producer))?;
        let tail = self.await_room(header, policy)?;
        if message.has_attachments() {
            self.send_beside(&mut message, tail, policy)?;
        }
        self.ring().write(tail, message.header(), message.bytes());
        let end = tail.after(header).to_word();
        fields.no_message.publish(|| fields.put.at.swap(end, AcqRel));
        drop(inside);
        message.deliver();
        self.ring_event(false);
        Ok(())
    }

    /// Waits, inside the mutex, until there is room; returns where.
    fn await_room(&self, header: Header, policy: &WaitPolicy) -> Result<Position, QueueError> {
        let (fields, ring) = (self.fields(), self.ring());
        let tail = Position::from_word(fields.put.at.load(Relaxed));
        if self.is_closed() {
            return Err(QueueError::Closed);
        }
        let known = Position::from_word(fields.put.other.load(Relaxed));
        if ring.check(known, tail).is_ok() && ring.fits(known, tail, header) {
            return Ok(tail);
        }
        let look = || {
            let head = fields.get.at.load(Acquire);
            fields.put.other.store(head, Relaxed);
            let head = Position::from_word(head);
            match ring.check(head, tail) {
                _ if self.is_closed() => Some(Err(QueueError::Closed)),
                Err(corrupt) => Some(Err(corrupt.into())),
                Ok(()) => ring.fits(head, tail, header).then_some(Ok(tail)),
            }
        };
        fields.no_room.park(policy, &fields.closed, look).map_err(QueueError::not_put(NOT_TAKEN))?
    }
}
