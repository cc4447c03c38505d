//! The shared memory of a crew: who has joined, what each rank announces, and room through which elements go.

use std::fmt;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::announce::{Announcement, WORDS};
use super::error::CollectiveError;
use super::side::Side;
use crate::error::MemoryError;
use crate::sync::{Barrier, BrokenBy, SyncError};
use crate::sys::atomic_record::atomic_record;
use crate::transfer::record::{Handle, Record, TypeTag};

atomic_record! {
    /// Behind it lie the seats, the announcements and the staging memory: see [`Crew::seat`], [`Crew::words`], [`Crew::area`].
    struct CrewFields {
        nprocs: AtomicU32,
        /// The process that dropped a handle which it had received, without having joined; 0: none.
        unjoined: AtomicU32,
        /// The rank that was joined twice, and the second process that did, below it; 0: none was.
        twice: AtomicU64,
    }
}

/// Bytes that a rank stages at a time. It has two such areas, for every other piece, so that it may fill the one while others still
/// read the other.
pub(super) const AREA: usize = 1 << 20;
/// Each has cache lines of its own in every area, and their own areas take 8 GiB.
const MOST_RANKS: usize = 4096;
const KIND: &str = "Collective";
/// In a seat: the rank has left. Below it is its process.
const LEFT: u64 = 1 << 32;

/// A process's part in a crew, joined or not.
///
/// To the barrier a worker that returns without an error is a member that goes in order, for which the others wait on. So this breaks
/// the barrier when it is dropped, and leaves a note why, which [`explain`](Self::explain) reads: that a rank has left, was joined twice,
/// or never joined.
pub(super) struct Crew {
    /// At which the ranks wait for each other, and which knows of deaths.
    pub(super) barrier: Barrier,
    shared: Record<CrewFields>,
    /// The rank as which this joined.
    rank: Option<usize>,
    /// The process that has received it, which the others miss when it is dropped there. `None`: the maker's, or a clone.
    missed_in: Option<u32>,
}

impl Crew {
    /// A crew of which nobody has joined yet. Its memory is zeros: no seat is taken.
    pub(super) fn new(nprocs: usize) -> Result<Self, MemoryError> {
        if nprocs == 0 || nprocs > MOST_RANKS {
            return Err(MemoryError::TooMany {
                what: "ranks of a collective",
                asked: nprocs,
                most: MOST_RANKS,
            });
        }
        let shared = Record::<CrewFields>::new(TypeTag::of::<()>(KIND), room(nprocs))?;
        shared.fields().nprocs.store(nprocs as u32, Relaxed);
        Ok(Self { barrier: Barrier::new(nprocs)?, shared, rank: None, missed_in: None })
    }

    /// How many ranks there are.
    pub(super) fn nprocs(&self) -> usize {
        self.shared.fields().nprocs.load(Relaxed) as usize
    }

    /// Takes the seat of a rank. A seat is taken once for good: a process that took the place of a dead one would find the others in the
    /// middle of something.
    pub(super) fn join(&mut self, rank: usize) -> Result<(), CollectiveError> {
        let nprocs = self.nprocs();
        if rank >= nprocs {
            return Err(CollectiveError::NoSuchRank { rank, nprocs });
        }
        let own = std::process::id();
        if self.seat(rank).compare_exchange(0, own.into(), AcqRel, Acquire).is_err() {
            let twice = (rank as u64) << 32 | u64::from(own);
            // The first such mistake is told to all; it stays.
            let _ = self.shared.fields().twice.compare_exchange(0, twice, AcqRel, Relaxed);
            self.barrier.abort();
            return Err(self.rank_twice().unwrap_or(CollectiveError::NoSuchRank { rank, nprocs }));
        }
        (self.rank, self.missed_in) = (Some(rank), Some(own));
        Ok(())
    }

    /// The error of a wait of this crew, with what is known here of why the barrier was broken.
    pub(super) fn explain(&self, error: SyncError) -> CollectiveError {
        let SyncError::Broken { pid: Some(pid), by: BrokenBy::Abort, .. } = error else {
            return error.into();
        };
        let has_left = |&rank: &usize| self.seat(rank).load(Acquire) == u64::from(pid) | LEFT;
        if let Some(twice) = self.rank_twice() {
            return twice;
        }
        match (0..self.nprocs()).find(has_left) {
            Some(rank) => CollectiveError::left(Some(rank), pid),
            None if self.shared.fields().unjoined.load(Acquire) == pid => CollectiveError::left(None, pid),
            None => error.into(),
        }
    }

