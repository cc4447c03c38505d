//! Where the elements of a tensor lie in memory, and copies of their bytes.

use super::dyn_tensor::DynTensor;
use crate::error::MemoryError;
use crate::sys::map::SharedMap;

impl DynTensor {
    /// The map and the byte of the element at `place` in row-major order, of `size` bytes as the caller knows: what is
    /// looked up in the type costs as much as all the rest.
    #[inline]
    pub(super) fn element(&self, place: usize, size: usize) -> Result<(&SharedMap, usize), MemoryError> {
        match (self.layout().element(place), self.storage().bytes()) {
            (Some(element), Some((map, start))) => Ok((map, start + element * size)),
            _ => Err(self.out_of_bounds(place)),
        }
    }

    #[cold]
    fn out_of_bounds(&self, place: usize) -> MemoryError {
        MemoryError::OutOfBounds { index: vec![place], shape: self.shape().to_vec() }
    }

    /// As [`element`](Self::element), to be written to.
    #[inline]
    pub(super) fn writable_element(
        &self,
        place: usize,
        size: usize,
    ) -> Result<(&SharedMap, usize), MemoryError> {
        let (map, at) = self.element(place, size)?;
        if map.is_writable() { Ok((map, at)) } else { Err(MemoryError::ReadOnly) }
    }

    /// Where the elements lie: the map, the number of bytes that lie one after the other, and where such runs begin.
    pub(super) fn runs(&self) -> Option<(&SharedMap, usize, impl Iterator<Item = usize> + '_)> {
        let (map, begin) = self.storage().bytes()?;
        let (run, starts) = self.layout().runs();
        let size = self.dtype().size();
        Some((map, run * size, starts.map(move |start| begin + start * size)))
    }

    /// As [`runs`](Self::runs) of one run: the map and the byte where all elements lie one after the other.
    pub(super) fn only_run(&self) -> Option<(&SharedMap, usize)> {
        let (map, begin) = self.storage().bytes().filter(|_| self.is_contiguous())?;
        Some((map, begin + self.offset() * self.dtype().size()))
    }

    pub(super) fn check_length(&self, given: usize) -> Result<(), MemoryError> {
        let expected = self.len();
        if given == expected {
            return Ok(());
        }
        Err(MemoryError::LengthMismatch { given, expected, shape: self.shape().to_vec() })
    }

    /// The bytes of all elements in row-major order, in the machine's byte order.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len() * self.dtype().size()];
        if let Some((map, at)) = self.only_run() {
            map.read(at, &mut bytes, self.dtype().size());
        } else if let Some((map, run, starts)) = self.runs()
            && run > 0
        {
            let targets = bytes.chunks_exact_mut(run);
            starts.zip(targets).for_each(|(at, target)| map.read(at, target, self.dtype().size()));
        }
        bytes
    }

    #[cold]
    fn misfit(&self, bytes: usize) -> MemoryError {
        let size = self.dtype().size();
        if bytes.is_multiple_of(size) {
            let (given, expected) = (bytes / size, self.len());
            return MemoryError::LengthMismatch { given, expected, shape: self.shape().to_vec() };
        }
        MemoryError::Foreign { reason: format!("{bytes} bytes are no whole elements of {size}") }
    }

    /// Copies the bytes of all elements, in row-major order, over those that are here.
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
        if let Some((map, at)) = self.only_run() {
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
