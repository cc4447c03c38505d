//! Tensors as arrays of the `ndarray` crate: views of memory that no other process can write to, copies of any other.

use ::ndarray::{
    ArrayD, ArrayRef, ArrayViewD, ArrayViewMutD, Dimension, IxDyn, ShapeBuilder, ShapeError, StrideShape,
};

use super::super::element::{Element, Number};
use super::super::frozen::FrozenTensor;
use super::super::shard::Shard;
use super::super::typed::Tensor;
use crate::error::MemoryError;

impl<T: Number> FrozenTensor<T> {
    /// Its elements in place, as an array of the `ndarray` crate.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let weights = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0], &[2, 2])?.freeze()?;
    /// assert_eq!(weights.as_array().t()[[0, 1]], 3.0);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    ///
    /// # Panics
    /// When the sizes of the shape that are not zero have a product beyond `isize::MAX`: `ndarray` has no such arrays,
    /// and of tensors only those without elements are so.
    #[must_use]
    pub fn as_array(&self) -> ArrayViewD<'_, T> {
        let array = ArrayViewD::from_shape(self.shape(), self);
        array.unwrap_or_else(|error| no_array(self.shape(), &error))
    }
}

impl<T: Number> Shard<T> {
    /// Its elements in place, as an array of the `ndarray` crate.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let mut shards = Tensor::<f32>::zeros(&[4, 2])?.into_shards(2)?;
    /// shards[1].as_array_mut()?[[0, 1]] = 0.5;
    /// assert_eq!(Tensor::from_shards(shards)?.to_vec(), [0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0]);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// As [`as_mut_slice`](Self::as_mut_slice), and [`MemoryError::TooLarge`] when it has no elements and a shape that
    /// `ndarray` does not know.
    pub fn as_array_mut(&mut self) -> Result<ArrayViewMutD<'_, T>, MemoryError> {
        let shape = self.shape().to_vec();
        let array = ArrayViewMutD::from_shape(shape.as_slice(), self.as_mut_slice()?);
        array.map_err(|_| too_large::<T>(&shape))
    }
}

impl<T: Element> Tensor<T> {
    /// A copy of all elements, as an array of the `ndarray` crate.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let columns = Tensor::from_slice(&[1, 2, 3, 4], &[2, 2])?.transpose(0, 1)?;
    /// assert_eq!(columns.to_array(), ndarray::array![[1, 3], [2, 4]].into_dyn());
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Panics
    /// As [`FrozenTensor::as_array`].
    #[must_use]
    pub fn to_array(&self) -> ArrayD<T> {
        let array = ArrayD::from_shape_vec(self.shape(), self.to_vec());
        array.unwrap_or_else(|error| no_array(self.shape(), &error))
    }

    /// A tensor with a copy of an array of the `ndarray` crate, or of a view of one, in row-major order.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let array = ndarray::array![[1, 2, 3], [4, 5, 6]];
    /// let tensor = Tensor::from_array(&array.t())?;
    /// assert_eq!((tensor.shape(), tensor.to_vec()), (&[3, 2][..], vec![1, 4, 2, 5, 3, 6]));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros).
    pub fn from_array<D: Dimension>(array: &ArrayRef<T, D>) -> Result<Self, MemoryError> {
        let tensor = Self::zeros(array.shape())?;
        match array.as_slice() {
            Some(elements) => tensor.write_from(elements)?,
            None => array.iter().enumerate().try_for_each(|(place, value)| tensor.set(place, *value))?,
        }
        Ok(tensor)
    }
}

