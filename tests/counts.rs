//! Counts that a program gives are looked at before anything is allocated for them: each is an error with numbers.

mod common;

use common::watched;
use phalanx::shm::{DType, HugePages, StorageOptions};
use phalanx::sync::{Array, Barrier, BoundedSemaphore, Semaphore};
use phalanx::{
    DynTensor, JoinableQueue, Options, Queue, Storage, Tensor, spawn, start_processes, start_processes_with,
};

phalanx::auto_init!();

fn told<T>(result: Result<T, impl std::fmt::Display>) -> Option<String> {
    result.err().map(|error| error.to_string())
}

/// An operation by the count that it is given, and what it says to one that is too large.
type Operation = (&'static str, fn(usize) -> Option<String>);

const OPERATIONS: &[Operation] = &[
    ("into_shards", |count| told(Tensor::<f32>::zeros(&[2]).unwrap().into_shards(count))),
    ("into_shards of nothing", |count| told(Tensor::<f32>::zeros(&[0, 3]).unwrap().into_shards(count))),
    ("Storage::new", |count| told(Storage::new(count))),
    ("huge pages", |count| told(StorageOptions::new().huge_pages(HugePages::Preferred).zeros(count))),
    ("Tensor::zeros", |count| told(Tensor::<f64>::zeros(&[count]))),
    ("Tensor::zeros of three dimensions", |count| told(Tensor::<f64>::zeros(&[2, count, 3]))),
    ("Tensor::from_slice", |count| told(Tensor::from_slice(&[1_u8], &[count]))),
    ("Tensor::from_storage", |count| told(Tensor::<u8>::from_storage(&Storage::new(8).unwrap(), &[count]))),
    ("DynTensor::zeros", |count| told(DynTensor::zeros(DType::F32, &[count]))),
    ("reshape", |count| told(Tensor::<u8>::zeros(&[4]).unwrap().reshape(&[count]))),
    ("narrow", |count| told(Tensor::<u8>::zeros(&[4]).unwrap().narrow(0, 0, count))),
    ("Array::zeros", |count| told(Array::<u64>::zeros(count))),
    ("Barrier::new", |count| told(Barrier::new(count))),
    ("Queue::bounded", |count| told(Queue::<u8>::bounded(count))),
    ("JoinableQueue::bounded", |count| told(JoinableQueue::<u8>::bounded(count))),
    ("spawn", |count| told(spawn(|_, ()| anyhow::Ok(()), (), count))),
    ("start_processes", |count| told(start_processes(|_, ()| anyhow::Ok(()), (), Options::new(count)))),
    ("start_processes_with", |count| {
        told(start_processes_with(|_, ()| anyhow::Ok(()), |_| (), Options::new(count)))
    }),
];

#[test]
fn counts_beyond_all_memory_are_errors_with_numbers() {
    watched(|| {
        for (name, operation) in OPERATIONS {
            for count in [100_000_000_000, 1 << 45, usize::MAX / 2, usize::MAX] {
                let told = operation(count).unwrap_or_else(|| panic!("{name} of {count} succeeded"));
                assert!(told.contains(|letter: char| letter.is_ascii_digit()), "{name} of {count}: {told}");
            }
        }
    });
}

#[test]
fn as_many_permits_as_can_be_counted_cost_nothing() {
    watched(|| {
        assert_eq!(Semaphore::new(u32::MAX).unwrap().value(), u32::MAX);
        assert_eq!(BoundedSemaphore::new(u32::MAX).unwrap().value(), u32::MAX);
    });
}

#[test]
fn shape_of_very_many_dimensions_is_an_error_or_a_tensor() {
    watched(|| {
        let ones = Tensor::<u8>::zeros(&vec![1; 100_000]).unwrap();
        assert_eq!((ones.len(), ones.shape().len()), (1, 100_000));
        assert!(Tensor::<u8>::zeros(&vec![2; 100_000]).is_err());
    });
}

#[test]
fn more_shards_than_rows_are_empty_ones() {
    watched(|| {
        let shards = Tensor::<f32>::zeros(&[2, 3]).unwrap().into_shards(5000).unwrap();
        assert_eq!((shards.len(), shards[1].len(), shards[2].len()), (5000, 3, 0));
        assert_eq!(Tensor::from_shards(shards).unwrap().len(), 6);
    });
}
