//! A tensor whose element type the compiler knows.

use std::marker::PhantomData;
use std::ops::RangeBounds;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::dtype::{DType, Element, Number};
use super::dyn_tensor::DynTensor;
use super::passing;
use super::storage::{Storage, StorageId};
use crate::error::MemoryError;

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
/// let place = weights.position(&[1, 2])?;
/// weights.set(place, 0.5)?;
/// weights.fetch_add(place, 0.25)?;
/// assert_eq!(weights.get(5)?, 0.75);
/// assert_eq!(weights.to_vec(), [0.0, 0.0, 0.0, 0.0, 0.0, 0.75]);
///
/// let last_column = weights.select(1, 2)?;
/// assert_eq!(last_column.to_vec(), [0.0, 0.75]);
/// last_column.set(0, 1.0)?;
/// assert_eq!(weights.transpose(0, 1)?.to_vec(), [0.0, 0.0, 0.0, 0.0, 1.0, 0.75]);
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tensor<T: Element> {
    /// Of elements of this type.
    any: DynTensor,
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
    /// [`MemoryError::LengthMismatch`] when the storage is too small for the shape.
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

    /// This tensor if its elements lie one after the other, else a copy of it whose do.
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros).
    pub fn contiguous(&self) -> Result<Self, MemoryError> {
        self.any.contiguous().map(Self::over)
    }

    /// The place of an element in row-major order, which the element accessors take.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] when there is no such element.
    pub fn position(&self, index: &[usize]) -> Result<usize, MemoryError> {
        let place = self.any.layout().position(index);
        place.ok_or_else(|| MemoryError::OutOfBounds { index: index.to_vec(), shape: self.shape().to_vec() })
    }

    /// The element at `place`, by a relaxed atomic load.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] when there is no such element.
    #[inline]
    pub fn get(&self, place: usize) -> Result<T, MemoryError> {
        let (map, at) = self.any.element(place)?;
        Ok(T::load(map, at))
    }

    /// Sets the element at `place`, by a relaxed atomic store.
    ///
    /// # Errors
    /// As [`get`](Self::get), and [`MemoryError::ReadOnly`].
    #[inline]
    pub fn set(&self, place: usize, value: T) -> Result<(), MemoryError> {
        let (map, at) = self.any.writable_element(place)?;
        value.store(map, at);
        Ok(())
    }

    /// Copies all elements to `target`.
    ///
    /// # Errors
    /// [`MemoryError::LengthMismatch`] when `target` does not have as many.
    pub fn read_into(&self, target: &mut [T]) -> Result<(), MemoryError> {
        self.any.check_length(target.len())?;
        if let Some((map, run, starts)) = self.any.runs()
            && run > 0
        {
            let targets = target.chunks_exact_mut(run / size_of::<T>());
            starts.zip(targets).for_each(|(at, target)| T::load_all(map, at, target));
        }
        Ok(())
    }

    /// Copies `source` over all elements.
    ///
    /// # Errors
    /// [`MemoryError::LengthMismatch`] when `source` does not have as many, [`MemoryError::ReadOnly`].
    pub fn write_from(&self, source: &[T]) -> Result<(), MemoryError> {
        self.any.check_length(source.len())?;
        self.any.write_bytes(T::bytes_of(source))
    }

    /// A copy of all elements.
    #[must_use]
    pub fn to_vec(&self) -> Vec<T> {
        let mut elements = vec![T::default(); self.len()];
        // It has as many: there is nothing to go wrong.
        let _ = self.read_into(&mut elements);
        elements
    }
}

impl<T: Number> Tensor<T> {
    /// Adds to the element at `place`, so that no addition of another process is lost; returns what was there
    /// before. Integers wrap around.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    #[inline]
    pub fn fetch_add(&self, place: usize, value: T) -> Result<T, MemoryError> {
        let (map, at) = self.any.writable_element(place)?;
        Ok(value.fetch_add(map, at))
    }

    /// The elements in place. For a slice without `unsafe` there is [`freeze`](Self::freeze).
    ///
    /// # Errors
    /// [`MemoryError::NotContiguous`] when they do not lie one after the other.
    ///
    /// # Safety
    /// While the slice lives, no process may write to these elements, nor cut short the file they are in.
    #[expect(unsafe_code, reason = "a slice of shared memory is what the caller vouches for")]
    pub unsafe fn as_slice(&self) -> Result<&[T], MemoryError> {
        let (start, len) = (self.start()?, self.len());
        // SAFETY: start() points to len() elements, aligned and valid since every bit pattern is an element; that
        // nobody writes is what the caller promises.
        Ok(unsafe { std::slice::from_raw_parts(start, len) })
    }

    /// The elements in place, to be changed. Without `unsafe` there is [`into_shards`](Self::into_shards).
    ///
    /// # Errors
    /// As [`as_slice`](Self::as_slice), and [`MemoryError::ReadOnly`].
    ///
    /// # Safety
    /// While the slice lives, no process may access these elements but through it, nor cut short the file they are in.
    #[expect(unsafe_code, reason = "as as_slice")]
    #[expect(
        clippy::mut_from_ref,
        reason = "clones and other processes reach the memory too; the caller keeps them off"
    )]
    pub unsafe fn as_mut_slice(&self) -> Result<&mut [T], MemoryError> {
        let (start, len) = (self.start()?, self.len());
        if !self.storage().is_writable() {
            return Err(MemoryError::ReadOnly);
        }
        // SAFETY: as in as_slice; that nobody else accesses it is what the caller promises.
        Ok(unsafe { std::slice::from_raw_parts_mut(start, len) })
    }

    fn start(&self) -> Result<*mut T, MemoryError> {
        if !self.is_contiguous() {
            return Err(self.any.not_contiguous("a slice".to_owned()));
        }
        let bytes = self.len() * size_of::<T>();
        let begin = self.any.offset() * size_of::<T>();
        let start = self.storage().bytes().map(|(map, at)| map.at(at + begin, bytes, align_of::<T>()).cast());
        Ok(start.unwrap_or(std::ptr::NonNull::dangling().as_ptr()))
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
            passing::refuse(format!("a tensor of {found} arrived where one of {expected} was expected"))
        })
    }
}
