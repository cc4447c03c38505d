//! What a worker knows of itself, has of its own and does before its function.

use serde::{Deserialize, Serialize};

use crate::sys::affinity::Affinity;

/// The part of a job that is about the worker, not about its function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) nprocs: usize,
    /// The launcher's process. With the fork server it is not the worker's parent.
    pub(crate) launcher: u32,
    /// What runs before the function: the offset of its entry, and its name.
    pub(crate) hook: Option<(u64, String)>,
    /// By rank. A single one is of the rank that the job is for; without any, no rank has something of its own.
    pub(crate) ranks: Vec<RankSetup>,
}

/// What one rank has of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RankSetup {
    pub(crate) environment: Vec<(String, String)>,
    /// A path's bytes, as everywhere here.
    pub(crate) directory: Option<Vec<u8>>,
    pub(crate) processors: Option<Affinity>,
    pub(crate) stdout: Option<OutputPath>,
    pub(crate) stderr: Option<OutputPath>,
}

/// A file that output goes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutputPath {
    pub(crate) path: Vec<u8>,
    /// Whether what is in it already stays.
    pub(crate) append: bool,
}

impl Setup {
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
