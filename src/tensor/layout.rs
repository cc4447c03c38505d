//! Pure: which elements of a storage make up a tensor, and in which order.

use super::rows::{Odometer, Rows};

/// A shape with the distances between its elements. All of them lie in the storage; no two at the same place of the
/// shape are guaranteed to differ, but there are never more of them than the storage has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// The number of elements along each dimension, the outermost first.
    shape: Vec<usize>,
    /// By dimension: the distance of two neighbours, in elements of the storage.
    strides: Vec<usize>,
    /// The element of the storage that comes first.
    offset: usize,
    /// How many elements there are: the product of the shape.
    len: usize,
    /// Whether they lie one after the other.
    contiguous: bool,
}

impl Layout {
    /// Row-major from the first element of the storage on. `None` when the count overflows.
    pub(super) fn row_major(shape: &[usize]) -> Option<Self> {
        Self::row_major_at(shape, 0)
    }

    /// Row-major from the element `offset` of the storage on. `None` when the count overflows.
    fn row_major_at(shape: &[usize], offset: usize) -> Option<Self> {
        let strides = row_major_strides(shape)?;
        let len = product(shape)?;
        Some(Self { shape: shape.to_vec(), strides, offset, len, contiguous: true })
    }

    /// Any layout, of which nothing is taken on trust: `None` when it does not lie in `room` elements, has more
    /// elements than that, or overflows.
    pub(super) fn checked(shape: &[usize], strides: &[usize], offset: usize, room: usize) -> Option<Self> {
        let len = product(shape)?;
        if shape.len() != strides.len() || len > room || offset > room {
            return None;
        }
        if len > 0 {
            let farthest = shape
                .iter()
                .zip(strides)
                .try_fold(offset, |at, (size, stride)| at.checked_add((size - 1).checked_mul(*stride)?))?;
            if farthest >= room {
                return None;
            }
        }
        Some(Self::known(shape.to_vec(), strides.to_vec(), offset))
    }

    /// A part of a checked layout.
    fn known(shape: Vec<usize>, strides: Vec<usize>, offset: usize) -> Self {
        // That of a part is no larger than that of the whole, which was counted.
        let len = product(&shape).unwrap_or(0);
        let contiguous = len <= 1 || is_row_major(&shape, &strides);
        Self { shape, strides, offset, len, contiguous }
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(super) fn strides(&self) -> &[usize] {
        &self.strides
    }

    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether the elements lie one after the other, in row-major order. One element does, and so do none.
    pub(super) fn is_contiguous(&self) -> bool {
        self.contiguous
    }

    /// The place of an index in row-major order; `None` when there is no such index.
    #[inline]
    pub(super) fn position(&self, index: &[usize]) -> Option<usize> {
        let inside =
            index.len() == self.shape.len() && index.iter().zip(&self.shape).all(|(at, size)| at < size);
        inside.then(|| index.iter().zip(&self.shape).fold(0, |place, (at, size)| place * size + at))
    }

    /// The element of the storage at a place in row-major order; `None` when there is no such place.
    #[inline]
    pub(super) fn element(&self, place: usize) -> Option<usize> {
        if place >= self.len {
            None
        } else if self.contiguous {
            Some(self.offset + place)
        } else {
            Some(self.scattered(place))
        }
    }

    /// As [`element`](Self::element), of a layout that is not contiguous and has that place.
    fn scattered(&self, place: usize) -> usize {
        let mut rest = place;
        let inner = self.shape.iter().zip(&self.strides).skip(1).rev();
        let element = inner.fold(self.offset, |element, (size, stride)| {
            let at = rest % size;
            rest /= size;
            element + at * stride
        });
        // In the outermost dimension that is all that is left: divisions are what this costs.
        element + self.strides.first().map_or(0, |stride| rest * stride)
    }

    /// The runs of elements that lie one after the other, in row-major order: where each begins in the storage. All
    /// have the length that is returned first.
    pub(super) fn runs(&self) -> (usize, impl Iterator<Item = usize> + '_) {
        let (outer, run) = self.split_runs();
        let count = if self.len == 0 { 0 } else { self.len / run };
        let (shape, strides) = (&self.shape[..outer], &self.strides[..outer]);
        (run, Odometer::new(shape, strides, self.offset).take(count))
    }

    /// All elements, as rows of evenly spaced ones.
    pub(super) fn rows(&self) -> Rows<'_> {
        Rows::new(&self.shape, &self.strides, self.offset, self.len)
    }

