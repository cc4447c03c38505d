//! Workers that do something at the same time.

use std::ops::Range;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use phalanx::{Options, Tensor, start_processes};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::common;

/// From when to when something was done, by the clock that all processes share.
pub(crate) type Span = Range<f64>;

/// Seconds.
fn now() -> anyhow::Result<f64> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_secs_f64())
}

/// Does it when so many have come here.
pub(crate) fn at_once(
    board: &Tensor<i64>,
    all: usize,
    work: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Span> {
    board.fetch_add(0, 1)?;
    common::await_that(|| board.get(0).is_ok_and(|count| count == all as i64));
    let begin = now()?;
    work()?;
    Ok(begin..now()?)
}

/// Runs so many workers; returns how long it was from the first one's begin to the last one's end.
pub(crate) fn run<A: Serialize + DeserializeOwned>(
    work: impl Fn(usize, A) -> anyhow::Result<Span> + Copy + Send + 'static,
    arguments: A,
    nprocs: usize,
) -> anyhow::Result<f64> {
    Ok(hull(&start_processes(work, arguments, Options::new(nprocs))?.join()?))
}

pub(crate) fn hull(spans: &[Span]) -> f64 {
    let first = spans.iter().fold(f64::INFINITY, |first, span| first.min(span.start));
    let last = spans.iter().fold(f64::NEG_INFINITY, |last, span| last.max(span.end));
    last - first
}
