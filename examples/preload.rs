//! Preload: a file of weights is loaded once, and four workers compute over all of it without a copy of their own.
//!
//! The weights are read from a safetensors file straight into shared memory, which is then sealed: every worker has them
//! as plain slices. When all five processes have touched every page, the launcher asks the kernel for the proportional
//! set size of each (PSS: a page that n processes have counts as one n-th of a page in each). Together they have about
//! one copy.
//!
//! ```sh
//! cargo run --release --features safetensors --example preload
//! ```

#![expect(clippy::print_stdout, reason = "an example shows its results")]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use phalanx::shm::safetensors;
use phalanx::{FrozenTensor, Options, ProcessContext, Tensor, start_processes};
use serde::{Deserialize, Serialize};

const WORKERS: usize = 4;
const LAYERS: usize = 4;
/// A layer is a square matrix: 4 of 64 MiB are 256 MiB.
const WIDTH: usize = 4096;
/// How long the launcher waits for news of its workers before it looks at the counter again.
const POLL: Duration = Duration::from_millis(10);
const MIB: f64 = (1 << 20) as f64;

/// What every worker gets.
#[derive(Clone, Serialize, Deserialize)]
struct Job {
    layers: Vec<FrozenTensor<f32>>,
    /// How many workers have gone through all weights, and whether the launcher has measured.
    meeting: Tensor<u32>,
}

const ARRIVED: usize = 0;
const MEASURED: usize = 1;

fn main() -> anyhow::Result<()> {
    phalanx::init();
    let job = Job { layers: load()?, meeting: Tensor::zeros(&[2])? };
    let copy: usize = job.layers.iter().map(|layer| size_of_val(&layer[..])).sum();
    println!("{} layers of {WIDTH} x {WIDTH} weights: one copy has {:.1} MiB", LAYERS, copy as f64 / MIB);

    let mut context = start_processes(work, job.clone(), Options::new(WORKERS).name("preload"))?;
    let expected = forward(&job.layers, 1.0);
    await_workers(&mut context, &job.meeting)?;
    let together = measure(&context.pids())?;
    job.meeting.set(MEASURED, 1)?;

    let results = context.join()?;
    println!("results: {results:?}, the launcher's own: {expected:?}");
    ensure!(results[0] == expected, "all have the same weights, but rank 0 and the launcher disagree");
    let copies = together / copy as f64;
    println!("{copies:.2} copies in {} processes", WORKERS + 1);
    ensure!(copies < 1.5, "the weights are in memory more than once");
    Ok(())
}

/// Writes a file of weights, loads it, and removes it, also after an error.
fn load() -> anyhow::Result<Vec<FrozenTensor<f32>>> {
    // The file has a name as long as it is written and read: SIGKILL in these moments leaves it behind.
    let dir = tempfile::Builder::new().prefix("phalanx-preload-").tempdir()?;
    let path = dir.path().join("model.safetensors");
    write(&path)?;
    let model: BTreeMap<_, _> = safetensors::load_frozen(&path)?;
    model.values().map(|layer| Ok(layer.typed()?.freeze()?)).collect()
}

/// All layers are the same one, under different names: a file does not know.
fn write(path: &std::path::Path) -> anyhow::Result<()> {
    let weights: Vec<_> = (0..WIDTH * WIDTH).map(|place| (place % 1000) as f32 / 1e6 - 4e-4).collect();
    let layer = Tensor::from_slice(&weights, &[WIDTH, WIDTH])?.into_dyn();
    safetensors::save(path, (0..LAYERS).map(|number| (format!("layer.{number}"), &layer)))
        .context("writing the weights")
}

/// A worker: computes, and stays until the launcher has measured.
fn work(rank: usize, job: Job) -> anyhow::Result<f32> {
    let result = forward(&job.layers, 1.0 + rank as f32);
    job.meeting.fetch_add(ARRIVED, 1)?;
    while job.meeting.get(MEASURED)? == 0 {
        std::thread::yield_now();
    }
    Ok(result)
}

/// Every layer's product with what the one before has made, summed up in the end.
fn forward(layers: &[FrozenTensor<f32>], start: f32) -> f32 {
    let multiply = |inputs: Vec<f32>, layer: &FrozenTensor<f32>| {
        let neuron =
            |row: &[f32]| row.iter().zip(&inputs).map(|(weight, input)| weight * input).sum::<f32>().tanh();
        layer.chunks_exact(WIDTH).map(neuron).collect()
    };
    layers.iter().fold(vec![start; WIDTH], multiply).iter().sum()
}

/// Returns when all have gone through the weights, or with the failure of one that could not.
fn await_workers(context: &mut ProcessContext<f32>, meeting: &Tensor<u32>) -> anyhow::Result<()> {
    while (meeting.get(ARRIVED)? as usize) < WORKERS {
        ensure!(!context.join_timeout(POLL)?, "the workers have ended before they were measured");
    }
    Ok(())
}

/// Shows the memory of the launcher and its workers; returns their proportional set sizes together, in bytes.
fn measure(workers: &[u32]) -> anyhow::Result<f64> {
    println!("process                  PSS          RSS");
    let mut together = 0.0;
    for (place, &pid) in [std::process::id()].iter().chain(workers).enumerate() {
        let name = place.checked_sub(1).map_or("launcher".to_owned(), |rank| format!("rank {rank}"));
        let (pss, rss) = memory_of(pid)?;
        println!("{name:8} {pid:8} {:7.1} MiB  {:7.1} MiB", pss / MIB, rss / MIB);
        together += pss;
    }
    println!("together          {:7.1} MiB", together / MIB);
    Ok(together)
}

/// Proportional and resident set size of a process (proc_pid_smaps(5)), in bytes.
fn memory_of(pid: u32) -> anyhow::Result<(f64, f64)> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let rollup = std::fs::read_to_string(&path).context(path)?;
    let kib = |key: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        number.with_context(|| format!("no {key} in {rollup}"))
    };
    Ok((kib("Pss:")? * 1024.0, kib("Rss:")? * 1024.0))
}
