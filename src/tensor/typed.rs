//! A tensor whose element type the compiler knows.

use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeBounds;

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
/// byte by byte only. For slices there are [`freeze`](Self::freeze) and [`into_shards`](Self::into_shards).
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
    /// A tensor of zeros. A shape without dimensions has one element.
    ///
    /// # Errors
    /// As [`Storage::new`], and [`MemoryError::TooLarge`] when the shape has more bytes than can be counted.
    pub fn zeros(shape: &[usize]) -> Result<Self, MemoryError> {
        Ok(Self::over(DynTensor::zeros(T::DTYPE, shape)?))
    }

    /// A tensor of which every element is `value`.
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
    /// # Errors
    /// As [`zeros`](Self::zeros), and [`MemoryError::LengthMismatch`] when there are not as many elements as the
    /// shape has.
    pub fn from_slice(elements: &[T], shape: &[usize]) -> Result<Self, MemoryError> {
        let tensor = Self::zeros(shape)?;
        tensor.write_from(elements)?;
        Ok(tensor)
    }

    /// A tensor over the first bytes of a storage, in row-major order.
    ///
    /// # Errors
    /// [`MemoryError::LengthMismatch`] when the storage is too small for the shape, [`MemoryError::OtherSize`] when there
    /// was a tensor over it whose elements have another size.
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

    /// The size of every dimension.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.any.shape()
    }

    /// By dimension, how many elements of the storage lie between two neighbours.
    #[must_use]
    pub fn strides(&self) -> &[usize] {
        self.any.strides()
    }

    /// Which element of the storage comes first.
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

    /// The memory below it.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        self.any.storage()
    }

    /// The memory's name, the same in every process that has it.
    #[must_use]
    pub fn storage_id(&self) -> StorageId {
        self.any.storage_id()
    }

    /// Whether its elements lie one after the other in row-major order.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        self.any.is_contiguous()
    }

    /// Whether its memory is one that other processes can map: as torch has it, but here it always is.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.any.is_shared()
    }

    /// A view of `len` elements of a dimension, from `start` on.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPart`].
    pub fn narrow(&self, dimension: usize, start: usize, len: usize) -> Result<Self, MemoryError> {
        self.any.narrow(dimension, start, len).map(Self::over)
    }

    /// A view of every `step`th element of a range of a dimension.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let tensor = Tensor::from_slice(&[0, 1, 2, 3, 4, 5], &[6])?;
    /// assert_eq!(tensor.slice(0, 1.., 2)?.to_vec(), [1, 3, 5]);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPart`], also when the step is zero.
    pub fn slice(
        &self,
        dimension: usize,
        range: impl RangeBounds<usize>,
        step: usize,
    ) -> Result<Self, MemoryError> {
        self.any.slice(dimension, range, step).map(Self::over)
    }

    /// A view of one element of a dimension, which the view does not have.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPart`].
    pub fn select(&self, dimension: usize, index: usize) -> Result<Self, MemoryError> {
        self.any.select(dimension, index).map(Self::over)
    }

    /// A view in which two dimensions have changed places.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPart`] when there is no such dimension.
    pub fn transpose(&self, one: usize, other: usize) -> Result<Self, MemoryError> {
        self.any.transpose(one, other).map(Self::over)
    }

    /// A view of the same elements, in the same order, with another shape.
    ///
    /// # Errors
    /// [`MemoryError::LengthMismatch`] when that shape has not as many elements, [`MemoryError::NotContiguous`] when a
    /// copy would be needed: [`contiguous`](Self::contiguous) makes one.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self, MemoryError> {
        self.any.reshape(shape).map(Self::over)
    }

    /// This tensor if its elements lie one after the other, else a copy in which they do.
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros).
    pub fn contiguous(&self) -> Result<Self, MemoryError> {
        self.any.contiguous().map(Self::over)
    }
}

impl DynTensor {
    /// The same tensor with its element type known to the compiler.
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