    /// The least number of elements that a storage needs to have all of these.
    pub(super) fn reach(&self) -> usize {
        let last = |at, (size, stride): (&usize, &usize)| at + (size - 1) * stride;
        if self.len == 0 { 0 } else { self.shape.iter().zip(&self.strides).fold(self.offset, last) + 1 }
    }

    /// How many outer dimensions there are, and how many elements the rest has, which lie one after the other.
    fn split_runs(&self) -> (usize, usize) {
        if self.len == 0 {
            return (0, 0);
        }
        let mut run = 1;
        for (dimension, (&size, &stride)) in self.shape.iter().zip(&self.strides).enumerate().rev() {
            if size != 1 && stride != run {
                return (dimension + 1, run);
            }
            run *= size;
        }
        (0, run)
    }

    /// `count` elements of a dimension, every `step`th from `start` on. `None` when there is no such dimension, the last of them is
    /// beyond its end, or `step` is zero.
    pub(super) fn part(&self, dimension: usize, start: usize, count: usize, step: usize) -> Option<Self> {
        let size = *self.shape.get(dimension)?;
        let farthest = if count == 0 { start } else { start.checked_add((count - 1).checked_mul(step)?)? };
        if step == 0 || farthest > size || (count > 0 && farthest == size) {
            return None;
        }
        let (mut shape, mut strides) = (self.shape.clone(), self.strides.clone());
        let offset =
            if self.len == 0 || count == 0 { self.offset } else { self.offset + start * strides[dimension] };
        shape[dimension] = count;
        // With fewer than two elements the distance means nothing, and might overflow.
        strides[dimension] =
            if count > 1 { strides[dimension].saturating_mul(step) } else { strides[dimension] };
        Some(Self::known(shape, strides, offset))
    }

    /// One element of a dimension, which the result lacks. `None` when there is no such element.
    pub(super) fn select(&self, dimension: usize, index: usize) -> Option<Self> {
        let part = self.part(dimension, index, 1, 1)?;
        let (mut shape, mut strides) = (part.shape, part.strides);
        shape.remove(dimension);
        strides.remove(dimension);
        Some(Self::known(shape, strides, part.offset))
    }

    /// The layout in which two dimensions have changed places. `None` when one of them does not exist.
    pub(super) fn transpose(&self, one: usize, other: usize) -> Option<Self> {
        if one >= self.shape.len() || other >= self.shape.len() {
            return None;
        }
        let (mut shape, mut strides) = (self.shape.clone(), self.strides.clone());
        shape.swap(one, other);
        strides.swap(one, other);
        Some(Self::known(shape, strides, self.offset))
    }

    /// The same elements in the same order under another shape of as many, or `None` when that needs a copy.
    pub(super) fn reshape(&self, shape: &[usize]) -> Option<Self> {
        if self.contiguous || self.len == 0 {
            return Self::row_major_at(shape, self.offset);
        }
        Some(Self::known(shape.to_vec(), self.regrouped_strides(shape)?, self.offset))
    }

