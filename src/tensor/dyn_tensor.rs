//! A layout over a storage, whose element type is known only when the program runs.

use std::fmt;
use std::ops::{Bound, RangeBounds};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};

use super::layout::Layout;
use crate::dtype::DType;
use crate::error::MemoryError;
use crate::memory::storage::{Storage, StorageId};
use crate::transfer::context;

/// An array of numbers whose type is data ([`DType`]), in memory that workers share. [`typed`](Self::typed) makes a
/// [`Tensor`](crate::Tensor) of it, which has access to its elements; [`Tensor::into_dyn`](crate::Tensor::into_dyn) is the way back.
///
/// ```
/// use phalanx::shm::DType;
/// use phalanx::{DynTensor, Tensor};
/// let any = DynTensor::zeros(DType::F32, &[2, 3])?;
/// let row: Tensor<f32> = any.select(0, 1)?.typed()?;
/// row.set(2, 0.5)?;
/// assert_eq!(any.typed::<f32>()?.to_vec(), [0.0, 0.0, 0.0, 0.0, 0.0, 0.5]);
/// assert!(any.typed::<f64>().is_err());
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
#[derive(Clone)]
pub struct DynTensor {
    /// The memory that the elements lie in. All tensors over it have elements of the same size.
    storage: Storage,
    /// The type of the elements.
    dtype: DType,
    /// Which elements of the storage make up this tensor.
    layout: Layout,
}

