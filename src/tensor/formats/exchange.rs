//! Tensors to the form of DLPack and back.

use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use super::super::dyn_tensor::DynTensor;
use super::super::layout::Layout;
use super::dlpack::{
    CPU, DLDataType, DLDevice, DLManagedTensorVersioned, DLTensor, Described, DlpackTensor, FLAG_READ_ONLY,
    VERSION,
};
use crate::dtype::DType;
use crate::error::MemoryError;

/// What a tensor that was handed out needs until it comes back.
struct Export {
    /// Keeps the memory mapped.
    _tensor: DynTensor,
    /// The number of elements along each dimension: `DLTensor::shape` points here.
    shape: Vec<i64>,
    /// The distances of neighbours in elements: `DLTensor::strides` points here.
    strides: Vec<i64>,
}

impl DynTensor {
    /// Hands out the tensor's own memory in the form of DLPack, without a copy; it stays mapped until that is given
    /// back. What is frozen or a file's has the flag that it may only be read, and to write there ends in SIGSEGV.
    ///
    /// Other libraries expect that no other process writes to the memory meanwhile, which the caller has to guarantee. A byte
    /// of a bool may be another than 0 and 1, if a process wrote that.
    ///
    /// # Errors
    /// [`MemoryError::TooLarge`] when a size does not fit in an `i64`, as only tensors without elements have it.
    pub fn to_dlpack(&self) -> Result<DlpackTensor, MemoryError> {
        let shape = self.signed_shape()?;
        // A distance that does not fit is one between elements that do not exist: there any will do.
        let strides = self.strides().iter().map(|&stride| i64::try_from(stride).unwrap_or(1)).collect();
        let mut export = Box::new(Export { _tensor: self.clone(), shape, strides });
        let dl_tensor = self.described(&mut export);
        let managed = NonNull::from(Box::leak(Box::new(DLManagedTensorVersioned {
            version: VERSION,
            manager_ctx: Box::into_raw(export).cast(),
            deleter: Some(take_back),
            flags: if self.storage().is_writable() { 0 } else { FLAG_READ_ONLY },
            dl_tensor,
        })));
        #[expect(unsafe_code, reason = "what a pointer points to is to be vouched for")]
        // SAFETY: it was made just now and is given away; the export keeps shape, strides and memory until `take_back`,
        // and in this library all write to the memory by atomics of an element's size.
        Ok(unsafe { DlpackTensor::from_raw(managed) })
    }

    /// The shape in DLPack's type of numbers.
    fn signed_shape(&self) -> Result<Vec<i64>, MemoryError> {
        let sizes = self.shape().iter().map(|&size| i64::try_from(size));
        let too_large =
            |_| MemoryError::TooLarge { shape: self.shape().to_vec(), element: self.dtype().size() };
        sizes.collect::<Result<_, _>>().map_err(too_large)
    }

    /// The tensor in DLPack's form. It points into `export`, which must not move or be dropped as long as it is used.
    fn described(&self, export: &mut Export) -> DLTensor {
        DLTensor {
            data: self.first_element().cast(),
            device: DLDevice { device_type: CPU, device_id: 0 },
            // No real tensor has that number of dimensions.
            ndim: i32::try_from(export.shape.len()).unwrap_or(i32::MAX),
            dtype: to_dlpack_type(self.dtype()),
            shape: export.shape.as_mut_ptr(),
            strides: export.strides.as_mut_ptr(),
            byte_offset: 0,
        }
    }

    /// The address of the first element; NULL when there is none.
    fn first_element(&self) -> *mut u8 {
        let size = self.dtype().size();
        self.element(0, size).map_or(ptr::null_mut(), |(map, at)| map.at(at, size, size))
    }

    /// A copy of another library's tensor, of any strides, in memory that workers share.
    ///
    /// # Errors
    /// [`MemoryError::Foreign`] when it is not in ordinary memory, its elements are of a type that phalanx does not have
    /// or are not aligned to their size, or its numbers make no sense; as [`zeros`](Self::zeros).
    pub fn from_dlpack(foreign: &DlpackTensor) -> Result<Self, MemoryError> {
        let source = Source::of(foreign).map_err(|reason| MemoryError::Foreign { reason })?;
        let copy = Self::zeros(source.dtype, &source.shape)?;
        source.copy_to(&copy);
        Ok(copy)
    }
}

/// Lets go of what was handed out.
///
/// # Safety
/// `managed` is what `to_dlpack` made, and comes back for the first time.
#[expect(unsafe_code, reason = "C hands back a pointer")]
unsafe extern "C" fn take_back(managed: *mut DLManagedTensorVersioned) {
    // SAFETY: it was leaked from a box in `to_dlpack`, as the caller promises.
    let managed = unsafe { Box::from_raw(managed) };
    // SAFETY: likewise, of this type; no other code has put another pointer there.
    drop(unsafe { Box::from_raw(managed.manager_ctx.cast::<Export>()) });
}

