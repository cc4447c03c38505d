//! Pure: the elements of a layout in row-major order, one after the other, without a division for each.

/// The elements as rows: a row is what the innermost dimension has, evenly spaced.
///
/// A division by the size of each dimension finds one element; who wants all of them goes along a row by additions, and asks the
/// [`Odometer`] only where the next row begins.
pub(super) struct Rows<'a> {
    /// How many rows are left.
    pub(super) count: usize,
    /// Elements of a row.
    pub(super) len: usize,
    /// The distance of two neighbours in a row, in elements of the storage.
    pub(super) stride: usize,
    starts: Odometer<'a>,
}

impl<'a> Rows<'a> {
    /// Those of `count` elements in all, of which the first is the storage's element `offset`.
    pub(super) fn new(shape: &'a [usize], strides: &'a [usize], offset: usize, count: usize) -> Self {
        // Dimensions of one element that come last would make rows of one element each.
        let innermost = shape.iter().rposition(|&size| size != 1);
        let (len, stride) = innermost.map_or((1, 1), |inner| (shape[inner], strides[inner]));
        let outer = innermost.unwrap_or(0);
        let starts = Odometer::new(&shape[..outer], &strides[..outer], offset);
        Self { count: count.checked_div(len).unwrap_or(0), len, stride, starts }
    }
}

impl Iterator for Rows<'_> {
    /// The element of the storage with which a row begins.
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        self.count = self.count.checked_sub(1)?;
        self.starts.next()
    }
}

/// Goes through the elements of some dimensions in row-major order, without a division.
pub(super) struct Odometer<'a> {
    /// The sizes of the dimensions, the outermost first.
    shape: &'a [usize],
    /// Their strides, in elements.
    strides: &'a [usize],
    /// The index of the next element.
    index: Vec<usize>,
    /// The number of the next element in the storage.
    element: usize,
}

impl<'a> Odometer<'a> {
    /// At the first element of these dimensions, which is the storage's `element`.
    pub(super) fn new(shape: &'a [usize], strides: &'a [usize], element: usize) -> Self {
        Self { shape, strides, index: vec![0; shape.len()], element }
    }
}

impl Iterator for Odometer<'_> {
    type Item = usize;

    /// Never ends: after the last element it begins anew.
    fn next(&mut self) -> Option<usize> {
        let element = self.element;
        for ((at, &size), &stride) in self.index.iter_mut().zip(self.shape).zip(self.strides).rev() {
            *at += 1;
            if *at < size {
                self.element += stride;
                break;
            }
            self.element -= (size - 1) * stride;
            *at = 0;
        }
        Some(element)
    }
}