impl DynTensor {
    /// Makes a tensor of zeros in memory of its own. A shape without dimensions has one element. torch's name: `torch.zeros`.
    ///
    /// # Errors
    /// As [`Storage::new`], and [`MemoryError::TooLarge`] when the shape has more bytes than the address space.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Self, MemoryError> {
        let too_large = || MemoryError::TooLarge { shape: shape.to_vec(), element: dtype.size() };
        let layout = Layout::row_major(shape).ok_or_else(too_large)?;
        let bytes = layout.len().checked_mul(dtype.size()).ok_or_else(too_large)?;
        let storage = Storage::new(bytes).map_err(|error| error.of_tensor(dtype, shape))?;
        storage.claim_unit(dtype.size())?;
        Ok(Self { storage, dtype, layout })
    }

    /// Makes a tensor over the first bytes of a storage, in row-major order. Nothing is copied.
    ///
    /// ```
    /// use phalanx::shm::DType;
    /// use phalanx::{DynTensor, Storage};
    ///
    /// let storage = Storage::new(64)?;
    /// let tensor = DynTensor::from_storage(&storage, DType::I32, &[2, 4])?;
    /// assert_eq!((tensor.len(), tensor.strides()), (8, &[4, 1][..]));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::LengthMismatch`] when the storage is too small for the shape, [`MemoryError::OtherSize`] when tensors over
    /// it have had elements of another size.
    pub fn from_storage(storage: &Storage, dtype: DType, shape: &[usize]) -> Result<Self, MemoryError> {
        let given = storage.len() / dtype.size();
        let too_large = || MemoryError::TooLarge { shape: shape.to_vec(), element: dtype.size() };
        let layout = Layout::row_major(shape).ok_or_else(too_large)?;
        if layout.len() > given {
            return Err(MemoryError::LengthMismatch { given, expected: layout.len(), shape: shape.to_vec() });
        }
        storage.claim_unit(dtype.size())?;
        Ok(Self { storage: storage.clone(), dtype, layout })
    }

    /// As [`from_storage`](Self::from_storage), from the byte `at` of the storage on, which is a multiple of the element's size. `None`
    /// when the shape does not fit, or tensors over the storage have had elements of another size.
    pub(super) fn within(storage: &Storage, at: usize, dtype: DType, shape: &[usize]) -> Option<Self> {
        let (layout, offset) = (Layout::row_major(shape)?, at / dtype.size());
        let room = storage.len() / dtype.size();
        let layout = Layout::checked(layout.shape(), layout.strides(), offset, room)?;
        storage.claim_unit(dtype.size()).ok()?;
        Some(Self { storage: storage.clone(), dtype, layout })
    }

    /// The number of elements along each dimension.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// The distance between neighbours along each dimension, in elements of the storage.
    #[must_use]
    pub fn strides(&self) -> &[usize] {
        self.layout.strides()
    }

    /// The number of the tensor's first element in the storage.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.layout.offset()
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layout.len()
    }

    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of its elements.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The memory that it lies in, which its clones and views share.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The identity of its memory, equal in every process that has it.
    #[must_use]
    pub fn storage_id(&self) -> StorageId {
        self.storage.id()
    }

    /// Whether its elements lie one after the other, in row-major order.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        self.layout.is_contiguous()
    }

    /// Whether its memory can be mapped by other processes: always true. (torch has tensors that cannot.)
    #[must_use]
    pub fn is_shared(&self) -> bool {
        true
    }

    /// A view of `len` elements along a dimension, from `start` on. torch's name: `Tensor.narrow`.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPart`] when the part reaches beyond the tensor.
    pub fn narrow(&self, dimension: usize, start: usize, len: usize) -> Result<Self, MemoryError> {
        self.view(self.layout.part(dimension, start, len, 1), dimension, || {
            format!("a part of {len} elements from {start} on")
        })
    }

    /// A view of every `step`th element of a range along a dimension, the first of the range included.
    ///
    /// ```
    /// use phalanx::shm::DType;
    /// use phalanx::DynTensor;
    ///
    /// let tensor = DynTensor::zeros(DType::F32, &[10, 3])?;
    /// assert_eq!(tensor.slice(0, 1..9, 3)?.shape(), [3, 3]); // the rows 1, 4 and 7
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
        let size = self.shape().get(dimension).copied().unwrap_or(0);
        let start = match range.start_bound() {
            Bound::Included(&start) => Some(start),
            Bound::Excluded(&before) => before.checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let end = match range.end_bound() {
            Bound::Included(&last) => last.checked_add(1),
            Bound::Excluded(&end) => Some(end),
            Bound::Unbounded => Some(size),
        };
        let bounds = start.zip(end).filter(|(start, end)| start <= end && *end <= size && step > 0);
        let part = bounds
            .and_then(|(start, end)| self.layout.part(dimension, start, (end - start).div_ceil(step), step));
        self.view(part, dimension, || {
            let show = |end: Option<usize>| end.map_or_else(String::new, |end| end.to_string());
            format!("the range {}..{} in steps of {step}", show(start), show(end))
        })
    }

    /// A view of one element along a dimension, which the view lacks: of a matrix it has one dimension. torch's name: `Tensor.select`.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPart`] when the dimension has no such element.
    pub fn select(&self, dimension: usize, index: usize) -> Result<Self, MemoryError> {
        self.view(self.layout.select(dimension, index), dimension, || format!("element {index}"))
    }

    /// A view in which two dimensions are swapped. torch's name: `Tensor.transpose`.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPart`] when there is no such dimension.
    pub fn transpose(&self, one: usize, other: usize) -> Result<Self, MemoryError> {
        self.view(self.layout.transpose(one, other), one.max(other), || "anything".to_owned())
    }

    /// A view of the same elements, in the same order, with another shape. torch's name: `Tensor.view`; its `reshape` copies where no
    /// view is possible, this does not.
    ///
    /// # Errors
    /// [`MemoryError::LengthMismatch`] when that shape has another number of elements, [`MemoryError::NotContiguous`] when no
    /// strides give that order: copy it by [`contiguous`](Self::contiguous) first.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self, MemoryError> {
        let too_large = || MemoryError::TooLarge { shape: shape.to_vec(), element: self.dtype.size() };
        let expected = Layout::row_major(shape).ok_or_else(too_large)?.len();
        if expected != self.len() {
            let given = self.len();
            return Err(MemoryError::LengthMismatch { given, expected, shape: shape.to_vec() });
        }
        let layout = self.layout.reshape(shape);
        let layout = layout.ok_or_else(|| self.not_contiguous(format!("one of shape {shape:?}")))?;
        Ok(self.with(layout))
    }

    /// This tensor if it is contiguous, else a contiguous copy. torch's name: `Tensor.contiguous`.
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros).
    pub fn contiguous(&self) -> Result<Self, MemoryError> {
        if self.is_contiguous() { Ok(self.clone()) } else { self.copied() }
    }

    /// This tensor if it is the only handle to its memory in any process and its elements lie one after the other, else a
    /// copy of it.
    pub(super) fn into_exclusive(mut self) -> Result<Self, MemoryError> {
        let alone = self.is_contiguous() && self.storage.is_exclusive() && self.storage.is_writable();
        if alone { Ok(self) } else { self.copied() }
    }

    /// A contiguous copy in memory of its own.
    pub(super) fn copied(&self) -> Result<Self, MemoryError> {
        let copy = Self::zeros(self.dtype, self.shape())?;
        copy.copy_from(self);
        Ok(copy)
    }

    /// The view of that layout; [`MemoryError::NoSuchPart`] without one, with `what` was asked of `dimension`.
    fn view(
        &self,
        layout: Option<Layout>,
        dimension: usize,
        what: impl FnOnce() -> String,
    ) -> Result<Self, MemoryError> {
        let missing = || {
            let there = dimension < self.shape().len();
            let what = if there {
                format!("{} of dimension {dimension}", what())
            } else {
                format!("dimension {dimension}")
            };
            MemoryError::NoSuchPart { what, shape: self.shape().to_vec() }
        };
        Ok(self.with(layout.ok_or_else(missing)?))
    }

    /// A tensor of another layout over the same storage.
    fn with(&self, layout: Layout) -> Self {
        Self { storage: self.storage.clone(), dtype: self.dtype, layout }
    }

    /// The error of what needs elements that lie one after the other: `wanted` is what the tensor was to become.
    pub(super) fn not_contiguous(&self, wanted: String) -> MemoryError {
        MemoryError::NotContiguous { wanted, shape: self.shape().to_vec(), strides: self.strides().to_vec() }
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The storage, and how to put the same tensor over it again.
    pub(super) fn into_parts(self) -> (Storage, impl FnOnce(Storage) -> Self) {
        let Self { storage, dtype, layout } = self;
        (storage, move |storage| Self { storage, dtype, layout })
    }
}

