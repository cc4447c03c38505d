//! Division of a tensor into shards, and the way back.

use std::sync::Arc;

use super::dyn_tensor::DynTensor;
use super::element::Number;
use super::refused::Refused;
use super::shard::Shard;
use super::typed::Tensor;
use crate::error::MemoryError;
use crate::memory::create::ask_first;
use crate::memory::storage::Storage;
use crate::sys::memory;
use crate::transfer::attachments::Claim;
use crate::transfer::grant::{Cut, MAX_ALIGN};

impl<T: Number> Tensor<T> {
    /// Divides the tensor along its first dimension into `n` shards, each of which one process can have for itself. They have
    /// as many rows each, but for one more in the first ones; with fewer rows than shards some are empty.
    ///
    /// Nothing is copied when this is the tensor's only handle, the tensor was never sent anywhere, it can be written to, and its
    /// elements lie one after the other. Otherwise the elements are copied into memory of the shards' own, so that a holder of the old
    /// memory cannot reach them.
    ///
    /// ```
    /// use phalanx::Tensor;
    ///
    /// let shards = Tensor::<f32>::zeros(&[5, 2])?.into_shards(2)?;
    /// assert_eq!((shards[0].shape(), shards[1].shape()), (&[3, 2][..], &[2, 2][..]));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::CannotDivide`] when `n` is zero or the tensor has no dimension; [`MemoryError::NotEnough`] when there
    /// is not the memory for them, of which each needs some 400 bytes of this process's own; as [`Tensor::zeros`] when it has
    /// to be copied.
    pub fn into_shards(self, n: usize) -> Result<Vec<Shard<T>>, MemoryError> {
        let refuse = |reason| MemoryError::CannotDivide { shape: self.shape().to_vec(), parts: n, reason };
        let rows = *self.shape().first().ok_or_else(|| refuse("it has no dimension"))?;
        if n == 0 {
            return Err(refuse("there must be at least one shard"));
        }
        // Before anything is made: the caller may ask for any number of shards.
        let mut shards = room_for(n, self.shape().len())?;
        let whole = self.into_dyn().into_exclusive()?;
        let row_len = whole.len().checked_div(rows).unwrap_or(0) * size_of::<T>();
        let mut at = whole.storage().offset() + whole.offset() * size_of::<T>();
        shards.extend((0..n).map(|index| {
            let shape = [&[rows / n + usize::from(index < rows % n)], &whole.shape()[1..]].concat();
            let (from, len) = (at, shape[0] * row_len);
            at += len;
            let storage = Storage::place(whole.storage().segment().cloned(), from, len, false);
            // It is new: there is no other size yet.
            let _ = storage.claim_unit(size_of::<T>());
            Shard::new(storage, cut_of(&whole, shape, index, n))
        }));
        Ok(shards)
    }

    /// Puts all shards of a tensor together again, in whichever order they are. Nothing is copied.
    ///
    /// ```
    /// use phalanx::Tensor;
    ///
    /// let mut shards = Tensor::from_slice(&[1, 2, 3], &[3])?.into_shards(3)?;
    /// shards.reverse();
    /// assert_eq!(Tensor::from_shards(shards)?.to_vec(), [1, 2, 3]);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Refused`], with the shards as they were: [`MemoryError::NotAllShards`] when they are not all shards of one
    /// tensor, [`MemoryError::ShardGone`] when one was sent.
    pub fn from_shards(mut shards: Vec<Shard<T>>) -> Result<Self, Refused<Vec<Shard<T>>>> {
        shards.sort_by_key(Shard::index);
        let whole = match whole_of(&shards) {
            Ok(whole) => whole,
            Err(reason) => return Err(Refused::new(shards, reason)),
        };
        // Claimed, so that none can be used beside the tensor. (This function owns them, so that no other thread claims one.)
        match shards.iter().try_for_each(|shard| shard.claim().map(|claim| Box::new(claim).keep())) {
            Ok(()) => Ok(Self::over(whole)),
            Err(reason) => Err(Refused::new(shards, reason)),
        }
    }
}

/// Room for as many shards of a tensor of that many dimensions.
///
/// # Errors
/// [`MemoryError::NotEnough`] when there is not the memory for them, [`MemoryError::TooMany`] when no address space has room for them.
fn room_for<T: Number>(shards: usize, dimensions: usize) -> Result<Vec<Shard<T>>, MemoryError> {
    // Beside the shard itself: its storage, the flag that it was sent, its shape and that of the whole.
    let each = size_of::<Shard<T>>() + 256 + 2 * dimensions * size_of::<usize>();
    let too_many =
        MemoryError::TooMany { what: "shards of a tensor", asked: shards, most: usize::MAX / each };
    let asked = shards.checked_mul(each).ok_or(too_many)? as u64;
    ask_first(asked)?;
    let mut room = Vec::new();
    room.try_reserve_exact(shards)
        .map_err(|_| MemoryError::not_enough(asked, memory::available().as_ref()))?;
    Ok(room)
}

