//! Sending what goes beside a message, past what dead producers have left in the socket.

use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::core::Core;
use super::error::QueueError;
use super::message::Outgoing;
use super::ring::{self, Position};
use crate::sync::awaited::Awaited;
use crate::sync::robust_mutex::{self, Locked};
use crate::sync::wait_policy::WaitPolicy;
use crate::sys::robust::MapPin;
use crate::sys::socket::{Attempt, CROWDED_RETRY};

/// Why a wait for room beside the ring has timed out.
const NOT_TAKEN: &str = "nobody took out values with descriptors";

impl Core {
    /// Waits for room in the socket, and sends what goes beside a message. The caller owns the producers' mutex.
    pub(super) fn send_beside(
        &self,
        message: &mut Outgoing,
        tail: Position,
        policy: &WaitPolicy,
    ) -> Result<(), QueueError> {
        let fields = self.fields();
        // The number is taken before anything is sent, and is never given back: what a killed producer has sent under it can
        // belong to no later message. Relaxed: only owners of the producers' mutex touch it, and receivers know tickets from ring
        // and socket alone.
        let ticket = fields.ticket.fetch_add(1, Relaxed).wrapping_add(1) % ring::TICKETS;
        let mut attempt = self.fd_channel.try_send(message, ticket)?;
        // A full socket is not always full of what consumers will take. Killed producers may have filled it with orphans, which
        // nobody comes for: a consumer cleans the socket only on its way to a message, and no message can get in. So a producer
        // that finds no room cleans up itself, before it waits.
        while attempt != Attempt::Sent {
            // A consumer that has taken a message out of the ring and not yet its descriptors out of the socket owns this mutex.
            // So what is before the first ticket in the ring is nobody's now. Producers and consumers take the mutexes in one
            // order, this one last.
            let receiving = self.enter_to_receive(policy, QueueError::Full)?;
            // Loaded with the mutex owned: an older head could be that of a message which a consumer has fetched since.
            let head = fields.get.position.load(Acquire);
            self.fd_channel.drop_orphans(self.ring().first_ticket(Position::from_word(head), tail)?)?;
            attempt = self.fd_channel.try_send(message, ticket)?;
            // Freed before the wait: a consumer needs it to make the room that this producer waits for.
            drop(receiving);
            match attempt {
                Attempt::Sent => {}
                // The orphans are gone, so all that is in the socket belongs to messages from `head` on. Orphans behind such a
                // message stand there still; they go once that has been taken, which also ends this wait.
                Attempt::Full => self.await_taking(head, policy)?,
                // ETOOMANYREFS of unix(7): this user's descriptors in all sockets are too many, those of strangers too. No event
                // tells when that changes.
                Attempt::Crowded => policy.pause(CROWDED_RETRY).map_err(QueueError::not_put(NOT_TAKEN))?,
            }
        }
        Ok(())
    }

    /// Waits until consumers are farther than `head`. The caller owns the producers' mutex.
    fn await_taking(&self, head: u64, policy: &WaitPolicy) -> Result<(), QueueError> {
        let fields = self.fields();
        // Not a wait for the socket to be writable (poll): that would not end when the queue is closed, nor when its consumers
        // have taken a message without descriptors, behind which orphans stand.
        let look = || match fields.get.position.load(Acquire) == head {
            _ if self.is_closed() => Some(Err(QueueError::Closed)),
            true => None,
            false => Some(Ok(())),
        };
        fields.no_room.park(policy, &fields.closed, look).map_err(QueueError::not_put(NOT_TAKEN))?
    }

