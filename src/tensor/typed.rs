//! A tensor whose element type the compiler knows.

use std::fmt;
use std::marker::PhantomData;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::dyn_tensor::DynTensor;
use super::element::Element;
use crate::dtype::DType;
use crate::error::MemoryError;
use crate::memory::storage::{Storage, StorageId};

/// An array of numbers in memory that workers share.
///
/// Clones and views share the memory. In the arguments or the result of a worker a tensor travels as a descriptor or a
/// name: nothing is copied, and what one process writes the others see.
///
/// All safe access is by relaxed atomics, since another process may write at any time: `get` and `set` never
/// tear an element, but say nothing of the order in which others see two writes. The bulk copies are atomic
/// byte by byte only. [`cells`](Self::cells) are the elements as a slice of atomics, as fast as a `Vec`. For plain slices
/// there are [`freeze`](Self::freeze) and [`into_shards`](Self::into_shards).
///
/// Elements are counted in row-major order of the tensor's own shape, whatever it is a view of.
///
/// ```
/// use phalanx::Tensor;
/// let weights = Tensor::<f32>::zeros(&[2, 3])?;
/// let index = weights.position(&[1, 2])?;
/// weights.set(index, 0.5)?;
/// weights.fetch_add(index, 0.25)?;
/// assert_eq!(weights.get(5)?, 0.75);
/// assert_eq!(weights.to_vec(), [0.0, 0.0, 0.0, 0.0, 0.0, 0.75]);
///
/// let last_column = weights.select(1, 2)?;
/// assert_eq!(last_column.to_vec(), [0.0, 0.75]);
/// last_column.set(0, 1.0)?;
/// assert_eq!(weights.transpose(0, 1)?.to_vec(), [0.0, 0.0, 0.0, 0.0, 1.0, 0.75]);
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
#[derive(Clone)]
pub struct Tensor<T: Element> {
    /// Of elements of this type.
    pub(super) any: DynTensor,
    elements: PhantomData<T>,
}

impl<T: Element> Tensor<T> {
    /// Makes a tensor of zeros. A shape without dimensions has one element.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let tensor = Tensor::<f32>::zeros(&[2, 3])?;
    /// assert_eq!((tensor.len(), tensor.get(5)?), (6, 0.0));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Storage::new`], and [`MemoryError::TooLarge`] when the shape has more bytes than the address space.
    pub fn zeros(shape: &[usize]) -> Result<Self, MemoryError> {
        Ok(Self::over(DynTensor::zeros(T::DTYPE, shape)?))
    }

    /// A tensor of which every element is `value`.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// assert_eq!(Tensor::full(&[2], 1.5)?.to_vec(), [1.5, 1.5]);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros).
    pub fn full(shape: &[usize], value: T) -> Result<Self, MemoryError> {
        let tensor = Self::zeros(shape)?;
        tensor.fill(value)?;
        Ok(tensor)
    }