impl<T: Number> Tensor<T> {
    /// The elements in place, as an array of the `ndarray` crate with the tensor's own strides. Without `unsafe` there
    /// is [`FrozenTensor::as_array`].
    ///
    /// # Errors
    /// [`MemoryError::TooLarge`] when it has no elements and a shape that `ndarray` does not know.
    ///
    /// # Safety
    /// While the array lives, no process may write to these elements, nor cut short the file they are in.
    #[expect(
        unsafe_code,
        reason = "a view of shared memory is what the caller vouches for, as Tensor::as_slice"
    )]
    pub unsafe fn as_array(&self) -> Result<ArrayViewD<'_, T>, MemoryError> {
        let (start, shape) = self.strided()?;
        // SAFETY: strided() checked where all elements lie, and every bit pattern is one; they live as long as self; that
        // nobody writes is what the caller promises.
        Ok(unsafe { ArrayViewD::from_shape_ptr(shape, start) })
    }

    /// As [`as_array`](Self::as_array), to be changed. Without `unsafe` there is [`Shard::as_array_mut`].
    ///
    /// # Errors
    /// As [`as_array`](Self::as_array), [`MemoryError::ReadOnly`], and [`MemoryError::NotContiguous`] when two places of
    /// the tensor may be the same element.
    ///
    /// # Safety
    /// While the array lives, no process may access these elements but through it, nor cut short the file they are in.
    #[expect(unsafe_code, reason = "as as_array")]
    pub unsafe fn as_array_mut(&self) -> Result<ArrayViewMutD<'_, T>, MemoryError> {
        let (start, shape) = self.strided()?;
        if !self.storage().is_writable() {
            return Err(MemoryError::ReadOnly);
        }
        if may_overlap(self.shape(), self.strides()) {
            return Err(self.as_dyn().not_contiguous("an array to be changed".to_owned()));
        }
        // SAFETY: as in as_array, and no two elements are the same; that nobody else accesses them is what the caller
        // promises.
        Ok(unsafe { ArrayViewMutD::from_shape_ptr(shape, start) })
    }

    /// Where the elements begin, all of which lie in the memory, and how they lie.
    fn strided(&self) -> Result<(*mut T, StrideShape<IxDyn>), MemoryError> {
        let any = self.as_dyn();
        let Some((map, at)) = any.storage().bytes().filter(|_| !any.is_empty()) else {
            let nothing = std::ptr::NonNull::dangling().as_ptr();
            let known =
                ArrayViewD::<T>::from_shape(self.shape(), &[]).map_err(|_| too_large::<T>(self.shape()));
            return known.map(|_| (nothing, IxDyn(self.shape()).into()));
        };
        let strides: Vec<_> =
            sizes_and_strides(any.shape(), any.strides()).map(|(_, stride)| stride).collect();
        let bytes = span(any.shape(), &strides) * size_of::<T>();
        let start = map.at(at + any.offset() * size_of::<T>(), bytes, align_of::<T>());
        Ok((start.cast(), IxDyn(any.shape()).strides(IxDyn(&strides))))
    }
}

/// By dimension. Where there is one element the distance to the next means nothing, and may be anything.
fn sizes_and_strides(shape: &[usize], strides: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    shape.iter().zip(strides).map(|(&size, &stride)| (size, if size > 1 { stride } else { 1 }))
}

/// How many elements lie from the first to the last one, both included, when there are any.
fn span(shape: &[usize], strides: &[usize]) -> usize {
    // Nothing overflows: the layout was held against its storage.
    sizes_and_strides(shape, strides).fold(1, |span, (size, stride)| span + (size - 1) * stride)
}

/// Whether two places of the shape may be the same element: when a dimension's step does not lead past all that the
/// dimensions of smaller steps reach.
fn may_overlap(shape: &[usize], strides: &[usize]) -> bool {
    if shape.contains(&0) {
        return false;
    }
    let mut dimensions: Vec<_> = sizes_and_strides(shape, strides).filter(|(size, _)| *size > 1).collect();
    dimensions.sort_by_key(|(_, stride)| *stride);
    let mut reach = 0;
    dimensions.into_iter().any(|(size, stride)| {
        let within = stride <= reach;
        reach += (size - 1) * stride;
        within
    })
}

fn too_large<T>(shape: &[usize]) -> MemoryError {
    MemoryError::TooLarge { shape: shape.to_vec(), element: size_of::<T>() }
}

fn no_array(shape: &[usize], error: &ShapeError) -> ! {
    panic!("ndarray has no arrays of shape {shape:?}: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_found() {
        for (shape, strides) in [(&[3][..], &[0][..]), (&[2, 2], &[1, 1]), (&[3, 2], &[1, 2])] {
            assert!(may_overlap(shape, strides), "{shape:?} {strides:?}");
        }
        for (shape, strides) in
            [(&[][..], &[][..]), (&[1, 1], &[0, 0]), (&[2, 3], &[3, 1]), (&[3, 2], &[1, 3])]
        {
            assert!(!may_overlap(shape, strides), "{shape:?} {strides:?}");
        }
        assert!(!may_overlap(&[usize::MAX, 0], &[usize::MAX, usize::MAX]));
    }
}
