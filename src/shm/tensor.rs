//! A shape over a storage.

use std::marker::PhantomData;

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};

use super::dtype::{DType, Element};
use super::passing;
use super::storage::Storage;
use crate::error::MemoryError;
use crate::sys::map::SharedMap;

/// An array of numbers, in row-major order, in memory that workers share.
///
/// Clones share the memory. In the arguments of a worker a tensor travels as a descriptor: nothing is copied,
/// and what one process writes the others see.
///
/// All safe access is by relaxed atomics, since another process may write at any time: `get` and `set` never
/// tear an element, but say nothing of the order in which others see two writes. The bulk copies are atomic
/// byte by byte only.
///
/// ```
/// use phalanx::Tensor;
/// let weights = Tensor::<f32>::zeros(&[2, 3])?;
/// let place = weights.position(&[1, 2])?;
/// weights.set(place, 0.5)?;
/// weights.fetch_add(place, 0.25)?;
/// assert_eq!(weights.get(5)?, 0.75);
/// assert_eq!(weights.to_vec(), [0.0, 0.0, 0.0, 0.0, 0.0, 0.75]);
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tensor<T: Element> {
    storage: Storage,
    shape: Vec<usize>,
    elements: PhantomData<T>,
}

impl<T: Element> Tensor<T> {
    /// A tensor of zeros. A shape without dimensions has one element.
    ///
    /// # Errors
    /// As [`Storage::new`], and [`MemoryError::TooLarge`] when the shape has more bytes than can be counted.
    pub fn zeros(shape: &[usize]) -> Result<Self, MemoryError> {
        let bytes = byte_size::<T>(shape)
            .ok_or_else(|| MemoryError::TooLarge { shape: shape.to_vec(), element: size_of::<T>() })?;
        Ok(Self { storage: Storage::new(bytes)?, shape: shape.to_vec(), elements: PhantomData })
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

    /// The size of every dimension.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        // Cannot overflow: the size in bytes did not when the tensor was made.
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of its elements.
    #[must_use]
    pub fn dtype(&self) -> DType {
        T::DTYPE
    }

    /// The memory below it.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The place of an element in row-major order, which the element accessors take.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] when there is no such element.
    pub fn position(&self, index: &[usize]) -> Result<usize, MemoryError> {
        let inside =
            index.len() == self.shape.len() && index.iter().zip(&self.shape).all(|(at, size)| at < size);
        if !inside {
            return Err(MemoryError::OutOfBounds { index: index.to_vec(), shape: self.shape.clone() });
        }
        Ok(index.iter().zip(&self.shape).fold(0, |place, (at, size)| place * size + at))
    }

    /// The element at `place`, by a relaxed atomic load.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] when there is no such element.
    #[inline]
    pub fn get(&self, place: usize) -> Result<T, MemoryError> {
        let (map, at) = self.element(place)?;
        Ok(T::load(map, at))
    }

    /// Sets the element at `place`, by a relaxed atomic store.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[inline]
    pub fn set(&self, place: usize, value: T) -> Result<(), MemoryError> {
        let (map, at) = self.element(place)?;
        value.store(map, at);
        Ok(())
    }

    /// Adds to the element at `place`, so that no addition of another process is lost; returns what was there
    /// before. Integers wrap around.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[inline]
    pub fn fetch_add(&self, place: usize, value: T) -> Result<T, MemoryError> {
        let (map, at) = self.element(place)?;
        Ok(value.fetch_add(map, at))
    }

    fn element(&self, place: usize) -> Result<(&SharedMap, usize), MemoryError> {
        match self.storage.bytes() {
            Some(map) if place < self.len() => Ok((map, place * size_of::<T>())),
            _ => Err(MemoryError::OutOfBounds { index: vec![place], shape: self.shape.clone() }),
        }
    }

    /// Copies all elements to `target`.
    ///
    /// # Errors
    /// [`MemoryError::LengthMismatch`] when `target` does not have as many.
    pub fn read_into(&self, target: &mut [T]) -> Result<(), MemoryError> {
        self.check_length(target.len())?;
        if let Some(map) = self.storage.bytes() {
            map.read(0, bytemuck::cast_slice_mut(target), size_of::<T>());
        }
        Ok(())
    }

    /// Copies `source` over all elements.
    ///
    /// # Errors
    /// [`MemoryError::LengthMismatch`] when `source` does not have as many.
    pub fn write_from(&self, source: &[T]) -> Result<(), MemoryError> {
        self.check_length(source.len())?;
        if let Some(map) = self.storage.bytes() {
            map.write(0, bytemuck::cast_slice(source), size_of::<T>());
        }
        Ok(())
    }

    /// A copy of all elements.
    #[must_use]
    pub fn to_vec(&self) -> Vec<T> {
        let mut elements = vec![T::default(); self.len()];
        if let Some(map) = self.storage.bytes() {
            map.read(0, bytemuck::cast_slice_mut(&mut elements), size_of::<T>());
        }
        elements
    }

    fn check_length(&self, given: usize) -> Result<(), MemoryError> {
        let expected = self.len();
        if given == expected {
            return Ok(());
        }
        Err(MemoryError::LengthMismatch { given, expected, shape: self.shape.clone() })
    }

    /// The elements in place.
    ///
    /// # Safety
    /// While the slice lives, no process may write to this storage.
    #[must_use]
    #[expect(unsafe_code, reason = "a slice of shared memory is what the caller vouches for")]
    pub unsafe fn as_slice(&self) -> &[T] {
        // SAFETY: start() points to len() elements, aligned since maps begin at a page and valid since every
        // bit pattern is an element; that nobody writes is what the caller promises.
        unsafe { std::slice::from_raw_parts(self.start(), self.len()) }
    }

    /// The elements in place, to be changed.
    ///
    /// # Safety
    /// While the slice lives, no process may access this storage but through it.
    #[must_use]
    #[expect(unsafe_code, reason = "as as_slice")]
    #[expect(
        clippy::mut_from_ref,
        reason = "clones and other processes reach the memory too; the caller keeps them off"
    )]
    pub unsafe fn as_mut_slice(&self) -> &mut [T] {
        // SAFETY: as in as_slice; that nobody else accesses it is what the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len()) }
    }

    fn start(&self) -> *mut T {
        let bytes = self.len() * size_of::<T>();
        self.storage
            .bytes()
            .map_or(std::ptr::NonNull::dangling().as_ptr(), |map| map.at(0, bytes, align_of::<T>()).cast())
    }
}

