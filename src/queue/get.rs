//! Taking a message out of a queue: inside the consumers' mutex, with what came beside the message received last.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::core::Core;
use super::error::QueueError;
use super::message::Incoming;
use super::ring::{self, Place, Position};
use crate::sync::wait_policy::WaitPolicy;

/// What nobody did when the time of a wait for a message is up.
const NOT_PUT: &str = "nobody put a value into the empty queue";

impl Core {
    /// Takes the next message, for which it waits.
    pub(super) fn get(&self, policy: &WaitPolicy) -> Result<Incoming, QueueError> {
        self.get_noted(policy, || ())
    }

    /// As [`get`](Self::get). `taking` is run before the message is out of the queue, which it will be unless this thread dies.
    pub(super) fn get_noted(
        &self,
        policy: &WaitPolicy,
        taking: impl FnOnce(),
    ) -> Result<Incoming, QueueError> {
        self.check_here()?;
        let fields = self.fields();
        let is_empty = || self.len() == 0 && !self.is_closed();
        let inside = fields.get.enter(&fields.no_message, policy, is_empty);
        let consumer =
            || fields.get.awaited(!is_empty(), "there are values, but the consumers' side is", NOT_PUT);
        let inside = inside.map_err(|stop| QueueError::stopped(stop, QueueError::Empty, consumer))?;
        let (head, tail) = self.await_message(policy)?;
        let header = self.ring().header(head, tail)?;
        let receiving = match header.place {
            Place::Ring => None,
            Place::Beside | Place::Memfd => Some(self.enter_to_receive(policy, QueueError::Empty)?),
        };
        let mut bytes = ring::take_buffer();
        self.ring().read(head, header, &mut bytes);
        taking();
        let end = head.after(header).to_word();
        fields.no_room.publish(|| fields.get.at.swap(end, AcqRel));
        let descriptors = match header.place {
            Place::Ring => Ok(Vec::new()),
            Place::Beside | Place::Memfd => self.fd_channel.take(header.ticket),
        };
        drop(receiving);
        drop(inside);
        Ok(Incoming { place: header.place, bytes, descriptors })
    }

    /// Waits, inside the mutex, until there is a message; returns where it begins, and where the last one ends.
    fn await_message(&self, policy: &WaitPolicy) -> Result<(Position, Position), QueueError> {
        let fields = self.fields();
        let head = Position::from_word(fields.get.at.load(Relaxed));
        let known = Position::from_word(fields.get.other.load(Relaxed));
        if known.messages != head.messages {
            return Ok((head, known));
        }
        let look = || {
            let is_closed = self.is_closed();
            let tail = fields.put.at.load(Acquire);
            fields.get.other.store(tail, Relaxed);
            let tail = Position::from_word(tail);
            if tail.messages != head.messages { Some(Some(tail)) } else { is_closed.then_some(None) }
        };
        match fields.no_message.park(policy, &fields.closed, look).map_err(QueueError::not_got(NOT_PUT))? {
            Some(tail) => Ok((head, tail)),
            None => self.await_last(head, policy),
        }
    }

    /// It was closed, but who was inside to put something may not have finished.
    fn await_last(&self, head: Position, policy: &WaitPolicy) -> Result<(Position, Position), QueueError> {
        let fields = self.fields();
        let producer =
            || fields.put.awaited(true, "the queue is closed, but its producers' side is", NOT_PUT);
        let inside = fields.put.enter(&fields.no_room, policy, || false);
        drop(inside.map_err(|stop| QueueError::stopped(stop, QueueError::Empty, producer))?);
        let tail = Position::from_word(fields.put.at.load(Acquire));
        if tail.messages == head.messages { Err(QueueError::Closed) } else { Ok((head, tail)) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;
    use crate::sys::{futex, robust};
    use crate::transfer::record::TypeTag;

    #[test]
    fn who_waits_is_told_though_the_closer_dies_in_the_middle() {
        let (core, tid) = (Core::new(TypeTag::of::<u8>("test"), 4).unwrap(), AtomicU32::new(0));
        std::thread::scope(|scope| {
            let consumer = scope.spawn(|| {
                tid.store(robust::me().unwrap().tid, SeqCst);
                core.get(&WaitPolicy::Forever)
            });
            futex::tests::await_asleep(&tid);
            // As one that dies then: it has not rung.
            futex::set_and_wake_all(&core.fields().closed).unwrap();
            assert!(matches!(consumer.join().unwrap(), Err(QueueError::Closed)));
        });
    }
}
