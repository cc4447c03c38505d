//! The ledger of the fork server's workers: a memfd in which the server writes how each one ended, since only their parent can
//! reap them. Its first word is the gate, at which the workers wait until the launcher watches all of them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use crate::sys::clock::Moment;
use crate::sys::map::SharedMap;
use crate::sys::signal::Signal;
use crate::sys::wait::{Exit, ExitStatus};
use crate::sys::{futex, memfd};

// Offsets in bytes: the gate, then a record of 64 bytes for each rank, so that no two ranks share a cache line.
const GATE: usize = 0;
const HEADER: usize = 64;
const RECORD: usize = 64;
/// How often a worker at the gate looks whether the server lives: a futex does not report the death of the process that would wake it.
const LOOK_AROUND: Duration = Duration::from_secs(1);

// Offsets in a record. STATE is 0 until the other fields are written.
const STATE: usize = 0;
const KIND: usize = 4;
const NUMBER: usize = 8;
const USER: usize = 16;
const SYSTEM: usize = 24;
const MAX_RSS: usize = 32;

// The values of KIND.
const CODE: u32 = 0;
const SIGNAL: u32 = 1;
const DUMPED: u32 = 2;
const LOST: u32 = 3;

/// A ledger for some workers, mapped in the launcher, the server and the workers.
#[derive(Debug)]
pub(crate) struct Ledger {
    map: SharedMap,
    ranks: usize,
}

impl Ledger {
    /// Makes a ledger for that many ranks; returns it and the descriptor to send to the server.
    pub(crate) fn new(ranks: usize) -> io::Result<(Self, OwnedFd)> {
        let fd = memfd::create("phalanx-ledger", size_for(ranks)? as u64)?;
        memfd::seal_size(fd.as_fd())?;
        Ok((Self::open(fd.as_fd(), ranks)?, fd))
    }

    /// Maps a ledger that [`new`](Self::new) made.
    ///
    /// # Errors
    /// Also when the memfd is too small or could still shrink: an access beyond the end of a file is a SIGBUS (mmap(2)).
    pub(crate) fn open(fd: BorrowedFd<'_>, ranks: usize) -> io::Result<Self> {
        let size = size_for(ranks)?;
        if !memfd::is_size_sealed(fd) || memfd::identity(fd)?.1 < size as u64 {
            return Err(io::Error::other(format!("it is no ledger for {ranks} workers")));
        }
        Ok(Self { map: SharedMap::new(fd, size)?, ranks })
    }

    /// Opens the gate: the workers of this ledger run their functions.
    pub(crate) fn open_gate(&self) {
        self.map.u32(GATE).store(1, Release);
        futex::wake_all(self.map.u32(GATE));
    }

    /// Waits until the gate is open; false when `is_served` says that the server, this worker's parent, is gone: it ends with the
    /// launcher, which alone opens the gate.
    pub(crate) fn await_gate(&self, is_served: impl Fn() -> bool) -> io::Result<bool> {
        let gate = self.map.u32(GATE);
        while gate.load(Acquire) == 0 {
            if !is_served() {
                // Looked at once more: the launcher may have opened the gate before it died.
                return Ok(gate.load(Acquire) != 0);
            }
            futex::wait(gate, 0, Moment::now().checked_add(LOOK_AROUND))?;
        }
        Ok(true)
    }

    /// Writes how a worker ended; `None`: its exit status is lost.
    pub(crate) fn record(&self, rank: usize, exit: Option<Exit>) {
        let Some(at) = self.place(rank) else { return };
        let (kind, number) = match exit.map(|exit| exit.status) {
            Some(ExitStatus::Code(code)) => (CODE, code),
            Some(ExitStatus::Signal { signal, core_dumped }) => {
                (if core_dumped { DUMPED } else { SIGNAL }, signal.number())
            }
            None => (LOST, 0),
        };
        self.map.u32(at + KIND).store(kind, Relaxed);
        self.map.u32(at + NUMBER).store(number as u32, Relaxed);
        if let Some(exit) = exit {
            self.map.u64(at + USER).store(exit.user.as_nanos() as u64, Relaxed);
            self.map.u64(at + SYSTEM).store(exit.system.as_nanos() as u64, Relaxed);
            self.map.u64(at + MAX_RSS).store(exit.max_rss_kib, Relaxed);
        }
        // Release, and last: the launcher reads the fields above once it has seen this with Acquire.
        self.map.u32(at + STATE).store(1, Release);
        futex::wake_all(self.map.u32(at + STATE));
    }

