//! A tensor in two languages: workers in Python map the launcher's memory, and change it in place.
//!
//! ```sh
//! cargo run --example foreign
//! ```

#![expect(clippy::print_stdout, reason = "an example shows its results")]

use anyhow::{Result, ensure};
use phalanx::Tensor;
use phalanx::launch::{Command, Launch, Nproc};

/// Each worker doubles the elements of its half. The standard library's mmap and memoryview are enough; where numpy is installed,
/// `numpy.frombuffer(memory, …)` is the same memory as an array.
const WORKER: &str = r#"
import json, mmap, os
weights = json.loads(os.environ["PHALANX_TENSORS"])[0]
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
count = 1
for size in weights["shape"]:
    count *= size
memory = mmap.mmap(weights["fd"], 0)
elements = memoryview(memory)[weights["offset"] : weights["offset"] + 4 * count].cast("f")
for i in range(rank * count // world, (rank + 1) * count // world):
    elements[i] *= 2
print(f"rank {rank} has doubled its part of {weights['name']} {weights['shape']}")
"#;

fn main() -> Result<()> {
    let weights = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0], &[2, 2])?;
    let python = Command::new("python3").args(["-c", WORKER]);
    let launch = Launch::new(python).nproc(Nproc::Count(2)).tensor("weights", &weights.clone().into());
    // This process is the job's: Ctrl-C ends the workers first, and nothing is left where this process is killed.
    let summary = launch.handle_signals(true).run()?;
    ensure!(summary.succeeded(), "{summary}");
    // Nothing was sent back: it is this process's memory that has changed.
    println!("{:?}", weights.to_vec());
    ensure!(weights.to_vec() == [2.0, 4.0, 6.0, 8.0]);
    Ok(())
}
