//! Memory in results: it arrives whole when its maker is dead, each time as the same memory, and nothing is left of it.

mod common;
#[path = "common/kept.rs"]
mod kept;

use std::collections::BTreeMap;

use common::{named_memory, under_both_strategies};
use kept::Kept;
use phalanx::{
    DynTensor, Error, FrozenTensor, Options, Shard, Tensor, spawn, start_processes, start_processes_with,
};
use serde::{Deserialize, Serialize};

phalanx::auto_init!();

/// Elements of a tensor of bytes that has a segment of its own.
const LARGE: usize = 300 << 10;

/// Memory anywhere in a result.
#[derive(Serialize, Deserialize)]
struct Found {
    small: Vec<Tensor<f32>>,
    large: Option<Tensor<u8>>,
    by_name: BTreeMap<String, DynTensor>,
    frozen: FrozenTensor<i16>,
}

fn find(rank: usize, _: ()) -> anyhow::Result<Found> {
    let large = Tensor::<u8>::zeros(&[LARGE])?;
    large.set(LARGE - 1, 7 + rank as u8)?;
    let matrix = Tensor::from_slice(&[1.0_f64, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3])?;
    Ok(Found {
        small: (0..3).map(|n| Tensor::from_slice(&[n as f32; 4], &[2, 2])).collect::<Result<_, _>>()?,
        by_name: BTreeMap::from([
            ("large".to_owned(), large.clone().into_dyn()),
            ("turned".to_owned(), matrix.transpose(0, 1)?.into_dyn()),
        ]),
        large: Some(large),
        frozen: Tensor::from_slice(&[1, 2, 3], &[3])?.freeze()?,
    })
}

#[test]
fn memory_in_results_arrives_when_its_maker_is_dead() {
    under_both_strategies(|| {
        let found = spawn(find, (), 3).unwrap();
        for (rank, found) in found.iter().enumerate() {
            let large = found.large.as_ref().unwrap();
            assert_eq!(large.get(LARGE - 1).unwrap(), 7 + rank as u8);
            assert_eq!(found.small[2].to_vec(), [2.0; 4]);
            assert!(found.by_name["large"].storage().is_same(large.storage()));
            let turned = found.by_name["turned"].typed::<f64>().unwrap();
            assert_eq!((turned.shape(), turned.to_vec()), (&[3, 2][..], vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0]));
            assert_eq!(&found.frozen[..], [1, 2, 3]);
        }
        // It can be sent on, and written to.
        let large = found.into_iter().next().unwrap().large.unwrap();
        let write = |_, tensor: Tensor<u8>| tensor.set(0, 99);
        spawn(write, large.clone(), 1).unwrap();
        assert_eq!(large.get(0).unwrap(), 99);
    });
}

#[test]
fn result_asked_for_again_is_the_same_memory() {
    under_both_strategies(|| {
        let mut context = start_processes(find, (), Options::new(1)).unwrap();
        common::poll_join(&mut context).unwrap();
        let [one, two] = [(); 2].map(|()| context.result(0).unwrap().unwrap().large.unwrap());
        one.set(5, 55).unwrap();
        assert_eq!((two.get(5).unwrap(), one.storage_id()), (55, two.storage_id()));
        let id = one.storage_id();
        drop((one, two));
        let last = context.into_results().unwrap().remove(0).large.unwrap();
        assert_eq!((last.get(5).unwrap(), last.storage_id()), (55, id));
    });
}

#[test]
fn more_storages_than_one_message_takes_arrive() {
    const COUNT: usize = 600;
    fn make(_: usize, _: ()) -> anyhow::Result<Vec<Tensor<u8>>> {
        let make = |n: usize| {
            let tensor = Tensor::<u8>::zeros(&[LARGE])?;
            tensor.set(n, 1)?;
            Ok(tensor)
        };
        (0..COUNT).map(make).collect()
    }
    under_both_strategies(|| {
        let tensors = spawn(make, (), 1).unwrap().remove(0);
        assert_eq!(tensors.len(), COUNT);
        assert!(tensors.iter().enumerate().all(|(n, tensor)| tensor.get(n).unwrap() == 1));
    });
}