    /// Waits until the end of a worker is written. The outer `None`: `deadline` passed before; the inner: its exit status is lost.
    pub(crate) fn await_record(&self, rank: usize, deadline: Moment) -> io::Result<Option<Option<Exit>>> {
        let Some(at) = self.place(rank) else { return Ok(Some(None)) };
        let state = self.map.u32(at + STATE);
        while state.load(Acquire) == 0 {
            if deadline <= Moment::now() {
                return Ok(None);
            }
            futex::wait(state, 0, Some(deadline))?;
        }
        Ok(Some(self.read(at)))
    }

    fn read(&self, at: usize) -> Option<Exit> {
        let number = self.map.u32(at + NUMBER).load(Relaxed) as i32;
        let status = match self.map.u32(at + KIND).load(Relaxed) {
            CODE => ExitStatus::Code(number),
            kind @ (SIGNAL | DUMPED) => {
                ExitStatus::Signal { signal: Signal::new(number)?, core_dumped: kind == DUMPED }
            }
            _ => return None,
        };
        let time = |field| Duration::from_nanos(self.map.u64(at + field).load(Relaxed));
        let max_rss_kib = self.map.u64(at + MAX_RSS).load(Relaxed);
        Some(Exit { status, user: time(USER), system: time(SYSTEM), max_rss_kib })
    }

    fn place(&self, rank: usize) -> Option<usize> {
        (rank < self.ranks).then(|| HEADER + rank * RECORD)
    }
}

fn size_for(ranks: usize) -> io::Result<usize> {
    let size = ranks.checked_mul(RECORD).and_then(|size| size.checked_add(HEADER));
    size.ok_or_else(|| io::Error::other(format!("{ranks} workers are too many")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Moment {
        Moment::now().checked_add(Duration::from_millis(1)).unwrap()
    }

    #[test]
    fn every_way_to_end_is_read_back_by_who_waits() {
        let (ours, fd) = Ledger::new(4).unwrap();
        let theirs = Ledger::open(fd.as_fd(), 4).unwrap();
        assert_eq!(ours.await_record(1, soon()).unwrap(), None);
        let exit = |status| {
            Some(Exit { status, user: Duration::from_millis(3), system: Duration::ZERO, max_rss_kib: 77 })
        };
        let ends = [
            exit(ExitStatus::Code(-3)),
            exit(ExitStatus::Signal { signal: Signal::KILL, core_dumped: false }),
            exit(ExitStatus::Signal { signal: Signal::SEGV, core_dumped: true }),
            None,
        ];
        std::thread::scope(|scope| {
            scope.spawn(|| ends.iter().enumerate().for_each(|(rank, end)| theirs.record(rank, *end)));
            let later = Moment::now().checked_add(Duration::from_secs(60)).unwrap();
            for (rank, end) in ends.iter().enumerate() {
                assert_eq!(ours.await_record(rank, later).unwrap(), Some(*end));
            }
        });
    }

    #[test]
    fn gate_lets_through_who_waits_and_who_comes_late() {
        let (ours, fd) = Ledger::new(0).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| Ledger::open(fd.as_fd(), 0).unwrap().await_gate(|| true));
            assert!(!ours.await_gate(|| false).unwrap());
            ours.open_gate();
            assert!(waiting.join().unwrap().unwrap());
        });
        assert!(ours.await_gate(|| false).unwrap());
        assert!(Ledger::open(fd.as_fd(), 1).is_err());
        assert!(Ledger::open(memfd::create("x", 1000).unwrap().as_fd(), 1).is_err());
    }
}