    /// Takes the mutex of the socket's receiving end. `at_once`: the error of a call that does not wait.
    pub(super) fn enter_to_receive(
        &self,
        policy: &WaitPolicy,
        at_once: QueueError,
    ) -> Result<Locked<'_>, QueueError> {
        let (mutex, keep) = (&self.fields().receive, || MapPin::OWNER);
        // Its owners never wait for anything, so this is a matter of microseconds, except where a process is stopped.
        let entered = Locked::lock_as(policy, mutex, keep, || false);
        let holder = || Awaited::holders("the socket beside the queue is", [robust_mutex::owner_pid(mutex)]);
        // Whether the last owner died does not matter: its message is either in the socket still, or gone with it.
        let (inside, _) = entered.map_err(|stop| QueueError::stopped(stop, at_once, holder))?;
        Ok(inside)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;
    use crate::Tensor;
    use crate::sys::futex::tests::await_asleep;
    use crate::sys::robust;
    use crate::transfer::record::TypeTag;

    fn core() -> Core {
        Core::new(TypeTag::of::<u8>("test"), 4).unwrap()
    }

    fn message(tensor: &Tensor<u8>) -> Outgoing {
        Outgoing::of(tensor, core().inline()).unwrap()
    }

    /// Leaves orphans, as many as there is room for: what a producer leaves that is killed after it has sent what goes beside its
    /// message, and before the message is in the ring.
    fn leave_orphans(core: &Core, tensor: &Tensor<u8>) -> usize {
        let send = || {
            let ticket = core.fields().ticket.fetch_add(1, Relaxed).wrapping_add(1);
            core.fd_channel.try_send(&mut message(tensor), ticket).unwrap()
        };
        std::iter::repeat_with(send).take_while(|attempt| *attempt == Attempt::Sent).count()
    }

    fn get_tensor(core: &Core) -> Vec<u8> {
        core.get(&WaitPolicy::Never).unwrap().decode::<Tensor<u8>>().unwrap().to_vec()
    }

    #[test]
    fn what_dead_producers_have_sent_holds_up_nobody_who_puts() {
        let (core, tensor) = (core(), Tensor::from_slice(&[7], &[1]).unwrap());
        for _ in 0..3 {
            assert!(leave_orphans(&core, &tensor) > 0);
            core.put(message(&tensor), &WaitPolicy::Never).unwrap();
            assert_eq!(get_tensor(&core), [7]);
        }
    }

    #[test]
    fn what_dead_producers_have_sent_behind_a_message_holds_up_nobody_once_that_is_taken() {
        let (core, tensor) = (core(), Tensor::from_slice(&[7], &[1]).unwrap());
        let tid = AtomicU32::new(0);
        core.put(Outgoing::of(&[1_u8], core.inline()).unwrap(), &WaitPolicy::Never).unwrap();
        core.put(message(&tensor), &WaitPolicy::Never).unwrap();
        assert!(leave_orphans(&core, &tensor) > 0);
        // The orphans stand behind the message that is in the ring: a producer must not receive past that, so it can drop none of
        // them.
        assert!(matches!(core.put(message(&tensor), &WaitPolicy::Never), Err(QueueError::Full)));
        std::thread::scope(|scope| {
            let producer = scope.spawn(|| {
                tid.store(robust::me().unwrap().tid, SeqCst);
                core.put(message(&tensor), &WaitPolicy::Forever)
            });
            await_asleep(&tid);
            assert_eq!(core.get(&WaitPolicy::Never).unwrap().decode::<[u8; 1]>().unwrap(), [1]);
            assert_eq!(get_tensor(&core), [7]);
            producer.join().unwrap().unwrap();
        });
        assert_eq!(get_tensor(&core), [7]);
    }

    #[test]
    fn producer_that_waits_for_room_beside_the_ring_is_told_of_the_close() {
        let (core, tensor) = (core(), Tensor::from_slice(&[7], &[1]).unwrap());
        let tid = AtomicU32::new(0);
        core.put(message(&tensor), &WaitPolicy::Never).unwrap();
        leave_orphans(&core, &tensor);
        std::thread::scope(|scope| {
            let producer = scope.spawn(|| {
                tid.store(robust::me().unwrap().tid, SeqCst);
                core.put(message(&tensor), &WaitPolicy::Forever)
            });
            await_asleep(&tid);
            core.close().unwrap();
            assert!(matches!(producer.join().unwrap(), Err(QueueError::Closed)));
        });
        assert_eq!(get_tensor(&core), [7]);
    }
}
