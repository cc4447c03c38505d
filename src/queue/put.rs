//! Putting a message into a queue: inside the producers' mutex, with what goes beside the message sent first.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::core::Core;
use super::error::QueueError;
use super::message::Outgoing;
use super::ring::{Header, Position};
use crate::point::point;
use crate::sync::wait_policy::WaitPolicy;

/// Why a wait for room has timed out.
const NOT_TAKEN: &str = "nobody took a value out of the full queue";

impl Core {
    /// Waits for room, and puts a message.
    pub(crate) fn put(&self, mut message: Outgoing, policy: &WaitPolicy) -> Result<(), QueueError> {
        self.put_undelivered(&mut message, policy)?;
        // Only now, when the put cannot fail any more, do shards and connections in the value go from this process. Outside the
        // mutex, because closing descriptors and writing an event are system calls, for which no other producer should wait.
        message.deliver();
        Ok(())
    }

    /// As [`put`](Self::put), for a caller that tries again with the same message after an error, and delivers it after the put.
    pub(crate) fn put_undelivered(
        &self,
        message: &mut Outgoing,
        policy: &WaitPolicy,
    ) -> Result<(), QueueError> {
        self.check_here()?;
        let fields = self.fields();
        let header = message.header();
        let has_room = || {
            let (head, tail) = self.positions();
            self.is_closed() || self.ring().fits(head, tail, header)
        };
        // The mutex is taken before the wait for room: so at most one producer sleeps on `no_room`, and one taken message wakes
        // one process.
        let inside = fields.put.enter(&fields.no_room, policy, || !has_room());
        let producer =
            || fields.put.awaited(has_room(), "there is room, but the producers' side is", NOT_TAKEN);
        let inside = inside.map_err(|stop| QueueError::stopped(stop, QueueError::Full, producer))?;
        point!("queue.put.entered", deaths);
        let tail = self.await_room(header, policy)?;
        // Descriptors go before the message. After it, a producer that is killed between the two would leave a message in the
        // ring whose descriptors never come. In this order it leaves an orphan in the socket: a ticket that no message in the
        // ring has, which `FdChannel` drops.
        if message.has_attachments() {
            self.send_beside(message, tail, policy)?;
        }
        // `message.header()`, not `header`: sending has written the ticket into it. The length, by which there is room, is the same.
        // What is written behind `tail` is not in the queue yet. The next producer overwrites it if this one is killed here.
        point!("queue.put.sent-beside", deaths);
        self.ring().write(tail, message.header(), message.bytes());
        point!("queue.put.written", deaths);
        let end = tail.after(header).to_word();
        // One swap of messages and bytes together puts the message in. Its Release half orders the bytes of the message before
        // it, for the consumer's Acquire load of `put.position` (`await_message`). It is a swap, since `publish` has its barrier after
        // an operation that reads and writes: on x86-64 such an instruction is the barrier (`barrier_after_change`). If this
        // thread dies between the swap and the wake, the kernel wakes the consumer, because the parker's word is pending.
        fields.no_message.publish(|| fields.put.position.swap(end, AcqRel));
        point!("queue.put.published", deaths);
        drop(inside);
        self.ring_event(false);
        Ok(())
    }

    /// Waits for room. The caller owns the producers' mutex.
    ///
    /// Returns where the message goes.
    fn await_room(&self, header: Header, policy: &WaitPolicy) -> Result<Position, QueueError> {
        let (fields, ring) = (self.fields(), self.ring());
        // Relaxed: only an owner of the mutex writes it, and taking the mutex has ordered this after the last owner's swap.
        let tail = Position::from_word(fields.put.position.load(Relaxed));
        if self.is_closed() {
            return Err(QueueError::Closed);
        }
        // A head that is too old makes the ring look fuller than it is, never emptier. So with enough room by the last known head
        // there is no need to load `get.position`, whose cache line the consumers write with each message.
        let known = Position::from_word(fields.put.other_position.load(Relaxed));
        if ring.check(known, tail).is_ok() && ring.fits(known, tail, header) {
            return Ok(tail);
        }
        let look = || {
            // Acquire, with the swap of `get.position` in `get`: the consumer has copied its message out before this thread overwrites
            // the bytes.
            let head = fields.get.position.load(Acquire);
            fields.put.other_position.store(head, Relaxed);
            let head = Position::from_word(head);
            match ring.check(head, tail) {
                // First: a queue that was closed while its producer slept refuses the value, even if a consumer has made room since.
                _ if self.is_closed() => Some(Err(QueueError::Closed)),
                Err(corrupt) => Some(Err(corrupt.into())),
                Ok(()) => ring.fits(head, tail, header).then_some(Ok(tail)),
            }
        };
        // `closed` is a word that the parker sleeps on too, since `close` wakes that word alone.
        fields.no_room.park(policy, &fields.closed, look).map_err(QueueError::not_put(NOT_TAKEN))?
    }
}
