//! The elements of a tensor in place, as cells that any process may write to: safe access at the speed of memory.

use std::fmt;
use std::iter::FusedIterator;

use super::element::{Element, Number, sealed};
use super::rows::Rows;
use super::typed::Tensor;
use crate::error::MemoryError;
use crate::sys::atomic_record::AtomicRecord;

/// One element of a [`Tensor`] in place: an atomic of the element's size, which any process may write to at any time.
///
/// Every access is relaxed: an element is never torn, and nothing is said of the order in which others see two writes. A `get`
/// and a `set` are a plain load and a plain store of the processor, but the compiler makes no vector code of a loop over
/// them: where all elements are wanted, [`Tensor::read_into`] and [`Tensor::write_from`] are faster.
///
/// Cells come from [`Tensor::cells`] and [`Tensor::iter_cells`], and borrow the tensor. They are `Send` and `Sync`.
///
/// ```
/// use phalanx::Tensor;
/// use phalanx::shm::SharedCell;
///
/// fn relax(cells: &[SharedCell<f32>]) {
///     for three in cells.windows(3) {
///         three[1].set((three[0].get() + three[2].get()) / 2.0);
///     }
/// }
///
/// let rod = Tensor::from_slice(&[0.0, 0.0, 0.0, 8.0], &[4])?;
/// relax(rod.cells()?);
/// assert_eq!(rod.to_vec(), [0.0, 0.0, 4.0, 8.0]);
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
#[repr(transparent)]
pub struct SharedCell<T: Element>(<T as sealed::Atomic>::Word);

// SAFETY: it is nothing but the atomic in it (repr(transparent)), which is an `AtomicRecord` for each element type. So a slice
// of cells may lie over shared memory for the same reasons as a slice of these atomics:
// - Size and alignment: the atomic is as large as the element (1, 2, 4 or 8 bytes) and aligned to that. A storage begins at a
//   multiple of 8 and a tensor at a multiple of its element's size; the map asserts bounds and alignment once, for all cells.
// - Concurrent writes: whatever another process or thread writes meanwhile, by cells, elements or bulk copies, is an atomic
//   access to the same bytes by the same size (see `sys/copy.rs` of the copies), since a storage has elements of one size
//   in all processes (`Storage::claim_unit`).
// - Validity: any bits are an integer, and so a float, an f16 or a bf16, which are made of the bits of one. A `bool` is not in
//   memory at all: its cell is a byte, which is asked whether it is zero.
// - Writes: `cells` refuses memory that can only be read, so `set` does not fault.
// - Lifetime: a cell borrows the tensor, whose storage keeps the memory mapped. What takes the memory away from under other
//   handles (`freeze`, `into_shards`) does so in place only when there is no other handle, and copies otherwise.
#[expect(unsafe_code, reason = "a cell is made of one atomic, as every element type says")]
unsafe impl<T: Element> AtomicRecord for SharedCell<T> {}

impl<T: Element> SharedCell<T> {
    /// What the element is now.
    ///
    /// ```
    /// let tensor = phalanx::Tensor::from_slice(&[1.5_f64, 2.5], &[2])?;
    /// assert_eq!(tensor.cells()?[1].get(), 2.5);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    #[must_use]
    #[inline]
    pub fn get(&self) -> T {
        T::load(&self.0)
    }

    /// Sets the element. A change that another process made since it was read is overwritten: see
    /// [`compare_exchange`](Self::compare_exchange).
    #[inline]
    pub fn set(&self, value: T) {
        value.store(&self.0);
    }

    /// Sets the element in one step, and returns what it was.
    #[inline]
    pub fn swap(&self, value: T) -> T {
        value.swap(&self.0)
    }

    /// Sets the element to `new` if it is `current`, in one step; floats are compared bit by bit.
    ///
    /// ```
    /// let tensor = phalanx::Tensor::from_slice(&[3_u16], &[1])?;
    /// let cell = &tensor.cells()?[0];
    /// assert_eq!((cell.compare_exchange(3, 4), cell.compare_exchange(3, 5)), (Ok(3), Err(4)));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// What the element is, when it is not `current`. It is left as it is then.
    #[inline]
    pub fn compare_exchange(&self, current: T, new: T) -> Result<T, T> {
        current.replace(new, &self.0).map(|()| current)
    }
}