fn byte_size<T>(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(size_of::<T>(), |product, &size| product.checked_mul(size))
}

/// What crosses to a worker in the place of a tensor.
#[derive(Serialize, Deserialize)]
struct Handle {
    storage: u32,
    dtype: DType,
    shape: Vec<usize>,
}

impl<T: Element> Serialize for Tensor<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let storage = passing::send(&self.storage).map_err(ser::Error::custom)?;
        Handle { storage, dtype: T::DTYPE, shape: self.shape.clone() }.serialize(serializer)
    }
}

impl<'de, T: Element> Deserialize<'de> for Tensor<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Handle { storage, dtype, shape } = Handle::deserialize(deserializer)?;
        if dtype != T::DTYPE {
            return Err(passing::refuse(format!(
                "a tensor of {dtype} arrived where one of {} was expected",
                T::DTYPE
            )));
        }
        let storage = passing::receive(storage).map_err(passing::refuse)?;
        if byte_size::<T>(&shape).is_none_or(|bytes| bytes > storage.len()) {
            let len = storage.len();
            return Err(passing::refuse(format!(
                "a tensor of shape {shape:?} does not fit its storage of {len} bytes"
            )));
        }
        Ok(Self { storage, shape, elements: PhantomData })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use serde::de;

    use super::*;

    fn through_the_wire<A: Serialize, B: de::DeserializeOwned>(
        value: &A,
    ) -> (Result<B, postcard::Error>, usize) {
        let (bytes, storages) = passing::collect(|| postcard::to_stdvec(value).unwrap());
        let descriptors: Vec<_> = storages.iter().map(|s| s.as_fd().try_clone_to_owned().unwrap()).collect();
        (passing::provide(descriptors, || postcard::from_bytes(&bytes)), storages.len())
    }

    #[test]
    fn same_storage_twice_travels_as_one_and_arrives_as_one() {
        let tensor = Tensor::<i32>::zeros(&[4]).unwrap();
        let (arrived, descriptors) = through_the_wire::<_, (Tensor<i32>, Tensor<i32>)>(&(&tensor, &tensor));
        let (one, two) = arrived.unwrap();
        one.set(3, 7).unwrap();
        assert_eq!((two.get(3).unwrap(), tensor.get(3).unwrap(), descriptors), (7, 7, 1));
        assert!(one.storage().is_same(two.storage()));
    }

    #[test]
    fn wrong_element_type_or_shape_is_an_error() {
        let tensor = Tensor::<i32>::zeros(&[4]).unwrap();
        assert!(through_the_wire::<_, Tensor<f32>>(&tensor).0.is_err());
        let hostile = |shape: Vec<usize>| {
            let (handle, storages) = passing::collect(|| Handle {
                storage: passing::send(tensor.storage()).unwrap(),
                dtype: DType::I32,
                shape,
            });
            let bytes = postcard::to_stdvec(&handle).unwrap();
            let fds = storages.iter().map(|s| s.as_fd().try_clone_to_owned().unwrap()).collect();
            passing::provide(fds, || postcard::from_bytes::<Tensor<i32>>(&bytes)).is_ok()
        };
        assert!(hostile(vec![4]));
        assert!(!hostile(vec![5]));
        assert!(!hostile(vec![usize::MAX, 2]));
    }

    #[test]
    fn serialising_outside_is_an_error_with_a_sentence() {
        let tensor = Tensor::<u8>::zeros(&[1]).unwrap();
        let error = serde_json::to_string(&tensor).unwrap_err().to_string();
        assert!(error.contains("only in the arguments of a worker"), "{error}");
    }

    #[test]
    fn bounds_and_lengths_are_checked() {
        let tensor = Tensor::<f64>::from_slice(&[1.0, 2.0, 3.0, 4.0], &[2, 2]).unwrap();
        assert_eq!(tensor.position(&[1, 0]).unwrap(), 2);
        assert!(tensor.position(&[0, 2]).is_err());
        assert!(tensor.position(&[1]).is_err());
        assert!(tensor.get(4).is_err());
        assert!(tensor.read_into(&mut [0.0; 3]).is_err());
        assert!(Tensor::<f64>::from_slice(&[1.0], &[2]).is_err());
        assert!(matches!(Tensor::<f64>::zeros(&[usize::MAX, 2]), Err(MemoryError::TooLarge { .. })));
        assert!(Tensor::<u8>::zeros(&[3, 0]).unwrap().get(0).is_err());
    }

    #[test]
    fn fetch_add_from_threads_loses_nothing() {
        let tensor = Tensor::<f32>::zeros(&[2]).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..1000).for_each(|_| {
                        tensor.fetch_add(1, 1.0).unwrap();
                    })
                });
            }
        });
        assert_eq!(tensor.to_vec(), [0.0, 4000.0]);
        let bytes = Tensor::<u8>::from_slice(&[250], &[]).unwrap();
        assert_eq!((bytes.fetch_add(0, 10).unwrap(), bytes.get(0).unwrap()), (250, 4));
    }
}
