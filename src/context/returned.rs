//! What a worker returned, until the program takes it.

use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use serde::de::DeserializeOwned;

use crate::memory::worker_dir::WorkerDir;
use crate::transfer::received::Received;
use crate::wire::slot::{Slot, SlotHeader};
use crate::wire::{codec, fd_passing, result_channel};

/// A result, still in its slot, and what came beside it.
#[derive(Debug)]
pub(super) struct Returned {
    slot: Slot,
    header: SlotHeader,
    beside: Mutex<Beside>,
    /// Wakes the threads that wait for one that reads it.
    read: Condvar,
}

/// What came beside a result's bytes: descriptors, until the first reading has made memory of them.
#[derive(Debug)]
enum Beside {
    Unread(Vec<OwnedFd>),
    Read(Received),
    /// Taken out while a thread reads it.
    BeingRead(ThreadId),
    /// That ended in a panic.
    Lost,
}

impl Returned {
    pub(super) fn new(slot: Slot, header: SlotHeader, descriptors: Vec<OwnedFd>) -> Self {
        slot.worker_dir().into_iter().for_each(WorkerDir::clear_but_result);
        Self { slot, header, beside: Mutex::new(Beside::Unread(descriptors)), read: Condvar::new() }
    }

    /// The value; each time the same, but for shards, which are there only once.
    pub(super) fn decode<R: DeserializeOwned>(&self) -> Result<R, String> {
        let body = self.slot.body(&self.header)?;
        let (manifest, at) = result_channel::open(&body)?;
        let received = match self.begin_to_read()? {
            Beside::Unread(descriptors) => {
                let sent = fd_passing::unpack(descriptors, manifest.count());
                manifest.receive_sent(sent, |number| Some(self.slot.worker_dir()?.result(number)))
            }
            Beside::Read(received) => received,
            Beside::BeingRead(_) | Beside::Lost => return Err("its reading ended in a panic".to_owned()),
        };
        let mut reading = Reading { returned: self, rest: Beside::Lost };
        // Not under the lock: this runs the type's own code.
        let (value, rest) = codec::decode(&body[at..], received);
        reading.rest = Beside::Read(rest);
        value
    }

    /// Takes what came beside it, when no other thread has it.
    fn begin_to_read(&self) -> Result<Beside, String> {
        let own = thread::current().id();
        let mut beside = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
        while let Beside::BeingRead(reader) = *beside {
            if reader == own {
                return Err("it is just being read, by this thread".to_owned());
            }
            beside = self.read.wait(beside).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(match *beside {
            Beside::Lost => Beside::Lost,
            _ => std::mem::replace(&mut *beside, Beside::BeingRead(own)),
        })
    }
}

/// Puts back what is left when a reading ends, also by a panic.
struct Reading<'a> {
    returned: &'a Returned,
    rest: Beside,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let rest = std::mem::replace(&mut self.rest, Beside::Lost);
        *self.returned.beside.lock().unwrap_or_else(PoisonError::into_inner) = rest;
        self.returned.read.notify_all();
    }
}
