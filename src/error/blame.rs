//! Whose failure a failure is.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::peer::Peer;

/// Whose failure the failure of a worker is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FailureKind {
    /// Its own.
    Own,
    /// It waited for others, who did not come, were gone, or had failed themselves.
    Consequence {
        /// For whom it waited in the end: those who did not wait for yet others. Empty when nobody is known, or when all waited
        /// for one another.
        of: Vec<Peer>,
    },
    /// It was ended by the teardown after another worker's failure.
    Teardown,
}

/// One that kept a worker waiting until that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Culprit {
    /// Who.
    pub peer: Peer,
    /// How it was when the launcher saw that failure; `None`: that is not known, as of a process that is no worker.
    pub standing: Option<Standing>,
}

/// How a worker was for which another one had waited.
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
