//! The fault page: shared memory in which each fault is noted before it happens. A process that is killed by one has told it.
//!
//! Only the harness, and the program through [`Faults::fired`](super::Faults::fired), reads it. The rooms that find out how a worker has ended
//! never import this file (tests/rooms.rs), so that a diagnosis cannot read the answer.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::action::Action;
use super::plan::{Plan, Rule};
use super::site::Site;
use crate::point;
use crate::sys::atomic_record::atomic_record;
use crate::sys::clock::Moment;
use crate::sys::map::SharedMap;
use crate::sys::{memfd, process};

/// How many faults are noted; the others happen, and are counted. Delays take no more than the first half, so that what ends a process after
/// very many of them is noted too.
const RECORDS: usize = 1024;
/// As many as a plan has rules at most.
const CLAIMS: usize = 64;

atomic_record! {
    struct Head {
        /// How many records were asked for.
        taken: AtomicU64,
        /// How many workers have entered themselves, or would have.
        entered: AtomicU64,
        /// How often each rule has happened.
        claims: [AtomicU64; CLAIMS],
    }
}

atomic_record! {
    /// One fault.
    struct Record {
        /// 1: the rest is written.
        is_whole: AtomicU32,
        rule: AtomicU32,
        rank: AtomicU32,
        pid: AtomicU32,
        /// The number of the point in this executable's list, or `NO_POINT`.
        point: AtomicU64,
        hit: AtomicU64,
        /// CLOCK_MONOTONIC, in nanoseconds.
        at: AtomicU64,
    }
}

atomic_record! {
    /// A worker that was put under the plan.
    struct Entry {
        /// 1: the rest is written.
        is_whole: AtomicU32,
        rank: AtomicU32,
        pid: AtomicU32,
        /// When it was started, by which it is told from a later process with its pid.
        born: AtomicU64,
    }
}

/// What is in no list.
const NO_POINT: u64 = u64::MAX;

/// How many workers are noted; a pool may have more in its life.
const ENTRIES: usize = 1024;
const SIZE: usize = size_of::<Head>() + RECORDS * size_of::<Record>() + ENTRIES * size_of::<Entry>();

/// A worker that was put under a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnderPlan {
    pub(crate) rank: usize,
    pub(crate) pid: u32,
    pub(crate) born: u64,
}

/// A fault that has happened: [`Faults::fired`](super::Faults::fired).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fired {
    /// The number of its rule in the plan, from 0.
    pub rule: usize,
    /// What happened.
    pub action: Action,
    /// Where: the point that was met, or the time, or the file.
    pub site: Site,
    /// The rank of the worker.
    pub rank: usize,
    /// The worker's pid.
    pub pid: u32,
    /// The how-manieth time that this process reached a point of this name, or that the file appeared, from 1.
    pub hit: u64,
    /// When, a moment before it happened.
    pub(crate) at: Moment,
}

impl fmt::Display for Fired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { action, site, rank, pid, hit, .. } = self;
        write!(f, "{action} at {site}, hit {hit}, in rank {rank} (pid {pid})")
    }
}

impl Fired {
    /// The name of the point; empty where it was none.
    pub(crate) fn point(&self) -> &str {
        if let Site::Point(name) = &self.site { name } else { "" }
    }
}

/// The page, as a process sees it.
#[derive(Debug)]
pub(crate) struct Page(SharedMap);

impl Page {
    /// The memory of a new page.
    pub(super) fn memory() -> io::Result<std::os::fd::OwnedFd> {
        let memory = memfd::create("phalanx-faults", SIZE as u64)?;
        memfd::seal_size(memory.as_fd())?;
        Ok(memory)
    }

    /// Maps a page.
    ///
    /// # Errors
    /// When it is no such memory, or cannot be mapped.
    pub(super) fn open(memory: BorrowedFd<'_>) -> io::Result<Self> {
        if memfd::identity(memory)?.1 != SIZE as u64 || !memfd::is_size_sealed(memory) {
            return Err(io::Error::other("what the launcher gave as the page of faults is no such memory"));
        }
        Ok(Self(SharedMap::new(memory, SIZE)?))
    }

