//! Tensors in the form of DLPack, to other libraries and from them: here the test is the other library.

#![expect(unsafe_code, reason = "DLPack is a format of C")]

mod common;

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::slice;

use common::watched;
use half::{bf16, f16};
use phalanx::shm::dlpack::{
    CPU, DLDataType, DLDevice, DLManagedTensorVersioned, DLPackVersion, DLTensor, DlpackTensor,
    FLAG_READ_ONLY,
};
use phalanx::shm::{DType, Element};
use phalanx::{DynTensor, MemoryError, Storage, Tensor, spawn};

phalanx::auto_init!();

const F32: DLDataType = DLDataType { code: 2, bits: 32, lanes: 1 };

/// A tensor of another library, which counts how often it is given back.
struct Foreign {
    shape: Vec<i64>,
    strides: Option<Vec<i64>>,
    data: Vec<f32>,
    given_back: Rc<Cell<usize>>,
}

impl Foreign {
    fn new(data: Vec<f32>, shape: &[i64], strides: Option<&[i64]>) -> Self {
        let strides = strides.map(<[_]>::to_vec);
        Self { shape: shape.to_vec(), strides, data, given_back: Rc::default() }
    }

    /// In DLPack's form, after a change to it.
    fn with(self, change: impl FnOnce(&mut DLManagedTensorVersioned)) -> DlpackTensor {
        let mut owned = Box::new(self);
        let dl_tensor = DLTensor {
            data: owned.data.as_mut_ptr().cast(),
            device: DLDevice { device_type: CPU, device_id: 0 },
            ndim: owned.shape.len() as i32,
            dtype: F32,
            shape: owned.shape.as_mut_ptr(),
            strides: owned.strides.as_mut().map_or(ptr::null_mut(), |strides| strides.as_mut_ptr()),
            byte_offset: 0,
        };
        let (version, manager_ctx) = (DLPackVersion { major: 1, minor: 0 }, Box::into_raw(owned).cast());
        let mut managed =
            DLManagedTensorVersioned { version, manager_ctx, deleter: Some(give_back), flags: 0, dl_tensor };
        change(&mut managed);
        // SAFETY: all that it points to lives until it is given back; what a test changes to nonsense is not followed.
        unsafe { DlpackTensor::from_raw(NonNull::from(Box::leak(Box::new(managed)))) }
    }
}

/// # Safety
/// `managed` was made by `Foreign::with`.
unsafe extern "C" fn give_back(managed: *mut DLManagedTensorVersioned) {
    // SAFETY: it was leaked there.
    let managed = unsafe { Box::from_raw(managed) };
    // SAFETY: as was this.
    let owned = unsafe { Box::from_raw(managed.manager_ctx.cast::<Foreign>()) };
    owned.given_back.set(owned.given_back.get() + 1);
}

fn counting(len: usize) -> Vec<f32> {
    (0..len).map(|place| place as f32).collect()
}

fn imported(shape: &[i64], strides: Option<&[i64]>, first: u64) -> Vec<f32> {
    let foreign = Foreign::new(counting(24), shape, strides);
    let given_back = foreign.given_back.clone();
    let foreign = foreign.with(|managed| managed.dl_tensor.byte_offset = 4 * first);
    let tensor = DynTensor::from_dlpack(&foreign).unwrap();
    assert_eq!(given_back.get(), 0);
    drop(foreign);
    assert_eq!(given_back.get(), 1);
    assert!(tensor.is_contiguous());
    assert_eq!(tensor.shape(), shape.iter().map(|&size| size as usize).collect::<Vec<_>>());
    tensor.typed().unwrap().to_vec()
}

