//! Shared memory across processes: what one writes the others see, and nothing is copied or left.

mod common;

use std::collections::BTreeMap;

use common::{await_post, board, descriptors, kill_self, post, under_both_strategies, watched};
use nix::sys::resource::{UsageWho, getrusage};
use phalanx::shm::{HugePages, StorageOptions};
use phalanx::{
    Error, FrozenTensor, MemoryError, Options, SharingStrategy, Storage, Tensor, get_sharing_strategy, spawn,
    start_processes, start_processes_with,
};
use serde::{Deserialize, Serialize};

phalanx::auto_init!();

/// Mappings of storages in this process.
fn mapped_storages() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter(|line| line.contains("memfd:phalanx-storage") || line.contains("/dev/shm/phalanx-"))
        .count()
}

/// Elements of a tensor that has a segment of its own.
const LARGE: usize = 300 << 10;

/// By how many descriptors a worker knows so many segments.
fn descriptors_of(segments: usize) -> usize {
    match get_sharing_strategy() {
        SharingStrategy::FileDescriptor => segments,
        _ => 0,
    }
}

fn storage_descriptors() -> usize {
    descriptors().iter().filter(|(_, target)| target.contains("phalanx-storage")).count()
}

#[test]
fn writes_are_seen_on_both_sides() {
    under_both_strategies(|| {
        let shared = Tensor::<i64>::zeros(&[2, 4]).unwrap();
        let work = |rank: usize, shared: Tensor<i64>| -> anyhow::Result<i64> {
            shared.set(shared.position(&[1, rank])?, 10 + rank as i64)?;
            // Written by the launcher after this worker was started.
            common::await_that(|| shared.get(0).unwrap() != 0);
            Ok(shared.get(0)?)
        };
        let context = start_processes(work, shared.clone(), Options::new(4)).unwrap();
        shared.set(0, 99).unwrap();
        assert_eq!(context.join().unwrap(), [99; 4]);
        assert_eq!(shared.to_vec(), [99, 0, 0, 0, 10, 11, 12, 13]);
    });
}

#[test]
fn additions_of_many_workers_are_all_counted() {
    under_both_strategies(|| {
        let sums = (Tensor::<i32>::zeros(&[1]).unwrap(), Tensor::<f64>::zeros(&[1]).unwrap());
        let add = |_, (whole, real): (Tensor<i32>, Tensor<f64>)| {
            for _ in 0..20_000 {
                whole.fetch_add(0, 1)?;
                real.fetch_add(0, 0.5)?;
            }
            Ok::<_, MemoryError>(())
        };
        spawn(add, sums.clone(), 4).unwrap();
        assert_eq!((sums.0.get(0).unwrap(), sums.1.get(0).unwrap()), (80_000, 40_000.0));
    });
}

/// Tensors deep inside of other data.
#[derive(Serialize, Deserialize)]
struct Model {
    layers: Vec<(String, Tensor<f32>)>,
    steps: Option<Tensor<i64>>,
    by_name: BTreeMap<String, Tensor<f32>>,
}

#[test]
fn same_storage_many_times_is_one_descriptor_and_one_mapping() {
    // In a process without other small tensors, beside which these would lie.
    fn launch(_: usize, _: ()) -> anyhow::Result<()> {
        let weights = Tensor::<f32>::from_slice(&[1.5; 100], &[10, 10])?;
        let model = Model {
            layers: vec![("a".into(), weights.clone()), ("b".into(), weights.clone())],
            steps: Some(board(3)),
            by_name: BTreeMap::from([("again".to_owned(), weights.clone())]),
        };
        let look = |_, model: Model| -> anyhow::Result<(usize, usize, f32, Vec<usize>)> {
            model.layers[0].1.set(7, 8.0)?;
            let seen = model.by_name["again"].get(7)?;
            anyhow::ensure!(
                model.steps.is_some() && model.layers[1].1.storage().is_same(model.layers[0].1.storage())
            );
            Ok((storage_descriptors(), mapped_storages(), seen, model.layers[1].1.shape().to_vec()))
        };
        // The weights and the steps are small: they lie in one segment.
        let seen = spawn(look, model, 1)?;
        anyhow::ensure!(seen == [(descriptors_of(1), 1, 8.0, vec![10, 10])], "{seen:?}");
        anyhow::ensure!(weights.get(7)? == 8.0);
        Ok(())
    }
    under_both_strategies(|| drop(spawn(launch, (), 1).unwrap()));
}

