//! Some workers of a plan that the fork server is to fork, as one message and its answer.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::plan::{Failure, Plan, Prepared, StartedWorker};
use super::server_link::{ANSWER, ServerLink, message};
use super::{attributes, forkserver};
use crate::error::Error;
use crate::supervise::child::Child;
use crate::supervise::reaper::ServerReaper;
use crate::sys::clock::Moment;
use crate::sys::signal::Signal;
use crate::sys::{dir, fd, limits};
use crate::wire::ledger::Ledger;
use crate::wire::service::{Attributes, ForkRequest, Request, Trouble};

/// How many workers go in one message.
//
// All descriptors of a batch are open in the server at once, and in each worker that it forks until the worker has closed those
// of the others: some hundred of them, far below the usual limit of 1,024.
const BATCH: usize = 64;
/// Descriptors that an answer needs besides the pidfds.
const SPARE: usize = 8;

/// Starts some workers of a plan, and gives each to `add`, which watches it, before any runs its function.
pub(super) fn start_each(
    plan: &mut Plan,
    ranks: Range<usize>,
    mut add: impl FnMut(usize, StartedWorker) -> Result<(), Error>,
) -> Result<(), Error> {
    let nprocs = plan.nprocs;
    let (ledger, before) = prepare(nprocs).map_err(|failure| failure.for_rank(ranks.start, nprocs))?;
    // Of the calling thread, not of the process: a worker is to have what a child of this thread would have.
    let mut attributes = attributes::of_caller(&plan.environment)?;
    // Held until all are forked. The server takes on environment, directory and streams of one request until the next, and the
    // next must not be another thread's before the last batch of this plan.
    let mut known = forkserver::link();
    let link = forkserver::connected(&mut known)?;
    attributes.landlock = link.landlock_probe();
    for first in ranks.clone().step_by(BATCH) {
        let ranks = first..ranks.end.min(first + BATCH);
        let batch = ForkBatch {
            plan,
            ranks: ranks.clone(),
            attributes: &attributes,
            before: &before,
            ledger: &ledger,
        };
        let started = batch.start(link);
        // Before the `?`: also when the batch has failed, some of its workers may have run.
        plan.jobs.deliver(ranks.clone());
        for (worker, rank) in started?.into_iter().zip(ranks) {
            add(rank, worker)?;
        }
    }
    // The workers sleep at the gate until here. So none can end before all are watched, and their ends come in their order.
    ledger.open_gate();
    Ok(())
}

/// The ledger, and the descriptors that come first in every request.
pub(super) fn prepare(nprocs: usize) -> Result<(Arc<Ledger>, [OwnedFd; 4]), Failure> {
    let (ledger, fd) = Ledger::new(nprocs).map_err(Failure::of("making the ledger (memfd_create)"))?;
    let dir = dir::current().map_err(Failure::of("opening the working directory (openat)"))?;
    let copy = |number| fd::copy_of_stdio(number).map_err(Failure::of("copying stdout or stderr (fcntl)"));
    Ok((Arc::new(ledger), [fd, dir, copy(1)?, copy(2)?]))
}

/// Some of a plan's workers.
pub(super) struct ForkBatch<'a> {
    pub(super) plan: &'a Plan,
    pub(super) ranks: Range<usize>,
    pub(super) attributes: &'a Attributes,
    /// The ledger, the working directory, stdout and stderr.
    pub(super) before: &'a [OwnedFd; 4],
    pub(super) ledger: &'a Arc<Ledger>,
}

