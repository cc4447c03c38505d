//! `Collective`: the handle that a launcher makes, and each worker joins by.

use serde::{Deserialize, Serialize};

use super::crew::Crew;
use super::error::CollectiveError;
use super::member::Member;
use crate::error::MemoryError;

/// The crew of one context, before its workers have joined: made by the launcher and passed in the workers' arguments.
///
/// Clones, and what arrives in a worker, are the same crew. It serves one crew: another context needs a `Collective` of its own, also
/// when the first one has failed and is started again.
///
/// A worker that has received it is missed from then on. If it dies, or drops the handle without having joined, the others are told
/// instead of waiting for ever. The launcher is no member, and may drop its handle once the workers are started.
///
/// It is `Send` and `Sync`, and takes 2 MiB of shared memory for each rank.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::Tensor;
/// use phalanx::collective::Collective;
///
/// fn work(rank: usize, crew: Collective) -> anyhow::Result<Vec<u8>> {
///     let mut crew = crew.join(rank)?;
///     let (own, all) = (Tensor::full(&[2], rank as u8)?, Tensor::zeros(&[4])?);
///     crew.all_gather(&own, &all)?;
///     Ok(all.to_vec())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// assert_eq!(phalanx::spawn(work, Collective::new(2)?, 2)?, [[0, 0, 1, 1], [0, 0, 1, 1]]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Collective {
    crew: Crew,
}

impl Collective {
    /// Makes one for `nprocs` ranks: as many as the context has workers.
    ///
    /// ```
    /// use phalanx::collective::Collective;
    /// assert_eq!(Collective::new(3)?.nprocs(), 3);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError`] when there is no shared memory for it; [`MemoryError::TooMany`] when `nprocs` is zero or more than 4096.
    pub fn new(nprocs: usize) -> Result<Self, MemoryError> {
        Ok(Self { crew: Crew::new(nprocs)? })
    }

    /// How many ranks there are.
    #[must_use]
    pub fn nprocs(&self) -> usize {
        self.crew.nprocs()
    }

    /// Takes part as `rank`. It does not wait for the others: the first call does.
    ///
    /// ```
    /// use phalanx::collective::{Collective, Reduce};
    /// let mut alone = Collective::new(1)?.join(0)?;
    /// let tensor = phalanx::Tensor::from_slice(&[1, 2], &[2])?;
    /// alone.all_reduce(&tensor, Reduce::Sum)?;
    /// assert_eq!(tensor.to_vec(), [1, 2]);
    /// # Ok::<(), phalanx::collective::CollectiveError>(())
    /// ```
    ///
    /// # Errors
    /// [`CollectiveError::NoSuchRank`]; [`CollectiveError::RankTwice`], which all ranks get, when this rank was joined before, by
    /// whichever process.
    pub fn join(mut self, rank: usize) -> Result<Member, CollectiveError> {
        self.crew.join(rank)?;
        Ok(Member::new(self.crew, rank))
    }
}
