//! What a worker returned, until the program takes it.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use serde::de::DeserializeOwned;

use crate::shm::passing::Arrivals;
use crate::shm::tree::Nest;
use crate::wire::codec;
use crate::wire::returns;
use crate::wire::slot::{Account, Slot};

/// A result, still in its slot, and what came beside it.
#[derive(Debug)]
pub(super) struct Returned {
    slot: Slot,
    account: Account,
    beside: Mutex<Beside>,
}

#[derive(Debug)]
enum Beside {
    Unread(Vec<OwnedFd>),
    Read(Arrivals),
    /// Taken out while it is read; it does not come back when that panics.
    BeingRead,
}

impl Returned {
    pub(super) fn new(slot: Slot, account: Account, descriptors: Vec<OwnedFd>) -> Self {
        slot.nest().into_iter().for_each(Nest::clear_but_result);
        Self { slot, account, beside: Mutex::new(Beside::Unread(descriptors)) }
    }

    /// The value; each time the same, but for shards, which are there only once.
    pub(super) fn decode<R: DeserializeOwned>(&self) -> Result<R, String> {
        let body = self.slot.body(&self.account)?;
        let (arrivals, at) = match self.exchange(Beside::BeingRead) {
            Beside::Unread(descriptors) => returns::open(&body, descriptors, self.slot.nest())?,
            Beside::Read(arrivals) => (arrivals, returns::bytes_at(&body)?),
            Beside::BeingRead => return Err("it is just being read, or that ended in a panic".to_owned()),
        };
        // Not under the lock: this runs the type's own code.
        let (value, rest) = codec::decode(&body[at..], arrivals);
        self.exchange(Beside::Read(rest));
        value
    }

    fn exchange(&self, beside: Beside) -> Beside {
        std::mem::replace(&mut *self.beside.lock().unwrap_or_else(PoisonError::into_inner), beside)
    }
}