#[test]
fn foreign_tensors_of_any_strides_are_copied() {
    watched(|| {
        assert_eq!(imported(&[2, 3, 4], None, 0), counting(24));
        assert_eq!(imported(&[2, 3, 4], Some(&[12, 4, 1]), 0), counting(24));
        assert_eq!(imported(&[2, 3], Some(&[1, 2]), 0), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        assert_eq!(imported(&[4], Some(&[-2]), 7), [7.0, 5.0, 3.0, 1.0]);
        assert_eq!(imported(&[2, 2], Some(&[-4, 1]), 4), [4.0, 5.0, 0.0, 1.0]);
        assert_eq!(imported(&[2, 3], Some(&[0, 1]), 20), [20.0, 21.0, 22.0, 20.0, 21.0, 22.0]);
        assert_eq!(imported(&[], None, 5), [5.0]);
        assert_eq!(imported(&[1, 2], Some(&[i64::MIN, 1]), 3), [3.0, 4.0]);
        assert_eq!(imported(&[3, 0], Some(&[i64::MAX, i64::MAX]), 0), [0.0; 0]);
    });
}

#[test]
fn large_foreign_tensor_is_shared_with_workers() {
    watched(|| {
        let foreign = Foreign::new(counting(300_000), &[300, 1000], None).with(|_| ());
        let tensor: Tensor<f32> = DynTensor::from_dlpack(&foreign).unwrap().typed().unwrap();
        let last = |_, tensor: Tensor<f32>| tensor.get(299_999);
        assert_eq!(spawn(last, tensor, 2).unwrap(), [299_999.0; 2]);
    });
}

/// Why such a tensor is not taken.
fn refusal(change: impl FnOnce(&mut DLManagedTensorVersioned)) -> String {
    let foreign = Foreign::new(counting(6), &[2, 3], Some(&[3, 1]));
    let given_back = foreign.given_back.clone();
    let foreign = foreign.with(change);
    let error = DynTensor::from_dlpack(&foreign).unwrap_err();
    assert!(matches!(error, MemoryError::Foreign { .. }), "{error:?}");
    drop(foreign);
    assert_eq!(given_back.get(), 1);
    error.to_string().strip_prefix("cannot take over foreign data: ").unwrap().to_owned()
}

#[test]
fn what_makes_no_sense_is_refused_and_given_back() {
    watched(|| {
        let version = DLPackVersion { major: 2, minor: 7 };
        let reason = refusal(|managed| managed.version = version);
        assert_eq!(reason, "its DLPack version is 2.7, and only 1.x is known");
        let reason = refusal(|managed| managed.dl_tensor.device.device_type = 2);
        assert_eq!(reason, "it is on a device of type 2, not on the CPU");
        for dtype in [(2, 32, 4), (5, 64, 1), (10, 8, 1), (2, 16, 2), (0, 4, 1), (2, 8, 1)] {
            let (code, bits, lanes) = dtype;
            let reason = refusal(|managed| managed.dl_tensor.dtype = DLDataType { code, bits, lanes });
            let expected =
                format!("its elements (code {code}, {bits} bits, {lanes} lanes) are of no type of phalanx");
            assert_eq!(reason, expected);
        }
        assert_eq!(refusal(|managed| managed.dl_tensor.ndim = -1), "it has -1 dimensions");
        assert_eq!(refusal(|managed| managed.dl_tensor.shape = ptr::null_mut()), "it has no shape");
        assert_eq!(
            refusal(|managed| managed.dl_tensor.data = ptr::null_mut()),
            "it has elements, but no memory"
        );
        assert!(refusal(|managed| managed.dl_tensor.byte_offset = 2).contains("not aligned to 4 bytes"));
        assert!(
            refusal(|managed| managed.dl_tensor.byte_offset = u64::MAX).contains("leaves the address space")
        );
    });
}

/// Why a tensor of such shape and strides is not taken; there is no such memory, and it is not looked for.
fn wrong(shape: &[i64], strides: Option<&[i64]>) -> String {
    let foreign =
        Foreign::new(Vec::new(), shape, strides).with(|managed| managed.dl_tensor.data = 4096 as *mut c_void);
    DynTensor::from_dlpack(&foreign).unwrap_err().to_string()
}

#[test]
fn shapes_beyond_the_address_space_are_refused() {
    watched(|| {
        assert!(wrong(&[2, -3], None).contains("its shape [2, -3] has negative sizes"));
        for (shape, strides) in [
            (&[i64::MAX, 2][..], None),
            (&[i64::MAX, i64::MAX], None),
            (&[1 << 62], None),
            (&[2], Some(&[i64::MAX][..])),
            (&[2], Some(&[i64::MIN])),
            (&[2], Some(&[-1025])),
            (&[3, 3], Some(&[i64::MAX / 2, i64::MAX / 2])),
        ] {
            let reason = wrong(shape, strides);
            assert!(reason.contains("leaves the address space"), "{shape:?} {strides:?} {reason}");
        }
        assert!(wrong(&[1 << 40, 1 << 40], Some(&[0, 0])).contains("larger than the address space"));
        assert!(wrong(&[1 << 50], Some(&[0])).contains(" are available"));
    });
}

fn round_trip<T: Element>(elements: &[T], code: u8) {
    let tensor = Tensor::from_slice(elements, &[elements.len()]).unwrap().into_dyn();
    let exported = tensor.to_dlpack().unwrap();
    // SAFETY: it is there as long as `exported`.
    let dtype = unsafe { &*exported.as_ptr() }.dl_tensor.dtype;
    assert_eq!(dtype, DLDataType { code, bits: 8 * size_of::<T>() as u8, lanes: 1 });
    let back = DynTensor::from_dlpack(&exported).unwrap();
    assert_ne!(back.storage_id(), tensor.storage_id());
    assert_eq!(back.typed::<T>().unwrap().to_vec(), elements);
}

#[test]
fn all_types_come_back() {
    watched(|| {
        round_trip(&[true, false], 6);
        round_trip(&[1_u8, u8::MAX], 1);
        round_trip(&[1_u16, u16::MAX], 1);
        round_trip(&[1_u32, u32::MAX], 1);
        round_trip(&[1_u64, u64::MAX], 1);
        round_trip(&[1_i8, i8::MIN], 0);
        round_trip(&[1_i16, i16::MIN], 0);
        round_trip(&[1_i32, i32::MIN], 0);
        round_trip(&[1_i64, i64::MIN], 0);
        round_trip(&[f16::ONE, f16::MIN], 2);
        round_trip(&[bf16::ONE, bf16::MIN], 4);
        round_trip(&[1.5_f32, f32::MIN], 2);
        round_trip(&[1.5_f64, f64::MIN], 2);
    });
}

#[test]
fn exported_memory_is_the_tensors_own_and_outlives_it() {
    watched(|| {
        let matrix = Tensor::from_slice(&counting(6), &[2, 3]).unwrap();
        let columns = matrix.transpose(0, 1).unwrap().slice(0, 1.., 1).unwrap();
        let pointer = columns.as_dyn().to_dlpack().unwrap().into_raw();
        // SAFETY: it was handed out just now, and is ours until we give it back.
        let managed = unsafe { pointer.as_ref() };
        let tensor = managed.dl_tensor;
        assert_eq!((managed.version.major, managed.flags, tensor.ndim, tensor.byte_offset), (1, 0, 2, 0));
        // SAFETY: there are as many as dimensions.
        assert_eq!(unsafe { slice::from_raw_parts(tensor.shape, 2) }, [2, 2]);
        // SAFETY: as the shape.
        assert_eq!(unsafe { slice::from_raw_parts(tensor.strides, 2) }, [1, 3]);
        let element: *mut f32 = tensor.data.cast();
        // SAFETY: the last element; nobody else accesses it now.
        unsafe { element.wrapping_add(1 + 3).write(50.0) };
        assert_eq!((matrix.to_vec(), columns.get(3).unwrap()), (vec![0.0, 1.0, 2.0, 3.0, 4.0, 50.0], 50.0));
        drop((matrix, columns));
        // SAFETY: the first element, whose memory is kept by what was handed out.
        assert_eq!(unsafe { *element }, 1.0);
        // SAFETY: it is what `into_raw` returned.
        drop(unsafe { DlpackTensor::from_raw(pointer) });
    });
}

fn flags_and_data(tensor: &DynTensor) -> (u64, bool) {
    let exported = tensor.to_dlpack().unwrap();
    // SAFETY: it is there as long as `exported`.
    let managed = unsafe { &*exported.as_ptr() };
    (managed.flags, managed.dl_tensor.data.is_null())
}

#[test]
fn read_only_and_empty_tensors_say_so() {
    watched(|| {
        let tensor = Tensor::from_slice(&counting(6), &[6]).unwrap();
        assert_eq!(flags_and_data(tensor.as_dyn()), (0, false));
        let frozen = tensor.freeze().unwrap().to_tensor().into_dyn();
        assert_eq!(flags_and_data(&frozen), (FLAG_READ_ONLY, false));
        let exported = frozen.to_dlpack().unwrap();
        assert_eq!(DynTensor::from_dlpack(&exported).unwrap().to_bytes(), frozen.to_bytes());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 8]).unwrap();
        let data =
            DynTensor::from_storage(&Storage::from_file(file.path()).unwrap(), DType::U8, &[8]).unwrap();
        assert_eq!(flags_and_data(&data), (FLAG_READ_ONLY, false));
        assert_eq!(flags_and_data(&DynTensor::zeros(DType::F32, &[3, 0]).unwrap()), (0, true));
        let beyond = DynTensor::zeros(DType::U8, &[0, usize::MAX]).unwrap();
        assert!(matches!(beyond.to_dlpack(), Err(MemoryError::TooLarge { .. })));
    });
}

