//! The vocabulary between a launcher and its workers.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use super::setup::Setup;
use crate::memory::strategy::Choice;

/// What a worker is to do. Its arguments follow it as bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Which build the offset below belongs to.
    pub(crate) image: Vec<u8>,
    /// Where the entry lies in the executable.
    pub(crate) entry: u64,
    /// The function's name, to be compared with the entry's.
    pub(crate) function: String,
    /// The job's name, for the worker's comm name.
    pub(crate) name: String,
    /// How its launcher shares memory.
    pub(crate) sharing: Choice,
    /// The launcher's directory of named memory, if it has one: the directory of its tree of processes, inherited, and the
    /// launcher's path in it.
    pub(crate) process_dir: Option<(RawFd, String)>,
    /// Where the descriptors of the result go, inherited.
    pub(crate) result_channel: RawFd,
    /// Where the worker asks to be guarded, inherited.
    pub(crate) guards: Option<RawFd>,
    /// By what it is told to wait no longer, inherited: the memory and the event of an `Abort`.
    pub(crate) abort: Option<[RawFd; 2]>,
    /// Which process has which rank, inherited: the memory of a `Roster`.
    pub(crate) roster: RawFd,
    pub(crate) setup: Setup,
    /// What goes with the arguments. Descriptors are inherited ones.
    pub(crate) manifest: Manifest,
}
