//! The stop word: shared memory by which a launcher tells its workers that it is ending them, because of which rank. It ends all
//! waits of the workers too, if `Options::abort_on_failure` says so.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};

use super::roster::{self, Roster};
use crate::memory::descriptor::Descriptor;
use crate::sys::event::EventFd;
use crate::sys::futex;
use crate::sys::global::Global;

/// The stop word of this process, if it is a worker of a context.
static OWN: Global<Word> = Global::new();
/// The same, if it ends this worker's waits.
static ABORT: Global<Word> = Global::new();

/// The value of the word until a launcher ends its workers.
const UNSET: u32 = 0;
/// The value when no rank has failed and the program ends its workers. Any other value is the failed rank plus one.
const BY_PROGRAM: u32 = u32::MAX;

/// The rank because of which the workers are ended; `None` when no rank has failed and the program ends its workers.
pub(crate) type FailedRank = Option<usize>;

/// A worker's stop word, and an eventfd that is readable once the word is set: a waiter sleeps on one of the two, whichever its
/// wait is made of (futex(2), poll(2)).
#[derive(Debug)]
struct Word {
    word: &'static AtomicU32,
    event: EventFd<Descriptor>,
}

/// A launcher's stop word, which lies in the roster of the workers, and its event.
#[derive(Debug)]
pub(crate) struct StopWord {
    roster: Arc<Roster>,
    event: EventFd<Descriptor>,
}

impl StopWord {
    /// Makes the event of a roster's word, which is unset.
    pub(crate) fn new(roster: Arc<Roster>) -> io::Result<Self> {
        let event = EventFd::new()?.into_descriptor();
        Ok(Self { roster, event: EventFd::from_descriptor(event.into()) })
    }

    /// The descriptor that a worker inherits beside the roster's.
    pub(crate) fn descriptor(&self) -> &Descriptor {
        self.event.descriptor()
    }

    /// The number of [`descriptor`](Self::descriptor) in the launcher.
    pub(crate) fn number(&self) -> RawFd {
        self.descriptor().as_fd().as_raw_fd()
    }

    /// Says that the workers are being ended. The rank of the first call stays.
    pub(crate) fn raise(&self, failed: FailedRank) {
        let value = failed.and_then(|rank| u32::try_from(rank + 1).ok()).unwrap_or(BY_PROGRAM);
        let word = self.roster.stop();
        // Release pairs with the Acquire of `aborted_by`. The wake comes last: a waiter that is woken before the word is set would sleep
        // again.
        if word.compare_exchange(UNSET, value, Release, Acquire).is_ok() {
            futex::wake_all(word);
            self.event.ring();
        }
    }
}

/// Adopts the launcher's word in a worker that has adopted the roster; `aborts`: it ends the worker's waits.
pub(crate) fn apply(event: OwnedFd, aborts: bool) -> io::Result<()> {
    let word = roster::own_stop().ok_or_else(|| io::Error::other("the roster comes before the stop word"))?;
    let word = Box::leak(Box::new(Word { word, event: EventFd::from_descriptor(event.into()) }));
    OWN.set(word);
    if aborts {
        ABORT.set(word);
    }
    Ok(())
}

/// Forgets the parent's word in a forked worker: the parent may itself be a worker, of another context.
pub(crate) fn forget() {
    OWN.clear();
    ABORT.clear();
}

/// Whether this worker's context is being ended; `None` in a process that is no worker of a context.
pub(crate) fn is_set() -> Option<bool> {
    OWN.get().map(|stop| stop.word.load(Acquire) != UNSET)
}

/// The eventfd that is readable once it is; `None` in a process that is no worker of a context.
pub(crate) fn event() -> Option<BorrowedFd<'static>> {
    OWN.get().map(|stop| stop.event.as_fd())
}

/// The word that a waiter of this process sleeps on, and the value that the word has until it is set. `None` when the launcher has
/// not asked for [`Options::abort_on_failure`](crate::Options::abort_on_failure).
pub(crate) fn abort_word() -> Option<(&'static AtomicU32, u32)> {
    ABORT.get().map(|abort| (abort.word, UNSET))
}

/// The eventfd that is readable once a waiter of this process is to wait no longer.
pub(crate) fn abort_event() -> Option<BorrowedFd<'static>> {
    ABORT.get().map(|abort| abort.event.as_fd())
}

/// The failed rank; `None` as long as this worker may go on waiting.
pub(crate) fn aborted_by() -> Option<FailedRank> {
    match ABORT.get()?.word.load(Acquire) {
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
        let stop = StopWord::new(Roster::new(1).unwrap()).unwrap();
        let event = stop.descriptor().as_fd();
        assert!(!wait_readable(event, Some(Moment::now())).unwrap());
        stop.raise(Some(3));
        stop.raise(None);
        assert_eq!(stop.roster.stop().load(Acquire), 4);
        assert!(wait_readable(event, Some(Moment::now())).unwrap());
    }
}
