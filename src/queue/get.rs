//! Taking a message out of a queue: inside the consumers' mutex, with what came beside the message received last.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::core::Core;
use super::error::QueueError;
use super::message::Incoming;
use super::ring::{self, Place, Position};
use crate::point::point;
use crate::sync::wait_policy::WaitPolicy;

/// Why a wait for a message has timed out.
const NOT_PUT: &str = "nobody put a value into the empty queue";

impl Core {
    /// Waits for a message, and takes it.
    pub(crate) fn get(&self, policy: &WaitPolicy) -> Result<Incoming, QueueError> {
        self.get_noted(policy, |_, _| ())
    }

    /// As [`get`](Self::get). Gives the bytes in the ring, and the message's number, to `taking` just before it takes the message: after
    /// that only the death of this thread keeps the message in the queue.
    pub(crate) fn get_noted(
        &self,
        policy: &WaitPolicy,
        taking: impl FnOnce(&[u8], u32),
    ) -> Result<Incoming, QueueError> {
        self.check_here()?;
        let fields = self.fields();
        let is_empty = || self.len() == 0 && !self.is_closed();
        // The mutex is taken before the wait: at most one consumer sleeps on `no_message`, and a message wakes one process, not all.
        let inside = fields.get.enter(&fields.no_message, policy, is_empty);
        let consumer =
            || fields.get.awaited(!is_empty(), "there are values, but the consumers' side is", NOT_PUT);
        let inside = inside.map_err(|stop| QueueError::stopped(stop, QueueError::Empty, consumer))?;
        point!("queue.get.entered", deaths);
        let (head, tail) = self.await_message(policy)?;
        let header = self.ring().header(head, tail)?;
        // Before the message is out of the ring. Without this mutex a producer that cleans the full socket (`drop_orphans`) could
        // look between the swap below and `take`: it would find no message with this ticket any more, and drop the descriptors as
        // an orphan's.
        let receiving = match header.place {
            Place::Ring => None,
            Place::Beside | Place::Memfd => Some(self.enter_to_receive(policy, QueueError::Empty)?),
        };
        let mut bytes = ring::take_buffer();
        // A copy, before the swap: from then on the next producer may overwrite the bytes.
        self.ring().read(head, header, &mut bytes);
        // Before the swap, so that `join` at the worst counts one held task too many for a moment. In the other order it could look
        // between the two, find a task that is out of the queue and in nobody's hands, and report a loss that there is none of.
        taking(&bytes, head.messages);
        point!("queue.get.copied", deaths);
        let end = head.after(header).to_word();
        // The one step by which the message is out. Before it a consumer may die, and the next one finds the message; after it
        // the message dies with its consumer, and comes twice to nobody. The Release half pairs with the Acquire load in
        // `await_room`.
        fields.no_room.publish(|| fields.get.position.swap(end, AcqRel));
        point!("queue.get.taken", deaths);
        // A consumer that is killed here leaves descriptors in the socket whose ticket is older than all in the ring: the next
        // `take` drops them.
        let descriptors = match header.place {
            Place::Ring => Ok(Vec::new()),
            Place::Beside | Place::Memfd => self.fd_channel.take(header.ticket),
        };
        // The error of lost descriptors goes along as a value: the message is out, and its consumer has to be told that it was lost.
        drop(receiving);
        drop(inside);
        self.ring_room_event();
        Ok(Incoming { place: header.place, bytes, descriptors })
    }

    /// Waits for a message. The caller owns the consumers' mutex.
    ///
    /// Returns where the message begins, and where the last one ends.
    fn await_message(&self, policy: &WaitPolicy) -> Result<(Position, Position), QueueError> {
        let fields = self.fields();
        // Relaxed: only an owner of the mutex writes it, and taking the mutex has ordered this after the last owner's swap.
        let head = Position::from_word(fields.get.position.load(Relaxed));
        let known = Position::from_word(fields.get.other_position.load(Relaxed));
        // Messages up to the last known tail are there, whatever has been put since. As long as there are some, `put.position` is not
        // loaded, whose cache line the producers write with each message.
        if known.messages != head.messages {
            return Ok((head, known));
        }
        let look = || {
            // `closed` before the tail. In the other order a message could be put, and the queue closed, between the two loads:
            // then the old tail and the new word together say that the queue is closed and empty, and the message stays behind.
            let is_closed = self.is_closed();
            // Acquire, with the producer's swap: the bytes of all messages before this tail are visible.
            let tail = fields.put.position.load(Acquire);
            fields.get.other_position.store(tail, Relaxed);
            let tail = Position::from_word(tail);
            if tail.messages != head.messages { Some(Some(tail)) } else { is_closed.then_some(None) }
        };
        match fields.no_message.park(policy, &fields.closed, look).map_err(QueueError::not_got(NOT_PUT))? {
            Some(tail) => Ok((head, tail)),
            None => self.await_last(head, policy),
        }
    }

    /// The last message of a closed queue, if there is one more.
    fn await_last(&self, head: Position, policy: &WaitPolicy) -> Result<(Position, Position), QueueError> {
        let fields = self.fields();
        // A producer that looked at `closed` before it was set may still be writing, and its put will return Ok. It owns the
        // producers' mutex until its message is in: when this thread has had that mutex once, each later producer finds the queue
        // closed, and the tail is final.
        let producer =
            || fields.put.awaited(true, "the queue is closed, but its producers' side is", NOT_PUT);
        // Not hopeless, so that a call that does not wait gives that producer the moment that it needs.
        let inside = fields.put.enter(&fields.no_room, policy, || false);
        drop(inside.map_err(|stop| QueueError::stopped(stop, QueueError::Empty, producer))?);
        let tail = Position::from_word(fields.put.position.load(Acquire));
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
            // What a closer does that is killed before it rings the event.
            futex::set_and_wake_all(&core.fields().closed).unwrap();
            assert!(matches!(consumer.join().unwrap(), Err(QueueError::Closed)));
        });
    }
}
