//! Start N workers, all or none.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::{StartMethod, fork, immortal, spawn};
use crate::error::Error;
use crate::supervise::child::Child;
use crate::supervise::watch::WatchSet;
use crate::sys::clock::Moment;
use crate::sys::limits::Shortage;
use crate::sys::signal::Signal;
use crate::sys::{limits, memory, process};
use crate::wire::job::JobFile;
use crate::wire::marker::Marker;
use crate::wire::slot::Slot;

/// Descriptors of the launcher that a worker costs: its pidfd, its report slot, and its job until it is started.
const DESCRIPTORS_PER_WORKER: usize = 3;
/// Descriptors that starting needs besides.
const SPARE_DESCRIPTORS: usize = 16;

/// N workers to be started.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) method: StartMethod,
    pub(crate) nprocs: usize,
    /// One for each rank, or one for all.
    pub(crate) jobs: Vec<JobFile>,
    /// Changes of the environment.
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) death_signal: Option<Signal>,
}

impl Group {
    pub(super) fn job(&self, rank: usize) -> &JobFile {
        &self.jobs[rank.min(self.jobs.len() - 1)]
    }

    pub(super) fn marker(&self, rank: usize, slot: &Slot) -> Marker {
        Marker {
            rank,
            launcher: std::process::id(),
            job: self.job(rank).as_fd().as_raw_fd(),
            report: slot.as_fd().as_raw_fd(),
            death_signal: self.death_signal,
        }
    }
}

/// What could not be done for a rank.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) call: &'static str,
    pub(super) os: io::Error,
}

impl Refusal {
    pub(super) fn of(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |os| Self { call, os }
    }
}

/// Sees to it that as many workers do not fail for want of descriptors, as far as the hard limit goes.
pub(crate) fn make_room(nprocs: usize) {
    limits::make_room_for_descriptors(nprocs.saturating_mul(DESCRIPTORS_PER_WORKER) + SPARE_DESCRIPTORS);
}

/// The workers of a group, each watched under its rank.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) children: Vec<Child>,
    pub(crate) watch: WatchSet,
}

/// Starts all workers of `group`. When one cannot be started, those before it are dead and reaped on return.
pub(crate) fn start_all(group: Group) -> Result<Started, Error> {
    match group.method {
        StartMethod::Spawn if !process::is_main_thread() => immortal::run(move || start_each(&group))?,
        StartMethod::Spawn | StartMethod::Fork => start_each(&group),
        StartMethod::ForkServer => Err(Error::Unsupported { method: "ForkServer" }),
    }
}

fn start_each(group: &Group) -> Result<Started, Error> {
    let nprocs = group.nprocs;
    let watch = WatchSet::new().map_err(Error::system("watch the workers (epoll_create1)"))?;
    let template = spawn::Template::new(&group.environment);
    let mut children = KilledTogether(Vec::with_capacity(nprocs));
    for rank in 0..nprocs {
        // Watched before the next one starts: ends come in their order only for those who are watched by then.
        let child = start_one(group, rank, &template)
            .and_then(|child| {
                watch.add(&child, rank).map_err(Refusal::of("watching the process (epoll_ctl)"))?;
                Ok(child)
            })
            .map_err(|failure| failure.for_rank(rank, nprocs))?;
        children.0.push(child);
    }
    Ok(Started { children: std::mem::take(&mut children.0), watch })
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

/// Why a worker was not started.
#[derive(Debug)]
pub(super) enum Failure {
    System(Refusal),
    Threads(usize),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::System(refusal)
    }
}

impl Failure {
    fn for_rank(self, rank: usize, nprocs: usize) -> Error {
        match self {
            Self::Threads(threads) => Error::ForkWithThreads { threads },
            Self::System(Refusal { call, os }) => {
                Error::Start { rank, nprocs, call, limit: limit_met(&os), os }
            }
        }
    }
}

fn start_one(group: &Group, rank: usize, template: &spawn::Template) -> Result<Child, Failure> {
    let slot = Slot::new().map_err(Refusal::of("creating the report slot (memfd_create)"))?;
    let started = Moment::now();
    let pid = match group.method {
        StartMethod::Fork => fork::start(group, rank, &slot)?,
        StartMethod::Spawn | StartMethod::ForkServer => template.start(group, rank, &slot)?,
    };
    let child = Child::adopt(pid, slot, started).map_err(Refusal::of("watching the process (pidfd_open)"))?;
    Ok(child)
}

/// The limit that such an error means, with its numbers.
pub(crate) fn limit_met(error: &io::Error) -> Option<String> {
    let numbers = |name: &str, limit: io::Result<limits::Limit>| {
        let limit = limit.ok()?;
        let show = |value: u64| if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
        Some(format!("{name} is {} of at most {}", show(limit.soft), show(limit.hard)))
    };
    match Shortage::of(error)? {
        Shortage::Descriptors => numbers("RLIMIT_NOFILE", limits::descriptors()),
        Shortage::DescriptorsOfMachine => {
            Some("the whole machine has no descriptors left: see /proc/sys/fs/file-max".to_owned())
        }
        Shortage::Processes => {
            let limit = numbers("RLIMIT_NPROC", limits::processes())?;
            Some(format!("{limit}; the cgroup's pids.max or /proc/sys/kernel/pid_max may be lower"))
        }
        Shortage::Memory => Some(format!("{} bytes of memory are available", memory::available()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_met_names_what_there_is_not_enough_of() {
        let told = |errno| limit_met(&io::Error::from_raw_os_error(errno));
        // EMFILE, EAGAIN, ENOMEM, ENFILE, and one that means no limit (errno(3)).
        assert!(told(24).unwrap().starts_with("RLIMIT_NOFILE is "));
        assert!(told(11).unwrap().starts_with("RLIMIT_NPROC is "));
        assert!(told(12).unwrap().ends_with(" bytes of memory are available"));
        assert!(told(23).unwrap().contains("file-max"));
        assert_eq!(told(2), None);
    }
}
