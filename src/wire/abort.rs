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
/// Nothing has failed yet.
const NOTHING: u32 = 0;
/// The program ends its workers. Any other value is the failed rank plus one.
const NOBODY: u32 = u32::MAX;

/// The rank that failed; `None`: the program ends its workers.
pub(crate) type Blame = Option<usize>;

/// The word, and an eventfd that is readable once the word is set.
#[derive(Debug)]
pub(crate) struct Abort {
    map: SharedMap,
    memory: Descriptor,
    event: EventFd<Descriptor>,
}

impl Abort {
    /// Makes one for the workers of a context.
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

    /// Their numbers.
    pub(crate) fn numbers(&self) -> [RawFd; 2] {
        self.descriptors().map(|descriptor| descriptor.as_fd().as_raw_fd())
    }

    fn word(&self) -> &AtomicU32 {
        self.map.u32(0)
    }

    /// Ends all waits of the workers. The first call decides who is to blame.
    pub(crate) fn say(&self, blame: Blame) {
        let word = blame.and_then(|rank| u32::try_from(rank + 1).ok()).unwrap_or(NOBODY);
        if self.word().compare_exchange(NOTHING, word, Release, Acquire).is_ok() {
            futex::wake_all(self.word());
            self.event.ring();
        }
    }
}

/// Adopts, in a worker, the word of its launcher.
pub(crate) fn apply(memory: OwnedFd, event: OwnedFd) -> io::Result<()> {
    OWN.set(Box::leak(Box::new(Abort::open(memory, event)?)));
    Ok(())
}

/// Forgets, in a forked worker, the word of its parent, which may be a worker itself.
pub(crate) fn forget() {
    OWN.clear();
}

/// The word of this process, and the value that it has until it is set: what a waiter sleeps on.
pub(crate) fn word() -> Option<(&'static AtomicU32, u32)> {
    OWN.get().map(|abort| (abort.word(), NOTHING))
}

/// The eventfd that is readable once the word is set.
pub(crate) fn descriptor() -> Option<BorrowedFd<'static>> {
    OWN.get().map(|abort| abort.event.as_fd())
}

/// The failed rank, once this worker's waits are to end.
pub(crate) fn told() -> Option<Blame> {
    match OWN.get()?.word().load(Acquire) {
        NOTHING => None,
        NOBODY => Some(None),
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
        abort.say(Some(3));
        abort.say(None);
        assert_eq!(abort.word().load(Acquire), 4);
        assert!(wait_readable(event, Some(Moment::now())).unwrap());
    }
}
