//! DLPack: how the libraries of one process hand each other tensors, by a C struct.
//!
//! [`DynTensor::to_dlpack`](crate::DynTensor::to_dlpack) hands out a tensor's own memory,
//! [`DynTensor::from_dlpack`](crate::DynTensor::from_dlpack) copies a tensor of another library into memory that workers share.
//! The structs are those of `dlpack.h`, version 1.
//!
//! ```
//! use phalanx::{DynTensor, Tensor};
//! use phalanx::shm::dlpack::DlpackTensor;
//! let weights = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0], &[2, 2])?.into_dyn();
//! let pointer = weights.transpose(0, 1)?.to_dlpack()?.into_raw(); // goes to another library
//!
//! // What comes from another library:
//! // SAFETY: it is what `into_raw` has just returned.
//! let foreign = unsafe { DlpackTensor::from_raw(pointer) };
//! let copy: Tensor<f32> = DynTensor::from_dlpack(&foreign)?.typed()?;
//! assert_eq!(copy.to_vec(), [1.0, 3.0, 2.0, 4.0]);
//! # Ok::<(), phalanx::MemoryError>(())
//! ```

use std::ffi::c_void;
use std::mem;
use std::ptr::NonNull;
use std::slice;

/// The version of the format that is written here. Whatever has the same major version can be read.
pub const VERSION: DLPackVersion = DLPackVersion { major: 1, minor: 2 };
/// The device type of ordinary memory.
pub const CPU: i32 = 1;
/// The flag of a tensor that may only be read.
pub const FLAG_READ_ONLY: u64 = 1;

/// A version of the format.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLPackVersion {
    /// Says how the structs are laid out.
    pub major: u32,
    /// Says which numbers there are for devices and types.
    pub minor: u32,
}

/// Where a tensor's memory is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLDevice {
    /// The kind: [`CPU`] or others.
    pub device_type: i32,
    /// Which one of its kind.
    pub device_id: i32,
}

/// The type of the elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLDataType {
    /// 0: signed integer, 1: unsigned integer, 2: float, 4: bfloat, 6: bool; and others.
    pub code: u8,
    /// Of one lane.
    pub bits: u8,
    /// More than one: a vector.
    pub lanes: u16,
}

/// A tensor, without saying whose it is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DLTensor {
    /// The memory; NULL when there are no elements.
    pub data: *mut c_void,
    /// Where that is.
    pub device: DLDevice,
    /// The number of dimensions.
    pub ndim: i32,
    /// The type of the elements.
    pub dtype: DLDataType,
    /// The size of every dimension.
    pub shape: *mut i64,
    /// By dimension, how many elements lie between two neighbours; NULL before version 1.2: row-major.
    pub strides: *mut i64,
    /// Where in the memory the first element begins.
    pub byte_offset: u64,
}

/// What is called with a tensor when it is no longer used.
pub type Deleter = unsafe extern "C" fn(*mut DLManagedTensorVersioned);

/// A tensor, and how to give it back.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DLManagedTensorVersioned {
    /// Of what follows. Another major version has the same fields up to `flags`.
    pub version: DLPackVersion,
    /// For the library that made it.
    pub manager_ctx: *mut c_void,
    /// How it is given back; NULL: not at all.
    pub deleter: Option<Deleter>,
    /// [`FLAG_READ_ONLY`] and others.
    pub flags: u64,
    /// The tensor.
    pub dl_tensor: DLTensor,
}

/// A tensor in DLPack's form, which is given back to its maker when this is dropped.
///
/// It is not [`Send`]: many a library must get its tensors back on the thread that handed them out.
#[derive(Debug)]
pub struct DlpackTensor(NonNull<DLManagedTensorVersioned>);

impl DlpackTensor {
    /// Takes over a tensor from another library.
    ///
    /// # Safety
    /// - `managed` points to what `dlpack.h` says, and the caller gives it away: its deleter may be called here, once.
    /// - Until then shape, strides and, on the [`CPU`], all elements that they reach can be read.
    /// - While [`from_dlpack`](crate::DynTensor::from_dlpack) reads the elements, they are not written to but by atomics
    ///   of an element's size.
    #[must_use]
    #[expect(unsafe_code, reason = "what a pointer points to only the caller knows")]
    pub unsafe fn from_raw(managed: NonNull<DLManagedTensorVersioned>) -> Self {
        Self(managed)
    }

    /// Gives the tensor away: the receiver of the pointer calls its deleter, or puts it into [`from_raw`](Self::from_raw).
    #[must_use]
    pub fn into_raw(self) -> NonNull<DLManagedTensorVersioned> {
        let managed = self.0;
        mem::forget(self);
        managed
    }

    /// The struct, which stays this value's.
    #[must_use]
    pub fn as_ptr(&self) -> *const DLManagedTensorVersioned {
        self.0.as_ptr()
    }

    /// What the tensor's own fields say; the version, when they cannot be read.
    #[expect(unsafe_code, reason = "the fields lie behind a pointer")]
    pub(super) fn describe(&self) -> Result<Described, DLPackVersion> {
        // SAFETY: the pointer is good, as `from_raw`'s caller promised; the version is there in every version.
        let version = unsafe { (*self.as_ptr()).version };
        if version.major != VERSION.major {
            return Err(version);
        }
        // SAFETY: as above; that this field is there the version has just said.
        let tensor = unsafe { (*self.as_ptr()).dl_tensor };
        let count = usize::try_from(tensor.ndim).unwrap_or(0);
        // SAFETY: a tensor's shape has as many numbers as it has dimensions, as `from_raw`'s caller promised.
        let shape = unsafe { numbers(tensor.shape, count) };
        // SAFETY: as the shape.
        let strides = unsafe { numbers(tensor.strides, count) };
        Ok(Described { tensor, shape, strides })
    }
}

/// What a tensor says of itself.
pub(super) struct Described {
    pub(super) tensor: DLTensor,
    /// `None`: there is no pointer.
    pub(super) shape: Option<Vec<i64>>,
    /// `None`: there is no pointer.
    pub(super) strides: Option<Vec<i64>>,
}

/// The numbers that a pointer leads to.
///
/// # Safety
/// It is NULL, or `count` numbers can be read there.
#[expect(unsafe_code, reason = "they lie behind a pointer")]
unsafe fn numbers(start: *const i64, count: usize) -> Option<Vec<i64>> {
    if count == 0 {
        return Some(Vec::new());
    }
    // SAFETY: they are there, as the caller promises.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start, count) }.to_vec())
}

impl Drop for DlpackTensor {
    #[expect(unsafe_code, reason = "the deleter is a C function")]
    fn drop(&mut self) {
        // SAFETY: the pointer is good, as `from_raw`'s caller promised; this field is there in every version.
        let deleter = unsafe { (*self.as_ptr()).deleter };
        if let Some(deleter) = deleter {
            // SAFETY: the tensor is this value's, so the deleter was not called, and the pointer is not used any more.
            unsafe { deleter(self.0.as_ptr()) };
        }
    }
}

/// What C compilers make of the structs on machines of 64 bits.
const _: () = {
    assert!(size_of::<DLTensor>() == 48 && mem::offset_of!(DLTensor, strides) == 32);
    assert!(size_of::<DLManagedTensorVersioned>() == 80);
    assert!(mem::offset_of!(DLManagedTensorVersioned, flags) == 24);
};
