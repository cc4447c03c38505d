//! Thousands of small tensors at once.

use nix::sys::resource::{Resource, setrlimit};
use phalanx::{SharingStrategy, Tensor, set_sharing_strategy, spawn};
use serde::{Deserialize, Serialize};

use crate::figures::{Extent, median, row, table, time, timed};
use crate::turns::Turns;
use crate::{KIB, nothing, under_both};

/// What 10,000 tensors cost.
#[derive(Serialize, Deserialize)]
struct Many {
    made: f64,
    bare: f64,
    with: f64,
    /// In each worker: segments, mappings and descriptors.
    seen: Vec<(usize, usize, usize)>,
}

fn look(_: usize, tensors: Vec<Tensor<u8>>) -> anyhow::Result<(usize, usize, usize)> {
    let stats = phalanx::shm::stats();
    anyhow::ensure!(tensors.last().is_some_and(|last| last.get(0).is_ok()), "they did not arrive");
    Ok((stats.segments, stats.mappings, stats.descriptors))
}

/// Hands 10,000 tensors of 1 KiB to two workers.
fn many(_: usize, (strategy, rounds): (SharingStrategy, usize)) -> anyhow::Result<Many> {
    set_sharing_strategy(strategy);
    let make = || (0..10_000).map(|_| Tensor::<u8>::zeros(&[KIB])).collect::<Result<Vec<_>, _>>();
    let made = (0..rounds).map(|_| timed(make)).map(|(seconds, made)| made.map(|_| seconds));
    let made = median(made.collect::<Result<Vec<_>, _>>()?);
    let tensors = make()?;
    let mut seen = Vec::new();
    let bare = || {
        let (seconds, done) = timed(|| spawn(nothing, (), 2));
        done?;
        Ok(seconds)
    };
    let with = || {
        let arguments = tensors.clone();
        let (seconds, done) = timed(|| spawn(look, arguments, 2));
        seen = done?;
        Ok(seconds)
    };
    let turns = Turns::run(rounds, bare, with)?;
    Ok(Many { made, bare: turns.base(), with: turns.other(), seen })
}

/// As [`many`], in a process that may have 64 descriptors.
fn many_with_few_descriptors(rank: usize, plan: (SharingStrategy, usize)) -> anyhow::Result<Many> {
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64)?;
    many(rank, plan)
}

pub(crate) fn many_tensors(extent: Extent) -> anyhow::Result<()> {
    let columns = [
        "strategy",
        "`ulimit -n`",
        "making them",
        "`spawn` of 2 with `()`",
        "`spawn` of 2 with them",
        "in each worker",
    ];
    table("10,000 tensors of 1 KiB in the arguments of 2 workers", &columns);
    under_both(|strategy| {
        let plan = (strategy, extent.rounds(40));
        // Both in a worker, which is a launcher itself, so that they differ in nothing else.
        let unlimited = spawn(many, plan, 1)?.remove(0);
        let limited = spawn(many_with_few_descriptors, plan, 1)?.remove(0);
        for (limit, Many { made, bare, with, seen }) in [("as it was", unlimited), ("64", limited)] {
            let [made, bare, with] = [made, bare, with].map(time);
            let told = |(segments, mappings, descriptors)| {
                format!("{segments} segments, {mappings} mappings, {descriptors} descriptors")
            };
            let mut told: Vec<_> = seen.into_iter().map(told).collect();
            told.dedup();
            row(&[strategy.to_string(), limit.to_owned(), made, bare, with, told.join(" / ")]);
        }
        Ok(())
    })
}