/// A tensor of another library whose numbers were checked.
struct Source<'a> {
    /// The type of the elements.
    dtype: DType,
    /// The number of elements along each dimension.
    shape: Vec<usize>,
    /// The distances of neighbours along each dimension, in elements; they may be negative.
    strides: Vec<isize>,
    /// The address of the first element.
    first: *const u8,
    /// The other library's tensor, which owns the memory.
    tensor: PhantomData<&'a DlpackTensor>,
}

impl<'a> Source<'a> {
    fn of(foreign: &'a DlpackTensor) -> Result<Self, String> {
        let Described { tensor, shape, strides } = foreign.describe().map_err(|version| {
            format!(
                "its DLPack version is {}.{}, and only {}.x is known",
                version.major, version.minor, VERSION.major
            )
        })?;
        if tensor.device.device_type != CPU {
            return Err(format!("it is on a device of type {}, not on the CPU", tensor.device.device_type));
        }
        let dtype = from_dlpack_type(tensor.dtype)?;
        let shape = sizes(tensor.ndim, shape)?;
        let strides = match strides {
            Some(strides) => strides.into_iter().map(|stride| stride as isize).collect(),
            None => row_major(&shape)?,
        };
        let first = first_byte(&tensor)?;
        if !shape.contains(&0) {
            check_place(first, dtype)?;
            check_reach(first.addr(), &shape, &strides, dtype.size()).ok_or_else(|| {
                format!("shape {shape:?} with strides {strides:?} leaves the address space")
            })?;
        }
        Ok(Self { dtype, shape, strides, first, tensor: PhantomData })
    }

    /// Copies the elements over those of a tensor of the same shape, which is row-major from its storage's begin on.
    fn copy_to(&self, target: &DynTensor) {
        let Some((map, begin)) = target.storage().bytes() else { return };
        let unit = self.dtype.size();
        let (run, outer) = runs(&self.shape, &self.strides);
        let len = run * unit;
        for number in 0..target.len() / run {
            let source = self.first.wrapping_offset(distance(number, &outer) * unit as isize);
            #[expect(unsafe_code, reason = "the elements lie behind a pointer")]
            // SAFETY: that all elements which shape and strides reach are readable, and how they are written to, is what
            // `from_raw`'s caller promised; `of` checked that they are aligned; the target was made after them.
            unsafe {
                map.write_from(begin + number * len, source, len, unit);
            }
        }
    }
}

/// The shape of another library's tensor, if it makes sense.
fn sizes(ndim: i32, shape: Option<Vec<i64>>) -> Result<Vec<usize>, String> {
    if ndim < 0 {
        return Err(format!("it has {ndim} dimensions"));
    }
    let shape = shape.ok_or("it has no shape")?;
    let sizes: Result<_, _> = shape.iter().map(|&size| usize::try_from(size)).collect();
    sizes.map_err(|_| format!("its shape {shape:?} has negative sizes"))
}

/// The strides of a tensor that has none: NULL means row-major order (dlpack.h).
fn row_major(shape: &[usize]) -> Result<Vec<isize>, String> {
    let layout =
        Layout::row_major(shape).ok_or_else(|| format!("shape {shape:?} leaves the address space"))?;
    // One that does not fit is beyond what `check_reach` lets pass.
    Ok(layout.strides().iter().map(|&stride| isize::try_from(stride).unwrap_or(isize::MAX)).collect())
}

/// The address of the first element: `byte_offset` after `data` (dlpack.h).
fn first_byte(tensor: &DLTensor) -> Result<*const u8, String> {
    let offset = usize::try_from(tensor.byte_offset).ok();
    let first = offset.filter(|&offset| tensor.data.addr().checked_add(offset).is_some());
    let offset =
        first.ok_or_else(|| format!("byte offset {} leaves the address space", tensor.byte_offset))?;
    Ok(tensor.data.cast::<u8>().wrapping_add(offset))
}

/// Refuses elements at NULL, and such as are not aligned to their size, as atomics need it.
fn check_place(first: *const u8, dtype: DType) -> Result<(), String> {
    if first.is_null() {
        return Err("it has elements, but no memory".to_owned());
    }
    if !first.addr().is_multiple_of(dtype.size()) {
        return Err(format!("its elements of {dtype} are not aligned to {} bytes", dtype.size()));
    }
    Ok(())
}

/// `Some` when all elements lie in the address space. There is at least one element, the first at the address `first`; `unit` is the
/// size of each in bytes.
fn check_reach(first: usize, shape: &[usize], strides: &[isize], unit: usize) -> Option<()> {
    let (mut before, mut after) = (0_isize, 1_isize);
    for (&size, &stride) in shape.iter().zip(strides) {
        let reach = stride.checked_mul(isize::try_from(size - 1).ok()?)?;
        let side = if reach < 0 { &mut before } else { &mut after };
        *side = side.checked_add(reach)?;
    }
    let unit = isize::try_from(unit).ok()?;
    first.checked_add_signed(before.checked_mul(unit)?)?;
    first.checked_add_signed(after.checked_mul(unit)?)?;
    Some(())
}

