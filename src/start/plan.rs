//! N workers to be started, and why one of them was not.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::method::StartMethod;
use crate::error::{Error, limit_met};
use crate::memory::named::ProcessDir;
use crate::memory::storage::Loan;
use crate::memory::worker_dir::WorkerDir;
use crate::sys::limits::Shortage;
use crate::sys::signal::Signal;
use crate::wire::job::JobFile;
use crate::wire::lifeline::{Lifeline, WorkersEnd};
use crate::wire::marker::Marker;
use crate::wire::result_channel::ResultChannel;
use crate::wire::slot::Slot;

/// N workers to be started.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) method: StartMethod,
    pub(crate) nprocs: usize,
    /// One for each rank, or one for all.
    pub(crate) jobs: Vec<JobFile>,
    /// Where the workers send what goes beside their results.
    pub(crate) result_channel: ResultChannel,
    /// Where workers ask for the guard of the fork server, if they are to.
    pub(crate) guards: Option<Arc<OwnedFd>>,
    /// This process's directory of named memory, if it has one.
    pub(crate) process_dir: Option<Arc<ProcessDir>>,
    /// What was given to those that have been started.
    pub(crate) loans: Vec<Loan>,
    /// Changes of the environment.
    pub(crate) environment: Vec<(String, String)>,
    /// Further ones by rank; empty: there are none.
    pub(crate) rank_environments: Vec<Vec<(String, String)>>,
    pub(crate) death_signal: Option<Signal>,
}

impl Group {
    pub(super) fn job(&self, rank: usize) -> &JobFile {
        &self.jobs[rank.min(self.jobs.len() - 1)]
    }

    /// Says that the worker of a rank has been started with its job.
    pub(super) fn deliver(&mut self, rank: usize) {
        let last = self.jobs.len() - 1;
        self.loans.extend(self.jobs[rank.min(last)].deliver());
    }

    pub(super) fn marker(&self, rank: usize, slot: &Slot, lifeline: Option<&WorkersEnd>) -> Marker {
        Marker {
            rank,
            launcher: std::process::id(),
            job: self.job(rank).as_fd().as_raw_fd(),
            report: slot.as_fd().as_raw_fd(),
            death_signal: self.death_signal,
            worker_dir: slot.worker_dir().map(WorkerDir::number),
            lifeline: lifeline.map(|end| end.as_fd().as_raw_fd()),
        }
    }

    /// The report slot of a rank, and its directory with the named memory of its arguments.
    pub(super) fn slot(&self, rank: usize) -> Result<Slot, Failure> {
        let worker_dir = self.process_dir.as_ref().map(WorkerDir::make).transpose();
        let worker_dir =
            worker_dir.map_err(self.of_names("making a directory for its named memory (mkdirat)"))?;
        if let Some(worker_dir) = &worker_dir {
            let linked = self.job(rank).link_into(worker_dir);
            linked.map_err(self.of_names("naming the memory of its arguments (linkat)"))?;
        }
        Slot::new(worker_dir).map_err(Failure::of("creating the report slot (memfd_create)"))
    }

    /// For `map_err`, of what was refused in the directory of named memory.
    fn of_names(&self, call: &'static str) -> impl FnOnce(io::Error) -> Failure {
        move |os| match self.process_dir.as_ref().filter(|_| Shortage::of(&os) == Some(Shortage::Space)) {
            Some(process_dir) => Failure::Limited { call, limit: process_dir.room_text(), os },
            None => Failure::of(call)(os),
        }
    }

    /// Both ends of a rank's lifeline. Those have none that are to get another signal, or none: they would get it twice.
    pub(super) fn lifeline(&self) -> Result<Option<(Lifeline, WorkersEnd)>, Failure> {
        let dies_with_us = self.death_signal == Some(Signal::KILL);
        let lifeline = dies_with_us.then(Lifeline::new).transpose();
        lifeline.map_err(Failure::of("making its lifeline (socketpair)"))
    }

    /// What a rank inherits.
    pub(super) fn inherited<'a>(
        &'a self,
        rank: usize,
        slot: &'a Slot,
        lifeline: Option<&'a WorkersEnd>,
    ) -> impl Iterator<Item = BorrowedFd<'a>> {
        let process_dir = self.process_dir.as_ref().map(|process_dir| process_dir.as_fd());
        let guards = self.guards.as_ref().map(|guards| guards.as_fd());
        self.job(rank)
            .descriptors()
            .chain([slot.as_fd(), self.result_channel.sender()])
            .chain(process_dir)
            .chain(guards)
            .chain(lifeline.map(AsFd::as_fd))
    }
}

/// Why a worker was not started.
#[derive(Debug)]
pub(super) enum Failure {
    System {
        call: &'static str,
        os: io::Error,
    },
    /// Where more than the error tells which limit was met.
    Limited {
        call: &'static str,
        limit: String,
        os: io::Error,
    },
    Threads(usize),
    /// The fork server has its own words for it.
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
            Self::System { call, os } => Error::Start { rank, nprocs, call, limit: limit_met(&os), os },
            Self::Limited { call, limit, os } => Error::Start { rank, nprocs, call, limit: Some(limit), os },
        }
    }
}
