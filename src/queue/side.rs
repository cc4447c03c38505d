//! A side of a queue, the producers' or the consumers': one of them at a time is in its gate.

use std::sync::atomic::AtomicU64;

use crate::sync::awaited::Awaited;
use crate::sync::gate::{self, Found, Inside};
use crate::sync::nap::Nap;
use crate::sync::patience::{Patience, Stop};
use crate::sys::atomic_record::atomic_record;
use crate::sys::robust::{MapPin, RobustWord};

atomic_record! {
    /// What the producers, or the consumers, share among themselves, mostly.
    pub(super) struct Side {
        pub(super) gate: RobustWord,
        /// How far it is. Only one inside the gate writes it.
        pub(super) at: AtomicU64,
        /// How far the other side was when somebody inside last looked: to look each time would drag its line here.
        pub(super) other: AtomicU64,
    }
}

impl Side {
    /// Goes into the gate. A call that does not wait gives up when there is nothing to do inside: when it `is_hopeless`.
    pub(super) fn enter(
        &self,
        nap: &Nap,
        patience: &Patience,
        is_hopeless: impl Fn() -> bool,
    ) -> Result<Inside<'_>, Stop> {
        let entered = match patience {
            Patience::None if is_hopeless() => Err(Stop::WouldBlock),
            Patience::None => Inside::enter_soon(&self.gate, || MapPin::Owner, is_hopeless),
            _ => Inside::enter(&self.gate, || MapPin::Owner, patience),
        };
        let (inside, found) = entered?;
        if let Found::Mess { .. } = found {
            nap.tidy();
        }
        Ok(inside)
    }

    /// For whom one waited at the gate: the process inside, if it keeps others from what there is for them; else it waits itself
    /// for what `nobody_did`.
    pub(super) fn awaited(
        &self,
        keeps_others: bool,
        what: &'static str,
        nobody_did: &'static str,
    ) -> Awaited {
        if keeps_others {
            Awaited::holders(what, [gate::holder(&self.gate)])
        } else {
            Awaited::Anybody { what: nobody_did }
        }
    }
}
