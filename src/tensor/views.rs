//! Views of a tensor: other shapes over the same memory.

use std::ops::RangeBounds;

use super::element::Element;
use super::typed::Tensor;
use crate::error::MemoryError;

impl<T: Element> Tensor<T> {
    /// A view of `len` elements along a dimension, from `start` on.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let tensor = Tensor::from_slice(&[0, 1, 2, 3], &[4])?;
    /// assert_eq!(tensor.narrow(0, 1, 2)?.to_vec(), [1, 2]);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPart`] when it reaches beyond the tensor.
    pub fn narrow(&self, dimension: usize, start: usize, len: usize) -> Result<Self, MemoryError> {
        self.any.narrow(dimension, start, len).map(Self::over)
    }

    /// A view of every `step`th element of a range along a dimension.
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

    /// A view of one element along a dimension, which the view lacks: of a matrix it has one dimension.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let matrix = Tensor::from_slice(&[1, 2, 3, 4], &[2, 2])?;
    /// let column = matrix.select(1, 0)?;
    /// assert_eq!((column.shape(), column.to_vec()), (&[2][..], vec![1, 3]));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPart`] when it reaches beyond the tensor.
    pub fn select(&self, dimension: usize, index: usize) -> Result<Self, MemoryError> {
        self.any.select(dimension, index).map(Self::over)
    }

    /// A view in which two dimensions are swapped.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let matrix = Tensor::from_slice(&[1, 2, 3, 4, 5, 6], &[2, 3])?.transpose(0, 1)?;
    /// assert_eq!((matrix.shape(), matrix.to_vec()), (&[3, 2][..], vec![1, 4, 2, 5, 3, 6]));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPart`] when there is no such dimension.
    pub fn transpose(&self, one: usize, other: usize) -> Result<Self, MemoryError> {
        self.any.transpose(one, other).map(Self::over)
    }

    /// A view of the same elements, in the same order, with another shape.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let tensor = Tensor::from_slice(&[1, 2, 3, 4, 5, 6], &[6])?;
    /// assert_eq!(tensor.reshape(&[2, 3])?.get(tensor.reshape(&[2, 3])?.position(&[1, 0])?)?, 4);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::LengthMismatch`] when that shape has another number of elements, [`MemoryError::NotContiguous`] when no
    /// strides give that order: copy it by [`contiguous`](Self::contiguous) first.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self, MemoryError> {
        self.any.reshape(shape).map(Self::over)
    }

    /// This tensor if it is contiguous, else a contiguous copy.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let columns = Tensor::from_slice(&[1, 2, 3, 4], &[2, 2])?.transpose(0, 1)?;
    /// assert!(!columns.is_contiguous() && columns.contiguous()?.is_contiguous());
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros).
    pub fn contiguous(&self) -> Result<Self, MemoryError> {
        self.any.contiguous().map(Self::over)
    }
}
