//! Sums, copies and the like over the tensors of all ranks of one crew, each rank a process: torch's collectives, on one machine.
//!
//! The launcher makes a [`Collective`] and passes it to its workers as any other shared thing. Each worker
//! [`join`](Collective::join)s with its rank, and then all of them make the same calls in the same order:
//!
//! ```
//! # phalanx::auto_init!();
//! use phalanx::Tensor;
//! use phalanx::collective::{Collective, Reduce};
//!
//! fn work(rank: usize, crew: Collective) -> anyhow::Result<Vec<f32>> {
//!     let mut crew = crew.join(rank)?;
//!     let gradient = Tensor::from_slice(&[rank as f32, 1.0], &[2])?;
//!     crew.all_reduce(&gradient, Reduce::Sum)?; // in place, on every rank
//!     Ok(gradient.to_vec())
//! }
//!
//! # fn main() -> anyhow::Result<()> {
//! let sums = phalanx::spawn(work, Collective::new(3)?, 3)?;
//! assert_eq!(sums, [[3.0, 3.0], [3.0, 3.0], [3.0, 3.0]]);
//! # Ok(())
//! # }
//! ```
//!
//! | call | what each rank has after it | torch.distributed |
//! |---|---|---|
//! | [`all_reduce`](Member::all_reduce) | the sum (mean, min, max) of all ranks' tensors | `all_reduce` |
//! | [`broadcast`](Member::broadcast) | the tensor of one rank | `broadcast` |
//! | [`reduce_scatter`](Member::reduce_scatter) | its own part of the sum | `reduce_scatter_tensor` |
//! | [`all_gather`](Member::all_gather) | all ranks' tensors, one after the other | `all_gather_into_tensor` |
//! | [`barrier`](Member::barrier) | that all have come | `barrier` |
//!
//! # The same bits
//!
//! Each element of a result is computed from the ranks' elements in the order of their ranks: once, by one rank, which gives it to the
//! others, or by every rank in the same way. So a result has the same bits on every rank and in every run, however fast the ranks were. `f16` and `bf16` are added
//! as `f32` and rounded once, at the end; `f32` and `f64` are added as themselves; integers wrap around. See [`Reduce`].
//!
//! # When a rank dies, leaves or errs
//!
//! No call hangs. It waits for the other ranks at a [`Barrier`](crate::sync::Barrier), so what a barrier says of a death, a panic, or an
//! aborted context is what it says, with the rank: [`CollectiveError::Sync`]. A rank that drops its [`Member`] while others still call
//! is [`CollectiveError::Left`]. Ranks that call for different things, or pass other lengths or types, all get
//! [`CollectiveError::Mismatch`], which has what each of them passed. After a mismatch the crew may go on; after all else it is over.
//! While a call fails in its middle, tensors that it was to change may be half changed.
//!
//! # Where the tensors lie
//!
//! A tensor of any process will do: it goes through staging memory of the collective, a piece at a time. Where the tensors of all ranks
//! are parts of one storage, nothing is staged, and each rank reads the others' in place:
//!
//! ```
//! # phalanx::auto_init!();
//! use phalanx::Tensor;
//! use phalanx::collective::{Collective, Reduce};
//!
//! fn work(rank: usize, (crew, table): (Collective, Tensor<f32>)) -> anyhow::Result<f32> {
//!     let own = table.select(0, rank)?; // a row for each rank
//!     own.fill(1.0)?;
//!     crew.join(rank)?.all_reduce(&own, Reduce::Sum)?;
//!     Ok(own.get(99_999)?)
//! }
//!
//! # fn main() -> anyhow::Result<()> {
//! let table = Tensor::zeros(&[2, 100_000])?;
//! assert_eq!(phalanx::spawn(work, (Collective::new(2)?, table), 2)?, [2.0, 2.0]);
//! # Ok(())
//! # }
//! ```
//!
//! docs/collective.md has how it works, and docs/performance.md what it costs.

// - `error`: CollectiveError
// - `reduce`: pure: Reduce, and what it does to a block of elements
// - `announce`: pure: what each rank says that it is to do, and whether all say the same
// - `side`: a place in shared memory from which or to which elements go
// - `crew`: the shared memory of a crew, and how a rank leaves it
// - `handle`: Collective
// - `member`: Member: what is called

mod announce;
mod crew;
mod error;
mod handle;
mod member;
mod reduce;
mod side;

pub use error::CollectiveError;
pub use handle::Collective;
pub use member::Member;
pub use reduce::Reduce;
