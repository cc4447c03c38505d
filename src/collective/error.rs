//! What a collective call can fail with.

use crate::error::{MemoryError, consequence, listed};
use crate::sync::SyncError;
use crate::wire::roster;

/// What a call on a [`Collective`](super::Collective) or its [`Member`](super::Member) can fail with.
///
/// A failure is one of all ranks: where one of them gets an error, the others get one too, in this call or in their next.
///
/// ```
/// use phalanx::collective::{Collective, CollectiveError};
///
/// let refused = Collective::new(2)?.join(2).unwrap_err();
/// assert!(matches!(refused, CollectiveError::NoSuchRank { rank: 2, nprocs: 2 }));
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollectiveError {
    /// The wait for the other ranks ended without them: one died or panicked ([`SyncError::Broken`] has its process and names its
    /// rank), the time was up, or the context ends its workers ([`SyncError::Aborted`]). The crew is over.
    #[error(transparent)]
    Sync(#[from] SyncError),

    /// The ranks did not call for the same thing, or one of them passed a tensor that does not do. Every rank gets this error, no
    /// tensor was changed, and the crew may go on.
    #[error("the ranks' calls do not fit together: {}", grouped(.passed))]
    Mismatch {
        /// What each rank passed, by rank, in words: "all_reduce(sum) of 4 f32".
        passed: Vec<String>,
    },

    /// A rank dropped its member, or a worker its handle, while others still made calls. The crew is over.
    #[error("{} has left the crew{}, while others waited for it or still call", roster::peer(*.pid), Unjoined(*.rank))]
    Left {
        /// The rank that left; `None` when the worker had not joined.
        rank: Option<usize>,
        /// Its process.
        pid: u32,
    },

    /// Two joined with the same rank. Every rank gets this error, and the crew is over.
    #[error(
        "rank {rank} was joined twice, by {} and by {}: give each worker its own rank, and each context a Collective of its own",
        roster::peer(.pids[0]), roster::peer(.pids[1])
    )]
    RankTwice {
        /// The rank.
        rank: usize,
        /// The processes that joined with it, the first one first.
        pids: [u32; 2],
    },

    /// A rank that the crew does not have.
    #[error("cannot join as rank {rank}: the ranks of a crew of {nprocs} are the numbers below that")]
    NoSuchRank {
        /// The rank that was asked for.
        rank: usize,
        /// How many ranks there are.
        nprocs: usize,
    },

    /// The shared memory of a new collective could not be made.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl CollectiveError {
    /// The error of those that a rank has left behind.
    pub(super) fn left(rank: Option<usize>, pid: u32) -> Self {
        let left = Self::Left { rank, pid };
        // A rank that leaves in the middle has mostly failed: the launcher then reports its failure, not this consequence.
        consequence::note(&left, &[pid]);
        left
    }
}

/// How a rank left that had none.
struct Unjoined(Option<usize>);

impl std::fmt::Display for Unjoined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_none() { " without having joined it" } else { "" })
    }
}

/// What each rank passed; those that passed the same together.
fn grouped(passed: &[String]) -> String {
    let mut groups: Vec<(&String, Vec<String>)> = Vec::new();
    for (rank, words) in passed.iter().enumerate() {
        match groups.iter_mut().find(|(known, _)| *known == words) {
            Some((_, ranks)) => ranks.push(format!("rank {rank}")),
            None => groups.push((words, vec![format!("rank {rank}")])),
        }
    }
    let texts = groups.iter().map(|(words, ranks)| format!("{} passed {words}", listed(ranks)));
    texts.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_the_ranks_that_passed_the_same_together() {
        let passed = ["4 f32", "5 f32", "4 f32"].map(str::to_owned).to_vec();
        assert_eq!(
            CollectiveError::Mismatch { passed }.to_string(),
            "the ranks' calls do not fit together: rank 0 and rank 2 passed 4 f32; rank 1 passed 5 f32"
        );
        let unjoined = CollectiveError::left(None, 7).to_string();
        assert!(unjoined.starts_with("process 7 has left the crew without having joined it"), "{unjoined}");
    }
}
