//! Start N workers, all or none.

use std::sync::Arc;

use super::plan::{Failure, Group};
use super::{StartMethod, fork, forkserver, spawn, starter};
use crate::error::Error;
use crate::memory::storage::Loan;
use crate::supervise::child::Child;
use crate::supervise::watch::WatchSet;
use crate::sys::clock::Moment;
use crate::sys::signal::Signal;
use crate::sys::{limits, process};
use crate::wire::result_channel::ResultChannel;

/// Descriptors of the launcher that a worker costs: its pidfd, its report slot, its lifeline, and its job until it is started.
const DESCRIPTORS_PER_WORKER: usize = 4;
/// Descriptors that starting needs besides.
const SPARE_DESCRIPTORS: usize = 16;

/// Sees to it that as many workers do not fail for want of descriptors, as far as the hard limit goes.
pub(crate) fn make_room(nprocs: usize) {
    limits::make_room_for_descriptors(nprocs.saturating_mul(DESCRIPTORS_PER_WORKER) + SPARE_DESCRIPTORS);
}

/// The workers of a group, each watched under its rank.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) children: Vec<Child>,
    pub(crate) watch: WatchSet,
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
    let (mut started, parent) = (started?, Arc::new(parent));
    started.children.iter_mut().for_each(|child| child.keep_parent(parent.clone()));
    Ok(started)
}

fn start_by_server(mut group: Group) -> Result<Started, Error> {
    let nprocs = group.nprocs;
    let watch = watch_for(&group)?;
    let mut children = KilledTogether(Vec::with_capacity(nprocs));
    forkserver::start_each(&mut group, |child, rank| {
        let watched = watch.add(&child, rank).map_err(Failure::of("watching the process (epoll_ctl)"));
        children.0.push(child);
        watched.map_err(|failure| failure.for_rank(rank, nprocs))
    })?;
    Ok(Started::new(group, children, watch))
}

fn watch_for(group: &Group) -> Result<WatchSet, Error> {
    WatchSet::new(&group.result_channel)
        .map_err(Error::system("watch the workers (epoll_create1, timerfd_create)"))
}

impl Started {
    fn new(group: Group, mut children: KilledTogether, watch: WatchSet) -> Self {
        let Group { result_channel, loans, .. } = group;
        Self { children: std::mem::take(&mut children.0), watch, result_channel, loans }
    }
}

fn start_each(mut group: Group) -> Result<Started, Error> {
    let nprocs = group.nprocs;
    let watch = watch_for(&group)?;
    let template = spawn::Template::new(&group.environment);
    let mut children = KilledTogether(Vec::with_capacity(nprocs));
    for rank in 0..nprocs {
        // Watched before the next one starts: ends come in their order only for those who are watched by then.
        let child = start_one(&mut group, rank, &template)
            .and_then(|child| {
                watch.add(&child, rank).map_err(Failure::of("watching the process (epoll_ctl)"))?;
                Ok(child)
            })
            .map_err(|failure| failure.for_rank(rank, nprocs))?;
        children.0.push(child);
    }
    Ok(Started::new(group, children, watch))
}

/// The first of N workers; if the others cannot follow, they are killed together before each is reaped.
struct KilledTogether(Vec<Child>);

impl Drop for KilledTogether {
    fn drop(&mut self) {
        for child in &self.0 {
            // Whom this does not reach, the child's own drop tries again.
            let _ = child.signal(Signal::KILL);
        }
    }
}

fn start_one(group: &mut Group, rank: usize, template: &spawn::Template) -> Result<Child, Failure> {
    let (slot, (lifeline, end)) = (group.slot(rank)?, group.lifeline()?.unzip());
    let started = Moment::now();
    let pid = match group.method {
        StartMethod::Fork => fork::start(group, rank, &slot, end.as_ref())?,
        StartMethod::Spawn | StartMethod::ForkServer => template.start(group, rank, &slot, end.as_ref())?,
    };
    // From now on what it was given may be with a process of its own too, which its end does not end.
    group.deliver(rank);
    let child = Child::adopt(pid, slot, started, lifeline)
        .map_err(Failure::of("watching the process (pidfd_open)"))?;
    Ok(child)
}
