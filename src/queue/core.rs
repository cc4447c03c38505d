//! What all queues are: a ring in shared memory, a mutex at either side of it, and a socket, with a mutex of its own, for what goes
//! beside messages.
//!
//! A producer owns the one mutex while it waits for room and writes; a consumer owns the other while it waits for a message and
//! copies it out. One store puts a message into the queue, and one store takes it out. So a process may die at any moment: the
//! next owner of the mutex finds a ring in order. One thread at a time sleeps on either side, and the next owner takes its place.

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
        /// The mutex of the socket's receiving end. Its owner does not wait for anything.
        //
        // A consumer owns it from before its message is out of the ring until what came beside the message is out of the
        // socket. So an owner knows that whatever stands in the socket before the first message of the ring is an orphan's.
        pub(super) receive: RobustWord,
        // Each call reads what follows, so it is not in the cache line that receivers of descriptors write.
        spare: [AtomicU32; 6],
        /// The most messages that may be in it.
        most: AtomicU32,
        pub(super) closed: AtomicU32,
        /// The ticket of the last message with descriptors whose put has begun.
        pub(super) ticket: AtomicU32,
        /// How many waits by the event have begun, and for how many of them the event was rung.
        watches: AtomicU32,
        rung: AtomicU32,
        /// The same of those that wait for room.
        room_watches: AtomicU32,
        room_rung: AtomicU32,
    }
}

/// A handle to a queue of values of some type.
#[derive(Debug)]
pub(crate) struct Core {
    shared: Record<QueueFields>,
    /// Of the ring, as they were when this handle was made: they do not change.
    size: usize,
    most: u32,
    /// Where the descriptors go.
    pub(super) fd_channel: FdChannel,
    /// Writes the event for waiters that wait for other things too.
    event: EventFd<Descriptor>,
}

/// Bytes of the ring that a message is expected to need.
//
// A small number or text with its header takes 16 to 64. Larger messages make the ring full before there are `most` of them.
const USUAL: usize = 64;
/// The smallest and the largest ring.
//
// Positions count bytes in 32 bits, modulo 2^32, which only sizes that divide it survive: both are powers of two, and so is each
// size between (`next_power_of_two`).
const SIZES: (usize, usize) = (64 << 10, 4 << 20);
/// A message that needs more than this part of the ring travels in a memfd.
//
// One message that filled the ring would make producer and consumer take turns, each asleep while the other copies.
const PART: usize = 4;
/// The most bytes of a message in the ring.
//
// Both copies, in and out, are made while this thread owns a mutex. A memfd is filled before the one mutex is taken and read after
// the other is freed, so that no other process waits for the copies of a large message.
const INLINE: usize = 64 << 10;

