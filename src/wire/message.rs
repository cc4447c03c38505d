//! The header of a job.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use super::setup::Setup;
use crate::memory::strategy::Choice;

/// What a worker is to do: the header of a job, which the bytes of the arguments follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Default))]
pub(crate) struct Job {
    /// The build of the launcher's executable (its build id, or what stands for it), to which the offsets belong.
    pub(crate) image: Vec<u8>,
    /// The offset of the function's entry, in bytes from the executable's load address.
    pub(crate) entry: u64,
    /// The function's name, to be compared with the entry's.
    pub(crate) function: String,
    /// The job's name, for the worker's comm name.
    pub(crate) name: String,
    /// What the worker knows of itself, and what it sets up before its function.
    pub(crate) setup: Setup,
    /// What it shares with its launcher and the other workers of its context; `None`: it is a worker of `launch`, which has the variables
    /// and the descriptors of a program instead.
    pub(crate) shared: Option<Shared>,
    /// The manifest of the arguments. Its descriptors are inherited.
    pub(crate) manifest: Manifest,
}

/// What the workers of a context share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shared {
    /// The sharing strategy of the launcher, which the worker begins with.
    pub(crate) sharing: Choice,
    /// The launcher's directory of named memory, if it has one: the directory of its tree of processes, inherited, and the
    /// launcher's path in it.
    pub(crate) process_dir: Option<(RawFd, String)>,
    /// The socket for the descriptors of the result, inherited.
    pub(crate) result_channel: RawFd,
    /// The socket by which the worker asks for a guardian, inherited.
    pub(crate) guards: Option<RawFd>,
    /// The event of a `StopWord`, inherited.
    pub(crate) stop: RawFd,
    /// Whether the stop word ends the worker's waits.
    pub(crate) aborts: bool,
    /// The memory of a `Roster`, inherited.
    pub(crate) roster: RawFd,
    /// The page in which faults are noted, inherited, and the plan of those that are to happen.
    pub(crate) faults: Option<(RawFd, String)>,
}

impl Shared {
    /// The numbers of all that is inherited.
    pub(super) fn numbers(&self) -> impl Iterator<Item = RawFd> {
        let of_place = self.process_dir.iter().map(|(raw, _)| *raw);
        let of_faults = self.faults.iter().map(|(page, _)| *page);
        of_place
            .chain([self.stop])
            .chain(self.guards)
            .chain([self.roster, self.result_channel])
            .chain(of_faults)
    }
}
