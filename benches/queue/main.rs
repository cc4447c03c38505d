//! What queues, pipes and locks cost: throughput, round trips, tensors handed over, locks, and waiting; beside Python's
//! multiprocessing where `python3` is there, ipc-channel, and what the system alone takes. It prints one table, for
//! docs/performance.md.
//!
//! `cargo bench -p phalanx-benches --bench queue`; with `PHALANX_BENCH_QUICK=1` fewer rounds, and fewer messages in each.
//! The names of single parts may follow after `--`.
//!
//! All that stands in one row runs by turns, so that a slow moment of the machine meets each. Figures are the medians of
//! the turns; a ratio is the median of those of the turns.

#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use figures::{Extent, run_parts};

mod bare;
#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../figures/mod.rs"]
mod figures;
mod fleet;
mod handing;
mod idle;
mod instructions;
mod locks;
mod many;
mod points;
mod python;
mod robust;
mod rows;
#[path = "../figures/script.rs"]
mod script;
mod stream;
mod trips;

/// After so many seconds it is taken to hang: SIGALRM ends it, and its workers with it.
const WATCHDOG_SECONDS: u32 = 600;

fn main() -> anyhow::Result<()> {
    phalanx::init();
    if instructions::is_asked()? {
        return Ok(());
    }
    nix::unistd::alarm::set(WATCHDOG_SECONDS);
    run_parts(&[
        ("stream", stream::streams),
        ("many", many::many_to_many),
        ("trip", trips::trips),
        ("tensor", handing::tensors),
        ("lock", locks::locks),
        ("point", points::points),
        ("idle", idle::idle),
        ("instructions", instructions::instructions),
    ])
}

/// How many of something there are in one turn.
fn some(extent: Extent, all: usize) -> usize {
    if extent.quick { all / 20 } else { all }
}
