//! A request to fork with its descriptors, each in its place: the fork server's side of `fork_batch`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

use super::attributes;
use crate::sys::signal::Signal;
use crate::wire::ledger::Ledger;
use crate::wire::marker::Marker;
use crate::wire::service::{BEFORE_JOBS, ForkRequest, Trouble};
use crate::worker::{Changes, Served};

#[derive(Debug)]
pub(super) struct OpenRequest<'a> {
    request: &'a ForkRequest<'a>,
    pub(super) ledger: Rc<Ledger>,
    /// The ledger, the working directory, stdout and stderr.
    before: &'a [OwnedFd],
    jobs: &'a [OwnedFd],
    /// Those that the jobs speak of.
    named: &'a [OwnedFd],
    /// The numbers that descriptors have in the launcher, and have here.
    numbers: HashMap<RawFd, RawFd>,
    /// The report slots, one for each worker that is to be forked.
    pub(super) slots: &'a [OwnedFd],
    lifelines: &'a [OwnedFd],
    /// Stdout and stderr: one for each worker, or none.
    outputs: [&'a [OwnedFd]; 2],
    changes: Changes,
}

impl<'a> OpenRequest<'a> {
    /// Gives each descriptor its place.
    pub(super) fn of(request: &'a ForkRequest<'a>, descriptors: &'a [OwnedFd]) -> Result<Self, Trouble> {
        let expected = BEFORE_JOBS
            + request.jobs
            + request.numbers.len()
            + request.worker_dirs.len()
            + request.lifelines
            + request.worker_dirs.len() * request.piped.iter().filter(|&&is_piped| is_piped).count();
        // The kernel drops descriptors for which this process has no room, from the end of the list (MSG_CTRUNC). Slots and
        // lifelines would then be taken for one another, which only the count shows.
        if descriptors.len() != expected || request.jobs == 0 {
            let came = descriptors.len();
            return Err(Trouble::Malformed(format!(
                "{came} descriptors came with a request, not {expected}"
            )));
        }
        let (before, rest) = descriptors.split_at(BEFORE_JOBS);
        let (jobs, rest) = rest.split_at(request.jobs);
        let (named, rest) = rest.split_at(request.numbers.len());
        let (slots, rest) = rest.split_at(request.worker_dirs.len());
        let (lifelines, rest) = rest.split_at(request.lifelines);
        let [stdouts, stderrs] = request.piped.map(|is_piped| if is_piped { slots.len() } else { 0 });
        let (stdouts, stderrs) = (&rest[..stdouts], &rest[stdouts..stdouts + stderrs]);
        // The jobs speak of descriptors by their numbers in the launcher; here the kernel has given them others.
        let numbers = request.numbers.iter().copied().zip(named.iter().map(AsRawFd::as_raw_fd)).collect();
        let ledger = Ledger::open(before[0].as_fd(), request.nprocs);
        // Shared with the workers that are forked: their ends are recorded long after this request is dropped.
        let ledger = Rc::new(ledger.map_err(|error| Trouble::Malformed(format!("its ledger: {error}")))?);
        // Compared here and not in each worker: a fork has what this process has, so the difference is the same for all.
        let changes = attributes::changes(&request.attributes);
        let outputs = [stdouts, stderrs];
        Ok(Self { request, ledger, before, jobs, named, numbers, slots, lifelines, outputs, changes })
    }

    pub(super) fn death_signal(&self) -> Option<Signal> {
        Signal::new(self.request.death_signal)
    }

    /// The rank of a worker, counted from the first of the request.
    pub(super) fn rank(&self, number: usize) -> usize {
        self.request.first + number
    }

    /// The same request for one of its workers only, counted from the first, and the descriptors in the order of [`of`](Self::of).
    pub(super) fn of_one(&self, number: usize) -> (ForkRequest<'_>, Vec<BorrowedFd<'_>>) {
        let lifeline = self.lifelines.get(number);
        let request = ForkRequest {
            nprocs: self.request.nprocs,
            first: self.rank(number),
            worker_dirs: vec![self.request.worker_dirs[number]],
            death_signal: self.request.death_signal,
            attributes: Cow::Borrowed(&*self.request.attributes),
            jobs: 1,
            lifelines: lifeline.iter().count(),
            piped: self.request.piped,
            numbers: self.request.numbers.clone(),
        };
        let outputs = self.outputs.iter().filter_map(|streams| streams.get(number));
        let jobs = self.before.iter().chain([self.job(number)]).chain(self.named);
        let all = jobs.chain([&self.slots[number]]).chain(lifeline).chain(outputs);
        (request, all.map(AsFd::as_fd).collect())
    }

    /// The job of a worker: one for all of them, or one for each.
    fn job(&self, number: usize) -> &OwnedFd {
        &self.jobs[number.min(self.jobs.len() - 1)]
    }

    /// The marker of a worker, counted from the first of the request, whose report slot has this number, and whose parent is this server.
    pub(super) fn marker(&self, number: usize, report: RawFd, server: u32) -> Marker {
        Marker {
            rank: self.rank(number),
            // A worker compares it with its parent.
            launcher: server,
            job: self.job(number).as_raw_fd(),
            report,
            death_signal: self.death_signal(),
            worker_dir: self.request.worker_dirs[number],
            // All workers of a plan have one, or none has.
            lifeline: self.lifelines.get(number).map(AsRawFd::as_raw_fd),
        }
    }

    /// Applies to this process what all workers are to have from their launcher.
    pub(super) fn apply_attributes(&self) -> io::Result<()> {
        let [_, dir, stdout, stderr] = self.before else {
            return Err(io::Error::other("the request has no working directory, stdout and stderr"));
        };
        attributes::apply(&self.request.attributes, dir.as_fd(), [stdout.as_fd(), stderr.as_fd()])
    }

    /// What a worker, counted from the first of the request, has from this process.
    pub(super) fn served(&self, number: usize, server: u32) -> Served<'_> {
        let output = self.outputs.map(|streams| streams.get(number).map(AsFd::as_fd));
        Served { numbers: &self.numbers, ledger: &self.ledger, changes: &self.changes, output, server }
    }
}
