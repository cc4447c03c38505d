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

/// What nobody did while a producer waited for room beside the ring.
const NOT_TAKEN: &str = "nobody took out values with descriptors";

impl Core {
    /// Sends what goes beside a message, inside the producers' mutex; waits for room for it.
    pub(super) fn send_beside(
        &self,
        message: &mut Outgoing,
        tail: Position,
        policy: &WaitPolicy,
    ) -> Result<(), QueueError> {
        let fields = self.fields();
        let ticket = fields.ticket.fetch_add(1, Relaxed).wrapping_add(1) % ring::TICKETS;
        let mut attempt = self.fd_channel.try_send(message, ticket)?;
        while attempt != Attempt::Sent {
            let receiving = self.enter_to_receive(policy, QueueError::Full)?;
            let head = fields.get.at.load(Acquire);
            self.fd_channel.drop_orphans(self.ring().first_ticket(Position::from_word(head), tail)?)?;
            attempt = self.fd_channel.try_send(message, ticket)?;
            drop(receiving);
            match attempt {
                Attempt::Sent => {}
                // All that is there belongs to messages from `head` on: there is room when one of them was taken.
                Attempt::Full => self.await_taking(head, policy)?,
                // The kernel has no event for it.
                Attempt::Crowded => policy.pause(CROWDED_RETRY).map_err(QueueError::not_put(NOT_TAKEN))?,
            }
        }
        Ok(())
    }

    /// Waits, inside the producers' mutex, until consumers are farther than `head`.
    fn await_taking(&self, head: u64, policy: &WaitPolicy) -> Result<(), QueueError> {
        let fields = self.fields();
        let look = || match fields.get.at.load(Acquire) == head {
            _ if self.is_closed() => Some(Err(QueueError::Closed)),
            true => None,
            false => Some(Ok(())),
        };
        fields.no_room.park(policy, &fields.closed, look).map_err(QueueError::not_put(NOT_TAKEN))?
    }

    /// Goes in where one receives from the socket, where nobody stays. `at_once`: the error of a call that does not wait.
    pub(super) fn enter_to_receive(
        &self,
        policy: &WaitPolicy,
        at_once: QueueError,
    ) -> Result<Locked<'_>, QueueError> {
        let (mutex, keep) = (&self.fields().receive, || MapPin::Owner);
        let entered = match policy {
            WaitPolicy::Never => Locked::lock_soon(mutex, keep, || false),
            _ => Locked::lock(mutex, keep, policy),
        };
        let holder = || Awaited::holders("the socket beside the queue is", [robust_mutex::holder(mutex)]);
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

    /// What producers leave that are killed when they have sent what goes beside a message, and the message is not in the ring yet: as
    /// many as there is room for.
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