#[test]
fn storages_that_a_worker_drops_are_closed_there() {
    under_both_strategies(|| {
        let look = |_, tensors: Vec<Tensor<u8>>| {
            let before = (storage_descriptors(), mapped_storages());
            drop(tensors);
            anyhow::Ok((before, storage_descriptors(), mapped_storages()))
        };
        let tensors: Vec<_> = (0..50).map(|_| Tensor::<u8>::zeros(&[LARGE]).unwrap()).collect();
        assert_eq!(spawn(look, tensors, 1).unwrap(), [((descriptors_of(50), 50), 0, 0)]);
    });
}

#[test]
fn each_rank_may_get_tensors_of_its_own() {
    under_both_strategies(|| {
        let parts: Vec<_> =
            (0..3).map(|rank| Tensor::<f64>::from_slice(&[f64::from(rank); 8], &[8]).unwrap()).collect();
        let double = |_, part: Tensor<f64>| -> anyhow::Result<()> {
            let mut values = vec![0.0; part.len()];
            part.read_into(&mut values)?;
            values.iter_mut().for_each(|value| *value *= 2.0);
            Ok(part.write_from(&values)?)
        };
        start_processes_with(double, |rank| parts[rank].clone(), Options::new(3)).unwrap().join().unwrap();
        assert_eq!(parts[2].to_vec(), [4.0; 8]);
    });
}

#[test]
fn tensors_without_elements_travel() {
    under_both_strategies(|| {
        let look =
            |_, empty: Tensor<f32>| anyhow::Ok((empty.len(), empty.shape().to_vec(), empty.to_vec().len()));
        assert_eq!(
            spawn(look, Tensor::<f32>::zeros(&[3, 0]).unwrap(), 2).unwrap(),
            [(0, vec![3, 0], 0), (0, vec![3, 0], 0)]
        );
    });
}

#[test]
fn large_tensor_is_not_copied_into_a_worker() {
    under_both_strategies(|| {
        let large = Tensor::<u8>::from_slice(&vec![7; 256 << 20], &[256 << 20]).unwrap();
        let peek = |rank: usize, large: Tensor<u8>| anyhow::Ok(large.get(rank << 20)?);
        let mut context = start_processes(peek, large, Options::new(4)).unwrap();
        while !context.join_timeout(std::time::Duration::from_millis(50)).unwrap() {}
        for outcome in context.outcomes().unwrap() {
            assert!(outcome.usage().peak_memory.unwrap() < 100 << 20, "{outcome}: {:?}", outcome.usage());
        }
        assert_eq!(context.into_results().unwrap(), [7; 4]);
    });
}

#[test]
fn memory_outlives_a_killed_worker_and_nothing_is_left_of_it() {
    under_both_strategies(|| {
        let shared = board(2);
        let work = |rank, shared: Tensor<i64>| -> anyhow::Result<()> {
            if rank == 1 {
                post(&shared, 1, 5);
                kill_self();
            }
            await_post(&shared, 1);
            common::wait_for_ever()
        };
        let error = start_processes(work, shared.clone(), Options::new(2)).unwrap().join().unwrap_err();
        assert!(matches!(error, Error::ProcessExited(_)));
        assert_eq!(shared.get(1).unwrap(), 5);
        drop(shared);
        assert_eq!((storage_descriptors(), mapped_storages(), common::named_memory().len()), (0, 0, 0));
    });
}

#[test]
fn more_memory_than_there_is_is_an_error_in_a_worker_too() {
    under_both_strategies(|| {
        let ask = |_, bytes: usize| anyhow::Ok(Storage::new(bytes).err().map(|error| error.to_string()));
        let told = spawn(ask, 1_usize << 45, 1).unwrap().remove(0).unwrap();
        // Where a control group leaves less than the machine has, its name follows.
        let expected = "cannot get 32.0 TiB (35184372088832 bytes): only ";
        assert!(told.starts_with(expected) && told.contains(" are available"), "{told}");
    });
}