    /// The error of a rank that was joined twice, if one was.
    fn rank_twice(&self) -> Option<CollectiveError> {
        let twice = Some(self.shared.fields().twice.load(Acquire)).filter(|&twice| twice != 0)?;
        let rank = (twice >> 32) as usize;
        let first = (rank < self.nprocs()).then(|| self.seat(rank).load(Acquire))?;
        Some(CollectiveError::RankTwice { rank, pids: [first as u32, twice as u32] })
    }

    /// Says what a rank is to do, in one of two places, so that nobody overwrites what another still reads.
    pub(super) fn announce(&self, rank: usize, turn: usize, announcement: &Announcement) {
        let words = self.words(rank, turn);
        // Relaxed: the barrier behind it orders them.
        words.iter().zip(announcement.words()).for_each(|(word, value)| word.store(value, Relaxed));
    }

    /// What all ranks have said, by rank.
    pub(super) fn announced(&self, turn: usize) -> Vec<Option<Announcement>> {
        let read = |rank| {
            let words = self.words(rank, turn);
            Announcement::of_words(&std::array::from_fn(|at| words[at].load(Relaxed)))
        };
        (0..self.nprocs()).map(read).collect()
    }

    /// The process of a rank, [`LEFT`] perhaps; 0: it has not joined yet.
    fn seat(&self, rank: usize) -> &AtomicU64 {
        self.words_at(0, self.nprocs(), rank)
    }

    /// The words of one of the two announcements of a rank.
    fn words(&self, rank: usize, turn: usize) -> &[AtomicU64; WORDS] {
        self.words_at(seats(self.nprocs()), 2 * self.nprocs(), 2 * rank + turn % 2)
    }

    /// The record `number` of `count` ones, which begin at this byte of the room.
    fn words_at<D: crate::sys::atomic_record::AtomicRecord>(
        &self,
        from: usize,
        count: usize,
        number: usize,
    ) -> &D {
        let (map, at) = self.shared.room();
        &map.records(at + from, count)[number]
    }

    /// One of the two staging areas of a rank, of [`AREA`] bytes.
    pub(super) fn area(&self, rank: usize, turn: usize) -> Side<'_> {
        let (map, at) = self.shared.room();
        let nprocs = self.nprocs();
        Side::staged(map, at + seats(nprocs) + announcements(nprocs) + (2 * rank + turn % 2) * AREA)
    }

    /// What has arrived in another process, of which nothing is taken on trust.
    fn receive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (barrier, handle) = <(Barrier, Handle)>::deserialize(deserializer)?;
        let shared = Record::<CrewFields>::receive(handle, TypeTag::of::<()>(KIND), 0);
        let shared = shared.map_err(D::Error::custom)?;
        let crew = Self { barrier, shared, rank: None, missed_in: Some(std::process::id()) };
        // Any process may have written the number.
        if !(1..=MOST_RANKS).contains(&crew.nprocs()) || crew.shared.room_len() < room(crew.nprocs()) {
            return Err(D::Error::custom("a collective arrived whose memory is too small for its ranks"));
        }
        Ok(crew)
    }
}

/// Bytes of the seats, of the announcements and of all that lies behind the fields, each in whole cache lines.
fn seats(nprocs: usize) -> usize {
    (nprocs * size_of::<AtomicU64>()).next_multiple_of(64)
}

fn announcements(nprocs: usize) -> usize {
    2 * nprocs * WORDS * size_of::<AtomicU64>()
}

fn room(nprocs: usize) -> usize {
    seats(nprocs) + announcements(nprocs) + 2 * nprocs * AREA
}

impl Clone for Crew {
    fn clone(&self) -> Self {
        // It has no rank, and nobody misses it: what was joined is the one it was made of.
        Self { barrier: self.barrier.clone(), shared: self.shared.clone(), rank: None, missed_in: None }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        // What a fork has of it is its parent's.
        let own = std::process::id();
        if self.missed_in != Some(own) {
            return;
        }
        // Before the barrier is broken, as whoever finds it broken looks here. (Of a panic the barrier itself tells.)
        if !std::thread::panicking() {
            match self.rank {
                Some(rank) => _ = self.seat(rank).fetch_or(LEFT, Release),
                None => _ = self.shared.fields().unjoined.compare_exchange(0, own, AcqRel, Relaxed),
            }
        }
        // Others that wait for this one would wait for ever: to a barrier it is a member that goes in order. Nobody hears of it
        // whose last call is over.
        self.barrier.abort();
    }
}

impl Serialize for Crew {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.barrier, &self.shared).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Crew {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::receive(deserializer)
    }
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { barrier: _, shared, rank, missed_in: _ } = self;
        f.debug_struct("Crew")
            .field("at", shared)
            .field("rank", rank)
            .field("nprocs", &self.nprocs())
            .finish()
    }
}
