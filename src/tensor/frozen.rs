//! FrozenTensor: a tensor in sealed memory.

use std::fmt;
use std::ops::Deref;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::dyn_tensor::DynTensor;
use super::element::{Element, Number};
use super::refused::Refused;
use super::typed::Tensor;
use crate::dtype::DType;
use crate::error::MemoryError;
use crate::memory::storage::{Storage, StorageId};

/// A tensor whose memory is sealed (fcntl(2), F_SEAL_WRITE): no process can ever write to it again, so that it is a plain slice
/// without `unsafe`.
///
/// Clones, and what arrives in a worker, are the same memory.
///
/// ```
/// use phalanx::Tensor;
/// let weights = Tensor::from_slice(&[0.5_f32, 1.5, 2.0], &[3])?.freeze()?;
/// assert_eq!(weights.iter().sum::<f32>(), 4.0);
/// # Ok::<(), anyhow::Error>(())
/// ```
///
/// [`to_tensor`](Self::to_tensor) has views of it, which can be frozen at no cost.
///
/// A `FrozenTensor<bool>` is no slice, since another byte than 0 and 1 may have been written before it was frozen:
/// [`to_tensor`](Self::to_tensor) reads it.
#[derive(Clone)]
pub struct FrozenTensor<T: Element>(Tensor<T>);

impl<T: Element> FrozenTensor<T> {
    /// The number of elements along each dimension.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The type of its elements.
    #[must_use]
    pub fn dtype(&self) -> DType {
        T::DTYPE
    }

    /// The identity of its memory, equal in every process that has it.
    #[must_use]
    pub fn storage_id(&self) -> StorageId {
        self.0.storage_id()
    }

    /// The same memory as a tensor, which refuses to be written. Views are made of that.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let frozen = Tensor::from_slice(&[1, 2, 3], &[3])?.freeze()?;
    /// assert_eq!(frozen.to_tensor().narrow(0, 1, 2)?.freeze()?[..], [2, 3]);
    /// assert!(frozen.to_tensor().set(0, 9).is_err());
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[must_use]
    pub fn to_tensor(&self) -> Tensor<T> {
        self.0.clone()
    }
}

impl<T: Number> Deref for FrozenTensor<T> {
    type Target = [T];

    /// Its elements in row-major order.
    fn deref(&self) -> &[T] {
        let tensor = self.0.as_dyn();
        let bytes = tensor.storage().bytes().and_then(|(map, at)| {
            let begin = at + tensor.offset() * size_of::<T>();
            map.sealed_bytes()?.get(begin..begin + tensor.len() * size_of::<T>())
        });
        // Aligned: storages begin at multiples of 8, and elements at multiples of their size in them.
        bytes.map_or(&[], bytemuck::cast_slice)
    }
}

impl<T: Number> AsRef<[T]> for FrozenTensor<T> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

impl<T: Element> fmt::Debug for FrozenTensor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FrozenTensor").field(&self.0).finish()
    }
}

impl<T: Element> Tensor<T> {
    /// Seals the memory against writing in any process, for good.
    ///
    /// No one else may be able to write to it: this must be the only handle in this process, all workers that were given the
    /// tensor must have ended, and no other process may have it mapped (the kernel checks that). Nothing is copied if the tensor
    /// is larger than 256 KiB, was made with [`SharingStrategy::FileDescriptor`](crate::SharingStrategy) and is contiguous.
    /// Other memory is shared with other tensors or cannot be sealed, so that the elements are copied into a memfd of their own.
    ///
    /// A frozen tensor and its views can be frozen again at no cost: freeze the whole, then [`narrow`](Self::narrow) and freeze
    /// the parts.
    ///
    /// # Errors
    /// [`Refused`], with the tensor as it was: [`MemoryError::StillWritable`] when another handle or process has it; as
    /// [`zeros`](Self::zeros) when it has to be copied.
    pub fn freeze(self) -> Result<FrozenTensor<T>, Refused<Tensor<T>>> {
        if is_frozen(self.as_dyn()) {
            return Ok(FrozenTensor(self));
        }
        let refuse = |tensor, reason| Refused::new(Tensor::over(tensor), reason);
        let tensor = self.into_dyn();
        let (frozen, original) = match tensor.alone() {
            Ok(None) => (tensor.freeze_storage(), None),
            Ok(Some(copy)) => (copy.freeze_storage(), Some(tensor)),
            Err(reason) => return Err(refuse(tensor, reason)),
        };
        match frozen {
            (frozen, Ok(())) => Ok(FrozenTensor(Tensor::over(frozen))),
            (refused, Err(reason)) => Err(refuse(original.unwrap_or(refused), reason)),
        }
    }
}

