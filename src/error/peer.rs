//! Peer: a process by its part in the job.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A process that others wait for, named by its part in the job. As text it is `rank 3 (pid 812)`, `the launcher (pid 7)` or
/// `process 9`.
///
/// ```
/// use phalanx::Peer;
///
/// let peer = Peer::Rank { rank: 3, pid: 812 };
/// assert_eq!(peer.to_string(), "rank 3 (pid 812)");
/// assert_eq!((peer.rank(), peer.pid()), (Some(3), 812));
/// assert_eq!(Peer::Launcher { pid: 7 }.rank(), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Peer {
    /// A worker of the job.
    Rank {
        /// The worker's number, from 0 on.
        rank: usize,
        /// The pid of the worker's process.
        pid: u32,
    },
    /// The process that started the workers.
    Launcher {
        /// The pid of that process.
        pid: u32,
    },
    /// A process that is no worker of this job, such as one that a worker has started.
    Process {
        /// The pid of that process.
        pid: u32,
    },
}

impl Peer {
    /// The pid of the process. When the process is gone, the system may give the number to another one.
    #[must_use]
    pub fn pid(self) -> u32 {
        match self {
            Self::Rank { pid, .. } | Self::Launcher { pid } | Self::Process { pid } => pid,
        }
    }

    /// The worker's number; `None` for a process that is no worker of this job.
    #[must_use]
    pub fn rank(self) -> Option<usize> {
        match self {
            Self::Rank { rank, .. } => Some(rank),
            Self::Launcher { .. } | Self::Process { .. } => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rank { rank, pid } => write!(f, "rank {rank} (pid {pid})"),
            Self::Launcher { pid } => write!(f, "the launcher (pid {pid})"),
            Self::Process { pid } => write!(f, "process {pid}"),
        }
    }
}

/// Several of anything, as a sentence has them: `a, b and c`.
pub(crate) fn listed(items: &[impl fmt::Display]) -> String {
    let texts: Vec<_> = items.iter().map(ToString::to_string).collect();
    match &texts[..] {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_named_by_their_part_in_the_job() {
        let peers = [Peer::Rank { rank: 1, pid: 7 }, Peer::Launcher { pid: 8 }, Peer::Process { pid: 9 }];
        assert_eq!(listed(&peers), "rank 1 (pid 7), the launcher (pid 8) and process 9");
        assert_eq!((listed(&peers[..1]), listed(&peers[..0])), ("rank 1 (pid 7)".into(), String::new()));
    }
}
