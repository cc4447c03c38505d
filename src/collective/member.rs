//! `Member`: one rank's end of a collective, by which it makes the calls.

use std::time::Duration;

use super::announce::{self, Announcement, Operation, Span};
use super::crew::{AREA, Crew};
use super::error::CollectiveError;
use super::reduce::Reduce;
use super::side::{self, Side, pieces};
use crate::dtype::DType;
use crate::tensor::dyn_tensor::DynTensor;
use crate::tensor::element::{Element, Number};
use crate::tensor::typed::Tensor;

/// One rank of a crew: what [`Collective::join`](super::Collective::join) returns.
///
/// All ranks make the same calls, in the same order, with tensors of the same length and type; each call waits for all of them. Tensors
/// have to be contiguous. While a call runs, no rank may change a tensor that it has passed: nothing worse than a wrong result comes of it.
///
/// Dropping it says to the others that this rank makes no more calls; those that still do get [`CollectiveError::Left`]. It is `Send`, and
/// its calls take `&mut self`: a rank makes one at a time. Where the call returns on one rank, it may still run on another.
#[derive(Debug)]
pub struct Member {
    crew: Crew,
    rank: usize,
    timeout: Option<Duration>,
    /// How many calls were made, which is the same on every rank: two places for announcements are used by turns.
    calls: usize,
    /// How many pieces were staged, likewise: two areas of each rank are used by turns. Who fills an area for the next piece but one
    /// has passed a barrier since then, to which the others came when they had read the first.
    pieces: usize,
}

/// What all ranks have agreed to.
struct Agreed<'a> {
    /// Where the sources of all ranks begin, by rank, if they are not to be staged.
    in_place: Option<Vec<Side<'a>>>,
}

impl Member {
    pub(super) fn new(crew: Crew, rank: usize) -> Self {
        Self { crew, rank, timeout: None, calls: 0, pieces: 0 }
    }

    /// How long a call waits for the other ranks at a time, by CLOCK_MONOTONIC; without it, for ever. When the time is up the call fails
    /// with [`SyncError::TimedOut`](crate::sync::SyncError::TimedOut), which names the ranks that had not come, and the crew is over.
    ///
    /// ```
    /// use std::time::Duration;
    /// use phalanx::collective::{Collective, CollectiveError};
    /// use phalanx::sync::SyncError;
    ///
    /// let mut alone = Collective::new(2)?.join(0)?.timeout(Duration::from_millis(5));
    /// assert!(matches!(alone.barrier(), Err(CollectiveError::Sync(SyncError::TimedOut { .. }))));
    /// # Ok::<(), CollectiveError>(())
    /// ```
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// This rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    #[must_use]
    pub fn nprocs(&self) -> usize {
        self.crew.nprocs()
    }

    /// Waits until all ranks have come. What each had written to shared memory before is then seen by all.
    ///
    /// # Errors
    /// [`CollectiveError`], on every rank.
    pub fn barrier(&mut self) -> Result<(), CollectiveError> {
        let (none, dtype) = (Span::default(), DType::U8);
        self.announce(Announcement { operation: Operation::Barrier, dtype, source: none, target: none })
            .map(drop)
    }

    /// Puts the sum (or what `reduce` says) of all ranks' tensors in the place of each of them.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// # use phalanx::Tensor;
    /// # use phalanx::collective::{Collective, Reduce};
    /// fn work(rank: usize, crew: Collective) -> anyhow::Result<f64> {
    ///     let mut crew = crew.join(rank)?;
    ///     let loss = Tensor::full(&[1], rank as f64)?;
    ///     crew.all_reduce(&loss, Reduce::Mean)?;
    ///     Ok(loss.get(0)?)
    /// }
    /// # fn main() -> anyhow::Result<()> {
    /// assert_eq!(phalanx::spawn(work, Collective::new(2)?, 2)?, [0.5, 0.5]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`CollectiveError`], on every rank.
    pub fn all_reduce<T: Number>(
        &mut self,
        tensor: &Tensor<T>,
        reduce: Reduce,
    ) -> Result<(), CollectiveError> {
        let (tensor, how) = (tensor.as_dyn(), (T::DTYPE, reduce));
        let (own, bytes) = (Side::of(tensor), bytes(tensor));
        let early = self.stage_early(bytes <= AREA, own, bytes);
        let agreed = self.agree(Operation::AllReduce(reduce), tensor, tensor, early)?;
        let Some(own) = own else { return Ok(()) };
        if let Some(all) = agreed.in_place {
            self.reduce_share(how, &all, bytes);
            return self.wait();
        }
        for piece in pieces(bytes, AREA) {
            self.stage_late(early, own.from(piece.start), piece.len())?;
            let all = self.areas();
            if side::is_reduced_by_each(piece.len(), all.len()) {
                side::reduce(how, &all, &[own.from(piece.start)], piece.len());
            } else {
                self.reduce_share(how, &all, piece.len());
                self.wait()?;
                self.area().copy_to(own.from(piece.start), piece.len());
            }
            self.pieces += 1;
        }
        Ok(())
    }