    /// A tensor with a copy of `elements`.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let tensor = Tensor::from_slice(&[1, 2, 3, 4], &[2, 2])?;
    /// assert_eq!(tensor.select(0, 1)?.to_vec(), [3, 4]);
    /// assert!(Tensor::from_slice(&[1, 2, 3], &[2, 2]).is_err());
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros), and [`MemoryError::LengthMismatch`] when there are not as many elements as the
    /// shape has.
    pub fn from_slice(elements: &[T], shape: &[usize]) -> Result<Self, MemoryError> {
        let tensor = Self::zeros(shape)?;
        tensor.write_from(elements)?;
        Ok(tensor)
    }

    /// Makes a tensor over the first bytes of a storage, in row-major order.
    ///
    /// ```
    /// use phalanx::{Storage, Tensor};
    /// let storage = Storage::new(16)?;
    /// let (one, other) = (Tensor::<u32>::from_storage(&storage, &[4])?, Tensor::<f32>::from_storage(&storage, &[4])?);
    /// one.set(0, 1.0_f32.to_bits())?;
    /// assert_eq!(other.get(0)?, 1.0);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::LengthMismatch`] when the storage is too small for the shape, [`MemoryError::OtherSize`] when tensors over
    /// it have had elements of another size.
    pub fn from_storage(storage: &Storage, shape: &[usize]) -> Result<Self, MemoryError> {
        Ok(Self::over(DynTensor::from_storage(storage, T::DTYPE, shape)?))
    }

    /// A tensor of this type, as the caller knows.
    pub(super) fn over(any: DynTensor) -> Self {
        Self { any, elements: PhantomData }
    }

    /// The same tensor with its element type as data.
    #[must_use]
    pub fn as_dyn(&self) -> &DynTensor {
        &self.any
    }

    /// The same tensor with its element type as data.
    #[must_use]
    pub fn into_dyn(self) -> DynTensor {
        self.any
    }

    /// The number of elements along each dimension.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.any.shape()
    }

    /// The distance between neighbours along each dimension, in elements of the storage.
    #[must_use]
    pub fn strides(&self) -> &[usize] {
        self.any.strides()
    }

    /// The number of the tensor's first element in the storage.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.any.offset()
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.any.len()
    }

    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.any.is_empty()
    }

    /// The type of its elements.
    #[must_use]
    pub fn dtype(&self) -> DType {
        T::DTYPE
    }

    /// The memory that it lies in, which its clones and views share.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        self.any.storage()
    }

    /// The identity of its memory, equal in every process that has it.
    #[must_use]
    pub fn storage_id(&self) -> StorageId {
        self.any.storage_id()
    }

    /// Whether its elements lie one after the other, in row-major order.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        self.any.is_contiguous()
    }

    /// Whether its memory can be mapped by other processes: always true. (torch has tensors that cannot.)
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.any.is_shared()
    }
}

