//! The elements of a tensor: one at a time by relaxed atomics, in bulk by copies, and as a slice where the caller guarantees that
//! no other process writes.

use super::element::{Element, Number};
use super::typed::Tensor;
use crate::error::MemoryError;

/// The number of elements that `fill` writes at a time.
const BLOCK: usize = 4096;

impl<T: Element> Tensor<T> {
    /// The index of an element in row-major order, which the element accessors take.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let matrix = Tensor::from_slice(&[1, 2, 3, 4], &[2, 2])?;
    /// assert_eq!(matrix.position(&[1, 0])?, 2);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] when there is no such element.
    #[inline]
    pub fn position(&self, index: &[usize]) -> Result<usize, MemoryError> {
        let place = self.any.layout().position(index);
        place.ok_or_else(|| MemoryError::OutOfBounds { index: index.to_vec(), shape: self.shape().to_vec() })
    }

    /// The element at `index`, by a relaxed atomic load. A loop over many elements is several times faster by [`cells`](Self::cells).
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let tensor = Tensor::from_slice(&[1, 2], &[2])?;
    /// assert_eq!(tensor.get(1)?, 2);
    /// assert!(tensor.get(2).is_err());
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] when there is no such element.
    #[inline]
    pub fn get(&self, index: usize) -> Result<T, MemoryError> {
        let (map, at) = self.any.element(index, size_of::<T>())?;
        Ok(T::load(T::word(map, at)))
    }

    /// Sets the element at `index`, by a relaxed atomic store.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let tensor = Tensor::<u8>::zeros(&[2])?;
    /// tensor.set(1, 7)?;
    /// assert_eq!(tensor.to_vec(), [0, 7]);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get), and [`MemoryError::ReadOnly`].
    #[inline]
    pub fn set(&self, index: usize, value: T) -> Result<(), MemoryError> {
        let (map, at) = self.any.writable_element(index, size_of::<T>())?;
        value.store(T::word(map, at));
        Ok(())
    }

    /// Replaces the element at `index` by `value`; returns the old one.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let tensor = Tensor::from_slice(&[3], &[1])?;
    /// assert_eq!((tensor.swap(0, 4)?, tensor.get(0)?), (3, 4));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// As [`set`](Self::set).
    #[inline]
    pub fn swap(&self, index: usize, value: T) -> Result<T, MemoryError> {
        let (map, at) = self.any.writable_element(index, size_of::<T>())?;
        Ok(value.swap(T::word(map, at)))
    }

    /// Sets the element at `index` to `new` if it is `current`, in one atomic step; floats are compared bit by bit. The inner
    /// result is the element before: `Ok` if it was `current`.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let tensor = Tensor::from_slice(&[3], &[1])?;
    /// assert_eq!(tensor.compare_exchange(0, 3, 4)?, Ok(3));
    /// assert_eq!(tensor.compare_exchange(0, 3, 5)?, Err(4));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// As [`set`](Self::set).
    #[inline]
    pub fn compare_exchange(&self, index: usize, current: T, new: T) -> Result<Result<T, T>, MemoryError> {
        let (map, at) = self.any.writable_element(index, size_of::<T>())?;
        Ok(current.replace(new, T::word(map, at)).map(|()| current))
    }

    /// Copies all elements to `target`.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let mut target = [0; 2];
    /// Tensor::from_slice(&[1, 2], &[2])?.read_into(&mut target)?;
    /// assert_eq!(target, [1, 2]);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::LengthMismatch`] when `target` has another length.
    #[inline]
    pub fn read_into(&self, target: &mut [T]) -> Result<(), MemoryError> {
        self.any.check_length(target.len())?;
        match self.any.only_run(size_of::<T>()) {
            Some((map, at)) => T::load_all(map, at, target),
            None => self.read_scattered(target),
        }
        Ok(())
    }

    /// Copies `source` over all elements.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let tensor = Tensor::<i32>::zeros(&[2])?;
    /// tensor.write_from(&[1, 2])?;
    /// assert_eq!(tensor.to_vec(), [1, 2]);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::LengthMismatch`] when `source` has another length, [`MemoryError::ReadOnly`].
    #[inline]
    pub fn write_from(&self, source: &[T]) -> Result<(), MemoryError> {
        self.any.check_length(source.len())?;
        match self.any.only_run(size_of::<T>()) {
            Some((map, at)) if map.is_writable() => map.write(at, T::bytes_of(source), size_of::<T>()),
            _ => return self.write_scattered(source),
        }
        Ok(())
    }

    /// Sets all elements to `value`.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let tensor = Tensor::full(&[2, 3], 1.5_f32)?;
    /// tensor.select(1, 0)?.fill(0.0)?;
    /// assert_eq!(tensor.to_vec(), [0.0, 1.5, 1.5, 0.0, 1.5, 1.5]);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::ReadOnly`].
    pub fn fill(&self, value: T) -> Result<(), MemoryError> {
        if !self.storage().is_writable() {
            return Err(MemoryError::ReadOnly);
        }
        let Some((map, run, starts)) = self.any.runs().filter(|(_, run, _)| *run > 0) else { return Ok(()) };
        let block = vec![value; BLOCK.min(run / size_of::<T>())];
        let block = T::bytes_of(&block);
        for start in starts {
            for at in (start..start + run).step_by(block.len()) {
                map.write(at, &block[..block.len().min(start + run - at)], size_of::<T>());
            }
        }
        Ok(())
    }

    /// Copies all elements of `source`, which has the same shape, over those of this tensor. The two may be views of the same
    /// memory: the result is as if `source` had been copied aside first.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let (from, to) = (Tensor::from_slice(&[1, 2, 3, 4], &[2, 2])?, Tensor::zeros(&[2, 2])?);
    /// to.copy_from(&from.transpose(0, 1)?)?;
    /// assert_eq!(to.to_vec(), [1, 3, 2, 4]);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::OtherShape`] when the shapes differ, [`MemoryError::ReadOnly`].
    pub fn copy_from(&self, source: &Self) -> Result<(), MemoryError> {
        if self.shape() != source.shape() {
            let (found, expected) = (source.shape().to_vec(), self.shape().to_vec());
            return Err(MemoryError::OtherShape { found, expected });
        }
        match (self.any.only_run(size_of::<T>()), source.any.only_run(size_of::<T>())) {
            // Both lie in one map and may overlap, so that a direct copy could read what it has just written.
            (Some((map, at)), Some((other, from))) if !std::ptr::eq(map, other) && map.is_writable() => {
                map.copy_from(at, (other, from), self.len() * size_of::<T>(), size_of::<T>());
                Ok(())
            }
            _ => self.write_from(&source.to_vec()),
        }
    }

    /// A copy of all elements.
    #[must_use]
    pub fn to_vec(&self) -> Vec<T> {
        let mut elements = vec![T::default(); self.len()];
        // The vector has the right length, so that this cannot fail.
        let _ = self.read_into(&mut elements);
        elements
    }
}

