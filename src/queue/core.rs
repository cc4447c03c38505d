//! What all queues are: a ring in shared memory, a mutex at either side of it, and a socket, with a mutex of its own, for what goes
//! beside messages.
//!
//! A producer is inside the one mutex while it waits for room and writes; a consumer is inside the other while it waits for
//! a message and copies it out. A message is in the queue, and out of it, by one store. So whoever dies, and whenever:
//! the next one in the mutex finds a ring in order, and who sleeps there is one, whose place the next one takes.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::{CUT_OFF, MOST, QueueError};
use super::fd_channel::FdChannel;
use super::ring::{Header, Place, Position, Ring};
use super::side::Side;
use crate::memory::descriptor::Descriptor;
use crate::sync::futex_lock::AtomicWord;
use crate::sync::parker::Parker;
use crate::sys::atomic_record::atomic_record;
use crate::sys::event::EventFd;
use crate::sys::futex;
use crate::sys::limits::with_room;
use crate::sys::robust::RobustWord;
use crate::transfer::record::{self, Record, TypeTag};

atomic_record! {
    pub(super) struct QueueFields {
        pub(super) put: Side,
        pub(super) get: Side,
        /// Where a producer waits for room.
        pub(super) no_room: Parker,
        /// Where a consumer waits for a message.
        pub(super) no_message: Parker,
        /// Owned by a receiver from the socket, from before the message is out of the ring until what came beside it is out of the
        /// socket. So inside it all that stands in the socket before the first message of the ring is an orphan's. Nobody waits for
        /// anything inside.
        pub(super) receive: RobustWord,
        /// The most messages that may be in it.
        most: AtomicU32,
        pub(super) closed: AtomicU32,
        /// Of the last message with descriptors that somebody began to put.
        pub(super) ticket: AtomicU32,
        /// How often somebody has begun to wait by the event, and which of these times it was rung for.
        watches: AtomicU32,
        rung: AtomicU32,
    }
}

/// A handle to a queue of values of some type.
#[derive(Debug)]
pub(super) struct Core {
    shared: Record<QueueFields>,
    /// Of the ring, as they were when this handle was made: they do not change.
    size: usize,
    most: u32,
    /// Where the descriptors go.
    pub(super) fd_channel: FdChannel,
    /// Writes the event for waiters that wait for other things too.
    event: EventFd<Descriptor>,
}

/// What a message is taken to need in the ring.
const USUAL: usize = 64;
/// The smallest and the largest ring.
const SIZES: (usize, usize) = (64 << 10, 4 << 20);
/// A larger part of the ring than this one a message does not take: it goes in a memfd.
const PART: usize = 4;
/// And no more than that.
const INLINE: usize = 64 << 10;

impl Core {
    pub(super) fn new(kind: TypeTag, most: u32) -> Result<Self, QueueError> {
        let size = (most as usize * USUAL).next_power_of_two().clamp(SIZES.0, SIZES.1);
        let shared = Record::<QueueFields>::new(kind, size)?;
        shared.fields().most.store(most, Relaxed);
        let event = with_room(EventFd::new).map_err(QueueError::system("make a queue's event (eventfd)"))?;
        let event = EventFd::from_descriptor(event.into_descriptor().into());
        Ok(Self { shared, size, most, fd_channel: FdChannel::new()?, event })
    }

    pub(super) fn fields(&self) -> &QueueFields {
        self.shared.fields()
    }