#[test]
fn memory_that_was_handed_out_is_neither_frozen_nor_divided_in_place() {
    watched(|| {
        let tensor = Tensor::<f32>::zeros(&[100_000]).unwrap();
        let exported = tensor.as_dyn().to_dlpack().unwrap();
        let tensor = tensor.freeze().unwrap_err().into_inner();
        let id = tensor.storage_id();
        let shards = tensor.into_shards(2).unwrap();
        assert_ne!(Tensor::from_shards(shards).unwrap().storage_id(), id);
        drop(exported);
    });
}

#[test]
fn tensor_without_a_deleter_is_just_left() {
    watched(|| {
        let mut shape = [2];
        let mut data = counting(2);
        let dl_tensor = DLTensor {
            data: data.as_mut_ptr().cast(),
            device: DLDevice { device_type: CPU, device_id: 0 },
            ndim: 1,
            dtype: F32,
            shape: shape.as_mut_ptr(),
            strides: ptr::null_mut(),
            byte_offset: 0,
        };
        let version = DLPackVersion { major: 1, minor: 0 };
        let mut managed = DLManagedTensorVersioned {
            version,
            manager_ctx: ptr::null_mut(),
            deleter: None,
            flags: 0,
            dl_tensor,
        };
        // SAFETY: all that it points to lives longer.
        let foreign = unsafe { DlpackTensor::from_raw(NonNull::from(&mut managed)) };
        assert_eq!(DynTensor::from_dlpack(&foreign).unwrap().typed::<f32>().unwrap().to_vec(), [0.0, 1.0]);
    });
}