    /// The strides of [`reshape`](Self::reshape), found from the innermost dimension on: the old dimensions fall into groups of evenly
    /// spaced elements, and each new one must lie within one group.
    fn regrouped_strides(&self, shape: &[usize]) -> Option<Vec<usize>> {
        let old = self.shape.iter().zip(&self.strides).filter(|(size, _)| **size != 1).rev();
        let mut groups = Vec::<(usize, usize)>::new();
        for (&size, &stride) in old {
            match groups.last_mut() {
                Some((count, spacing)) if stride == *count * *spacing => *count *= size,
                _ => groups.push((size, stride)),
            }
        }
        let mut groups = groups.into_iter();
        let (mut left, mut stride) = groups.next().unwrap_or((1, 1));
        let mut strides = vec![0; shape.len()];
        for (new, &size) in strides.iter_mut().zip(shape).rev() {
            if size != 1 && left == 1 {
                (left, stride) = groups.next()?;
            }
            *new = stride;
            if !left.is_multiple_of(size) {
                return None;
            }
            left /= size;
            stride *= size;
        }
        Some(strides)
    }
}

/// The number of elements of a shape; `None` when it overflows.
fn product(shape: &[usize]) -> Option<usize> {
    // A zero makes the product zero, whatever overflows before it.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))
}

/// The strides of a shape in row-major order; `None` when one of them overflows.
fn row_major_strides(shape: &[usize]) -> Option<Vec<usize>> {
    let (mut strides, empty) = (vec![1; shape.len()], shape.contains(&0));
    let mut stride = 1_usize;
    for (place, &size) in strides.iter_mut().zip(shape).rev() {
        *place = stride;
        // Between no elements any distance will do.
        stride = if empty { stride.saturating_mul(size.max(1)) } else { stride.checked_mul(size)? };
    }
    Some(strides)
}