impl DynTensor {
    /// Writes what the tensor is, under the type's name, without its elements: there may be many, and others may be writing them.
    pub(super) fn describe(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        let Self { storage, dtype, layout } = self;
        let mut shown = f.debug_struct(name);
        shown.field("dtype", dtype).field("shape", &layout.shape());
        if !layout.is_contiguous() {
            shown.field("strides", &layout.strides());
        }
        shown.field("offset", &layout.offset()).field("storage", storage).finish()
    }
}

impl fmt::Debug for DynTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe(f, "DynTensor")
    }
}

/// What crosses to another process in the place of a tensor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Handle {
    /// The number of the message's grant that gives access to the storage.
    grant: u32,
    /// The type of the elements.
    dtype: DType,
    /// The number of elements along each dimension.
    shape: Vec<usize>,
    /// The distances of neighbours along each dimension, in elements; `None`: those of row-major order.
    strides: Option<Vec<usize>>,
    /// The number of the first element in the storage.
    offset: usize,
}

impl Serialize for DynTensor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let grant = context::send(&self.storage).map_err(ser::Error::custom)?;
        let strides = (!self.is_contiguous()).then(|| self.strides().to_vec());
        let (shape, offset) = (self.shape().to_vec(), self.offset());
        Handle { grant, dtype: self.dtype, shape, strides, offset }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DynTensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        context::check_receiving().map_err(D::Error::custom)?;
        let handle = Handle::deserialize(deserializer)?;
        Self::open(handle).map_err(D::Error::custom)
    }
}

impl DynTensor {
    /// The tensor of a handle that has arrived. Nothing in the handle is taken on trust.
    fn open(handle: Handle) -> Result<Self, String> {
        let Handle { grant, dtype, shape, strides, offset } = handle;
        let storage = context::receive(grant)?;
        storage.claim_unit(dtype.size()).map_err(|error| error.to_string())?;
        let room = storage.len() / dtype.size();
        let row_major = || Layout::row_major(&shape).map(|layout| layout.strides().to_vec());
        let layout = strides
            .clone()
            .or_else(row_major)
            .and_then(|strides| Layout::checked(&shape, &strides, offset, room));
        let layout = layout.ok_or_else(|| {
            let len = storage.len();
            format!(
                "a tensor of {dtype}, shape {shape:?}, strides {strides:?} and offset {offset} does not fit its storage of {len} bytes"
            )
        })?;
        Ok(Self { storage, dtype, layout })
    }
}
