//! The vocabulary between a launcher and its workers.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use super::setup::Setup;
use crate::memory::strategy::Choice;
use crate::transfer::grant::Grant;

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
    /// The launcher's place in a tree of named memory, if it has one: the tree's directory, inherited, and the
    /// launcher's path in it.
    pub(crate) place: Option<(RawFd, String)>,
    /// Where the descriptors of the result go, inherited.
    pub(crate) returns: RawFd,
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

/// What goes beside the bytes of a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) segments: Vec<Way>,
    pub(crate) grants: Vec<Grant>,
    /// The numbers of the descriptors: of inherited ones, or of those that were sent.
    pub(crate) descriptors: Vec<RawFd>,
}

impl Manifest {
    /// How many descriptors go with it.
    pub(crate) fn count(&self) -> usize {
        let of_segments = self.segments.iter().filter(|way| matches!(way, Way::Descriptor { .. }));
        of_segments.count() + self.descriptors.len()
    }
}

/// How a segment gets to the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Way {
    /// As the descriptor of this number: an inherited one, or one of those that were sent.
    Descriptor { number: RawFd },
    /// By a name that was put for it where the other side looks: its number is the segment's.
    Name,
}
