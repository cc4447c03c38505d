//! What starting workers costs, each way: beside bare fork and posix_spawn, and beside other libraries; what asking
//! costs while they run, how soon their death is an error, and how much memory an idle one has. It prints tables for
//! docs/performance.md.
//!
//! `cargo bench --bench start`; with `PHALANX_BENCH_QUICK=1` fewer rounds. The names of single parts (`PARTS`) may follow
//! after `--`. With `PHALANX_BENCH_CHART=FILE` it draws the first part too, as SVG.
//!
//! All ways of one row run by turns, so that a slow moment of the machine meets each. Figures are medians; a ratio of
//! ways that ran by turns is the median of those of the turns.

#![expect(clippy::print_stdout, reason = "the tables are what it is for")]

use ipc_channel::ipc::IpcSender;

mod chart;
#[path = "../../tests/common/mod.rs"]
mod common;
mod figures;
mod memory;
mod python;
mod raw;
mod running;
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
    // Without --bench it is `cargo test` that runs this, to see that it works.
    let asked_quick = std::env::var_os("PHALANX_BENCH_QUICK").is_some_and(|value| value != "0");
    let quick = asked_quick || !std::env::args().any(|argument| argument == "--bench");
    let extent = Extent { quick };
    environment(extent)?;
    let chosen: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, run) in PARTS {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == name) {
            run(extent)?;
        }
    }
    Ok(())
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

type Part = fn(Extent) -> anyhow::Result<()>;
const PARTS: [(&str, Part); 5] = [
    ("start", starting::starting),
    ("poll", running::polling),
    ("death", running::deaths),
    ("ballast", memory::with_ballast),
    ("memory", memory::memory),
];

/// How much is measured.
#[derive(Clone, Copy)]
struct Extent {
    quick: bool,
}

impl Extent {
    fn rounds(self, all: usize) -> usize {
        if self.quick { (all / 20).clamp(1, 3) } else { all }
    }
}

fn environment(extent: Extent) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let quick = if extent.quick { "; quick: few rounds, figures mean little" } else { "" };
    println!("{cores} cores, {}, Linux {}{quick}", std::env::consts::ARCH, kernel.trim());
    Ok(())
}
