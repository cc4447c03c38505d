//! N workers to be started, what is made for each of them before, and why one was not started.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::method::StartMethod;
use crate::error::{Error, limit_met};
use crate::memory::named::ProcessDir;
use crate::memory::storage::Loan;
use crate::memory::worker_dir::WorkerDir;
use crate::supervise::child::Child;
use crate::sys::limits::Shortage;
use crate::sys::pipe::pipe;
use crate::sys::signal::Signal;
use crate::wire::job::JobFile;
use crate::wire::lifeline::{Lifeline, WorkersEnd};
use crate::wire::marker::Marker;
use crate::wire::result_channel::ResultChannel;
use crate::wire::slot::Slot;

/// N workers to be started.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) method: StartMethod,
    pub(crate) nprocs: usize,
    pub(crate) jobs: Jobs,
    /// Where the workers send what goes beside their results.
    pub(crate) result_channel: ResultChannel,
    /// The socket by which workers ask the fork server to guard them; `None`: they do not ask.
    pub(crate) guards: Option<Arc<OwnedFd>>,
    /// This process's directory of named memory, if it has one.
    pub(crate) process_dir: Option<Arc<ProcessDir>>,
    /// Variables that all workers have besides the launcher's.
    pub(crate) environment: Vec<(String, String)>,
    /// Further variables by rank; empty: no rank has any.
    pub(crate) rank_environments: Vec<Vec<(String, String)>>,
    pub(crate) death_signal: Option<Signal>,
    /// Whether stdout and stderr of the workers are pipes that the launcher reads.
    pub(crate) piped: [bool; 2],
}

/// The jobs of a plan, and what has been lent with them.
#[derive(Debug)]
pub(crate) struct Jobs {
    /// One for each rank, or one for all.
    files: Vec<JobFile>,
    loans: Vec<Loan>,
}

impl Jobs {
    /// `files` has one job for each rank, or one for all.
    pub(crate) fn new(files: Vec<JobFile>) -> Self {
        Self { files, loans: Vec::new() }
    }

    pub(super) fn of(&self, rank: usize) -> &JobFile {
        // One file for all, or one for each: the last is the only one, or the rank's own.
        &self.files[rank.min(self.files.len() - 1)]
    }

    /// The jobs of some ranks: one for all of them, or one for each.
    pub(super) fn of_ranks(&self, ranks: Range<usize>) -> &[JobFile] {
        match &self.files[..] {
            one @ [_] => one,
            each => &each[ranks],
        }
    }

    /// Notes that the workers of some ranks may have been given their jobs, so that these are not given back.
    //
    // Also where the start then fails. A worker that has existed for a moment may have started a process, which has the shards and
    // connections of the job too and outlives the worker: two would have what only one may have.
    pub(super) fn deliver(&mut self, ranks: Range<usize>) {
        let last = self.files.len().saturating_sub(1);
        self.loans.extend(ranks.flat_map(|rank| self.files[rank.min(last)].deliver()));
    }

    /// The memory that the workers were given to write to.
    pub(super) fn into_loans(self) -> Vec<Loan> {
        self.loans
    }
}

/// By stdout and stderr: an end of a pipe; `None`: the worker has the launcher's own stream.
pub(crate) type PipeEnds = [Option<OwnedFd>; 2];

/// What a worker needs before it is started.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) rank: usize,
    pub(super) slot: Slot,
    /// Both ends of its lifeline; `None`: it may outlive its launcher.
    pub(super) lifeline: Option<Lifeline>,
    pub(super) workers_end: Option<WorkersEnd>,
    pub(super) readers: PipeEnds,
    pub(super) writers: PipeEnds,
}

/// A worker that has been started, and what this process has of it.
#[derive(Debug)]
pub(super) struct StartedWorker {
    pub(super) child: Child,
    pub(super) slot: Slot,
    pub(super) readers: PipeEnds,
}

impl Plan {
    /// Makes the report slot of a rank, its directory with the named memory of its arguments, its lifeline, and the pipes of its output.
    pub(super) fn prepare(&self, rank: usize) -> Result<Prepared, Failure> {
        let slot = self.slot(rank)?;
        // The lifeline ends a worker by SIGKILL and nothing else, so only a worker that is to die by that has one. It is there beside
        // PR_SET_PDEATHSIG because the kernel clears that setting when a process changes its credentials or runs a set-user-ID
        // program (prctl(2)).
        let dies_with_us = self.death_signal == Some(Signal::KILL);
        let lifeline = dies_with_us.then(Lifeline::new).transpose();
        let (lifeline, workers_end) =
            lifeline.map_err(Failure::of("making its lifeline (socketpair)"))?.unzip();
        let (readers, writers) = self.pipes()?;
        Ok(Prepared { rank, slot, lifeline, workers_end, readers, writers })
    }