    pub(super) fn ring(&self) -> Ring<'_> {
        let (map, begin) = self.shared.room();
        Ring { map, begin, size: self.size, most: self.most }
    }

    /// How many bytes of a message go into the ring at the most.
    pub(super) fn inline(&self) -> usize {
        (self.size / PART).min(INLINE)
    }

    /// How far consumers and producers are.
    pub(super) fn positions(&self) -> (Position, Position) {
        let fields = self.fields();
        let mut head = fields.get.at.load(Acquire);
        loop {
            let tail = fields.put.at.load(Acquire);
            // What is put after the one was asked and before the other would be too much.
            let now = fields.get.at.load(Acquire);
            if now == head {
                return (Position::from_word(head), Position::from_word(tail));
            }
            head = now;
        }
    }

    pub(super) fn len(&self) -> u32 {
        let (head, tail) = self.positions();
        tail.messages_since(head).min(self.most)
    }

    pub(super) fn most(&self) -> u32 {
        self.most
    }

    pub(super) fn is_full(&self) -> bool {
        let (head, tail) = self.positions();
        !self.ring().fits(head, tail, Header { len: USUAL as u32, place: Place::Ring, ticket: 0 })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.fields().closed.load(Acquire) != 0
    }

    /// Whether its descriptors are there: in a worker that has it only by its fork these are closed, or another's.
    #[inline]
    pub(super) fn check_here(&self) -> Result<(), QueueError> {
        if self.fd_channel.is_cut_off() { Err(QueueError::Gone { reason: CUT_OFF }) } else { Ok(()) }
    }

    /// From now on nothing can be put; all waiters are woken.
    pub(super) fn close(&self) -> Result<(), QueueError> {
        self.check_here()?;
        // In one step for both sides.
        futex::set_and_wake_all(&self.fields().closed)
            .map_err(QueueError::system("close a queue (FUTEX_WAKE_OP)"))?;
        self.ring_event(true);
        Ok(())
    }

    /// Rings, after the barrier of a call, if somebody waits by the event and it was not rung for that.
    #[inline]
    pub(super) fn ring_event(&self, always: bool) {
        let fields = self.fields();
        let watch = fields.watches.load(Relaxed);
        if watch != fields.rung.load(Relaxed) || always {
            self.event.ring();
            fields.rung.store(watch, Relaxed);
        }
    }

    /// Begins to wait by the event; says whether there is something now, or will be nothing any more. Each message after
    /// that rings, until there was one.
    pub(super) fn watch(&self) -> bool {
        self.fields().watches.fetch_add(1, SeqCst);
        AtomicU32::barrier_after_change();
        self.len() > 0 || self.is_closed()
    }

    /// How many messages were put, modulo 2^32.
    pub(super) fn put_count(&self) -> u32 {
        self.positions().1.messages
    }

    /// How many messages were taken out, modulo 2^32.
    pub(super) fn taken_count(&self) -> u32 {
        self.positions().0.messages
    }

    /// The event that is rung.
    pub(super) fn event(&self) -> Result<BorrowedFd<'_>, QueueError> {
        self.check_here().map(|()| self.event.as_fd())
    }
}

/// What crosses to another process in the place of a queue.
#[derive(Serialize, Deserialize)]
struct Handle<S, B> {
    shared: S,
    fd_channel: B,
    event: Descriptor,
}

impl Serialize for Core {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        let Self { shared, size: _, most: _, fd_channel, event } = self;
        Handle { shared, fd_channel, event: event.descriptor().clone() }.serialize(serializer)
    }
}

