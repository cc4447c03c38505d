//! What starting workers costs, each way: beside bare fork and posix_spawn, and beside other libraries; what asking
//! costs while they run, how soon their death or failure is an error, and how much memory an idle one has. It prints tables
//! for docs/performance.md.
//!
//! `cargo bench -p phalanx-benches --bench start`; with `PHALANX_BENCH_QUICK=1` fewer rounds. The names of single parts may
//! follow after `--`. With `PHALANX_BENCH_CHART=FILE` it draws the first part too, as SVG.
//!
//! All ways of one row run by turns, so that a slow moment of the machine meets each. Figures are medians; a ratio of
//! ways that ran by turns is the median of those of the turns.

#![expect(clippy::print_stdout, reason = "the tables are what it is for")]

use figures::run_parts;
use ipc_channel::ipc::IpcSender;

mod chart;
#[path = "../../tests/common/mod.rs"]
mod common;
mod failing;
#[path = "../figures/mod.rs"]
mod figures;
mod memory;
mod python;
mod raw;
mod running;
#[path = "../figures/script.rs"]
mod script;
mod spares;
mod starting;
mod ways;

/// Makes this executable something else than the bench.
const ROLE: &str = "PHALANX_BENCH_ROLE";

fn main() -> anyhow::Result<()> {
    phalanx::init();
    if let Ok(role) = std::env::var(ROLE) {
        return play(&role);
    }
    procspawn::init();
    run_parts(&[
        ("start", starting::starting),
        ("spares", spares::spares),
        ("poll", running::polling),
        ("death", running::deaths),
        ("failure", failing::failures),
        ("ballast", memory::with_ballast),
        ("memory", memory::memory),
    ])
}

/// Is a bare child, or the small process that forks, or a worker of ipc-channel.
fn play(role: &str) -> anyhow::Result<()> {
    match role.split_once(':') {
        Some(("ipc", name)) => Ok(IpcSender::connect(name.to_owned())?.send(())?),
        _ if role == "fork" => raw::fork_when_asked(),
        _ if role == "stay" => common::wait_for_ever(),
        _ => Ok(()),
    }
}