    /// Copies the tensor of the rank `root` over those of the others.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// # use phalanx::Tensor;
    /// # use phalanx::collective::Collective;
    /// fn work(rank: usize, crew: Collective) -> anyhow::Result<i64> {
    ///     let mut crew = crew.join(rank)?;
    ///     let seed = Tensor::full(&[1], 10 + rank as i64)?;
    ///     crew.broadcast(&seed, 1)?;
    ///     Ok(seed.get(0)?)
    /// }
    /// # fn main() -> anyhow::Result<()> {
    /// assert_eq!(phalanx::spawn(work, Collective::new(3)?, 3)?, [11, 11, 11]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`CollectiveError`], on every rank. That of `root` may be read-only memory, such as a frozen tensor's.
    pub fn broadcast<T: Element>(&mut self, tensor: &Tensor<T>, root: usize) -> Result<(), CollectiveError> {
        let tensor = tensor.as_dyn();
        let (sent, bytes) = (Side::of(tensor).filter(|_| self.rank == root), bytes(tensor));
        let early = self.stage_early(bytes <= AREA, sent, bytes);
        let agreed = self.agree(Operation::Broadcast { root }, tensor, tensor, early)?;
        let Some(own) = Side::of(tensor) else { return Ok(()) };
        if let Some(all) = agreed.in_place {
            if self.rank != root {
                all[root].copy_to(own, bytes);
            }
            return self.wait();
        }
        for piece in pieces(bytes, AREA) {
            if !early {
                self.stage(sent.map(|own| own.from(piece.start)), piece.len());
                self.wait()?;
            }
            if self.rank != root {
                self.areas()[root].copy_to(own.from(piece.start), piece.len());
            }
            self.pieces += 1;
        }
        Ok(())
    }

    /// Reduces the `source`s of all ranks, which have as many parts as there are ranks; each rank gets its own part of the result in
    /// `target`.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// # use phalanx::Tensor;
    /// # use phalanx::collective::{Collective, Reduce};
    /// fn work(rank: usize, crew: Collective) -> anyhow::Result<i32> {
    ///     let mut crew = crew.join(rank)?;
    ///     let (source, target) = (Tensor::from_slice(&[1, 10], &[2])?, Tensor::zeros(&[1])?);
    ///     crew.reduce_scatter(&source, &target, Reduce::Sum)?;
    ///     Ok(target.get(0)?)
    /// }
    /// # fn main() -> anyhow::Result<()> {
    /// assert_eq!(phalanx::spawn(work, Collective::new(2)?, 2)?, [2, 20]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`CollectiveError`], on every rank.
    pub fn reduce_scatter<T: Number>(
        &mut self,
        source: &Tensor<T>,
        target: &Tensor<T>,
        reduce: Reduce,
    ) -> Result<(), CollectiveError> {
        let (source, target, how) = (source.as_dyn(), target.as_dyn(), (T::DTYPE, reduce));
        // Each rank's part of an area: in whole cache lines.
        let (part, room) = (bytes(target), AREA / self.nprocs() / 64 * 64);
        // Of a tensor of another length nothing may be read beyond its end; the call fails.
        let fits = bytes(source) == part.saturating_mul(self.nprocs());
        let sent = Side::of(source).filter(|_| fits);
        let early = part <= room;
        if early {
            self.stage_parts(sent, part, 0..part, room);
        }
        let agreed = self.agree(Operation::ReduceScatter(reduce), source, target, early)?;
        let Some(own) = Side::of(target) else { return Ok(()) };
        if let Some(all) = agreed.in_place {
            let parts: Vec<_> = all.iter().map(|all| all.from(self.rank * part)).collect();
            side::reduce(how, &parts, &[own], part);
            return self.wait();
        }
        for piece in pieces(part, room) {
            if !early {
                self.stage_parts(sent, part, piece.clone(), room);
                self.wait()?;
            }
            let parts: Vec<_> = self.areas().iter().map(|area| area.from(self.rank * room)).collect();
            side::reduce(how, &parts, &[own.from(piece.start)], piece.len());
            self.pieces += 1;
        }
        Ok(())
    }

