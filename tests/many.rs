//! Thousands of tensors under low limits.

mod common;

use std::collections::BTreeSet;

use common::{descriptors, under_both_strategies};
use nix::sys::resource::{Resource, setrlimit};
use phalanx::{SharingStrategy, Tensor, get_sharing_strategy, spawn};

phalanx::auto_init!();

const COUNT: usize = 10_000;
/// Elements of a tensor of bytes that has a segment of its own.
const LARGE: usize = 300 << 10;

/// Under `ulimit -n 64`, as a launcher in a process of its own.
fn launch_with_small_tensors(_: usize, _: ()) -> anyhow::Result<(usize, usize, usize)> {
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64)?;
    let tensors: Vec<_> =
        (0..COUNT as i64).map(|n| Tensor::<i64>::from_slice(&[n; 128], &[128])).collect::<Result<_, _>>()?;
    let places: BTreeSet<_> = tensors.iter().map(Tensor::storage_id).collect();
    anyhow::ensure!(places.len() == COUNT, "only {} places", places.len());
    let look = |rank, tensors: Vec<Tensor<i64>>| -> anyhow::Result<(usize, usize)> {
        for (n, tensor) in tensors.iter().enumerate() {
            anyhow::ensure!(tensor.get(127)? == n as i64);
            tensor.set(rank, -(n as i64))?;
        }
        let stats = phalanx::shm::stats();
        anyhow::ensure!(tensors.len() == COUNT && stats.descriptors <= 8, "{stats:?}");
        Ok((descriptors().len(), stats.mappings))
    };
    let seen = spawn(look, tensors.clone(), 2)?;
    for (n, tensor) in tensors.iter().enumerate() {
        let values = tensor.to_vec();
        anyhow::ensure!(values[..3] == [-(n as i64), -(n as i64), n as i64], "tensor {n}: {values:?}");
    }
    drop(tensors);
    anyhow::ensure!(phalanx::shm::stats().segments == 0, "{:?}", phalanx::shm::stats());
    Ok((seen[0].0.max(seen[1].0), seen[0].1.max(seen[1].1), places.len()))
}

#[test]
fn ten_thousand_small_tensors_cost_a_few_descriptors_and_mappings() {
    under_both_strategies(|| {
        let (descriptors, mappings, _) = spawn(launch_with_small_tensors, (), 1).unwrap()[0];
        assert!(descriptors <= 10 && mappings <= 8, "{descriptors} descriptors, {mappings} mappings");
    });
}

#[test]
fn large_tensors_beyond_the_descriptor_limit_work_by_name_and_are_a_clear_error_otherwise() {
    fn launch(_: usize, _: ()) -> anyhow::Result<Result<usize, String>> {
        setrlimit(Resource::RLIMIT_NOFILE, 64, 64)?;
        let make = |_| Tensor::<u8>::zeros(&[LARGE]);
        let tensors: Vec<_> = match (0..200).map(make).collect::<Result<_, _>>() {
            Ok(tensors) => tensors,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let look = |_, tensors: Vec<Tensor<u8>>| {
            tensors[199].set(LARGE - 1, 9)?;
            anyhow::Ok(descriptors().len())
        };
        let seen = spawn(look, tensors.clone(), 2)?;
        anyhow::ensure!(tensors[199].get(LARGE - 1)? == 9);
        Ok(Ok(seen[0].max(seen[1])))
    }
    under_both_strategies(|| match (get_sharing_strategy(), &spawn(launch, (), 1).unwrap()[0]) {
        (SharingStrategy::FileSystem, Ok(descriptors)) => assert!(*descriptors <= 8, "{descriptors}"),
        (_, Err(error)) => assert!(
            error.contains("RLIMIT_NOFILE is 64 of at most 64")
                && error.contains("SharingStrategy::FileSystem"),
            "{error}"
        ),
        (strategy, Ok(_)) => panic!("{strategy} cannot have done that"),
    });
}

#[test]
fn soft_descriptor_limit_is_raised_for_large_tensors() {
    fn launch(_: usize, _: ()) -> anyhow::Result<usize> {
        setrlimit(Resource::RLIMIT_NOFILE, 32, 1000)?;
        let tensors = (0..300).map(|_| Tensor::<u8>::zeros(&[LARGE])).collect::<Result<Vec<_>, _>>()?;
        let count = |_, tensors: Vec<Tensor<u8>>| anyhow::Ok(tensors.len());
        Ok(spawn(count, tensors, 1)?[0])
    }
    under_both_strategies(|| assert_eq!(spawn(launch, (), 1).unwrap(), [300]));
}

#[test]
fn descriptors_of_a_result_that_find_no_room_are_told() {
    fn launch(_: usize, _: ()) -> anyhow::Result<String> {
        let make = |_, ()| (0..100).map(|_| Tensor::<u8>::zeros(&[LARGE])).collect::<Result<Vec<_>, _>>();
        let mut context = phalanx::start_processes(make, (), phalanx::Options::new(1))?;
        setrlimit(Resource::RLIMIT_NOFILE, 64, 64)?;
        while !context.join_timeout(common::SOON)? {}
        Ok(context
            .into_results()
            .map_or_else(|error| error.to_string(), |results| results[0].len().to_string()))
    }
    under_both_strategies(|| match (get_sharing_strategy(), &spawn(launch, (), 1).unwrap()[0]) {
        (SharingStrategy::FileSystem, told) => assert_eq!(told, "100"),
        (_, told) => assert!(
            told.starts_with("cannot read the result of rank 0: ")
                && told.contains("only ")
                && told.contains("RLIMIT_NOFILE is 64 of at most 64"),
            "{told}"
        ),
    });
}