impl Core {
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        kind: TypeTag,
        deserializer: D,
    ) -> Result<Self, D::Error> {
        let handle = Handle::<record::Handle, FdChannel>::deserialize(deserializer)?;
        let Handle { shared, fd_channel, event } = handle;
        let shared = Record::<QueueFields>::receive(shared, kind, SIZES.0).map_err(D::Error::custom)?;
        let (size, most) = (shared.room_len(), shared.fields().most.load(Relaxed));
        if !size.is_power_of_two() || size > SIZES.1 || most == 0 || most > MOST {
            let reason = format!("what arrived is no queue: a ring of {size} bytes for {most} messages");
            return Err(D::Error::custom(reason));
        }
        Ok(Self { shared, size, most, fd_channel, event: EventFd::from_descriptor(event) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Outgoing;
    use super::*;
    use crate::Tensor;
    use crate::sync::robust_mutex::{IN_THE_MIDDLE, Locked};
    use crate::sync::wait_policy::WaitPolicy;
    use crate::sys::robust::MapPin;

    fn core() -> Core {
        Core::new(TypeTag::of::<u8>("test"), 4).unwrap()
    }

    fn message(tensor: &Tensor<u8>) -> Outgoing {
        Outgoing::of(tensor, core().inline()).unwrap()
    }

    #[test]
    fn positions_that_cannot_be_are_told() {
        let (core, tensor) = (core(), Tensor::from_slice(&[7], &[1]).unwrap());
        for word in [1_u64, 1 << 40, u64::MAX] {
            core.fields().put.at.store(word, Relaxed);
            let put = core.put(message(&tensor), &WaitPolicy::Never);
            let got = core.get(&WaitPolicy::Never);
            assert!(matches!(put, Err(QueueError::Corrupt { .. } | QueueError::Full)), "{word}: {put:?}");
            assert!(matches!(got, Err(QueueError::Corrupt { .. } | QueueError::Empty)), "{word}: {got:?}");
        }
    }

    #[test]
    fn call_that_does_not_wait_gives_up_on_a_process_that_is_stopped_with_a_mutex() {
        let (core, tensor) = (core(), Tensor::from_slice(&[7], &[1]).unwrap());
        // What goes beside the message takes the consumer through the mutex of the socket too.
        core.put(message(&tensor), &WaitPolicy::Never).unwrap();
        let fields = core.fields();
        for mutex in [&fields.put.mutex, &fields.get.mutex, &fields.receive] {
            let _stopped = Locked::lock(mutex, || MapPin::Owner, &WaitPolicy::Forever).unwrap();
            let in_another_thread = || match std::ptr::eq(mutex, &raw const fields.put.mutex) {
                true => core.put(message(&tensor), &WaitPolicy::Never),
                false => core.get(&WaitPolicy::Never).map(drop),
            };
            let refused = std::thread::scope(|scope| scope.spawn(in_another_thread).join().unwrap());
            assert!(
                matches!(refused, Err(QueueError::TimedOut { waited, .. }) if waited == IN_THE_MIDDLE),
                "{refused:?}"
            );
        }
        assert_eq!(core.get(&WaitPolicy::Never).unwrap().decode::<Tensor<u8>>().unwrap().to_vec(), [7]);
    }

    fn put_bytes(core: &Core, bytes: &[u8]) -> Result<(), QueueError> {
        core.put(Outgoing::of(&bytes, core.inline())?, &WaitPolicy::Never)
    }

    #[test]
    fn positions_wrap_around_at_2_to_the_32_messages_and_bytes() {
        for most in [1, 3, 4000] {
            let core = Core::new(TypeTag::of::<u8>("test"), most).unwrap();
            let (messages, bytes) = (u32::MAX - 7, 0_u32.wrapping_sub(40_000) & !7);
            let start = (u64::from(messages) << 32) | u64::from(bytes);
            let fields = core.fields();
            for at in [&fields.put.at, &fields.put.other, &fields.get.at, &fields.get.other] {
                at.store(start, Relaxed);
            }
            let limit = core.inline();
            let lengths = [0, 1, 7, 8, 9, 1000, limit - 4, limit - 3, limit - 2, limit - 1, limit, limit + 1];
            for &length in lengths.iter().cycle().take(60) {
                let bytes: Vec<_> = (0..length).map(|n| n as u8).collect();
                let mut put = 0;
                while put < 3 && put_bytes(&core, &bytes).is_ok() {
                    put += 1;
                }
                assert!(put > 0 && core.len() == put, "{length} {put}");
                for _ in 0..put {
                    assert_eq!(core.get(&WaitPolicy::Never).unwrap().decode::<Vec<u8>>().unwrap(), bytes);
                }
                assert!(matches!(core.get(&WaitPolicy::Never), Err(QueueError::Empty)));
            }
        }
    }
}