/// How many elements lie one after the other, and by which dimensions such runs are reached: sizes and strides. There
/// are some elements, and not more than memory.
fn runs(shape: &[usize], strides: &[isize]) -> (usize, Vec<(usize, isize)>) {
    let mut dimensions = Vec::<(usize, isize)>::new();
    for (&size, &stride) in shape.iter().zip(strides).filter(|(size, _)| **size != 1) {
        match dimensions.last_mut() {
            // The outer one steps over just the whole of this one: both are one long dimension.
            Some(outer) if stride.checked_mul(size as isize) == Some(outer.1) => {
                *outer = (outer.0 * size, stride);
            }
            _ => dimensions.push((size, stride)),
        }
    }
    let run = dimensions.pop_if(|(_, stride)| *stride == 1).map_or(1, |(size, _)| size);
    (run, dimensions)
}

/// How far from the first element the run of that number is, in elements.
fn distance(number: usize, outer: &[(usize, isize)]) -> isize {
    let mut rest = number;
    outer.iter().rev().fold(0, |distance, &(size, stride)| {
        let at = rest % size;
        rest /= size;
        distance + at as isize * stride
    })
}

const SIGNED: u8 = 0;
const UNSIGNED: u8 = 1;
const FLOAT: u8 = 2;
const BFLOAT: u8 = 4;
const BOOL: u8 = 6;

fn to_dlpack_type(dtype: DType) -> DLDataType {
    let code = match dtype {
        DType::Bool => BOOL,
        DType::U8 | DType::U16 | DType::U32 | DType::U64 => UNSIGNED,
        DType::I8 | DType::I16 | DType::I32 | DType::I64 => SIGNED,
        DType::BF16 => BFLOAT,
        DType::F16 | DType::F32 | DType::F64 => FLOAT,
    };
    DLDataType { code, bits: dtype.size() as u8 * 8, lanes: 1 }
}

fn from_dlpack_type(dtype: DLDataType) -> Result<DType, String> {
    Ok(match (dtype.code, dtype.bits, dtype.lanes) {
        (BOOL, 8, 1) => DType::Bool,
        (UNSIGNED, 8, 1) => DType::U8,
        (UNSIGNED, 16, 1) => DType::U16,
        (UNSIGNED, 32, 1) => DType::U32,
        (UNSIGNED, 64, 1) => DType::U64,
        (SIGNED, 8, 1) => DType::I8,
        (SIGNED, 16, 1) => DType::I16,
        (SIGNED, 32, 1) => DType::I32,
        (SIGNED, 64, 1) => DType::I64,
        (FLOAT, 16, 1) => DType::F16,
        (BFLOAT, 16, 1) => DType::BF16,
        (FLOAT, 32, 1) => DType::F32,
        (FLOAT, 64, 1) => DType::F64,
        (code, bits, lanes) => {
            return Err(format!(
                "its elements (code {code}, {bits} bits, {lanes} lanes) are of no type of phalanx"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By the definition, element by element.
    fn one_by_one(shape: &[usize], strides: &[isize]) -> Vec<isize> {
        let dimensions: Vec<_> = shape.iter().copied().zip(strides.iter().copied()).collect();
        (0..shape.iter().product()).map(|number| distance(number, &dimensions)).collect()
    }

    fn by_runs(shape: &[usize], strides: &[isize]) -> Vec<isize> {
        let (run, outer) = runs(shape, strides);
        let count = shape.iter().product::<usize>() / run;
        let starts = (0..count).map(|number| distance(number, &outer));
        starts.flat_map(|start| start..start + run as isize).collect()
    }

    #[test]
    fn runs_are_as_long_as_can_be() {
        assert_eq!(runs(&[2, 3, 4], &[12, 4, 1]), (24, vec![]));
        assert_eq!(runs(&[2, 1, 4], &[9, -7, 1]), (4, vec![(2, 9)]));
        assert_eq!(runs(&[3, 4], &[-4, -1]), (1, vec![(12, -1)]));
        assert_eq!(runs(&[], &[]), (1, vec![]));
    }

    proptest! {
        #[test]
        fn runs_reach_the_same_elements_in_the_same_order(
            dimensions in prop::collection::vec((1_usize..5, -6_isize..7), 0..5),
        ) {
            let (shape, strides): (Vec<_>, Vec<_>) = dimensions.into_iter().unzip();
            prop_assert_eq!(by_runs(&shape, &strides), one_by_one(&shape, &strides));
        }

        #[test]
        fn reach_never_overflows(
            first in any::<usize>(),
            dimensions in prop::collection::vec((1..usize::MAX, any::<isize>()), 0..5),
        ) {
            let (shape, strides): (Vec<_>, Vec<_>) = dimensions.into_iter().unzip();
            let _ = check_reach(first, &shape, &strides, 8);
        }
    }
}