#[test]
fn wrong_element_type_is_an_error_of_the_worker() {
    under_both_strategies(|| {
        // A worker that reads something else than was written can only come from a type that lies about itself.
        #[derive(Serialize)]
        struct Liar(Tensor<f32>);
        impl<'de> Deserialize<'de> for Liar {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Tensor::<i64>::deserialize(deserializer)?;
                Err(serde::de::Error::custom("never"))
            }
        }
        let error = spawn(|_, _: Liar| anyhow::Ok(()), Liar(Tensor::zeros(&[2]).unwrap()), 1).unwrap_err();
        assert!(
            error.to_string().contains("a tensor of f32 arrived where one of i64 was expected"),
            "{error}"
        );
    });
}

#[test]
#[expect(unsafe_code, reason = "slices of shared memory are unsafe")]
fn slices_are_the_memory_itself() {
    under_both_strategies(|| {
        let tensor = Tensor::<i32>::zeros(&[4]).unwrap();
        // SAFETY: no worker has this tensor yet.
        unsafe { tensor.as_mut_slice() }.unwrap().copy_from_slice(&[1, 2, 3, 4]);
        let sum = |_, tensor: Tensor<i32>| {
            // SAFETY: nobody writes while this worker runs.
            anyhow::Ok(unsafe { tensor.as_slice() }?.iter().sum::<i32>())
        };
        assert_eq!(spawn(sum, tensor, 1).unwrap(), [10]);
        let empty = Tensor::<f64>::zeros(&[0]).unwrap();
        // SAFETY: nobody else has it.
        assert!(unsafe { empty.as_slice() }.unwrap().is_empty());
    });
}

#[test]
fn prefault_leaves_no_page_fault_for_later() {
    const PAGES: usize = 1024;
    let faults = |prefault| {
        let storage = StorageOptions::new().prefault(prefault).zeros(PAGES * 4096).unwrap();
        let tensor = Tensor::<u8>::from_storage(&storage, &[PAGES * 4096]).unwrap();
        let so_far = || getrusage(UsageWho::RUSAGE_THREAD).unwrap().minor_page_faults();
        let before = so_far();
        (0..PAGES).for_each(|page| tensor.set(page * 4096, 1).unwrap());
        so_far() - before
    };
    under_both_strategies(|| {
        // Some neighbours are mapped by one fault.
        let (without, with) = (faults(false), faults(true));
        assert!(without > 20 && with <= 4, "{without} faults without, {with} with");
    });
}

#[test]
fn huge_pages_hold_a_storage_where_some_are_reserved() {
    let free = || {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
        let line = meminfo.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
        line.map_or(0, |number| number.trim().parse::<u64>().unwrap())
    };
    watched(|| {
        let before = free();
        let storage = StorageOptions::new().huge_pages(HugePages::Required).prefault(true).zeros(5);
        if before == 0 {
            // None are reserved here: what is said then is tested beside the options.
            return assert!(matches!(storage, Err(MemoryError::NoHugePages { free: 0, .. })));
        }
        let tensor = Tensor::<u8>::from_storage(&storage.unwrap(), &[5]).unwrap();
        assert_eq!(free(), before - 1);
        let work = |_, tensor: Tensor<u8>| anyhow::Ok(tensor.set(4, 7)?);
        spawn(work, tensor.clone(), 1).unwrap();
        assert_eq!(tensor.to_vec(), [0, 0, 0, 0, 7]);
        // In place, and with no second huge page, here or there: there may be none.
        let frozen = tensor.freeze().unwrap();
        assert_eq!((free(), &frozen[..]), (before - 1, &[0, 0, 0, 0, 7][..]));
        let sum = |_, frozen: FrozenTensor<u8>| anyhow::Ok(frozen.iter().sum::<u8>());
        assert_eq!(spawn(sum, frozen.clone(), 2).unwrap(), [7, 7]);
        drop(frozen);
        assert_eq!(free(), before);
    });
}