impl<T: Number> SharedCell<T> {
    /// Adds to the element in one step, so that no addition of another process is lost; returns what it was. Integers wrap around.
    ///
    /// ```
    /// let tensor = phalanx::Tensor::<u64>::zeros(&[2])?;
    /// tensor.cells()?.iter().for_each(|cell| _ = cell.fetch_add(3));
    /// assert_eq!(tensor.to_vec(), [3, 3]);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    #[inline]
    pub fn fetch_add(&self, value: T) -> T {
        value.fetch_add(&self.0)
    }
}

impl<T: Element> fmt::Debug for SharedCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedCell").field(&self.get()).finish()
    }
}

impl<T: Element> Tensor<T> {
    /// All elements in place, as a slice of cells: what is checked is checked here, and an access by the slice costs no more than one
    /// to a `Vec`.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let counts = Tensor::<u32>::zeros(&[2, 3])?;
    /// let cells = counts.cells()?;
    /// cells[4].set(7);
    /// assert_eq!((cells.len(), counts.get(counts.position(&[1, 1])?)?), (6, 7));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::NotContiguous`] when the elements do not lie one after the other: [`iter_cells`](Self::iter_cells) takes them
    /// all the same. [`MemoryError::ReadOnly`] when the memory is frozen or a file's: a [`FrozenTensor`](crate::FrozenTensor) is
    /// a plain slice.
    pub fn cells(&self) -> Result<&[SharedCell<T>], MemoryError> {
        if !self.is_contiguous() {
            return Err(self.any.not_contiguous("a slice of cells".to_owned()));
        }
        self.cells_between(self.offset(), self.len())
    }

    /// All elements in place and in row-major order, however they lie: a transposed matrix, every second column. There is no
    /// division for each, as [`get`](Self::get) needs it there; a whole loop is fastest by `for_each` or `fold`.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let matrix = Tensor::from_slice(&[1, 2, 3, 4, 5, 6], &[2, 3])?;
    /// let columns = matrix.transpose(0, 1)?;
    /// assert_eq!(columns.iter_cells()?.map(|cell| cell.get()).collect::<Vec<_>>(), [1, 4, 2, 5, 3, 6]);
    /// matrix.select(1, 2)?.iter_cells()?.for_each(|cell| cell.set(0));
    /// assert_eq!(matrix.to_vec(), [1, 2, 0, 4, 5, 0]);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::ReadOnly`] when the memory is frozen or a file's.
    pub fn iter_cells(&self) -> Result<Cells<'_, T>, MemoryError> {
        let layout = self.any.layout();
        Ok(Cells { cells: self.cells_between(0, layout.reach())?, rows: layout.rows(), at: 0, left: 0 })
    }

    /// `len` elements of the storage, from the element `first` on, which lie in it as the layout says.
    fn cells_between(&self, first: usize, len: usize) -> Result<&[SharedCell<T>], MemoryError> {
        match self.storage().bytes() {
            Some((map, _)) if !map.is_writable() => Err(MemoryError::ReadOnly),
            Some((map, begin)) => Ok(map.records(begin + first * size_of::<T>(), len)),
            None => Ok(&[]),
        }
    }
}

/// The elements of a tensor in place and in row-major order: [`Tensor::iter_cells`].
pub struct Cells<'a, T: Element> {
    /// The storage's elements from its first to the tensor's last, which a row's elements are counted in.
    cells: &'a [SharedCell<T>],
    rows: Rows<'a>,
    /// The next element of the row that was begun.
    at: usize,
    /// How many elements of that row are left.
    left: usize,
}