impl<T: Number> Tensor<T> {
    /// Adds to the element at `index` in one atomic step, so that concurrent additions of several processes all count; returns
    /// the element before. Integers wrap around.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let counter = Tensor::<u64>::zeros(&[1])?;
    /// assert_eq!((counter.fetch_add(0, 2)?, counter.get(0)?), (0, 2));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// As [`set`](Self::set).
    #[inline]
    pub fn fetch_add(&self, index: usize, value: T) -> Result<T, MemoryError> {
        let (map, at) = self.any.writable_element(index, size_of::<T>())?;
        Ok(value.fetch_add(T::word(map, at)))
    }

    /// The elements as a slice of the shared memory. For a slice without `unsafe` there is [`freeze`](Self::freeze).
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

    /// The elements as a mutable slice of the shared memory. Without `unsafe` there is [`into_shards`](Self::into_shards).
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

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::memory::storage::Storage;

    fn numbers<T: Number>(values: [T; 3], sum: T) {
        let tensor = Tensor::from_slice(&values, &[3]).unwrap();
        assert_eq!(tensor.fetch_add(1, values[2]).unwrap(), values[1]);
        assert_eq!(tensor.to_vec(), [values[0], sum, values[2]]);
        tensor.set(0, values[2]).unwrap();
        assert_eq!((tensor.get(0).unwrap(), tensor.dtype().size()), (values[2], size_of::<T>()));
        assert!(tensor.into_dyn().typed::<bool>().is_err());
    }

    #[test]
    fn fill_and_copy_reach_the_elements_of_a_view_and_no_others() {
        let tensor = Tensor::full(&[3, 5000], 1_u16).unwrap();
        tensor.select(0, 1).unwrap().fill(2).unwrap();
        tensor.slice(1, 1.., 2).unwrap().fill(3).unwrap();
        let expected = |at: usize| if at % 5000 % 2 == 1 { 3 } else { 1 + u16::from(at / 5000 == 1) };
        assert_eq!(tensor.to_vec(), (0..15000).map(expected).collect::<Vec<_>>());
        let other = Tensor::zeros(&[3, 5000]).unwrap();
        other.copy_from(&tensor).unwrap();
        assert_eq!(other.to_vec(), tensor.to_vec());
        other.select(1, 7).unwrap().copy_from(&Tensor::from_slice(&[7, 8, 9], &[3]).unwrap()).unwrap();
        assert_eq!(other.select(1, 7).unwrap().to_vec(), [7, 8, 9]);
        Tensor::<u16>::zeros(&[0, 2]).unwrap().fill(1).unwrap();
    }

