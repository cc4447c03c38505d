//! Start N workers, all or none.

use std::os::fd::AsFd;

use super::plan::{Failure, Group};
use super::{StartMethod, fork, forkserver, spawn, starter};
use crate::error::Error;
use crate::memory::storage::Loan;
use crate::supervise::child::Child;
use crate::supervise::group::Group as Children;
use crate::sys::clock::Moment;
use crate::sys::{limits, process};
use crate::wire::result_channel::ResultChannel;
use crate::wire::slot::Slot;

/// Descriptors of the launcher that a worker costs: its pidfd, its report slot, its lifeline, and its job until it is started.
const DESCRIPTORS_PER_WORKER: usize = 4;
/// Descriptors that starting needs besides.
const SPARE_DESCRIPTORS: usize = 16;

/// Sees to it that as many workers do not fail for want of descriptors, as far as the hard limit goes.
pub(crate) fn make_room(nprocs: usize) {
    limits::make_room_for_descriptors(nprocs.saturating_mul(DESCRIPTORS_PER_WORKER) + SPARE_DESCRIPTORS);
}

/// The workers of a group.
#[derive(Debug)]
pub(crate) struct Started {
    /// By rank. Before the slots: a child that is not reaped may still write into its own.
    pub(crate) children: Children,
    /// The report slots, by rank.
    pub(crate) slots: Vec<Slot>,
    /// Its descriptor is watched with the children.
    pub(crate) result_channel: ResultChannel,
    /// What the workers were given to write to.
    pub(crate) loans: Vec<Loan>,
}

/// Starts all workers of `group`. When one cannot be started, those before it are dead and reaped on return.
pub(crate) fn start_all(group: Group) -> Result<Started, Error> {
    match group.method {
        StartMethod::Spawn if !process::is_main_thread() => start_by_thread(group),
        StartMethod::Spawn | StartMethod::Fork => start_each(group),
        StartMethod::ForkServer => start_by_server(group),
    }
}

/// The caller may end before its workers, whose parent-death signal is bound to the thread that starts them.
fn start_by_thread(group: Group) -> Result<Started, Error> {
    let (started, parent) = starter::run(move || start_each(group))?;
    let mut started = started?;
    started.children.keep_parent(parent);
    Ok(started)
}

fn start_by_server(mut group: Group) -> Result<Started, Error> {
    let nprocs = group.nprocs;
    let mut workers = Workers::new(&group)?;
    forkserver::start_each(&mut group, |child, slot, rank| {
        workers.add(child, slot).map_err(|failure| failure.for_rank(rank, nprocs))
    })?;
    Ok(workers.into_started(group))
}

fn start_each(mut group: Group) -> Result<Started, Error> {
    let nprocs = group.nprocs;
    let mut workers = Workers::new(&group)?;
    let template = spawn::Template::new(&group.environment);
    for rank in 0..nprocs {
        let started =
            start_one(&mut group, rank, &template).and_then(|(child, slot)| workers.add(child, slot));
        started.map_err(|failure| failure.for_rank(rank, nprocs))?;
    }
    Ok(workers.into_started(group))
}

/// The first of N workers. If the others cannot follow, these are killed and reaped when they are dropped.
struct Workers {
    children: Children,
    slots: Vec<Slot>,
}

impl Workers {
    fn new(group: &Group) -> Result<Self, Error> {
        let watched = Children::new().and_then(|children| {
            children.watch_too(group.result_channel.as_fd(), 0)?;
            Ok(Self { children, slots: Vec::with_capacity(group.nprocs) })
        });
        watched.map_err(Error::system("watch the workers (epoll_create1, timerfd_create)"))
    }

    fn add(&mut self, child: Child, slot: Slot) -> Result<(), Failure> {
        self.slots.push(slot);
        self.children.add(child).map_err(Failure::of("watching the process (epoll_ctl)"))
    }

    fn into_started(self, group: Group) -> Started {
        let Group { result_channel, loans, .. } = group;
        Started { children: self.children, slots: self.slots, result_channel, loans }
    }
}

fn start_one(group: &mut Group, rank: usize, template: &spawn::Template) -> Result<(Child, Slot), Failure> {
    let (slot, (lifeline, end)) = (group.slot(rank)?, group.lifeline()?.unzip());
    let started = Moment::now();
    let pid = match group.method {
        StartMethod::Fork => fork::start(group, rank, &slot, end.as_ref())?,
        StartMethod::Spawn | StartMethod::ForkServer => template.start(group, rank, &slot, end.as_ref())?,
    };
    // From now on what it was given may be with a process of its own too, which its end does not end.
    group.deliver(rank);
    let child = Child::adopt(pid, started, lifeline);
    Ok((child.map_err(Failure::of("watching the process (pidfd_open)"))?, slot))
}
