//! Tensors as arrays of the ndarray crate, and back.

mod common;

use common::watched;
use half::{bf16, f16};
use ndarray::{ArcArray, Array, Array1, Array2, Axis, CowArray, ShapeBuilder, arr0, array, s};
use phalanx::shm::Element;
use phalanx::{FrozenTensor, MemoryError, Options, Shard, Tensor, spawn, start_processes_with};
use proptest::prelude::*;

phalanx::auto_init!();

fn counting(shape: &[usize]) -> Tensor<i32> {
    let len = shape.iter().product::<usize>() as i32;
    Tensor::from_slice(&(0..len).collect::<Vec<_>>(), shape).unwrap()
}

/// There and back.
fn round_trip<T: Element>(elements: &[T]) {
    let array = Array1::from(elements.to_vec()).into_dyn();
    let tensor = Tensor::from_array(&array).unwrap();
    assert_eq!(tensor.to_vec(), elements);
    assert_eq!(tensor.to_array(), array);
}

#[test]
fn all_types_come_back() {
    watched(|| {
        round_trip(&[true, false]);
        round_trip(&[1_u8, u8::MAX]);
        round_trip(&[1_u16, u16::MAX]);
        round_trip(&[1_u32, u32::MAX]);
        round_trip(&[1_u64, u64::MAX]);
        round_trip(&[1_i8, i8::MIN]);
        round_trip(&[1_i16, i16::MIN]);
        round_trip(&[1_i32, i32::MIN]);
        round_trip(&[1_i64, i64::MIN]);
        round_trip(&[f16::ONE, f16::MIN]);
        round_trip(&[bf16::ONE, bf16::MIN]);
        round_trip(&[1.5_f32, f32::MIN]);
        round_trip(&[1.5_f64, f64::MIN]);
    });
}

#[test]
fn arrays_of_any_layout_and_owner_become_tensors() {
    watched(|| {
        let matrix = array![[1, 2, 3], [4, 5, 6]];
        let elements = |tensor: Result<Tensor<i32>, MemoryError>| tensor.unwrap().to_vec();
        assert_eq!(elements(Tensor::from_array(&matrix.t())), [1, 4, 2, 5, 3, 6]);
        assert_eq!(elements(Tensor::from_array(&matrix.slice(s![.., ..;-1]))), [3, 2, 1, 6, 5, 4]);
        assert_eq!(elements(Tensor::from_array(&matrix.slice(s![..;-1, 1..]))), [5, 6, 2, 3]);
        assert_eq!(elements(Tensor::from_array(&matrix.index_axis(Axis(1), 2))), [3, 6]);
        assert_eq!(elements(Tensor::from_array(&array![7].broadcast((2, 2)).unwrap())), [7; 4]);
        let columns = Array::from_shape_vec((2, 2).f(), vec![1, 2, 3, 4]).unwrap();
        assert_eq!(elements(Tensor::from_array(&columns)), [1, 3, 2, 4]);
        assert_eq!(elements(Tensor::from_array(&ArcArray::from(vec![1, 2]))), [1, 2]);
        assert_eq!(elements(Tensor::from_array(&CowArray::from(&[1, 2]))), [1, 2]);
        assert_eq!(elements(Tensor::from_array(&arr0(5))), [5]);
        let empty = Tensor::from_array(&Array2::<i32>::zeros((0, 3))).unwrap();
        assert_eq!((empty.shape(), empty.to_array().shape()), (&[0, 3][..], &[0, 3][..]));
    });
}

#[test]
fn frozen_tensor_is_an_array_in_place() {
    watched(|| {
        let frozen = counting(&[2, 3]).freeze().unwrap();
        let array = frozen.as_array();
        assert_eq!(array, array![[0, 1, 2], [3, 4, 5]].into_dyn());
        assert_eq!(array.as_ptr(), frozen.as_ptr());
        assert_eq!(counting(&[]).freeze().unwrap().as_array(), arr0(0).into_dyn());
        assert!(Tensor::<f32>::zeros(&[2, 0]).unwrap().freeze().unwrap().as_array().is_empty());
    });
}

#[test]
fn workers_compute_with_arrays() {
    watched(|| {
        let multiply = |rank: usize, (weights, inputs): (FrozenTensor<i32>, Tensor<i32>)| {
            let weights = weights.as_array().into_dimensionality::<ndarray::Ix2>()?;
            let inputs = inputs.to_array().into_dimensionality::<ndarray::Ix1>()?;
            anyhow::Ok((&weights.dot(&inputs) * rank as i32).to_vec())
        };
        let inputs = Tensor::from_array(&array![1, 10, 100]).unwrap();
        let results = spawn(multiply, (counting(&[2, 3]).freeze().unwrap(), inputs), 2).unwrap();
        assert_eq!(results, [[0, 0], [210, 543]]);
    });
}