#[test]
fn result_of_one_is_there_though_another_failed() {
    fn work(rank: usize, _: ()) -> anyhow::Result<Tensor<u8>> {
        anyhow::ensure!(rank != 1, "not well");
        Ok(Tensor::from_slice(&vec![3; LARGE], &[LARGE])?)
    }
    under_both_strategies(|| {
        // Each alone, so that the one that is well is not ended before it is done.
        let mut context =
            start_processes(work, (), Options::new(2).grace_period(std::time::Duration::from_secs(3600)))
                .unwrap();
        assert!(matches!(common::poll_join(&mut context), Err(Error::ProcessRaised(_))));
        assert_eq!(context.result(0).unwrap().unwrap().get(LARGE - 1).unwrap(), 3);
        assert!(context.result(1).unwrap().is_none());
    });
}

#[test]
fn results_that_nobody_reads_leave_nothing() {
    under_both_strategies(|| {
        let mut context = start_processes(find, (), Options::new(4)).unwrap();
        common::poll_join(&mut context).unwrap();
        drop(context);
        assert!(named_memory().is_empty());
        start_processes(find, (), Options::new(2)).unwrap().detach().unwrap();
        // The thread that outlasts them takes what they send, and drops it.
        common::await_that(|| common::children().is_empty() && named_memory().is_empty());
        common::await_that(|| !std::fs::read_dir("/proc/self/task").unwrap().any(is_reaper));
    });
}

fn is_reaper(task: std::io::Result<std::fs::DirEntry>) -> bool {
    let name = task.ok().and_then(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    name.is_some_and(|name| name.trim() == "phalanx-reap")
}

#[test]
fn memory_passes_through_a_worker_that_is_a_launcher_itself() {
    fn outer(_: usize, given: Tensor<u8>) -> anyhow::Result<(Tensor<u8>, Tensor<u8>)> {
        let inner = |_, given: Tensor<u8>| -> anyhow::Result<(Tensor<u8>, Tensor<u8>)> {
            given.set(1, 11)?;
            Ok((given, Tensor::from_slice(&vec![12; LARGE], &[LARGE])?))
        };
        Ok(spawn(inner, given, 1)?.remove(0))
    }
    under_both_strategies(|| {
        let given = Tensor::<u8>::zeros(&[LARGE]).unwrap();
        let (same, new) = spawn(outer, given.clone(), 1).unwrap().remove(0);
        assert!(same.storage().is_same(given.storage()));
        assert_eq!((given.get(1).unwrap(), new.get(LARGE - 1).unwrap()), (11, 12));
    });
}

fn fill(rank: usize, mut rows: Shard<i32>) -> anyhow::Result<Shard<i32>> {
    rows.as_mut_slice()?.fill(rank as i32 + 1);
    Ok(rows)
}

#[test]
fn shards_are_filled_by_a_rank_each_and_put_together_without_a_copy() {
    under_both_strategies(|| {
        for rows in [10, LARGE] {
            let tensor = Tensor::<i32>::zeros(&[rows, 2]).unwrap();
            let id = tensor.storage_id();
            let mut shards = tensor.into_shards(3).unwrap().into_iter();
            let context = start_processes_with(fill, |_| shards.next().unwrap(), Options::new(3)).unwrap();
            let whole = Tensor::from_shards(context.join().unwrap()).unwrap();
            assert_eq!((whole.storage_id(), whole.shape()), (id, &[rows, 2][..]));
            let values = whole.to_vec();
            assert_eq!((values[0], values[rows], values[2 * rows - 1]), (1, 2, 3));
            assert!(values.is_sorted());
        }
    });
}

#[test]
fn shard_for_all_ranks_and_shard_taken_twice_are_errors() {
    under_both_strategies(|| {
        let shard = || Tensor::<i32>::zeros(&[4]).unwrap().into_shards(1).unwrap().remove(0);
        let error = spawn(fill, shard(), 2).unwrap_err().to_string();
        assert!(error.contains("a shard can go to one rank only"), "{error}");
        let mut context = start_processes(fill, shard(), Options::new(1)).unwrap();
        common::poll_join(&mut context).unwrap();
        assert!(context.result(0).unwrap().is_some());
        let error = context.result(0).unwrap_err().to_string();
        assert!(error.contains("can be read out of a message only once"), "{error}");
    });
}

#[test]
fn shard_that_was_sent_is_gone_from_the_sender() {
    use std::sync::Mutex;
    fn take(_: usize, shard: Kept<Mutex<Shard<i32>>>) -> anyhow::Result<i32> {
        Ok(shard.lock().unwrap().as_mut_slice()?[0])
    }
    under_both_strategies(|| {
        let shard = Tensor::from_slice(&[5], &[1]).unwrap().into_shards(1).unwrap().remove(0);
        let shard = Kept::new(Mutex::new(shard));
        assert_eq!(spawn(take, shard.clone(), 1).unwrap(), [5]);
        let error = shard.lock().unwrap().as_mut_slice().unwrap_err().to_string();
        assert_eq!(error, "shard 0 of 1 is not here: it was sent to another process");
        let error = spawn(take, shard, 1).unwrap_err().to_string();
        assert!(error.contains("it was sent to another process"), "{error}");
    });
}

#[test]
fn shard_of_a_start_that_failed_is_still_here() {
    use std::sync::Mutex;
    fn launch(_: usize, _: ()) -> anyhow::Result<String> {
        let shard = Tensor::from_slice(&[5], &[1])?.into_shards(1)?.remove(0);
        let shard = Kept::new(Mutex::new(shard));
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 12, 12)?;
        let files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
        let start =
            start_processes(|_, _: Kept<Mutex<Shard<i32>>>| anyhow::Ok(()), shard.clone(), Options::new(1));
        drop(files);
        let error = start.err().map_or_else(String::new, |error| error.to_string());
        anyhow::ensure!(shard.lock().unwrap().as_mut_slice()? == [5]);
        Ok(error)
    }
    under_both_strategies(|| {
        let error = spawn(launch, (), 1).unwrap().remove(0);
        assert!(error.contains("Too many open files"), "{error}");
    });
}

