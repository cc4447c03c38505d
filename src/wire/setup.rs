//! What a worker knows of itself, has of its own and does before its function.

use serde::{Deserialize, Serialize};

use crate::sys::affinity::Affinity;

/// The part of a job that is about the worker, not about its function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The number of workers of the context.
    pub(crate) nprocs: usize,
    /// The pid of the launcher. With the fork server it is not the worker's parent.
    pub(crate) launcher: u32,
    /// What runs before the function: the offset of its entry, and its name.
    pub(crate) hook: Option<(u64, String)>,
    /// One for each rank, in the order of ranks; or one alone, of the rank that the job is for; or none, if no rank has options of its
    /// own.
    pub(crate) ranks: Vec<RankSetup>,
}

/// What `RankOptions` says of one rank, as it travels in a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RankSetup {
    pub(crate) environment: Vec<(String, String)>,
    /// The working directory, as the bytes of its path: a path need not be UTF-8.
    pub(crate) directory: Option<Vec<u8>>,
    /// The processors that the rank may run on.
    pub(crate) processors: Option<Affinity>,
    pub(crate) stdout: Option<OutputPath>,
    pub(crate) stderr: Option<OutputPath>,
}

/// A file that a rank's stdout or stderr goes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutputPath {
    pub(crate) path: Vec<u8>,
    /// Whether the file keeps what it has; otherwise it is truncated to nothing when the worker opens it.
    pub(crate) append: bool,
}

impl Setup {
    /// The options of one rank.
    pub(crate) fn of_rank(&self, rank: usize) -> Option<&RankSetup> {
        self.ranks.get(rank.min(self.ranks.len().saturating_sub(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setup_is_the_ranks_own_or_the_only_one() {
        let named = |text: &str| RankSetup { directory: Some(text.into()), ..RankSetup::default() };
        let with = |ranks| Setup { ranks, ..Setup::default() };
        assert_eq!(with(vec![]).of_rank(1), None);
        assert_eq!(with(vec![named("a"), named("b")]).of_rank(1), Some(&named("b")));
        assert_eq!(with(vec![named("a")]).of_rank(1), Some(&named("a")));
    }
}
