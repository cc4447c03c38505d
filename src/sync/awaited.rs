//! What a wait was for, and which processes were to end it.

use std::fmt;

use crate::error::listed;
use crate::wire::roster;

/// What a wait was for when its time was up, and which processes were to end it, as far as they are known.
///
/// It is in [`SyncError::TimedOut`](super::SyncError::TimedOut) and
/// [`QueueError::TimedOut`](crate::QueueError::TimedOut). Its text names workers by their ranks, other processes by
/// their pids, and is the end of a sentence. It is a look at that moment: a process that is named may have gone on
/// since, or have died.
///
/// ```
/// use std::time::Duration;
/// use phalanx::sync::{Awaited, Event, SyncError};
///
/// match Event::new()?.wait_timeout(Duration::from_millis(5)) {
///     Err(SyncError::TimedOut { waited, awaited: Awaited::Anybody { what } }) => {
///         assert_eq!((waited.as_millis(), what), (5, "nobody set the event"));
///     }
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), SyncError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Awaited {
    /// No process in particular: any may set the event, put a value or make room.
    Anybody {
        /// What no process did, such as "nobody set the event".
        what: &'static str,
    },
    /// The processes that had what the wait was for.
    Holders {
        /// What they had, such as "the lock is".
        what: &'static str,
        /// The processes, each once, in ascending order.
        pids: Vec<u32>,
    },
    /// The members of a barrier that had not come.
    Members {
        /// How many members had come.
        came: usize,
        /// How many members the barrier waits for.
        parties: usize,
        /// The processes of the members that had not come.
        missing: Vec<u32>,
        /// The processes that were members and have dropped their handles, where too few members are left.
        left: Vec<u32>,
    },
}

impl Awaited {
    /// These processes have it; [`Anybody`](Self::Anybody) when there are none.
    pub(crate) fn holders(what: &'static str, pids: impl IntoIterator<Item = u32>) -> Self {
        match distinct(pids) {
            // The holder has gone since the time was up, or has not written its process yet.
            pids if pids.is_empty() => Self::Anybody { what: "it did not become free" },
            pids => Self::Holders { what, pids },
        }
    }

    /// The processes that were to end the wait, each once; none of [`Anybody`](Self::Anybody).
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        match self {
            // Any process could have done it, so none is to blame.
            Self::Anybody { .. } => Vec::new(),
            Self::Holders { pids, .. } => pids.clone(),
            // A member that has left is to blame as well: the barrier still needs as many as before.
            Self::Members { missing, left, .. } => distinct(missing.iter().chain(left).copied()),
        }
    }
}

/// In their order, without what is no process.
pub(super) fn distinct(pids: impl IntoIterator<Item = u32>) -> Vec<u32> {
    // Each process once, though several of its threads may be waited for. 0 is no process: a word has it for the moment
    // between the write of its owner's thread id and that of the process.
    let mut pids: Vec<_> = pids.into_iter().filter(|&pid| pid != 0).collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// These processes, workers by their ranks.
pub(crate) fn named(pids: &[u32]) -> String {
    listed(&pids.iter().map(|&pid| roster::peer(pid)).collect::<Vec<_>>())
}

impl fmt::Display for Awaited {
    /// As the end of a sentence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anybody { what } => write!(f, ": {what}"),
            Self::Holders { what, pids } => write!(f, ": {what} held by {}", named(pids)),
            Self::Members { came, parties, missing, left } => {
                write!(f, ": {came} of {parties} came to the barrier")?;
                let gone = |&pid| format!("{}, which has dropped its handle", roster::peer(pid));
                let mut parts: Vec<_> = missing.iter().map(|&pid| roster::peer(pid).to_string()).collect();
                parts.extend(left.iter().map(gone));
                // A party that never had the barrier has no slot, and no process that could be named. Saturating: more
                // threads may have joined than it takes.
                match parties.saturating_sub(came + missing.len() + left.len()) {
                    0 => {}
                    others => parts.push(format!(
                        "{others} unknown, which did not have the barrier yet or have left it"
                    )),
                }
                if parts.is_empty() { Ok(()) } else { write!(f, "; missing: {}", parts.join("; ")) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_those_who_are_waited_for_and_counts_those_who_are_not_known() {
        let own = std::process::id();
        let holders = Awaited::holders("the lock is", [own, 0, own]);
        assert_eq!(holders.to_string(), format!(": the lock is held by process {own}"));
        assert_eq!(Awaited::holders("the lock is", [0]).to_string(), ": it did not become free");
        let members = |came, missing, left| Awaited::Members { came, parties: 4, missing, left };
        assert_eq!(
            members(1, vec![1], vec![2]).to_string(),
            ": 1 of 4 came to the barrier; missing: process 1; process 2, which has dropped its handle; 1 unknown, which did not have the barrier yet or have left it"
        );
        assert_eq!(
            members(3, vec![1], vec![]).to_string(),
            ": 3 of 4 came to the barrier; missing: process 1"
        );
        assert_eq!(members(3, vec![1], vec![2]).pids(), [1, 2]);
    }
}
