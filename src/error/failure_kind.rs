//! FailureKind, Culprit, Standing: whether a worker failed by itself or because of others, and because of which.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::peer::Peer;

/// Why a worker failed: by itself, because of others, or since the launcher ended it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FailureKind {
    /// The worker failed by itself.
    Own,
    /// The worker had waited for other processes, which did not come, were gone, or had failed.
    Consequence {
        /// The processes that it waited for in the end, which did not wait for yet others. Empty when none is known, or when all
        /// waited for one another.
        of: Vec<Peer>,
    },
    /// The teardown ended the worker after another one's failure.
    Teardown,
}

/// A process that kept a worker waiting until the worker failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Culprit {
    /// The process, by its rank if it is a worker.
    pub peer: Peer,
    /// What it was doing when the launcher saw the failure; `None`: that is not known, as of a process that is no worker.
    pub standing: Option<Standing>,
}

/// What a worker was doing for which another one had waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Standing {
    /// Its function still ran, or slept.
    Running,
    /// It was stopped, by a signal such as SIGSTOP or by a debugger.
    Stopped,
    /// Its function had returned.
    Returned,
    /// It waited as well, for the other or for one that waited for that: none of them could go on.
    Waiting,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "it was still running",
            Self::Stopped => "it was stopped, by a signal such as SIGSTOP or by a debugger",
            Self::Returned => "its function had returned already",
            Self::Waiting => "it was waiting as well, and none of them could go on",
        })
    }
}
