//! Results by rank: four workers each integrate a part of a curve, and their parts add up to π.
//!
//! ```sh
//! cargo run --example spawn
//! ```

#![expect(clippy::print_stdout, reason = "an example shows its results")]

use serde::{Deserialize, Serialize};

const WORKERS: usize = 4;

/// What all workers get. Another process does not have the variables of this one, so it travels.
#[derive(Serialize, Deserialize)]
struct Grid {
    steps: usize,
}

fn main() -> anyhow::Result<()> {
    // The workers run this program too: here they turn off, and never come back.
    phalanx::init();
    let parts: Vec<(u32, f64)> = phalanx::spawn(quarter_circle, Grid { steps: 1_000_000 }, WORKERS)?;
    for (rank, (pid, part)) in parts.iter().enumerate() {
        println!("rank {rank}, process {pid}: {part:.6}");
    }
    let pi: f64 = parts.iter().map(|(_, part)| part).sum();
    println!("the launcher, process {}: {pi:.6}", std::process::id());
    Ok(())
}

/// Every fourth strip below 4 / (1 + x²).
fn quarter_circle(rank: usize, grid: Grid) -> anyhow::Result<(u32, f64)> {
    let width = 1.0 / grid.steps as f64;
    let strip = |step: usize| 4.0 * width / (1.0 + ((step as f64 + 0.5) * width).powi(2));
    let part = (rank..grid.steps).step_by(WORKERS).map(strip).sum();
    Ok((std::process::id(), part))
}