impl<'a, T: Element> Iterator for Cells<'a, T> {
    type Item = &'a SharedCell<T>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            self.at = self.rows.next()?;
            self.left = self.rows.len;
        }
        let cell = &self.cells[self.at];
        self.left -= 1;
        // After the last element of a row it leads nowhere, and may be beyond every number.
        self.at = self.at.wrapping_add(self.rows.stride);
        Some(cell)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = self.left + self.rows.count * self.rows.len;
        (len, Some(len))
    }

    /// Without a look at each element whether a row is over.
    #[inline]
    fn fold<B, F: FnMut(B, Self::Item) -> B>(self, init: B, mut f: F) -> B {
        let Self { cells, rows, at, left } = self;
        let (len, stride) = (rows.len, rows.stride);
        let mut along =
            |sum, at: usize, len: usize| (0..len).fold(sum, |sum, step| f(sum, &cells[at + step * stride]));
        let begun = along(init, at, left);
        rows.fold(begun, |sum, start| along(sum, start, len))
    }
}

impl<T: Element> ExactSizeIterator for Cells<'_, T> {}

impl<T: Element> FusedIterator for Cells<'_, T> {}

impl<T: Element> fmt::Debug for Cells<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cells").field("left", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_the_elements_of_every_size_and_no_others() {
        fn check<T: Number>(values: [T; 4], sum: T) {
            let tensor = Tensor::from_slice(&values, &[4]).unwrap();
            let middle = tensor.narrow(0, 1, 2).unwrap();
            let cells = middle.cells().unwrap();
            assert_eq!((cells.len(), cells[0].fetch_add(values[2])), (2, values[1]));
            assert_eq!(cells[1].swap(values[0]), values[2]);
            assert_eq!(tensor.to_vec(), [values[0], sum, values[0], values[3]]);
        }
        check([1_u8, 250, 10, 3], 4);
        check([1_i16, -2, 10, 3], 8);
        check([1.0, 2.0, 0.5, 3.0].map(half::bf16::from_f32), half::bf16::from_f32(2.5));
        check([1.0_f32, 2.0, 0.5, 3.0], 2.5);
        check([1_i64, i64::MAX, 1, 3], i64::MIN);
    }

    #[test]
    fn bool_of_any_byte_is_true_unless_it_is_zero() {
        let bytes = Tensor::from_slice(&[0_u8, 1, 200], &[3]).unwrap();
        let flags = Tensor::<bool>::from_storage(bytes.storage(), &[3]).unwrap();
        let cells = flags.cells().unwrap();
        assert_eq!(cells.iter().map(SharedCell::get).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!((cells[2].compare_exchange(true, false), cells[0].swap(true)), (Ok(true), false));
        assert_eq!(bytes.to_vec(), [1, 1, 0]);
    }

    #[test]
    fn memory_that_can_only_be_read_and_scattered_elements_have_no_cells() {
        let tensor = Tensor::from_slice(&[1, 2, 3, 4], &[2, 2]).unwrap();
        let error = tensor.transpose(0, 1).unwrap().cells().unwrap_err().to_string();
        assert!(error.contains("cannot be a slice of cells without a copy"), "{error}");
        let frozen = tensor.freeze().unwrap().to_tensor();
        assert!(matches!(frozen.cells(), Err(MemoryError::ReadOnly)));
        assert!(matches!(frozen.iter_cells(), Err(MemoryError::ReadOnly)));
        assert_eq!(Tensor::<f32>::zeros(&[0, 3]).unwrap().cells().unwrap().len(), 0);
    }

    #[test]
    fn iterator_meets_each_element_once_in_order_however_far_it_was_taken() {
        let all: Vec<u16> = (0..60).collect();
        let cube = Tensor::from_slice(&all, &[3, 4, 5]).unwrap();
        let views = [
            cube.clone(),
            cube.transpose(0, 2).unwrap(),
            cube.slice(2, 1.., 3).unwrap().transpose(0, 1).unwrap(),
            cube.select(1, 3).unwrap(),
            cube.narrow(2, 4, 1).unwrap(),
            cube.narrow(0, 3, 0).unwrap(),
            Tensor::from_slice(&[9], &[]).unwrap(),
        ];
        for view in views {
            let expected = view.to_vec();
            for taken in 0..=expected.len() {
                let mut cells = view.iter_cells().unwrap();
                let mut seen: Vec<_> = cells.by_ref().take(taken).map(SharedCell::get).collect();
                assert_eq!(cells.len(), expected.len() - taken);
                cells.for_each(|cell| seen.push(cell.get()));
                assert_eq!(seen, expected);
            }
        }
    }
}
