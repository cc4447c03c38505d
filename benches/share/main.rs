//! What shared memory costs: handing tensors to workers and back, thousands of them at once, page tables, bulk copies
//! beside memcpy, and access to single elements beside a `Vec`. It prints tables for docs/performance.md.
//!
//! `cargo bench -p phalanx-benches --bench share`; with `PHALANX_BENCH_QUICK=1` fewer rounds, and nothing larger than
//! 64 MiB. The names of single parts may follow after `--`.
//!
//! Two things to be compared run by turns, so that a slow moment of the machine meets both. Figures are medians; a
//! difference or a ratio is the median of those of the turns.

#![expect(clippy::print_stdout, reason = "the tables are what it is for")]

use phalanx::{SharingStrategy, set_sharing_strategy};

use figures::{Extent, run_parts};

mod copies;
mod elements;
#[path = "../figures/mod.rs"]
mod figures;
mod handing;
mod many;
mod torch;
mod turns;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

fn main() -> anyhow::Result<()> {
    phalanx::init();
    run_parts(&[
        ("arguments", handing::arguments),
        ("results", handing::results),
        ("prefault", handing::prefaulting),
        ("copies", copies::copies),
        ("many", many::many_tensors),
        ("elements", elements::elements),
        ("torch", torch::torch),
    ])
}

fn sizes(extent: Extent, all: &[usize]) -> impl Iterator<Item = usize> {
    all.iter().copied().filter(move |&bytes| !extent.quick || bytes <= 64 * MIB)
}

/// Runs `work` under each strategy.
fn under_both(mut work: impl FnMut(SharingStrategy) -> anyhow::Result<()>) -> anyhow::Result<()> {
    for &strategy in phalanx::get_all_sharing_strategies() {
        set_sharing_strategy(strategy);
        work(strategy)?;
    }
    set_sharing_strategy(SharingStrategy::FileDescriptor);
    Ok(())
}

fn nothing(_: usize, (): ()) -> anyhow::Result<()> {
    Ok(())
}