impl Core {
    pub(super) fn new(kind: TypeTag, most: u32) -> Result<Self, QueueError> {
        let size = (most as usize * USUAL).next_power_of_two().clamp(SIZES.0, SIZES.1);
        let shared = Record::<QueueFields>::new(kind, size)?;
        // No other process has the record yet. The message that carries it there orders this store.
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
    pub(crate) fn inline(&self) -> usize {
        (self.size / PART).min(INLINE)
    }

    /// How far consumers and producers are.
    pub(super) fn positions(&self) -> (Position, Position) {
        let fields = self.fields();
        let mut head = fields.get.position.load(Acquire);
        loop {
            let tail = fields.put.position.load(Acquire);
            // Both sides move meanwhile. If a consumer has moved since `head` was read, `tail - head` counts messages that were
            // in the queue at no one time, even more than it has room for. An unchanged `head` makes both of one moment.
            let now = fields.get.position.load(Acquire);
            if now == head {
                return (Position::from_word(head), Position::from_word(tail));
            }
            head = now;
        }
    }

    pub(crate) fn len(&self) -> u32 {
        let (head, tail) = self.positions();
        // The words are in shared memory, which another process may have overwritten: the result stays in the range that callers
        // expect.
        tail.messages_since(head).min(self.most)
    }

    pub(super) fn most(&self) -> u32 {
        self.most
    }

    pub(super) fn is_full(&self) -> bool {
        let (head, tail) = self.positions();
        !self.ring().fits(head, tail, Header { len: USUAL as u32, place: Place::Ring, ticket: 0 })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.fields().closed.load(Acquire) != 0
    }

    /// An error where this process has no descriptors of the queue.
    #[inline]
    pub(super) fn check_here(&self) -> Result<(), QueueError> {
        // A forked worker closes the descriptors that it inherits (`start::fork`), and their numbers then go to other files. The
        // copy of this handle that came with the fork still has the numbers: a put would send its descriptors into a stranger's
        // socket.
        if self.fd_channel.is_cut_off() { Err(QueueError::Gone { reason: CUT_OFF }) } else { Ok(()) }
    }

    /// From now on nothing can be put; all waiters are woken.
    pub(crate) fn close(&self) -> Result<(), QueueError> {
        self.check_here()?;
        // One system call stores the word and wakes all sleepers (FUTEX_WAKE_OP). With a store and a wake, a closer that is killed
        // between the two leaves a closed queue in which consumers sleep on, although nothing will come any more.
        futex::set_and_wake_all(&self.fields().closed)
            .map_err(QueueError::system("close a queue (FUTEX_WAKE_OP)"))?;
        // `true`: the kernel has stored `closed`, and no barrier of this process stands between that store and a load of
        // `watches`. So the load may miss a wait that has just begun, whose own look missed `closed`.
        self.ring_event(true);
        Ok(())
    }

    /// Rings the event if a wait by it has begun that it was not rung for, or `always`.
    #[inline]
    pub(crate) fn ring_event(&self, always: bool) {
        let fields = self.fields();
        self.ring_for(&fields.watches, &fields.rung, always);
    }

    /// As [`ring_event`](Self::ring_event), for waits for room.
    #[inline]
    pub(super) fn ring_room_event(&self) {
        let fields = self.fields();
        self.ring_for(&fields.room_watches, &fields.room_rung, false);
    }

    #[inline]
    fn ring_for(&self, watches: &AtomicU32, rung: &AtomicU32, always: bool) {
        // The caller comes from `Parker::publish`, which has a full barrier after the swap of the position. `watch` counts up,
        // has a full barrier, and then loads the positions. So either this load sees the count, or that one sees the message.
        let watch = watches.load(Relaxed);
        if watch != rung.load(Relaxed) || always {
            self.event.ring();
            // After the ring, so that a process that is killed before it leaves `rung` behind and the next one rings. The number
            // from before the ring, not a newer one: a wait that has begun meanwhile may have looked before this message and
            // needs a ring of its own.
            rung.store(watch, Relaxed);
        }
    }

    /// Begins to wait by the event: the next message or close rings it. Says whether there is a message, or the queue is closed.
    pub(crate) fn watch(&self) -> bool {
        self.fields().watches.fetch_add(1, SeqCst);
        // The partner of the barrier before `ring_event`: see there.
        AtomicU32::barrier_after_change();
        self.len() > 0 || self.is_closed()
    }

    /// Begins to wait for room by the event: the next message that is taken, or a close, rings it.
    pub(crate) fn watch_room(&self) {
        self.fields().room_watches.fetch_add(1, SeqCst);
        // As in `watch`.
        AtomicU32::barrier_after_change();
    }

    /// Forgets that the event was rung, for a waiter that has it to itself.
    pub(crate) fn clear_event(&self) {
        self.event.clear();
    }

    /// How many messages were put, modulo 2^32.
    pub(crate) fn put_count(&self) -> u32 {
        self.positions().1.messages
    }

    /// How many messages were taken out, modulo 2^32.
    pub(crate) fn taken_count(&self) -> u32 {
        self.positions().0.messages
    }

    /// The event that is rung.
    pub(crate) fn event(&self) -> Result<BorrowedFd<'_>, QueueError> {
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
        // `size` and `most` stay here: the receiver takes them from the record, and checks them.
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
        // The sender is a process that may have written anything into the record. A size that is no power of two would let
        // `Ring::place`, which masks, reach past the map. Both numbers are copied into the handle, so that a later change in
        // memory does no harm.
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
            core.fields().put.position.store(word, Relaxed);
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
            let _stopped = Locked::lock(mutex, || MapPin::OWNER, &WaitPolicy::Forever).unwrap();
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
            // Both counts wrap in the middle of the loop below: the messages after 8, the bytes after some of the large ones.
            let (messages, bytes) = (u32::MAX - 7, 0_u32.wrapping_sub(40_000) & !7);
            let start = (u64::from(messages) << 32) | u64::from(bytes);
            let fields = core.fields();
            for at in [
                &fields.put.position,
                &fields.put.other_position,
                &fields.get.position,
                &fields.get.other_position,
            ] {
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
