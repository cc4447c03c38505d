//! The roster: which process has which rank. It is memory that a launcher shares with its workers; each worker enters its pid.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use crate::error::Peer;
use crate::memory::descriptor::Descriptor;
use crate::sys::global::Global;
use crate::sys::map::SharedMap;
use crate::sys::memfd;

/// The roster of the context of which this process is a worker.
static OWN: Global<List> = Global::new();
/// The rosters of the contexts that this process has started.
static STARTED: RwLock<Vec<Weak<Roster>>> = RwLock::new(Vec::new());

/// The size of a word of the roster. First come the launcher's pid and the stop word (`stop_word`), which has its place here so
/// that a worker has one piece of memory to map and not two; then a pid for each rank, 0 until the worker has entered it.
const WORD: usize = size_of::<u32>();
/// Where the stop word lies.
const STOP: usize = WORD;
/// How many words come before those of the ranks.
const HEAD: usize = 2;

/// The pids of a launcher and its workers.
#[derive(Debug)]
struct List {
    map: SharedMap,
    ranks: usize,
}

/// A launcher's roster, with the memfd that its workers inherit.
#[derive(Debug)]
pub(crate) struct Roster {
    list: List,
    memory: Descriptor,
}

impl Roster {
    /// Makes the roster of a context that this process is about to start.
    pub(crate) fn new(nprocs: usize) -> io::Result<Arc<Self>> {
        let memory = memfd::create("phalanx-roster", ((HEAD + nprocs) * WORD) as u64)?;
        memfd::seal_size(memory.as_fd())?;
        let list = List::open(memory.as_fd())?;
        let roster = Arc::new(Self { list, memory: memory.into() });
        roster.list.map.u32(0).store(std::process::id(), Release);
        let mut started = STARTED.write().unwrap_or_else(PoisonError::into_inner);
        started.retain(|roster| roster.strong_count() > 0);
        started.push(Arc::downgrade(&roster));
        Ok(roster)
    }

    /// The descriptor that a worker inherits.
    pub(crate) fn descriptor(&self) -> &Descriptor {
        &self.memory
    }

    /// Whether the process `pid` has entered itself as `rank`.
    pub(crate) fn has_entered(&self, rank: usize, pid: u32) -> bool {
        self.list.pid(rank) == Some(pid)
    }

    /// The stop word of the workers.
    pub(super) fn stop(&self) -> &AtomicU32 {
        self.list.map.u32(STOP)
    }

    /// The number of [`descriptor`](Self::descriptor) in the launcher.
    pub(crate) fn number(&self) -> RawFd {
        self.memory.as_fd().as_raw_fd()
    }
}

impl List {
    fn open(memory: BorrowedFd<'_>) -> io::Result<Self> {
        let size = usize::try_from(memfd::identity(memory)?.1).map_err(io::Error::other)?;
        if !memfd::is_size_sealed(memory) || size < HEAD * WORD {
            return Err(io::Error::other(
                "what the launcher gave as the list of its workers is no such memory",
            ));
        }
        Ok(Self { map: SharedMap::new(memory, size)?, ranks: size / WORD - HEAD })
    }

    fn pid(&self, rank: usize) -> Option<u32> {
        let pid = (rank < self.ranks).then(|| self.map.u32((HEAD + rank) * WORD).load(Acquire));
        pid.filter(|&pid| pid != 0)
    }

    fn peer(&self, pid: u32) -> Option<Peer> {
        let rank = (0..self.ranks).find(|&rank| self.pid(rank) == Some(pid));
        let is_launcher = || self.map.u32(0).load(Acquire) == pid;
        rank.map(|rank| Peer::Rank { rank, pid }).or_else(|| is_launcher().then_some(Peer::Launcher { pid }))
    }
}

/// Adopts the launcher's roster in a worker, and enters this process as `rank`.
pub(crate) fn apply(memory: BorrowedFd<'_>, rank: usize) -> io::Result<()> {
    let list = Box::leak(Box::new(List::open(memory)?));
    if rank < list.ranks {
        list.map.u32((HEAD + rank) * WORD).store(std::process::id(), Release);
    }
    OWN.set(list);
    Ok(())
}

/// Forgets the parent's rosters in a forked worker.
pub(crate) fn forget() {
    OWN.clear();
    // The lock was free when this process was forked: a process that forks workers has one thread.
    if let Ok(mut started) = STARTED.try_write() {
        started.clear();
    }
}

/// The part that a process has in this worker's job, or in a job that this process has started.
pub(crate) fn peer(pid: u32) -> Peer {
    let own = OWN.get().and_then(|list| list.peer(pid));
    own.or_else(|| {
        // try_lock: in a fork of the user's the lock may be held for ever, by a thread that exists only in the parent.
        let started = STARTED.try_read().ok()?;
        started.iter().filter_map(Weak::upgrade).find_map(|roster| roster.list.peer(pid))
    })
    .unwrap_or(Peer::Process { pid })
}

/// The stop word of this process, if it is a worker.
pub(super) fn own_stop() -> Option<&'static AtomicU32> {
    OWN.get().map(|list| list.map.u32(STOP))
}

/// The pid of the launcher, if this process is a worker.
pub(crate) fn launcher() -> Option<u32> {
    OWN.get().map(|list| list.map.u32(0).load(Acquire))
}

/// The pid of another rank of this worker's context, once that worker has entered itself.
pub(crate) fn pid_of(rank: usize) -> Option<u32> {
    OWN.get()?.pid(rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_known_by_its_rank_once_it_has_entered_itself_and_as_long_as_its_context_lives() {
        // No process has such a number (proc_sys_kernel(5), pid_max).
        let pid = 1 << 23;
        let roster = Roster::new(3).unwrap();
        assert_eq!((peer(pid), roster.list.pid(1), roster.list.pid(7)), (Peer::Process { pid }, None, None));
        roster.list.map.u32((HEAD + 1) * WORD).store(pid, Release);
        assert_eq!((peer(pid), roster.list.pid(1)), (Peer::Rank { rank: 1, pid }, Some(pid)));
        let own = std::process::id();
        assert_eq!(roster.list.peer(own), Some(Peer::Launcher { pid: own }));
        drop(roster);
        assert_eq!(peer(pid), Peer::Process { pid });
    }

    #[test]
    fn foreign_memory_is_refused() {
        for size in [0, 64] {
            assert!(List::open(memfd::create("unsealed", size).unwrap().as_fd()).is_err());
        }
    }
}