    /// Copies the `source`s of all ranks, one after the other by rank, into the `target` of each.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// # use phalanx::Tensor;
    /// # use phalanx::collective::Collective;
    /// fn work(rank: usize, crew: Collective) -> anyhow::Result<Vec<u32>> {
    ///     let mut crew = crew.join(rank)?;
    ///     let (source, target) = (Tensor::full(&[1], rank as u32)?, Tensor::zeros(&[3])?);
    ///     crew.all_gather(&source, &target)?;
    ///     Ok(target.to_vec())
    /// }
    /// # fn main() -> anyhow::Result<()> {
    /// assert_eq!(phalanx::spawn(work, Collective::new(3)?, 3)?[2], [0, 1, 2]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`CollectiveError`], on every rank.
    pub fn all_gather<T: Element>(
        &mut self,
        source: &Tensor<T>,
        target: &Tensor<T>,
    ) -> Result<(), CollectiveError> {
        let (source, target) = (source.as_dyn(), target.as_dyn());
        let (sent, part) = (Side::of(source), bytes(source));
        let early = self.stage_early(part <= AREA, sent, part);
        let agreed = self.agree(Operation::AllGather, source, target, early)?;
        let (Some(sent), Some(own)) = (sent, Side::of(target)) else { return Ok(()) };
        if let Some(all) = agreed.in_place {
            all.iter().enumerate().for_each(|(rank, one)| one.copy_to(own.from(rank * part), part));
            return self.wait();
        }
        for piece in pieces(part, AREA) {
            self.stage_late(early, sent.from(piece.start), piece.len())?;
            for (rank, area) in self.areas().iter().enumerate() {
                area.copy_to(own.from(rank * part + piece.start), piece.len());
            }
            self.pieces += 1;
        }
        Ok(())
    }

    /// Announces a call, and waits until all have; after this all ranks go the same way.
    fn agree<'a>(
        &mut self,
        operation: Operation,
        source: &'a DynTensor,
        target: &DynTensor,
        early: bool,
    ) -> Result<Agreed<'a>, CollectiveError> {
        let (source_span, target_span) = (Span::of(source), Span::of(target));
        let call =
            Announcement { operation, dtype: source.dtype(), source: source_span, target: target_span };
        let all = self.announce(call)?;
        // What was staged already is not read in place as well: for so little it makes no difference.
        let starts = announce::in_one_storage(&all, source.storage().len()).filter(|_| !early);
        let sides = starts.map(|starts| starts.into_iter().map(|at| Side::beside(source, at)).collect());
        Ok(Agreed { in_place: sides.flatten() })
    }

    fn announce(&mut self, call: Announcement) -> Result<Vec<Announcement>, CollectiveError> {
        let turn = self.calls;
        self.calls += 1;
        self.crew.announce(self.rank, turn, &call);
        self.wait()?;
        announce::agree(&self.crew.announced(turn)).map_err(|passed| CollectiveError::Mismatch { passed })
    }

    fn wait(&self) -> Result<(), CollectiveError> {
        let barrier = &self.crew.barrier;
        let waited = self.timeout.map_or_else(|| barrier.wait(), |timeout| barrier.wait_timeout(timeout));
        waited.map(drop).map_err(|error| self.crew.explain(error))
    }

    /// Stages a call that is one piece before it is announced, so that it waits once less; says whether it did.
    fn stage_early(&self, one_piece: bool, from: Option<Side<'_>>, len: usize) -> bool {
        // Others may have passed another length; then all that was staged is not read.
        if one_piece {
            self.stage(from, len);
        }
        one_piece
    }

    /// Stages a piece for the others, unless it was before, and waits until all have.
    fn stage_late(&self, early: bool, from: Side<'_>, len: usize) -> Result<(), CollectiveError> {
        if early {
            return Ok(());
        }
        self.stage(Some(from), len);
        self.wait()
    }

    /// Copies a piece into this rank's area.
    fn stage(&self, from: Option<Side<'_>>, len: usize) {
        if let Some(from) = from {
            from.copy_to(self.area(), len);
        }
    }

    /// Copies a piece of each rank's part, of `part` bytes, into this rank's area, in which a part has `room`.
    fn stage_parts(&self, from: Option<Side<'_>>, part: usize, piece: std::ops::Range<usize>, room: usize) {
        for (rank, from) in (0..self.nprocs()).filter_map(|rank| Some((rank, from?))) {
            from.from(rank * part + piece.start).copy_to(self.area().from(rank * room), piece.len());
        }
    }

    /// Reduces this rank's share of a piece, for all.
    fn reduce_share(&self, how: (DType, Reduce), all: &[Side<'_>], len: usize) {
        let share = side::share(len, self.rank, all.len());
        let own: Vec<_> = all.iter().map(|one| one.from(share.start)).collect();
        side::reduce(how, &own, &own, share.len());
    }

    /// This rank's area for the piece that is on its way.
    fn area(&self) -> Side<'_> {
        self.crew.area(self.rank, self.pieces)
    }

    /// The areas of all ranks for that piece.
    fn areas(&self) -> Vec<Side<'_>> {
        (0..self.nprocs()).map(|rank| self.crew.area(rank, self.pieces)).collect()
    }
}

/// The size of all elements of a tensor.
fn bytes(tensor: &DynTensor) -> usize {
    tensor.len() * tensor.dtype().size()
}