/// Whether the elements lie one after the other in memory that is sealed.
fn is_frozen(tensor: &DynTensor) -> bool {
    let sealed = tensor.storage().bytes().is_some_and(|(map, _)| map.sealed_bytes().is_some());
    tensor.is_contiguous() && (sealed || tensor.is_empty())
}

impl DynTensor {
    /// A copy of it in memory of its own, which can be sealed; `None` when its memory can be.
    ///
    /// # Errors
    /// When another holder is known that could write to it: the copy would not have what it writes.
    fn alone(&self) -> Result<Option<Self>, MemoryError> {
        if let Some(holder) = self.storage().other_writer() {
            return Err(MemoryError::StillWritable { bytes: self.storage().len(), holder });
        }
        if self.is_contiguous() && self.storage().is_sealable() {
            return Ok(None);
        }
        let storage = Storage::sealable(self.len() * self.dtype().size())?;
        let copy = Self::from_storage(&storage, self.dtype(), self.shape())?;
        copy.copy_from(self);
        Ok(Some(copy))
    }

    /// Seals its memory; returns the tensor, as it was if that failed.
    fn freeze_storage(self) -> (Self, Result<(), MemoryError>) {
        let (storage, rebuild) = self.into_parts();
        let (storage, done) = storage.freeze();
        (rebuild(storage), done)
    }
}

impl<T: Element> Serialize for FrozenTensor<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Element> Deserialize<'de> for FrozenTensor<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tensor = Tensor::deserialize(deserializer)?;
        if is_frozen(tensor.as_dyn()) {
            return Ok(Self(tensor));
        }
        Err(D::Error::custom(
            "a tensor arrived where a frozen one was expected: its memory is not sealed".to_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::arena::SMALL;

    #[test]
    fn large_tensor_is_frozen_in_place_and_refuses_to_be_written() {
        let large = Tensor::<f64>::zeros(&[SMALL]).unwrap();
        large.set(5, 1.5).unwrap();
        let id = large.storage_id();
        let frozen = large.freeze().unwrap();
        assert_eq!((frozen.storage_id(), frozen[5], frozen.len()), (id, 1.5, SMALL));
        let tensor = frozen.to_tensor();
        assert!(matches!(tensor.set(0, 1.0), Err(MemoryError::ReadOnly)));
        assert!(matches!(tensor.fetch_add(0, 1.0), Err(MemoryError::ReadOnly)));
        assert!(matches!(tensor.write_from(&vec![0.0; SMALL]), Err(MemoryError::ReadOnly)));
        // A part of it is frozen too, at no cost.
        let part = tensor.narrow(0, 4, 3).unwrap().freeze().unwrap();
        assert_eq!((&part[..], part.storage_id()), (&[0.0, 1.5, 0.0][..], id));
    }

    #[test]
    fn tensor_with_another_handle_is_not_frozen_and_comes_back() {
        for elements in [10, SMALL] {
            let tensor = Tensor::<f64>::zeros(&[elements]).unwrap();
            let other = tensor.narrow(0, 0, 1).unwrap();
            let error = tensor.freeze().unwrap_err();
            assert!(
                error.to_string().contains("a clone or a view of it in this process can still write"),
                "{error}"
            );
            let tensor = error.into_inner();
            assert_eq!(tensor.to_vec(), vec![0.0; elements]);
            tensor.set(0, 2.0).unwrap();
            assert_eq!(other.get(0).unwrap(), 2.0);
            drop(other);
            assert_eq!(tensor.freeze().unwrap()[0], 2.0);
        }
    }

    #[test]
    fn what_cannot_be_sealed_alone_is_copied() {
        let small = Tensor::from_slice(&[1_u16, 2, 3, 4, 5, 6], &[2, 3]).unwrap();
        assert_eq!(&small.freeze().unwrap()[..], [1, 2, 3, 4, 5, 6]);
        let columns = Tensor::from_slice(&[1_u16, 2, 3, 4, 5, 6], &[2, 3]).unwrap().transpose(0, 1).unwrap();
        assert_eq!(&columns.freeze().unwrap()[..], [1, 4, 2, 5, 3, 6]);
        let empty = Tensor::<f32>::zeros(&[0, 4]).unwrap().freeze().unwrap();
        assert!(empty.is_empty());
        let held = Tensor::<f32>::zeros(&[4]).unwrap();
        assert!(held.narrow(0, 4, 0).unwrap().freeze().unwrap().is_empty());
        let flags = Tensor::from_slice(&[true, false], &[2]).unwrap().freeze().unwrap();
        assert_eq!(flags.to_tensor().to_vec(), [true, false]);
    }
}
