//! A side of a queue, the producers' or the consumers': one of them at a time is in its mutex.

use std::sync::atomic::AtomicU64;

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
        /// How far it is. Only one inside the mutex writes it.
        pub(super) at: AtomicU64,
        /// How far the other side was when somebody inside last looked: to look each time would drag its line here.
        pub(super) other: AtomicU64,
    }
}

impl Side {
    /// Goes into the mutex. A call that does not wait gives up when there is nothing to do inside: when it `is_hopeless`.
    pub(super) fn enter(
        &self,
        parker: &Parker,
        policy: &WaitPolicy,
        is_hopeless: impl Fn() -> bool,
    ) -> Result<Locked<'_>, Interrupted> {
        let entered = match policy {
            WaitPolicy::Never if is_hopeless() => Err(Interrupted::WouldBlock),
            WaitPolicy::Never => Locked::lock_soon(&self.mutex, || MapPin::Owner, is_hopeless),
            _ => Locked::lock(&self.mutex, || MapPin::Owner, policy),
        };
        let (inside, found) = entered?;
        if let Acquired::OwnerDied { .. } = found {
            parker.reset_after_death();
        }
        Ok(inside)
    }

    /// For whom one waited at the mutex: the process inside, if it keeps others from what there is for them; else it waits itself
    /// for what `nobody_did`.
    pub(super) fn awaited(
        &self,
        keeps_others: bool,
        what: &'static str,
        nobody_did: &'static str,
    ) -> Awaited {
        if keeps_others {
            Awaited::holders(what, [robust_mutex::holder(&self.mutex)])
        } else {
            Awaited::Anybody { what: nobody_did }
        }
    }
}
