//! A data pipeline: loaders put batches into a queue, trainers take them out, and one of either is killed on the way. The
//! others go on, and what became of every batch is known.
//!
//! `cargo run --release --example queue`

#![expect(clippy::print_stdout, reason = "this is what an example is for")]

use std::time::Duration;

use phalanx::{Options, ProcessContext, Queue, Tensor, Waitable, start_processes, wait};
use serde::{Deserialize, Serialize};

const FILES: usize = 400;

/// The queues of the pipeline. A batch is shared memory: only its handle goes through the queue.
#[derive(Clone, Serialize, Deserialize)]
struct Pipeline {
    files: Queue<usize>,
    batches: Queue<(usize, Tensor<f32>)>,
    means: Queue<(usize, f32)>,
}

/// Loads one file after another, until there are no more.
fn load(_rank: usize, pipeline: Pipeline) -> anyhow::Result<()> {
    for file in pipeline.files {
        let file = file?;
        let batch = Tensor::from_slice(&vec![file as f32; 64 << 10], &[64, 1024])?;
        pipeline.batches.put((file, batch))?;
    }
    Ok(())
}

/// Takes one batch after another, until there are no more.
fn train(_rank: usize, pipeline: Pipeline) -> anyhow::Result<()> {
    for batch in pipeline.batches {
        let (file, batch) = batch?;
        let sum: f64 = batch.to_vec().into_iter().map(f64::from).sum();
        pipeline.means.put((file, (sum / batch.len() as f64) as f32))?;
    }
    Ok(())
}

/// Whether a worker still runs; one that was killed is told.
fn runs(context: &mut ProcessContext<()>) -> bool {
    match context.join_timeout(Duration::ZERO) {
        Ok(finished) => !finished,
        Err(error) => {
            println!("{error}");
            false
        }
    }
}

fn main() -> anyhow::Result<()> {
    phalanx::init();
    let pipeline = Pipeline {
        files: Queue::bounded(FILES)?,
        batches: Queue::bounded(8)?,
        means: Queue::bounded(FILES)?,
    };
    // A context for each: whoever fails, the others go on.
    let loader = |_| start_processes(load, pipeline.clone(), Options::new(1).name("load"));
    let trainer = |_| start_processes(train, pipeline.clone(), Options::new(1).name("train"));
    let mut loaders = (0..2).map(loader).collect::<Result<Vec<_>, _>>()?;
    let mut trainers = (0..2).map(trainer).collect::<Result<Vec<_>, _>>()?;
    (0..FILES).try_for_each(|file| pipeline.files.put(file))?;
    pipeline.files.close()?;

    let mut done = 0;
    while !trainers.is_empty() {
        let workers = loaders.iter().chain(&trainers).map(|worker| worker as &dyn Waitable);
        wait(&workers.chain([&pipeline.means as &dyn Waitable]).collect::<Vec<_>>(), None)?;
        for message in pipeline.means.try_iter() {
            let (file, mean) = message?;
            anyhow::ensure!(mean == file as f32, "batch {file} has mean {mean}");
            done += 1;
            match done {
                50 => loaders[0].kill()?,
                100 => trainers[0].kill()?,
                _ => {}
            }
        }
        loaders.retain_mut(runs);
        trainers.retain_mut(runs);
        if loaders.is_empty() {
            pipeline.batches.close()?;
        }
    }
    done += pipeline.means.len();
    println!("{done} of {FILES} batches were trained on; killed workers had the others");
    anyhow::ensure!(done + 2 >= FILES, "each of the two can take one with it");
    Ok(())
}
