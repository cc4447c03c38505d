//! Start N workers, all or none.

use std::io;
use std::os::fd::AsFd;

use super::plan::{Failure, PipeEnds, Plan, StartedWorker};
use super::{StartMethod, fork, fork_batch, spawn, spawner};
use crate::error::Error;
use crate::memory::storage::Loan;
use crate::supervise::child::Child;
use crate::supervise::group::Group;
use crate::sys::clock::Moment;
use crate::sys::{limits, thread};
use crate::wire::result_channel::ResultChannel;
use crate::wire::slot::Slot;

/// Descriptors of the launcher that a worker costs: its pidfd, its report slot, its lifeline, and its job until it is started.
const DESCRIPTORS_PER_WORKER: usize = 4;
/// Descriptors that a start needs besides those of the workers.
const SPARE_DESCRIPTORS: usize = 16;

/// Raises the soft limit of descriptors to what that many workers need, with some pipes each, as far as the hard limit goes.
pub(crate) fn make_room(nprocs: usize, pipes: usize) {
    // Before the first start. A limit met at rank 200 would end 199 workers that have just begun.
    limits::make_room_for_descriptors(
        nprocs.saturating_mul(DESCRIPTORS_PER_WORKER + pipes).saturating_add(SPARE_DESCRIPTORS),
    );
}

/// The workers of a plan.
#[derive(Debug)]
pub(crate) struct Started {
    /// By rank.
    //
    // Above `slots`, as fields are dropped in their order: dropping the group kills and reaps, and until then a child may write
    // into its slot.
    pub(crate) children: Group,
    /// The report slots, by rank.
    pub(crate) slots: Vec<Slot>,
    /// The pipes that the workers print into, by rank.
    pub(crate) readers: Vec<PipeEnds>,
    /// What goes beside the workers' results. It is watched with the children.
    pub(crate) result_channel: ResultChannel,
    /// The memory that the workers were given to write to.
    pub(crate) loans: Vec<Loan>,
}

/// Starts all workers of `plan`. When one cannot be started, those before it are dead and reaped on return.
pub(crate) fn start_all(plan: Plan) -> Result<Started, Error> {
    match plan.method {
        // The parent-death signal comes when the thread ends that has started the child, not when its process does (prctl(2),
        // PR_SET_PDEATHSIG). The caller may be a thread of a pool, so another one starts the workers, and lives as long as they
        // do. The main thread ends with the process.
        StartMethod::Spawn if !thread::is_main() => {
            let (started, parent) = spawner::run(move || start_each(plan))?;
            let mut started = started?;
            started.children.keep_parent(parent);
            Ok(started)
        }
        // A fork has only the thread that calls, and there is no other one that could end before the process does.
        StartMethod::Spawn | StartMethod::Fork => start_each(plan),
        // The parent is the server, which has one thread, whichever thread asks it.
        StartMethod::ForkServer => start_by_server(plan),
    }
}

fn start_each(mut plan: Plan) -> Result<Started, Error> {
    let nprocs = plan.nprocs;
    let mut workers = Workers::new(&plan)?;
    let template = spawn::Template::new(&plan.environment);
    for rank in 0..nprocs {
        // Watched before the next one starts: epoll gives ends in their order only for processes that it watches by then.
        let started = start_one(&mut plan, rank, &template).and_then(|worker| workers.add(worker));
        started.map_err(|failure| failure.for_rank(rank, nprocs))?;
    }
    Ok(workers.into_started(plan))
}

fn start_one(plan: &mut Plan, rank: usize, template: &spawn::Template) -> Result<StartedWorker, Failure> {
    let worker = plan.prepare(rank)?;
    let started = Moment::now();
    let pid = match plan.method {
        StartMethod::Fork => fork::start(plan, &worker)?,
        StartMethod::Spawn | StartMethod::ForkServer => template.start(plan, &worker)?,
    };
    // Before the next `?`: the worker exists by now, though it may not be possible to watch it.
    plan.jobs.deliver(rank..rank + 1);
    // pidfd_open(2) after the fork is no race: the pid of a child stays its own until this process reaps it, and only `Child`
    // does. (posix_spawn has no CLONE_PIDFD, which would return both at once.)
    let child = Child::adopt(pid, started, worker.lifeline);
    let child = child.map_err(Failure::of("watching the process (pidfd_open)"))?;
    // Here the worker's ends of its pipes are closed: a pipe ends when its last writer has gone.
    Ok(StartedWorker { child, slot: worker.slot, readers: worker.readers })
}

fn start_by_server(mut plan: Plan) -> Result<Started, Error> {
    let nprocs = plan.nprocs;
    let mut workers = Workers::new(&plan)?;
    fork_batch::start_each(&mut plan, 0..nprocs, |rank, worker| {
        workers.add(worker).map_err(|failure| failure.for_rank(rank, nprocs))
    })?;
    Ok(workers.into_started(plan))
}

/// Starts the worker of one rank of a plan and gives it to `add`, which watches it, before it runs its function. The calling thread
/// must live as long as the worker does.
pub(crate) fn start_rank(
    plan: &mut Plan,
    rank: usize,
    mut add: impl FnMut(Child, Slot, PipeEnds) -> io::Result<()>,
) -> Result<(), Error> {
    let nprocs = plan.nprocs;
    let mut add = |StartedWorker { child, slot, readers }| {
        let added = add(child, slot, readers).map_err(Failure::of(WATCHING));
        added.map_err(|failure| failure.for_rank(rank, nprocs))
    };
    if plan.method == StartMethod::ForkServer {
        return fork_batch::start_each(plan, rank..rank + 1, |_, worker| add(worker));
    }
    let template = spawn::Template::new(&plan.environment);
    let worker = start_one(plan, rank, &template).map_err(|failure| failure.for_rank(rank, nprocs))?;
    add(worker)
}

/// What fails when a child cannot be watched.
const WATCHING: &str = "watching the process (epoll_ctl)";

/// The workers that have been started so far. If a further one cannot be, dropping the group kills them together and reaps each.
struct Workers {
    children: Group,
    slots: Vec<Slot>,
    readers: Vec<PipeEnds>,
}

impl Workers {
    fn new(plan: &Plan) -> Result<Self, Error> {
        let watched = Group::new().and_then(|children| {
            children.watch_too(plan.result_channel.as_fd(), 0)?;
            Ok(Self { children, slots: Vec::with_capacity(plan.nprocs), readers: Vec::new() })
        });
        watched.map_err(Error::system("watch the workers (epoll_create1, timerfd_create)"))
    }

    fn add(&mut self, worker: StartedWorker) -> Result<(), Failure> {
        let StartedWorker { child, slot, readers } = worker;
        self.readers.push(readers);
        // The slot first: if the child cannot be watched, its drop reaps it while the slot still exists.
        self.slots.push(slot);
        self.children.add(child).map_err(Failure::of(WATCHING))
    }

    fn into_started(self, plan: Plan) -> Started {
        let Plan { result_channel, jobs, .. } = plan;
        let Self { children, slots, readers } = self;
        Started { children, slots, readers, result_channel, loans: jobs.into_loans() }
    }
}