impl DynTensor {
    /// The same tensor with its element type known to the compiler.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let any = Tensor::from_slice(&[1_i64, 2], &[2])?.into_dyn();
    /// assert!(any.typed::<i64>().is_ok() && any.typed::<f64>().is_err());
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::WrongType`] when it is another.
    pub fn typed<T: Element>(&self) -> Result<Tensor<T>, MemoryError> {
        Tensor::try_from(self.clone())
    }
}

impl<T: Element> fmt::Debug for Tensor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { any, elements: _ } = self;
        any.describe(f, "Tensor")
    }
}

impl<T: Element> From<Tensor<T>> for DynTensor {
    fn from(tensor: Tensor<T>) -> Self {
        tensor.any
    }
}

impl<T: Element> TryFrom<DynTensor> for Tensor<T> {
    type Error = MemoryError;

    fn try_from(any: DynTensor) -> Result<Self, MemoryError> {
        let (found, expected) = (any.dtype(), T::DTYPE);
        if found == expected { Ok(Self::over(any)) } else { Err(MemoryError::WrongType { found, expected }) }
    }
}

impl<T: Element> Serialize for Tensor<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.any.serialize(serializer)
    }
}

impl<'de, T: Element> Deserialize<'de> for Tensor<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let any = DynTensor::deserialize(deserializer)?;
        let (found, expected) = (any.dtype(), T::DTYPE);
        any.try_into().map_err(|_: MemoryError| {
            D::Error::custom(format!("a tensor of {found} arrived where one of {expected} was expected"))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Bound;

    use super::*;

    #[test]
    fn tensor_that_does_not_fit_is_named_with_its_size_in_units() {
        let error = Tensor::<f32>::zeros(&[1 << 20, 1 << 20]).unwrap_err().to_string();
        let expected =
            "cannot get 4.0 TiB (4398046511104 bytes) for a tensor of f32 of shape [1048576, 1048576]: only ";
        assert!(error.starts_with(expected) && error.contains(" are available"), "{error}");
    }

    #[test]
    fn bounds_and_lengths_are_checked() {
        let tensor = Tensor::<f64>::from_slice(&[1.0, 2.0, 3.0, 4.0], &[2, 2]).unwrap();
        assert_eq!(tensor.position(&[1, 0]).unwrap(), 2);
        assert!(tensor.position(&[0, 2]).is_err());
        assert!(tensor.position(&[1]).is_err());
        assert!(tensor.get(4).is_err());
        assert!(tensor.read_into(&mut [0.0; 3]).is_err());
        assert!(tensor.as_dyn().write_bytes(&[0; 31]).is_err());
        assert!(Tensor::<f64>::from_slice(&[1.0], &[2]).is_err());
        assert!(matches!(Tensor::<f64>::zeros(&[usize::MAX, 2]), Err(MemoryError::TooLarge { .. })));
        assert!(matches!(Tensor::<f64>::zeros(&[usize::MAX / 4]), Err(MemoryError::TooLarge { .. })));
        assert!(Tensor::<u8>::zeros(&[3, 0]).unwrap().get(0).is_err());
        let none = Tensor::<u8>::zeros(&[usize::MAX, 2, 0]).unwrap();
        assert!(none.get(0).unwrap_err().to_string().ends_with("of 0 elements"));
        let storage = Storage::new(15).unwrap();
        assert!(Tensor::<f64>::from_storage(&storage, &[2]).is_err());
        assert_eq!(Tensor::<f64>::from_storage(&storage, &[1]).unwrap().len(), 1);
        assert!(Tensor::<i64>::from_storage(&storage, &[1]).is_ok());
        let error = Tensor::<u8>::from_storage(&storage, &[1]).unwrap_err().to_string();
        assert_eq!(error, "this storage has elements of 8 bytes: it cannot have elements of 1 bytes too");
    }

    #[test]
    fn views_share_the_memory_and_parts_that_are_not_there_are_told() {
        let tensor = Tensor::from_slice(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], &[3, 4]).unwrap();
        let corner = tensor.narrow(0, 1, 2).unwrap().slice(1, 1..=2, 1).unwrap();
        assert_eq!((corner.to_vec(), corner.is_contiguous()), (vec![5, 6, 9, 10], false));
        corner.write_from(&[50, 60, 90, 100]).unwrap();
        corner.fetch_add(3, 1).unwrap();
        assert_eq!(tensor.to_vec(), [0, 1, 2, 3, 4, 50, 60, 7, 8, 90, 101, 11]);
        let copy = corner.contiguous().unwrap();
        copy.set(0, 0).unwrap();
        assert_eq!((corner.get(0).unwrap(), copy.to_vec()), (50, vec![0, 60, 90, 101]));
        assert_eq!(tensor.reshape(&[2, 6]).unwrap().get(11).unwrap(), 11);
        let error = |result: Result<Tensor<i32>, MemoryError>| result.unwrap_err().to_string();
        assert!(error(corner.reshape(&[4])).contains("cannot be one of shape [4] without a copy"));
        assert!(error(corner.reshape(&[5])).contains("which has 5"));
        assert_eq!(
            error(tensor.select(0, 3)),
            "element 3 of dimension 0 does not exist in a tensor of shape [3, 4]"
        );
        assert!(error(tensor.narrow(1, 3, 2)).contains("a part of 2 elements from 3 on of dimension 1"));
        for missing in [
            tensor.slice(2, .., 1),
            tensor.slice(0, (Bound::Included(2), Bound::Excluded(1)), 1),
            tensor.slice(0, ..4, 1),
            tensor.slice(0, .., 0),
        ] {
            assert!(matches!(missing, Err(MemoryError::NoSuchPart { .. })));
        }
        assert_eq!(error(tensor.transpose(0, 2)), "dimension 2 does not exist in a tensor of shape [3, 4]");
    }
}
