//! A side of a queue, the producers' or the consumers': one of them at a time owns its mutex.

use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::sync::awaited::Awaited;
use crate::sync::parker::Parker;
use crate::sync::robust_mutex::{self, Acquired, Locked};
use crate::sync::wait_policy::{Interrupted, WaitPolicy};
use crate::sys::atomic_record::atomic_record;
use crate::sys::robust::{MapPin, RobustWord};

atomic_record! {
    /// What the producers, or the consumers, share among themselves, mostly.
    pub(super) struct Side {
        pub(super) mutex: RobustWord,
        // The other side reads the next field: not from the cache line of the mutex, which each caller of this side writes.
        spare: [AtomicU32; 6],
        /// How far it is. Only the owner of the mutex writes it.
        pub(super) position: AtomicU64,
        /// How far the other side was when an owner of the mutex last looked.
        //
        // To load `position` of the other side with each message would fetch its cache line, which that side writes, from another
        // processor. An old value is safe: the other side only goes on, so there is at least this much room, or this many messages.
        pub(super) other_position: AtomicU64,
    }
}

impl Side {
    /// Takes the mutex. A call that does not wait gives up when it `is_hopeless`: when it could do nothing with the mutex.
    pub(super) fn enter(
        &self,
        parker: &Parker,
        policy: &WaitPolicy,
        is_hopeless: impl Fn() -> bool,
    ) -> Result<Locked<'_>, Interrupted> {
        // A consumer that waits owns the mutex all the while, so `try_get` on an empty queue finds it taken. It must say at
        // once that the queue is empty, and not try to get the mutex first.
        if !policy.waits() && is_hopeless() {
            return Err(Interrupted::WouldBlock);
        }
        // There is something to do: the owner is in the middle of a copy and frees the mutex in a moment, unless its process
        // is stopped.
        let entered = Locked::lock_as(policy, &self.mutex, || MapPin::OWNER, is_hopeless);
        // `MapPin::OWNER`: the guard borrows from the queue's handle, which keeps the memory mapped, and ends with the call.
        let (inside, found) = entered?;
        if let Acquired::OwnerDied { .. } = found {
            // The dead owner may have died asleep on the parker, whose bit then says that somebody sleeps: each later change on
            // the other side would make a system call for nobody. No disorder is left otherwise: the ring changes by one store
            // (`position`).
            parker.reset_after_death();
        }
        Ok(inside)
    }

    /// Whether a thread of this side is in the middle of a call: it owns the mutex, and does not sleep until the other side changes
    /// something.
    pub(super) fn is_in_the_middle(&self, parker: &Parker) -> bool {
        robust_mutex::is_locked(&self.mutex.word) && !parker.is_parked()
    }

    /// What to name in the error of a call that timed out at the mutex.
    pub(super) fn awaited(
        &self,
        keeps_others: bool,
        what: &'static str,
        nobody_did: &'static str,
    ) -> Awaited {
        // An owner that itself waits for room or for a message is not to blame, although it has the mutex: the wait was for the
        // other side, for what `nobody_did`. An owner that has what it needs and still does not go on is stopped, and is named.
        if keeps_others {
            Awaited::holders(what, [robust_mutex::owner_pid(&self.mutex)])
        } else {
            Awaited::Anybody { what: nobody_did }
        }
    }
}