    #[test]
    fn copy_between_views_of_one_memory_copies_what_was_there_before() {
        let tensor = Tensor::from_slice(&[1, 2, 3, 4, 5], &[5]).unwrap();
        let (front, back) = (tensor.narrow(0, 0, 4).unwrap(), tensor.narrow(0, 1, 4).unwrap());
        back.copy_from(&front).unwrap();
        assert_eq!(tensor.to_vec(), [1, 1, 2, 3, 4]);
        tensor.copy_from(&tensor.clone()).unwrap();
        assert_eq!(tensor.to_vec(), [1, 1, 2, 3, 4]);
    }

    #[test]
    fn fill_and_copy_refuse_frozen_memory_and_another_shape() {
        let tensor = Tensor::<f32>::zeros(&[2, 3]).unwrap();
        let error = tensor.copy_from(&Tensor::zeros(&[3, 2]).unwrap()).unwrap_err().to_string();
        assert_eq!(error, "a tensor of shape [3, 2] cannot be copied over one of shape [2, 3]");
        let frozen = tensor.freeze().unwrap().to_tensor();
        assert!(matches!(frozen.fill(1.0), Err(MemoryError::ReadOnly)));
        assert!(matches!(frozen.copy_from(&Tensor::zeros(&[2, 3]).unwrap()), Err(MemoryError::ReadOnly)));
    }

    #[test]
    fn every_element_type_works() {
        numbers([1_u8, 250, 10], 4);
        numbers([1_u16, 65_530, 10], 4);
        numbers([1_u32, 2, 3], 5);
        numbers([1_u64, u64::MAX, 3], 2);
        numbers([-1_i8, 100, 100], -56);
        numbers([-1_i16, 2, -3], -1);
        numbers([-1_i32, 2, -3], -1);
        numbers([-1_i64, 2, -3], -1);
        numbers([0.5, 1.5, 2.0].map(f16::from_f32), f16::from_f32(3.5));
        numbers([0.5, 1.5, 2.0].map(bf16::from_f32), bf16::from_f32(3.5));
        numbers([0.5_f32, 1.5, 2.0], 3.5);
        numbers([0.5_f64, 1.5, 2.0], 3.5);
        let flags = Tensor::from_slice(&[true, false, true], &[3]).unwrap();
        flags.set(1, true).unwrap();
        assert_eq!((flags.to_vec(), flags.get(1).unwrap()), (vec![true; 3], true));
    }

    #[test]
    fn any_byte_but_zero_is_true() {
        let storage = Storage::from_bytes(&[0, 1, 2, 255]).unwrap();
        let flags = Tensor::<bool>::from_storage(&storage, &[4]).unwrap();
        assert_eq!(flags.to_vec(), [false, true, true, true]);
        assert!(flags.get(2).unwrap());
    }

    #[test]
    fn fetch_add_from_threads_loses_nothing() {
        let tensor = Tensor::<f32>::zeros(&[2]).unwrap();
        let halves = Tensor::<f16>::zeros(&[2]).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..500).for_each(|_| {
                        tensor.fetch_add(1, 1.0).unwrap();
                        halves.fetch_add(1, f16::ONE).unwrap();
                    })
                });
            }
        });
        assert_eq!((tensor.to_vec(), halves.get(1).unwrap()), (vec![0.0, 2000.0], f16::from_f32(2000.0)));
    }

    #[test]
    #[expect(unsafe_code, reason = "slices of shared memory are unsafe")]
    fn slices_of_what_is_scattered_or_read_only_are_refused() {
        let tensor = Tensor::<i32>::zeros(&[2, 3]).unwrap();
        let turned = tensor.transpose(0, 1).unwrap();
        // SAFETY: there is no slice of it.
        assert!(unsafe { turned.as_slice() }.is_err());
        drop(turned);
        let frozen = tensor.freeze().unwrap().to_tensor();
        // SAFETY: likewise.
        assert!(unsafe { frozen.as_mut_slice() }.is_err());
        // SAFETY: nobody can write to it.
        assert_eq!(unsafe { frozen.as_slice() }.unwrap(), [0; 6]);
    }
}
