//! Synchronous data parallelism: N workers train one model in step, each on its part of every batch.
//!
//! Each worker has the weights for itself. For each batch it computes the gradient of its images, `all_reduce` makes the mean of all
//! workers' gradients of it, and each takes the same step. So all have the same weights after each step, to the last bit, and the
//! launcher checks that at the end: it compares what the workers return, and tests it on images that none has learnt from. What
//! hogwild.rs leaves to chance is certain here, at the price of a wait for the slowest in each step.
//!
//! ```sh
//! cargo run --release --example allreduce
//! cargo run --release --example allreduce -- 4    # workers
//! ```

#![expect(clippy::print_stdout, reason = "an example shows its results")]

use std::time::Instant;

use anyhow::{Context, ensure};
use phalanx::collective::{Collective, Reduce};
use phalanx::{Tensor, spawn};

use digits::{Random, WEIGHTS, accuracy, backward, initial_weights, likeliest, split};

mod digits;

const EPOCHS: usize = 12;
/// Images of a step, of all workers together.
const BATCH: usize = 16;
const LEARNING_RATE: f32 = 0.2;
/// Per cent of the held-out images.
const REQUIRED: f64 = 95.0;

/// The crew, and a row for each worker's gradient. Since all rows are of one tensor, the workers add them in place, without a copy.
type Job = (Collective, Tensor<f32>);

fn main() -> anyhow::Result<()> {
    phalanx::init();
    let asked = std::env::args().nth(1).map_or(Ok(2), |asked| asked.parse());
    let workers: usize = asked.context("usage: allreduce [WORKERS]")?;
    ensure!(
        (1..=BATCH).contains(&workers),
        "the workers share batches of {BATCH} images: from 1 to {BATCH} of them"
    );
    let (held_out, training) = split();
    println!("workers: {workers}, images to learn from: {}, epochs: {EPOCHS}", training.len());
    let start = Instant::now();
    let gradients = Tensor::zeros(&[workers, WEIGHTS])?;
    let learnt = spawn(train, (Collective::new(workers)?, gradients), workers)?;
    let seconds = start.elapsed().as_secs_f64();
    // By bits: NaN is not equal to itself, and 0.0 is to -0.0.
    let bits = |weights: &[f32]| weights.iter().map(|weight| weight.to_bits()).collect::<Vec<_>>();
    ensure!(learnt.iter().all(|weights| bits(weights) == bits(&learnt[0])), "the workers differ");
    let accuracy = 100.0 * accuracy(&learnt[0], &held_out);
    println!("{accuracy:.1} % of {} held-out images are right, after {seconds:.2} s", held_out.len());
    ensure!(accuracy >= REQUIRED, "too few are right: it should be {REQUIRED} % or more");
    Ok(())
}

/// A worker; returns the weights.
fn train(rank: usize, (crew, gradients): Job) -> anyhow::Result<Vec<f32>> {
    let mut crew = crew.join(rank)?;
    let (_, mut training) = split();
    let (mut weights, mut random) = (initial_weights(), Random(2));
    let shared = gradients.select(0, rank)?;
    // Of one element: all workers' right answers.
    let right = Tensor::<f32>::zeros(&[1])?;
    for epoch in 1..=EPOCHS {
        // The same order in every worker: each takes every so manieth image of a batch.
        random.shuffle(&mut training);
        let mut correct = 0;
        for batch in training.chunks(BATCH) {
            let mut gradient = vec![0.0; WEIGHTS];
            for image in batch.iter().skip(rank).step_by(crew.nprocs()) {
                let chances = backward(&weights, image, &mut gradient);
                correct += usize::from(likeliest(&chances) == image.digit);
            }
            shared.write_from(&gradient)?;
            crew.all_reduce(&shared, Reduce::Sum)?;
            shared.read_into(&mut gradient)?;
            let rate = -LEARNING_RATE / batch.len() as f32;
            weights.iter_mut().zip(&gradient).for_each(|(weight, slope)| *weight += rate * slope);
        }
        right.set(0, correct as f32)?;
        crew.all_reduce(&right, Reduce::Sum)?;
        if rank == 0 && epoch % 4 == 0 {
            let share = 100.0 * right.get(0)? / training.len() as f32;
            println!("epoch {epoch:3}   training accuracy {share:5.1} %");
        }
    }
    Ok(weights)
}