/// The tensor that these shards, in this order, make up.
///
/// # Errors
/// [`MemoryError::NotAllShards`], [`MemoryError::ShardGone`].
fn whole_of<T: Number>(shards: &[Shard<T>]) -> Result<DynTensor, MemoryError> {
    let given = shards.len();
    let refuse = |reason: String| MemoryError::NotAllShards { given, reason };
    let first = shards.first().ok_or_else(|| refuse("there are none".to_owned()))?;
    let (cut, segment) = (&first.cut, shards.iter().find_map(|shard| shard.storage.segment().cloned()));
    let mut at = cut.whole_at();
    for (index, shard) in shards.iter().enumerate() {
        shard.check_here()?;
        let own = shard.storage.segment().map(Arc::as_ptr);
        let same_memory = own.is_none() || own == segment.as_ref().map(Arc::as_ptr);
        if !(same_memory && shard.cut.is_of_same(cut)) {
            return Err(refuse("they are not of one tensor".to_owned()));
        }
        if shard.cut.index != index || shard.storage.offset() != at {
            return Err(refuse(format!("shard {index} of {} is missing", cut.of)));
        }
        at += shard.storage.len();
    }
    if given != cut.of {
        return Err(refuse(format!("there are {} in all", cut.of)));
    }
    let store = (cut.store_offset, cut.store_len);
    let whole = Storage::checked(segment, store, MAX_ALIGN, false)
        .and_then(|storage| {
            DynTensor::within(&storage, cut.start * size_of::<T>(), T::DTYPE, &cut.whole_shape)
        })
        // A part of the storage that the shards do not fill would be no whole.
        .filter(|whole| at == cut.whole_at() + whole.len() * size_of::<T>());
    whole.ok_or_else(|| refuse("they do not fit their memory".to_owned()))
}

/// What the shard of that number, and of that shape, has to know of its tensor.
fn cut_of(whole: &DynTensor, shape: Vec<usize>, index: usize, of: usize) -> Cut {
    let (store_offset, store_len) = (whole.storage().offset(), whole.storage().len());
    let (dtype, start, whole_shape) = (whole.dtype(), whole.offset(), whole.shape().to_vec());
    Cut { dtype, shape, index, of, store_offset, store_len, start, whole_shape }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(elements: usize, n: usize) -> Vec<Shard<i32>> {
        let values: Vec<_> = (0..elements as i32).collect();
        Tensor::from_slice(&values, &[elements]).unwrap().into_shards(n).unwrap()
    }

    #[test]
    fn shards_are_nearly_equal_and_make_up_the_whole_in_any_order() {
        let mut parts = shards(10, 4);
        assert_eq!(parts.iter().map(Shard::len).collect::<Vec<_>>(), [3, 3, 2, 2]);
        parts[3].as_mut_slice().unwrap()[1] = 90;
        parts.reverse();
        let whole = Tensor::from_shards(parts).unwrap();
        assert_eq!(whole.to_vec(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 90]);
        let few = shards(2, 5);
        assert_eq!(few.iter().map(Shard::len).collect::<Vec<_>>(), [1, 1, 0, 0, 0]);
        assert_eq!(Tensor::from_shards(few).unwrap().to_vec(), [0, 1]);
        let none = Tensor::<f64>::zeros(&[0, 3]).unwrap().into_shards(2).unwrap();
        assert_eq!(Tensor::from_shards(none).unwrap().shape(), [0, 3]);
    }

    #[test]
    fn tensor_with_other_handles_is_copied_so_that_they_do_not_reach_the_shards() {
        let tensor = Tensor::<u8>::from_slice(&[1, 2, 3], &[3]).unwrap();
        let id = tensor.storage_id();
        let clone = tensor.clone();
        let mut parts = tensor.into_shards(1).unwrap();
        parts[0].as_mut_slice().unwrap()[0] = 9;
        assert_eq!(clone.to_vec(), [1, 2, 3]);
        let whole = Tensor::from_shards(parts).unwrap();
        let own = whole.storage_id();
        assert_ne!(own, id);
        // Whole again it is the only handle: no copy the second time.
        assert_eq!(Tensor::from_shards(whole.into_shards(2).unwrap()).unwrap().storage_id(), own);
        let view = clone.narrow(0, 1, 2).unwrap();
        drop(clone);
        assert_eq!(Tensor::from_shards(view.into_shards(2).unwrap()).unwrap().to_vec(), [2, 3]);
    }

    #[test]
    fn what_is_no_whole_is_refused() {
        let refused = |parts: Vec<Shard<i32>>| Tensor::from_shards(parts).unwrap_err().to_string();
        assert!(refused(Vec::new()).contains("there are none"));
        let mut some = shards(8, 4);
        some.remove(1);
        assert!(refused(some).contains("shard 1 of 4 is missing"));
        let mut short = shards(8, 4);
        short.pop();
        assert!(refused(short).contains("there are 4 in all"));
        let (mut one, mut other) = (shards(8, 2), shards(8, 2));
        one[1] = other.remove(1);
        assert!(refused(one).contains("not of one tensor"));
        assert!(Tensor::<i32>::zeros(&[]).unwrap().into_shards(1).is_err());
        assert!(Tensor::<i32>::zeros(&[4]).unwrap().into_shards(0).is_err());
    }
}