impl<'a> ForkBatch<'a> {
    fn start(&self, link: &ServerLink) -> Result<Vec<StartedWorker>, Error> {
        let (started, len) = (Moment::now(), self.ranks.len());
        let prepared = self
            .ranks
            .clone()
            .map(|rank| self.plan.prepare(rank).map_err(|failure| failure.for_rank(rank, self.plan.nprocs)));
        let workers = prepared.collect::<Result<Vec<_>, _>>()?;
        let (request, descriptors) = self.request(&workers);
        let request = message(&Request::Fork(Box::new(request)), descriptors)?;
        // Asked before the workers exist. They come back as pidfds beside the answer, and the kernel drops those for which this
        // process has no room (MSG_CTRUNC of recvmsg(2)): nothing here could then end or watch these workers.
        if !limits::has_room_for(len + SPARE) {
            let none_left = io::Error::from_raw_os_error(limits::NO_DESCRIPTORS);
            return Err(self.failed(Failure::of("watching the processes (pidfd_open)")(none_left), 0));
        }
        let deadline = Moment::now().checked_add(ANSWER * len as u32);
        let (reply, pidfds) = link.ask(request, deadline)?;
        if pidfds.len() != reply.pids.len() || (reply.trouble.is_none() && pidfds.len() != len) {
            // Which pidfd belongs to which worker is not known, and some workers may have none here. They die with the server, by
            // their death signals, and by their lifelines, which are dropped with `workers`.
            let (ended, pids, pidfds) = (link.end(), reply.pids.len(), pidfds.len());
            let reason =
                format!("{ended}, since it answered {len} workers with {pids} pids and {pidfds} pidfds");
            return Err(Error::ForkServer { reason });
        }
        let forked = workers.into_iter().zip(reply.pids.iter().copied().zip(pidfds));
        let children = forked.map(|(worker, process)| {
            let reaper = ServerReaper::new(self.ledger.clone(), worker.rank, link.process());
            let child = Child::of_server(process, (started, reply.rss_kib), reaper, worker.lifeline);
            StartedWorker { child, slot: worker.slot, readers: worker.readers }
        });
        // Children first, also when there was trouble: dropping those that were forked ends them.
        let children: Vec<_> = children.collect();
        match reply.trouble {
            Some(trouble) => Err(self.failed(failure(trouble), children.len())),
            None => Ok(children),
        }
    }

    /// The failure of a rank, counted from the first of the batch.
    fn failed(&self, failure: Failure, number: usize) -> Error {
        failure.for_rank(self.ranks.start + number, self.plan.nprocs)
    }

    /// What the server is asked, and the descriptors in the order that it expects.
    pub(super) fn request(&self, workers: &'a [Prepared]) -> (ForkRequest<'a>, Vec<BorrowedFd<'a>>) {
        let Plan { nprocs, ref jobs, ref result_channel, ref process_dir, death_signal, piped, .. } =
            *self.plan;
        let jobs = jobs.of_ranks(self.ranks.clone());
        // The first descriptor of a job is its own.
        let mut named: Vec<_> = jobs.iter().flat_map(|job| job.descriptors().skip(1)).collect();
        named.push(result_channel.sender());
        named.extend(process_dir.as_ref().map(|dir| dir.as_fd()));
        // A segment that many jobs name has one number in this process, and goes once. N workers with the same tensor would else
        // cost the server N descriptors for it.
        named.sort_unstable_by_key(AsRawFd::as_raw_fd);
        named.dedup_by_key(|fd| fd.as_raw_fd());
        let ends = || workers.iter().filter_map(|worker| worker.workers_end.as_ref());
        let request = ForkRequest {
            nprocs,
            first: self.ranks.start,
            worker_dirs: workers
                .iter()
                .map(|worker| worker.slot.worker_dir().map(|worker_dir| worker_dir.number()))
                .collect(),
            death_signal: death_signal.map_or(0, Signal::number),
            attributes: Cow::Borrowed(self.attributes),
            jobs: jobs.len(),
            lifelines: ends().count(),
            piped,
            numbers: named.iter().map(AsRawFd::as_raw_fd).collect::<Vec<RawFd>>(),
        };
        let before = self.before.iter().map(AsFd::as_fd);
        let descriptors = before.chain(jobs.iter().map(AsFd::as_fd)).chain(named);
        let of_workers = workers.iter().map(|worker| worker.slot.as_fd()).chain(ends().map(AsFd::as_fd));
        let outputs = [0, 1]
            .into_iter()
            .flat_map(|stream| workers.iter().filter_map(move |worker| worker.writers[stream].as_ref()));
        (request, descriptors.chain(of_workers).chain(outputs.map(AsFd::as_fd)).collect())
    }
}

/// Why a worker was not forked.
fn failure(trouble: Trouble) -> Failure {
    match trouble {
        Trouble::System { step, errno } => Failure::of(step.name())(io::Error::from_raw_os_error(errno)),
        other => Failure::Server(forkserver::before_any_rank(other)),
    }
}
