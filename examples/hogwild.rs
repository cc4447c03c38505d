//! Hogwild: N workers train one model at the same time, all on one shared set of weights, without locks.
//!
//! The model (64 pixels, 32 hidden units, 10 digits) lives in one `Tensor<f32>` that travels in the arguments.
//! Each worker learns from its own shard of the images: it copies the weights of the moment, computes the
//! gradient of a mini-batch and adds it with `fetch_add` while the others do the same. A second tensor carries
//! the workers' progress to the launcher, which shows it while it joins them, and which tests the model at the
//! end on a fifth of the images that no worker has learnt from.
//!
//! ```sh
//! cargo run --release --example hogwild
//! cargo run --release --example hogwild -- --workers 4 --epochs 60
//! cargo run --release --example hogwild -- --crash 1    # what it looks like when a worker fails
//! ```
//!
//! F. Niu, B. Recht, C. Ré, S. J. Wright: "Hogwild!", NIPS 2011.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example shows its results")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use phalanx::{MemoryError, Options, ProcessContext, Tensor, start_processes};
use serde::{Deserialize, Serialize};

use digits::{Image, Random, WEIGHTS, accuracy, backward, initial_weights, likeliest, split};

mod digits;

/// Of the progress of a worker.
const COLUMNS: usize = 4;

const BATCH: usize = 8;
const LEARNING_RATE: f32 = 0.1;
/// Per cent of the held-out images.
const REQUIRED: f64 = 95.0;
const POLL: Duration = Duration::from_millis(100);

const USAGE: &str = "usage: hogwild [--workers N] [--epochs N] [--crash RANK]";

/// The arguments of the workers. Cloned or sent, the tensors stay the same memory.
#[derive(Clone, Serialize, Deserialize)]
struct Job {
    workers: usize,
    epochs: usize,
    /// The rank that is to fail in its second epoch.
    crash: Option<usize>,
    weights: Tensor<f32>,
    /// A row for each rank: its last epoch, the sum of the losses in it, the images, and how many were right.
    progress: Tensor<f64>,
}

fn main() -> ExitCode {
    phalanx::init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The launcher: starts the workers, shows their progress, tests what they have learnt.
fn run() -> anyhow::Result<()> {
    let (workers, epochs, crash) =
        options(std::env::args().skip(1)).map_err(|error| anyhow!("{error}\n{USAGE}"))?;
    let weights = Tensor::from_slice(&initial_weights(), &[WEIGHTS])?;
    let job = Job { workers, epochs, crash, weights, progress: Tensor::zeros(&[workers, COLUMNS])? };
    let (held_out, training) = split();
    println!("workers: {workers}, images to learn from: {}", training.len());
    let start = Instant::now();
    let context = start_processes(train, job.clone(), Options::new(workers).name("hogwild"))?;
    watch(context, &job, start)?;
    let seconds = start.elapsed().as_secs_f64();
    let accuracy = 100.0 * accuracy(&job.weights.to_vec(), &held_out);
    println!("{accuracy:.1} % of {} held-out images are right, after {seconds:.2} s", held_out.len());
    ensure!(accuracy >= REQUIRED, "too few are right: it should be {REQUIRED} % or more");
    Ok(())
}

fn options(mut args: impl Iterator<Item = String>) -> anyhow::Result<(usize, usize, Option<usize>)> {
    let (mut workers, mut epochs, mut crash) = (2, 60, None);
    while let Some(option) = args.next() {
        let value = args.next().unwrap_or_default();
        let number = |least: usize| {
            let parsed = value.parse().ok().filter(|number| *number >= least);
            parsed.with_context(|| format!("{option} takes a number from {least}, not {value:?}"))
        };
        match option.as_str() {
            "--workers" => workers = number(1)?,
            "--epochs" => epochs = number(1)?,
            "--crash" => crash = Some(number(0)?),
            _ => bail!("unknown option {option:?}"),
        }
    }
    ensure!(crash.is_none_or(|rank| rank < workers), "--crash takes a rank from 0 to {}", workers - 1);
    Ok((workers, epochs, crash))
}

/// Joins the workers and shows a line whenever there is something new.
fn watch(mut context: ProcessContext<()>, job: &Job, start: Instant) -> Result<(), phalanx::Error> {
    let mut shown = job.progress();
    while !context.join_timeout(POLL)? {
        let progress = job.progress();
        if progress != shown {
            println!("{:5.1} s   {progress}", start.elapsed().as_secs_f64());
            shown = progress;
        }
    }
    Ok(())
}

impl Job {
    fn report(&self, rank: usize, row: [f64; COLUMNS]) -> Result<(), MemoryError> {
        let places = rank * COLUMNS..;
        places.zip(row).try_for_each(|(place, value)| self.progress.set(place, value))
    }

    /// The last epoch of all workers in one line.
    fn progress(&self) -> String {
        let rows = self.progress.to_vec();
        let sum = |column| rows.iter().skip(column).step_by(COLUMNS).sum::<f64>();
        let (epoch, images) = (sum(0) / self.workers as f64, sum(2).max(1.0));
        let (loss, accuracy) = (sum(1) / images, 100.0 * sum(3) / images);
        format!("epoch {epoch:4.1}   loss {loss:.4}   training accuracy {accuracy:5.1} %")
    }
}

/// A worker: learns from its shard.
fn train(rank: usize, job: Job) -> anyhow::Result<()> {
    let (_, training) = split();
    let mut shard: Vec<_> = training.into_iter().skip(rank).step_by(job.workers).collect();
    let mut random = Random(rank as u64);
    for epoch in 1..=job.epochs {
        if epoch == 2 && job.crash == Some(rank) {
            diverge(epoch);
        }
        random.shuffle(&mut shard);
        let (loss, correct) = learn(&job.weights, &shard)?;
        job.report(rank, [epoch as f64, loss, shard.len() as f64, correct as f64])?;
    }
    Ok(())
}

/// What `--crash` asks for.
fn diverge(epoch: usize) -> ! {
    panic!("weights became NaN in epoch {epoch}")
}

/// One epoch; returns the sum of the losses and how many digits were right.
fn learn(shared: &Tensor<f32>, shard: &[Image]) -> Result<(f64, usize), MemoryError> {
    let mut weights = [0.0; WEIGHTS];
    let (mut loss, mut correct) = (0.0, 0);
    for batch in shard.chunks(BATCH) {
        shared.read_into(&mut weights)?;
        let mut gradient = [0.0; WEIGHTS];
        for image in batch {
            let chances = backward(&weights, image, &mut gradient);
            loss -= f64::from(chances[image.digit].ln());
            correct += usize::from(likeliest(&chances) == image.digit);
        }
        step(shared, &gradient, batch.len())?;
    }
    Ok((loss, correct))
}

/// The others add too, meanwhile: no addition is lost, and no worker waits for another.
fn step(shared: &Tensor<f32>, gradient: &[f32], batch: usize) -> Result<(), MemoryError> {
    let rate = -LEARNING_RATE / batch as f32;
    // Blank pixels and silent neurons leave a third of it zero: so much less to meet at.
    for (place, slope) in gradient.iter().enumerate().filter(|(_, slope)| **slope != 0.0) {
        shared.fetch_add(place, rate * slope)?;
    }
    Ok(())
}