/// Whether the strides are those of row-major order. The stride of a dimension of one element does not matter.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    for (&size, &stride) in shape.iter().zip(strides).rev() {
        if size != 1 && stride != expected {
            return false;
        }
        expected *= size;
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The elements in row-major order, by the definition.
    fn elements(layout: &Layout) -> Vec<usize> {
        (0..layout.len()).map(|place| layout.element(place).unwrap()).collect()
    }

    fn by_runs(layout: &Layout) -> Vec<usize> {
        let (run, starts) = layout.runs();
        starts.flat_map(|start| start..start + run).collect()
    }

    fn by_rows(layout: &Layout) -> Vec<usize> {
        let rows = layout.rows();
        let (len, stride) = (rows.len, rows.stride);
        rows.flat_map(|start| (0..len).map(move |at| start + at * stride)).collect()
    }

    fn shapes() -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(0_usize..5, 0..4)
    }

    #[test]
    fn views_of_a_matrix() {
        let matrix = Layout::row_major(&[3, 4]).unwrap();
        assert_eq!(elements(&matrix.select(0, 1).unwrap()), [4, 5, 6, 7]);
        assert_eq!(elements(&matrix.select(1, 2).unwrap()), [2, 6, 10]);
        assert_eq!(elements(&matrix.part(1, 1, 2, 2).unwrap()), [1, 3, 5, 7, 9, 11]);
        assert_eq!(elements(&matrix.transpose(0, 1).unwrap()), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert!(matrix.part(0, 1, 2, 1).unwrap().is_contiguous());
        assert!(!matrix.part(1, 1, 2, 1).unwrap().is_contiguous());
        for missing in
            [matrix.select(0, 3), matrix.select(2, 0), matrix.part(1, 2, 3, 1), matrix.transpose(0, 2)]
        {
            assert_eq!(missing, None);
        }
        assert_eq!(matrix.part(0, 0, 1, 0), None);
        assert_eq!(matrix.part(0, usize::MAX, 2, usize::MAX), None);
        assert_eq!(matrix.part(0, 3, 0, 1).unwrap().len(), 0);
    }

    #[test]
    fn reshape_needs_a_copy_only_where_it_does() {
        let matrix = Layout::row_major(&[4, 6]).unwrap();
        let columns = matrix.part(1, 0, 3, 2).unwrap();
        assert_eq!(elements(&columns.reshape(&[12]).unwrap()), elements(&columns));
        let left = matrix.part(1, 0, 4, 1).unwrap();
        assert_eq!(left.reshape(&[16]), None);
        assert_eq!(elements(&left.reshape(&[2, 2, 2, 2]).unwrap()), elements(&left));
        assert_eq!(matrix.transpose(0, 1).unwrap().reshape(&[24]), None);
        let rows = matrix.part(0, 0, 2, 2).unwrap();
        assert_eq!(elements(&rows.reshape(&[2, 1, 2, 3]).unwrap()), elements(&rows));
    }

    #[test]
    fn hostile_layouts_are_refused() {
        for (shape, strides, offset) in [
            (vec![5], vec![1], 0),
            (vec![4], vec![1], 1),
            (vec![2], vec![4], 0),
            (vec![usize::MAX], vec![0], 0),
            (vec![2, 2], vec![usize::MAX, usize::MAX], 0),
            (vec![usize::MAX, 2], vec![1, 1], 0),
            (vec![2], vec![1, 1], 0),
            (vec![0], vec![1], 5),
        ] {
            assert_eq!(Layout::checked(&shape, &strides, offset, 4), None, "{shape:?} {strides:?} {offset}");
        }
        assert!(Layout::checked(&[0, usize::MAX], &[usize::MAX, 1], 4, 4).is_some());
        assert!(Layout::checked(&[4], &[1], 0, 4).is_some());
        assert!(Layout::row_major(&[usize::MAX, 2]).is_none());
        assert!(
            Layout::row_major(&[usize::MAX, 0, 2]).is_some()
                && Layout::row_major(&[0, usize::MAX, 2]).is_some()
        );
    }

    proptest! {
        #[test]
        fn checked_layout_never_leaves_its_room(
            shape in prop::collection::vec(prop_oneof![0_usize..6, any::<usize>()], 0..4),
            strides in prop::collection::vec(prop_oneof![0_usize..6, any::<usize>()], 0..4),
            offset in prop_oneof![0_usize..20, any::<usize>()],
            room in 0_usize..60,
        ) {
            if let Some(layout) = Layout::checked(&shape, &strides, offset, room) {
                prop_assert!(layout.len() <= room);
                prop_assert!(elements(&layout).iter().all(|&element| element < room));
                prop_assert_eq!(by_runs(&layout), elements(&layout));
                prop_assert_eq!(by_rows(&layout), elements(&layout));
                prop_assert_eq!(layout.reach(), elements(&layout).into_iter().max().map_or(0, |last| last + 1));
            }
        }

        #[test]
        fn chains_of_views_keep_to_their_storage_and_agree_with_runs(
            shape in shapes(),
            steps in prop::collection::vec((0..4_u8, 0_usize..4, 0_usize..4, 0_usize..4, 1_usize..3), 0..6),
        ) {
            let mut layout = Layout::row_major(&shape).unwrap();
            let room = layout.len();
            for (kind, a, b, c, step) in steps {
                let next = match kind {
                    0 => layout.part(a, b, c, step),
                    1 => layout.select(a, b),
                    2 => layout.transpose(a, b),
                    _ => layout.reshape(&[layout.len()]),
                };
                layout = next.unwrap_or(layout);
                let all = elements(&layout);
                prop_assert!(all.iter().all(|&element| element < room));
                prop_assert_eq!(by_runs(&layout), all.clone());
                prop_assert_eq!(by_rows(&layout), all.clone());
                let one_after_the_other = all.windows(2).all(|pair| pair[1] == pair[0] + 1);
                prop_assert_eq!(layout.is_contiguous(), one_after_the_other || layout.len() <= 1);
                let same = Layout::checked(layout.shape(), layout.strides(), layout.offset(), room);
                prop_assert_eq!(same.as_ref(), Some(&layout));
            }
        }

        #[test]
        fn reshape_keeps_elements_and_order(shape in shapes(), a in 0_usize..3, b in 0_usize..3, to in shapes()) {
            let layout = Layout::row_major(&shape).unwrap();
            let layout = layout.transpose(a, b).unwrap_or(layout);
            if to.iter().product::<usize>() == layout.len() && let Some(reshaped) = layout.reshape(&to) {
                prop_assert_eq!(elements(&reshaped), elements(&layout));
            }
        }
    }
}
