//! Handing a tensor to a worker and back, and its page tables.

use std::hint::black_box;
use std::time::Duration;

use phalanx::{Options, Tensor, spawn, start_processes};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::figures::{Extent, median, row, table, time, timed};
use crate::turns::{Turns, size};
use crate::{GIB, KIB, MIB, nothing, sizes, under_both};

fn first_element(_: usize, tensor: Tensor<u8>) -> anyhow::Result<u8> {
    Ok(tensor.get(0)?)
}

/// Seconds of a whole `spawn` of one worker that has no arguments.
fn bare_spawn() -> anyhow::Result<f64> {
    let (seconds, done) = timed(|| spawn(nothing, (), 1));
    done?;
    Ok(seconds)
}

pub(crate) fn arguments(extent: Extent) -> anyhow::Result<()> {
    let columns = ["strategy", "tensor", "`spawn` with `()`", "`spawn` with the tensor", "difference"];
    table("A tensor in the arguments of one worker, which reads its first element", &columns);
    under_both(|strategy| {
        for bytes in sizes(extent, &[KIB, MIB, 64 * MIB, GIB]) {
            let tensor = Tensor::<u8>::zeros(&[bytes])?;
            let with = || {
                let (seconds, done) = timed(|| spawn(first_element, tensor.clone(), 1));
                done?;
                Ok(seconds)
            };
            let turns = Turns::run(extent.rounds(300), bare_spawn, with)?;
            let times = [turns.base(), turns.other(), turns.difference()].map(time);
            let [bare, whole, difference] = times;
            row(&[strategy.to_string(), size(bytes), bare, whole, difference]);
        }
        Ok(())
    })
}

/// Seconds in which the launcher reads what a worker of `work` has returned.
fn reading_result<A, R>(
    work: impl Fn(usize, A) -> anyhow::Result<R> + Copy + Send + 'static,
    arguments: A,
) -> anyhow::Result<f64>
where
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    let mut context = start_processes(work, arguments, Options::new(1))?;
    while !context.join_timeout(Duration::from_secs(10))? {}
    let (seconds, result) = timed(|| context.result(0));
    result?.ok_or_else(|| anyhow::anyhow!("a worker that succeeded has a result"))?;
    Ok(seconds)
}

pub(crate) fn results(extent: Extent) -> anyhow::Result<()> {
    let columns = ["strategy", "tensor", "`result` of a number", "`result` of the tensor", "difference"];
    table("A tensor in the result of one worker: how long the launcher takes to open it", &columns);
    let make = |_, bytes: usize| anyhow::Ok(Tensor::<u8>::zeros(&[bytes])?);
    under_both(|strategy| {
        for bytes in sizes(extent, &[KIB, MIB, 64 * MIB, GIB]) {
            let rounds = extent.rounds(if bytes == GIB { 15 } else { 100 });
            let number = || reading_result(|_, bytes: usize| Ok(bytes), bytes);
            let turns = Turns::run(rounds, number, || reading_result(make, bytes))?;
            let [bare, whole, difference] = [turns.base(), turns.other(), turns.difference()].map(time);
            row(&[strategy.to_string(), size(bytes), bare, whole, difference]);
        }
        Ok(())
    })
}

/// Seconds that filling in the page tables takes.
fn prefault(_: usize, tensor: Tensor<u8>) -> anyhow::Result<f64> {
    let (seconds, done) = timed(|| tensor.storage().prefault());
    done?;
    black_box(tensor.get(0)?);
    Ok(seconds)
}

pub(crate) fn prefaulting(extent: Extent) -> anyhow::Result<()> {
    let columns = ["strategy", "tensor", "`spawn` with the tensor", "the same with `prefault`", "`prefault`"];
    table("A worker that fills in its page tables at once", &columns);
    under_both(|strategy| {
        for bytes in sizes(extent, &[64 * MIB, GIB]) {
            let tensor = Tensor::<u8>::zeros(&[bytes])?;
            let without = || Ok(timed(|| spawn(first_element, tensor.clone(), 1)).0);
            let mut inside = Vec::new();
            let with = || {
                let (seconds, done) = timed(|| spawn(prefault, tensor.clone(), 1));
                inside.extend(done?);
                Ok(seconds)
            };
            let turns = Turns::run(extent.rounds(20), without, with)?;
            let [without, with, inside] = [turns.base(), turns.other(), median(inside)].map(time);
            row(&[strategy.to_string(), size(bytes), without, with, inside]);
        }
        Ok(())
    })
}
