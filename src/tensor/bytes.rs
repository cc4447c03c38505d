//! Where the elements of a tensor lie in memory, and copies of their bytes.

use super::dyn_tensor::DynTensor;
use super::element::Element;
use super::typed::Tensor;
use crate::error::MemoryError;
use crate::sys::map::SharedMap;

impl DynTensor {
    /// The map and the byte of the element at `place` in row-major order. The caller passes the element's size in bytes, which it knows
    /// when it is compiled: to look it up in the type costs as much as all the rest.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`].
    #[inline]
    pub(super) fn element(&self, place: usize, size: usize) -> Result<(&SharedMap, usize), MemoryError> {
        match (self.layout().element(place), self.storage().bytes()) {
            (Some(element), Some((map, start))) => Ok((map, start + element * size)),
            _ => Err(self.out_of_bounds(place)),
        }
    }

    /// The error of a place that the tensor does not have.
    #[cold]
    fn out_of_bounds(&self, place: usize) -> MemoryError {
        MemoryError::OutOfBounds { index: vec![place], shape: self.shape().to_vec() }
    }

    /// As [`element`](Self::element), of an element that is to be written to.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`], [`MemoryError::ReadOnly`].
    #[inline]
    pub(super) fn writable_element(
        &self,
        place: usize,
        size: usize,
    ) -> Result<(&SharedMap, usize), MemoryError> {
        let (map, at) = self.element(place, size)?;
        if map.is_writable() { Ok((map, at)) } else { Err(MemoryError::ReadOnly) }
    }

    /// Where the elements lie: the map, the number of bytes that lie one after the other, and the byte at which each such run begins.
    /// `None` when the storage has no bytes.
    pub(super) fn runs(&self) -> Option<(&SharedMap, usize, impl Iterator<Item = usize> + '_)> {
        let (map, begin) = self.storage().bytes()?;
        let (run, starts) = self.layout().runs();
        let size = self.dtype().size();
        Some((map, run * size, starts.map(move |start| begin + start * size)))
    }

    /// The map and the byte from which on all elements, of `size` bytes each, lie one after the other; `None` when they do not, or the
    /// storage has no bytes. The caller passes the size as to [`element`](Self::element).
    #[inline]
    pub(super) fn only_run(&self, size: usize) -> Option<(&SharedMap, usize)> {
        let (map, begin) = self.storage().bytes().filter(|_| self.is_contiguous())?;
        Some((map, begin + self.offset() * size))
    }

    /// Refuses another number of elements than the tensor has, by [`MemoryError::LengthMismatch`].
    #[inline]
    pub(super) fn check_length(&self, given: usize) -> Result<(), MemoryError> {
        if given == self.len() { Ok(()) } else { Err(self.other_length(given)) }
    }

    /// The error of another number of elements than the tensor has.
    #[cold]
    fn other_length(&self, given: usize) -> MemoryError {
        MemoryError::LengthMismatch { given, expected: self.len(), shape: self.shape().to_vec() }
    }

    /// A copy of the bytes of all elements in row-major order, in the machine's byte order. Of an element that another process
    /// writes meanwhile, it has the old value or the new one.
    ///
    /// ```
    /// use phalanx::Tensor;
    ///
    /// let column = Tensor::from_slice(&[1_u8, 2, 3, 4], &[2, 2])?.select(1, 0)?;
    /// assert_eq!(column.as_dyn().to_bytes(), [1, 3]);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let size = self.dtype().size();
        let mut bytes = vec![0; self.len() * size];
        if let Some((map, at)) = self.only_run(size) {
            map.read(at, &mut bytes, size);
        } else if let Some((map, run, starts)) = self.runs()
            && run > 0
        {
            let targets = bytes.chunks_exact_mut(run);
            starts.zip(targets).for_each(|(at, target)| map.read(at, target, size));
        }
        bytes
    }

    /// The error of another number of bytes than the elements have.
    #[cold]
    fn misfit(&self, bytes: usize) -> MemoryError {
        let size = self.dtype().size();
        if bytes.is_multiple_of(size) {
            return self.other_length(bytes / size);
        }
        MemoryError::Foreign { reason: format!("{bytes} bytes are no whole elements of {size}") }
    }

    /// Copies the bytes of all elements, in row-major order and in the machine's byte order, over those that are here.
    ///
    /// ```
    /// use phalanx::Tensor;
    ///
    /// let tensor = Tensor::<u16>::zeros(&[2])?;
    /// tensor.as_dyn().write_bytes(&[7_u16.to_ne_bytes(), 9_u16.to_ne_bytes()].concat())?;
    /// assert_eq!(tensor.to_vec(), [7, 9]);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::LengthMismatch`] when there are not as many, [`MemoryError::Foreign`] when they are no whole
    /// elements, [`MemoryError::ReadOnly`].
    pub fn write_bytes(&self, bytes: &[u8]) -> Result<(), MemoryError> {
        let (size, expected) = (self.dtype().size(), self.len() * self.dtype().size());
        if bytes.len() != expected {
            return Err(self.misfit(bytes.len()));
        }
        if !self.storage().is_writable() {
            return Err(MemoryError::ReadOnly);
        }
        if let Some((map, at)) = self.only_run(size) {
            map.write(at, bytes, size);
        } else if let Some((map, run, starts)) = self.runs()
            && run > 0
        {
            starts.zip(bytes.chunks_exact(run)).for_each(|(at, source)| map.write(at, source, size));
        }
        Ok(())
    }

    /// Copies the elements of a tensor of the same shape and type, from map to map. This one is row-major from its
    /// storage's begin on, and was made for it.
    pub(super) fn copy_from(&self, source: &Self) {
        if let (Some((map, begin)), Some((other, run, starts))) = (self.storage().bytes(), source.runs())
            && run > 0
        {
            let targets = (begin..).step_by(run);
            starts
                .zip(targets)
                .for_each(|(from, to)| map.copy_from(to, (other, from), run, self.dtype().size()));
        }
    }
}

impl<T: Element> Tensor<T> {
    /// As [`read_into`](Self::read_into), of elements that do not lie one after the other. Apart from it, so that a small copy saves no
    /// registers for this: that cost as much as the copy.
    #[inline(never)]
    pub(super) fn read_scattered(&self, target: &mut [T]) {
        if let Some((map, run, starts)) = self.any.runs()
            && run > 0
        {
            match run / size_of::<T>() {
                1 => starts.zip(target).for_each(|(at, target)| *target = T::load(T::word(map, at))),
                run => {
                    let targets = target.chunks_exact_mut(run);
                    starts.zip(targets).for_each(|(at, target)| T::load_all(map, at, target));
                }
            }
        }
    }

    /// As [`write_from`](Self::write_from), where the elements do not lie one after the other or cannot be written to: see
    /// [`read_scattered`](Self::read_scattered).
    #[inline(never)]
    pub(super) fn write_scattered(&self, source: &[T]) -> Result<(), MemoryError> {
        // Where each run is one element, a store is faster than a call of the copy routine.
        match self.any.runs() {
            Some((map, run, starts)) if run == size_of::<T>() && map.is_writable() => {
                starts.zip(source).for_each(|(at, value)| value.store(T::word(map, at)));
                Ok(())
            }
            _ => self.any.write_bytes(T::bytes_of(source)),
        }
    }
}
