//! The vocabulary between a launcher and its workers.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

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
    /// The inherited descriptors of the storages in the arguments.
    pub(crate) storages: Vec<RawFd>,
}