#[test]
fn result_whose_reading_panics_is_told_and_does_not_hurt_the_others() {
    static PANICS: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(true);
    #[derive(Debug, Serialize)]
    struct Fragile(Tensor<u8>);
    impl<'de> Deserialize<'de> for Fragile {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let tensor = Tensor::deserialize(deserializer)?;
            assert!(!PANICS.swap(false, std::sync::atomic::Ordering::Relaxed), "as it happens");
            Ok(Self(tensor))
        }
    }
    under_both_strategies(|| {
        PANICS.store(true, std::sync::atomic::Ordering::Relaxed);
        let make =
            |rank, ()| Ok::<_, phalanx::MemoryError>(Fragile(Tensor::from_slice(&[rank as u8], &[1])?));
        let mut context = start_processes(make, (), Options::new(2)).unwrap();
        common::poll_join(&mut context).unwrap();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| context.result(0))).unwrap_err();
        let error = context.result(0).err().unwrap().to_string();
        assert!(error.contains("its reading ended in a panic"), "{error}");
        assert_eq!(context.result(1).unwrap().unwrap().0.get(0).unwrap(), 1);
    });
}

#[test]
fn threads_may_ask_for_the_same_result_at_once() {
    under_both_strategies(|| {
        let make = |rank, ()| {
            (0..200).map(|_| Tensor::from_slice(&[rank as u8], &[1])).collect::<Result<Vec<_>, _>>()
        };
        let mut context = start_processes(make, (), Options::new(1)).unwrap();
        common::poll_join(&mut context).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..20).for_each(|_| assert_eq!(context.result(0).unwrap().unwrap().len(), 200))
                });
            }
        });
    });
}

#[test]
fn result_larger_than_a_file_may_be_is_an_error_of_its_rank() {
    use nix::sys::resource::{Resource, setrlimit};
    under_both_strategies(|| {
        let make = |_, ()| {
            setrlimit(Resource::RLIMIT_FSIZE, 1 << 20, 1 << 20)?;
            anyhow::Ok(vec![1_u8; 2 << 20])
        };
        let error = spawn(make, (), 1).unwrap_err().to_string();
        assert!(error.contains("its report could not be written: File too large"), "{error}");
    });
}