#[test]
fn workers_fill_their_shards_as_arrays() {
    watched(|| {
        let fill = |rank: usize, mut rows: Shard<i32>| {
            for (at, mut row) in rows.as_array_mut()?.axis_iter_mut(Axis(0)).enumerate() {
                row.fill(10 * rank as i32 + at as i32);
            }
            anyhow::Ok(rows)
        };
        let mut shards = Tensor::zeros(&[5, 2]).unwrap().into_shards(2).unwrap().into_iter();
        let context = start_processes_with(fill, |_| shards.next().unwrap(), Options::new(2)).unwrap();
        let whole = Tensor::from_shards(context.join().unwrap()).unwrap();
        assert_eq!(whole.to_array(), array![[0, 0], [1, 1], [2, 2], [10, 10], [11, 11]].into_dyn());
    });
}

#[test]
fn shard_of_no_rows_is_an_array_of_none() {
    watched(|| {
        let mut shards = Tensor::<u8>::zeros(&[1, 2]).unwrap().into_shards(2).unwrap();
        assert_eq!(shards[1].as_array_mut().unwrap().shape(), [0, 2]);
        let mut impossible = Tensor::<u8>::zeros(&[0, usize::MAX]).unwrap().into_shards(1).unwrap();
        assert!(matches!(impossible[0].as_array_mut(), Err(MemoryError::TooLarge { .. })));
    });
}

#[test]
#[should_panic(expected = "ndarray has no arrays of shape [0, 18446744073709551615]")]
fn array_that_ndarray_does_not_have_panics() {
    let _ = Tensor::<u8>::zeros(&[0, usize::MAX]).unwrap().to_array();
}

/// A view in place must be what the copy is.
#[expect(unsafe_code, reason = "this is what is tested")]
fn assert_in_place(tensor: &Tensor<i32>) {
    // SAFETY: nobody else has the tensor.
    assert_eq!(unsafe { tensor.as_array() }.unwrap(), tensor.to_array());
}

#[test]
#[expect(unsafe_code, reason = "this is what is tested")]
fn strided_views_are_arrays_in_place() {
    watched(|| {
        let cube = counting(&[2, 3, 4]);
        assert_in_place(&cube);
        let odd = cube.transpose(0, 2).unwrap().slice(0, 1.., 2).unwrap();
        assert_in_place(&odd);
        assert_in_place(&odd.select(1, 1).unwrap());
        assert_in_place(&cube.narrow(1, 1, 0).unwrap());
        // SAFETY: no other element is accessed meanwhile.
        let mut array = unsafe { odd.as_array_mut() }.unwrap();
        array[[1, 2, 0]] = 99;
        assert_eq!(cube.get(cube.position(&[0, 2, 3]).unwrap()).unwrap(), 99);
        let frozen = counting(&[2]).freeze().unwrap().to_tensor();
        // SAFETY: it is refused.
        assert!(matches!(unsafe { frozen.as_array_mut() }, Err(MemoryError::ReadOnly)));
        let impossible = Tensor::<i32>::zeros(&[0, usize::MAX]).unwrap();
        // SAFETY: it is refused.
        assert!(matches!(unsafe { impossible.as_array() }, Err(MemoryError::TooLarge { .. })));
    });
}

#[test]
fn views_of_views_agree_with_their_copies() {
    let shape = prop::collection::vec(0_usize..4, 1..4);
    let steps = prop::collection::vec((0_usize..3, 0_usize..3, 1_usize..3), 0..4);
    watched(|| {
        proptest!(|(shape in shape, steps in steps)| {
            let mut tensor = counting(&shape);
            for (dimension, start, step) in steps {
                let sliced = || tensor.slice(dimension, start.., step);
                let next = if start == 0 { tensor.transpose(dimension, 0) } else { sliced() };
                tensor = next.unwrap_or(tensor);
            }
            assert_in_place(&tensor);
            let array = tensor.to_array();
            prop_assert_eq!(&array, &Array::from_shape_vec(tensor.shape(), tensor.to_vec()).unwrap());
            prop_assert_eq!(Tensor::from_array(&array.t()).unwrap().to_array(), array.t());
        });
    });
}