    fn head(&self) -> &Head {
        self.0.record(0)
    }

    fn records(&self) -> &[Record] {
        self.0.records(size_of::<Head>(), RECORDS)
    }

    fn entries(&self) -> &[Entry] {
        self.0.records(size_of::<Head>() + RECORDS * size_of::<Record>(), ENTRIES)
    }

    /// Enters this process.
    pub(super) fn enter(&self, rank: usize) {
        let entered = self.head().entered.fetch_add(1, Relaxed) as usize;
        let (Some(entry), pid) = (self.entries().get(entered), std::process::id()) else { return };
        entry.rank.store(rank as u32, Relaxed);
        entry.pid.store(pid, Relaxed);
        entry.born.store(process::born(pid).unwrap_or(0), Relaxed);
        entry.is_whole.store(1, Release);
    }

    /// The workers that have entered themselves, those that have ended among them.
    pub(super) fn workers(&self) -> Vec<UnderPlan> {
        let whole = self.entries().iter().filter(|entry| entry.is_whole.load(Acquire) == 1);
        let worker = |entry: &Entry| UnderPlan {
            rank: entry.rank.load(Relaxed) as usize,
            pid: entry.pid.load(Relaxed),
            born: entry.born.load(Relaxed),
        };
        whole.map(worker).collect()
    }

    /// Takes one of the times that a rule may happen; false: all are taken, by whichever processes.
    pub(super) fn claim(&self, rule: usize, most: u64) -> bool {
        let claims = &self.head().claims[rule];
        claims.fetch_update(AcqRel, Acquire, |claimed| (claimed < most).then_some(claimed + 1)).is_ok()
    }

    /// Notes a fault that is about to happen, of a rule with this number; `point`: unless its site is none.
    pub(super) fn note(
        &self,
        (number, rule): (usize, &Rule),
        rank: usize,
        point: Option<&point::Point>,
        hit: u64,
    ) {
        if rule.action().is_delay() && self.head().taken.load(Relaxed) >= RECORDS as u64 / 2 {
            return;
        }
        let taken = self.head().taken.fetch_add(1, Relaxed) as usize;
        let Some(record) = self.records().get(taken) else { return };
        record.rule.store(number as u32, Relaxed);
        record.rank.store(rank as u32, Relaxed);
        record.pid.store(std::process::id(), Relaxed);
        record.point.store(point.map_or(NO_POINT, number_of), Relaxed);
        record.hit.store(hit, Relaxed);
        record.at.store(Moment::now().as_nanos(), Relaxed);
        // Release: a reader that finds it whole finds the rest.
        record.is_whole.store(1, Release);
    }

    /// The faults that have happened, in the order of time.
    pub(super) fn fired(&self, plan: &Plan) -> Vec<Fired> {
        let points = point::all();
        let read = |record: &Record| {
            let whole = record.is_whole.load(Acquire) == 1;
            let rule = record.rule.load(Relaxed) as usize;
            let planned = plan.rules().get(rule).filter(|_| whole)?;
            let site = match (points.get(record.point.load(Relaxed) as usize), planned.site()) {
                (Some(point), _) => Site::Point(point.name().to_owned()),
                (None, Site::Point(_)) => return None,
                (None, other) => other.clone(),
            };
            Some(Fired {
                rule,
                action: planned.action(),
                site,
                rank: record.rank.load(Relaxed) as usize,
                pid: record.pid.load(Relaxed),
                hit: record.hit.load(Relaxed),
                at: Moment::from_nanos(record.at.load(Relaxed)),
            })
        };
        let mut fired: Vec<_> = self.records().iter().filter_map(read).collect();
        fired.sort_by_key(|fired| fired.at);
        fired
    }

    /// How often a rule has happened, noted or not.
    pub(super) fn times(&self, rule: usize) -> u64 {
        self.head().claims.get(rule).map_or(0, |claims| claims.load(Acquire))
    }
}

/// The number of a point in the list of this executable's. A point of a shared object is in no list of it.
fn number_of(point: &point::Point) -> u64 {
    point::all().iter().position(|known| std::ptr::eq(known, point)).map_or(NO_POINT, |number| number as u64)
}
