//! The abort word: shared memory by which a launcher ends all waits of its workers when one of them has failed
//! (`Options::abort_on_failure`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};

use crate::memory::descriptor::Descriptor;
use crate::sys::event::EventFd;
use crate::sys::global::Global;
use crate::sys::map::SharedMap;
use crate::sys::{futex, memfd};

/// The abort word of this process, if it is a worker that has one.
static OWN: Global<Abort> = Global::new();

const SIZE: usize = 64;
/// The value of the word until a launcher ends the waits.
const UNSET: u32 = 0;
/// The value when no rank has failed and the program ends its workers. Any other value is the failed rank plus one.
const BY_PROGRAM: u32 = u32::MAX;

/// The rank because of which the waits end; `None` when no rank has failed and the program ends its workers.
pub(crate) type FailedRank = Option<usize>;

/// The abort word of a context, and an eventfd that is readable once the word is set: a waiter sleeps on one of the two, whichever
/// its wait is made of (futex(2), poll(2)).
#[derive(Debug)]
pub(crate) struct Abort {
    map: SharedMap,
    memory: Descriptor,
    event: EventFd<Descriptor>,
}

impl Abort {
    /// Makes the word for the workers of a context, unset.
    pub(crate) fn new() -> io::Result<Self> {
        let memory = memfd::create("phalanx-abort", SIZE as u64)?;
        memfd::seal_size(memory.as_fd())?;
        Self::open(memory, EventFd::new()?.into_descriptor())
    }

    fn open(memory: OwnedFd, event: OwnedFd) -> io::Result<Self> {
        if !memfd::is_size_sealed(memory.as_fd()) || memfd::identity(memory.as_fd())?.1 < SIZE as u64 {
            return Err(io::Error::other(
                "what the launcher gave to be told of failures by is no such memory",
            ));
        }
        let map = SharedMap::new(memory.as_fd(), SIZE)?;
        Ok(Self { map, memory: memory.into(), event: EventFd::from_descriptor(event.into()) })
    }

    /// The descriptors that a worker inherits.
    pub(crate) fn descriptors(&self) -> [&Descriptor; 2] {
        [&self.memory, self.event.descriptor()]
    }

    /// The numbers of [`descriptors`](Self::descriptors) in the launcher.
    pub(crate) fn numbers(&self) -> [RawFd; 2] {
        self.descriptors().map(|descriptor| descriptor.as_fd().as_raw_fd())
    }

    fn word(&self) -> &AtomicU32 {
        self.map.u32(0)
    }

    /// Ends all waits of the workers. The rank of the first call stays.
    pub(crate) fn raise(&self, failed: FailedRank) {
        let word = failed.and_then(|rank| u32::try_from(rank + 1).ok()).unwrap_or(BY_PROGRAM);
        // Release pairs with the Acquire of `failed_rank`. Woken last: a waiter that is woken before the word is set would sleep again.
        if self.word().compare_exchange(UNSET, word, Release, Acquire).is_ok() {
            futex::wake_all(self.word());
            self.event.ring();
        }
    }
}

/// Adopts the launcher's word in a worker.
pub(crate) fn apply(memory: OwnedFd, event: OwnedFd) -> io::Result<()> {
    OWN.set(Box::leak(Box::new(Abort::open(memory, event)?)));
    Ok(())
}

/// Forgets the parent's word in a forked worker: the parent may itself be a worker, of another context.
pub(crate) fn forget() {
    OWN.clear();
}

/// The word that a waiter of this process sleeps on, and the value that the word has until it is set. `None` when the launcher has
/// not asked for [`Options::abort_on_failure`](crate::Options::abort_on_failure).
pub(crate) fn word() -> Option<(&'static AtomicU32, u32)> {
    OWN.get().map(|abort| (abort.word(), UNSET))
}

/// The eventfd that is readable once the word is set.
pub(crate) fn descriptor() -> Option<BorrowedFd<'static>> {
    OWN.get().map(|abort| abort.event.as_fd())
}

/// The failed rank; `None` as long as this worker may go on waiting.
pub(crate) fn failed_rank() -> Option<FailedRank> {
    match OWN.get()?.word().load(Acquire) {
        UNSET => None,
        BY_PROGRAM => Some(None),
        rank => Some(Some(rank as usize - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock::Moment;
    use crate::sys::epoll::wait_readable;

    #[test]
    fn what_is_said_first_stays_and_makes_the_descriptor_readable() {
        let abort = Abort::new().unwrap();
        let event = abort.descriptors()[1].as_fd();
        assert!(!wait_readable(event, Some(Moment::now())).unwrap());
        abort.raise(Some(3));
        abort.raise(None);
        assert_eq!(abort.word().load(Acquire), 4);
        assert!(wait_readable(event, Some(Moment::now())).unwrap());
    }
}