    /// The pipes of a worker's output: the ends that are read, and those that are written.
    fn pipes(&self) -> Result<(PipeEnds, PipeEnds), Failure> {
        let made = self.piped.map(|is_piped| is_piped.then(pipe).transpose());
        let [stdout, stderr] =
            made.map(|made| made.map_err(Failure::of("making a pipe for its output (pipe2)")));
        let ((stdout, to_stdout), (stderr, to_stderr)) = (stdout?.unzip(), stderr?.unzip());
        Ok(([stdout, stderr], [to_stdout, to_stderr]))
    }

    fn slot(&self, rank: usize) -> Result<Slot, Failure> {
        let worker_dir = self.process_dir.as_ref().map(WorkerDir::make).transpose();
        let worker_dir =
            worker_dir.map_err(self.of_names("making a directory for its named memory (mkdirat)"))?;
        if let Some(worker_dir) = &worker_dir {
            // The links are made here, while this process holds the memory and its names exist. By the time at which the worker
            // came to make them, this process might have dropped the memory, and the names with it.
            let linked = self.jobs.of(rank).link_into(worker_dir);
            linked.map_err(self.of_names("naming the memory of its arguments (linkat)"))?;
        }
        Slot::new(worker_dir).map_err(Failure::of("creating the report slot (memfd_create)"))
    }

    /// For `map_err`: the failure of a call that was refused in the directory of named memory.
    fn of_names(&self, call: &'static str) -> impl FnOnce(io::Error) -> Failure {
        // ENOSPC and EDQUOT do not name the file system: the directory says how much room there is in its own.
        move |os| match self.process_dir.as_ref().filter(|_| Shortage::of(&os) == Some(Shortage::Space)) {
            Some(process_dir) => Failure::Limited { call, limit: process_dir.room_text(), os },
            None => Failure::of(call)(os),
        }
    }

    /// The line by which a worker knows itself.
    pub(super) fn marker(&self, worker: &Prepared) -> Marker {
        // Numbers as they are in this process. Fork and posix_spawn keep them; the fork server, where they are others, writes its
        // own marker (`OpenRequest::marker`).
        Marker {
            rank: worker.rank,
            // The worker compares it with getppid(2) once its death signal is set: a launcher that died before that sends none.
            launcher: std::process::id(),
            job: self.jobs.of(worker.rank).as_fd().as_raw_fd(),
            report: worker.slot.as_fd().as_raw_fd(),
            death_signal: self.death_signal,
            worker_dir: worker.slot.worker_dir().map(WorkerDir::number),
            lifeline: worker.workers_end.as_ref().map(|end| end.as_fd().as_raw_fd()),
        }
    }

    /// What a worker inherits.
    pub(super) fn inherited<'a>(&'a self, worker: &'a Prepared) -> impl Iterator<Item = BorrowedFd<'a>> {
        // Exactly what the marker and the job name by a number. All else is close-on-exec in Spawn, and closed by the worker in
        // Fork: a forgotten copy of the launcher's end of a socket would keep EOF from the other one for as long as the worker
        // lives.
        let process_dir = self.process_dir.as_ref().map(|process_dir| process_dir.as_fd());
        let guards = self.guards.as_ref().map(|guards| guards.as_fd());
        self.jobs
            .of(worker.rank)
            .descriptors()
            .chain([worker.slot.as_fd(), self.result_channel.sender()])
            .chain(process_dir)
            .chain(guards)
            .chain(worker.workers_end.as_ref().map(AsFd::as_fd))
    }
}

/// Why a worker was not started, without its rank.
#[derive(Debug)]
pub(super) enum Failure {
    System {
        call: &'static str,
        os: io::Error,
    },
    /// A refusal whose limit the caller knows, since the error alone does not tell it.
    Limited {
        call: &'static str,
        limit: String,
        os: io::Error,
    },
    Threads(usize),
    /// What the fork server has said.
    Server(Error),
}

impl Failure {
    /// For `map_err`: names the call that the system refused.
    pub(super) fn of(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |os| Self::System { call, os }
    }

    pub(super) fn for_rank(self, rank: usize, nprocs: usize) -> Error {
        match self {
            Self::Threads(threads) => Error::ForkWithThreads { threads },
            Self::Server(error) => error,
            // The limit is looked for now, before what was started is ended and makes room again.
            Self::System { call, os } => Error::Start { rank, nprocs, call, limit: limit_met(&os), os },
            Self::Limited { call, limit, os } => Error::Start { rank, nprocs, call, limit: Some(limit), os },
        }
    }
}
