//! A data pipeline: producers read images and make batches of them, one consumer adds each batch up. Beside threads of one process,
//! and torch's DataLoader, where torch is installed. It prints a table for docs/performance.md.
//!
//! `cargo bench -p phalanx-benches --bench pipeline`; with `PHALANX_BENCH_QUICK=1` fewer rounds.

#![expect(clippy::print_stdout, reason = "the table is what it is for")]

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../figures/mod.rs"]
mod figures;
#[path = "../figures/script.rs"]
mod script;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

use figures::{Extent, median, row, run_parts, table, time, timed};
use phalanx::{Options, Queue, Shard, Tensor, TensorPool, start_processes};
use script::run_python;
use serde::{Deserialize, Serialize};

const SIDE: usize = 96;
/// Numbers of an image.
const IMAGE: usize = 3 * SIDE * SIDE;
const IMAGES: usize = 500;
const BATCH: usize = 16;
const PRODUCERS: usize = 4;
/// Batches that wait for the consumer at the most.
const READY: usize = 8;

fn main() -> anyhow::Result<()> {
    phalanx::init();
    run_parts(&[("pipeline", pipeline)])
}

/// What a producer has to do.
#[derive(Clone, Serialize, Deserialize)]
struct Work {
    files: Vec<PathBuf>,
    /// The numbers of the batches.
    numbers: Queue<usize>,
}

impl Work {
    /// Of as many batches as the files have in `epochs` rounds.
    fn new(files: &[PathBuf], epochs: usize) -> anyhow::Result<Self> {
        let batches = files.len() * epochs / BATCH;
        let numbers = Queue::bounded(batches)?;
        (0..batches).try_for_each(|number| numbers.put(number))?;
        numbers.close()?;
        Ok(Self { files: files.to_vec(), numbers })
    }

    fn batches(&self) -> usize {
        self.numbers.len()
    }

    /// Reads the images of a batch, and gives each number of it to `set`.
    fn load(&self, batch: usize, mut set: impl FnMut(usize, f32)) -> anyhow::Result<()> {
        for place in 0..BATCH {
            let file = fs::read(&self.files[(batch * BATCH + place) % self.files.len()])?;
            let pixels = &file[file.len() - IMAGE..];
            for (at, &pixel) in pixels.iter().enumerate() {
                set(place * IMAGE + at, f32::from(pixel) * (1.0 / 255.0));
            }
        }
        Ok(())
    }
}

/// Images a second, from the first batch to the last, none of which is empty.
fn rate(batches: usize, mut next: impl FnMut() -> anyhow::Result<f32>) -> anyhow::Result<f64> {
    let mut take = |count| {
        (0..count).try_for_each(|_| {
            anyhow::ensure!(next()? > 0.0, "an empty batch");
            Ok(())
        })
    };
    take(1)?;
    let (seconds, taken) = timed(|| take(batches - 1));
    taken?;
    Ok(((batches - 1) * BATCH) as f64 / seconds)
}

fn by_threads(work: &Work) -> anyhow::Result<f64> {
    let (send, receive) = sync_channel(READY);
    let batches = work.batches();
    std::thread::scope(|scope| {
        for _ in 0..PRODUCERS {
            let send = send.clone();
            scope.spawn(move || -> anyhow::Result<()> {
                for number in &work.numbers {
                    let mut batch = vec![0.0; BATCH * IMAGE];
                    work.load(number?, |at, value| batch[at] = value)?;
                    send.send(batch)?;
                }
                Ok(())
            });
        }
        rate(batches, || Ok(receive.recv()?.iter().sum()))
    })
}

fn sum(batch: &Tensor<f32>) -> anyhow::Result<f32> {
    Ok(batch.cells()?.iter().map(|cell| cell.get()).sum())
}

/// Batches that are tensors, made by `make`.
fn produce(
    (work, ready): &(Work, Queue<Tensor<f32>>),
    make: impl Fn() -> Result<Tensor<f32>, phalanx::MemoryError>,
) -> anyhow::Result<()> {
    for number in &work.numbers {
        let batch = make()?;
        let cells = batch.cells()?;
        work.load(number?, |at, value| cells[at].set(value))?;
        ready.put(batch)?;
    }
    Ok(())
}

fn new_tensors(_: usize, job: (Work, Queue<Tensor<f32>>)) -> anyhow::Result<()> {
    produce(&job, || Tensor::zeros(&[BATCH, IMAGE]))
}

fn pooled_tensors(_: usize, job: (Work, Queue<Tensor<f32>>)) -> anyhow::Result<()> {
    let pool = TensorPool::new(READY + 4);
    produce(&job, || pool.tensor(&[BATCH, IMAGE]))
}

fn pooled_shards(_: usize, (work, ready): (Work, Queue<Shard<f32>>)) -> anyhow::Result<()> {
    let pool = TensorPool::new(READY + 4);
    for number in &work.numbers {
        let mut batch = pool.tensor(&[BATCH, IMAGE])?.into_shards(1)?.remove(0);
        let slice = batch.as_mut_slice()?;
        work.load(number?, |at, value| slice[at] = value)?;
        ready.put(batch)?;
    }
    Ok(())
}

/// Shards of one tensor, which the consumer gives back.
fn shards_in_turn(
    _: usize,
    (work, empty, ready): (Work, Queue<Shard<f32>>, Queue<Shard<f32>>),
) -> anyhow::Result<()> {
    for number in &work.numbers {
        let (number, mut batch) = (number?, empty.get()?);
        let slice = batch.as_mut_slice()?;
        work.load(number, |at, value| slice[at] = value)?;
        ready.put(batch)?;
    }
    Ok(())
}

/// Runs producers of tensors, and consumes what they make.
fn by_tensors(
    work: &Work,
    produce: impl Fn(usize, (Work, Queue<Tensor<f32>>)) -> anyhow::Result<()> + Copy + Send + 'static,
) -> anyhow::Result<f64> {
    let ready = Queue::bounded(READY)?;
    let batches = work.batches();
    let producers = start_processes(produce, (work.clone(), ready.clone()), Options::new(PRODUCERS))?;
    let rate = rate(batches, || sum(&ready.get()?))?;
    producers.join()?;
    Ok(rate)
}

fn by_pooled_shards(work: &Work) -> anyhow::Result<f64> {
    let ready = Queue::bounded(READY)?;
    let batches = work.batches();
    let producers = start_processes(pooled_shards, (work.clone(), ready.clone()), Options::new(PRODUCERS))?;
    let rate = rate(batches, || Ok(ready.get()?.as_mut_slice()?.iter().sum()))?;
    producers.join()?;
    Ok(rate)
}

fn by_shards_in_turn(work: &Work) -> anyhow::Result<f64> {
    // As many as are in use where each batch has memory of its own: those that wait, and those that are being filled or added up.
    let shards = READY + PRODUCERS + 1;
    let (ready, empty) = (Queue::bounded(READY)?, Queue::bounded(shards)?);
    let batches = work.batches();
    for shard in Tensor::<f32>::zeros(&[shards, BATCH * IMAGE])?.into_shards(shards)? {
        empty.put(shard)?;
    }
    let job = (work.clone(), empty.clone(), ready.clone());
    let producers = start_processes(shards_in_turn, job, Options::new(PRODUCERS))?;
    let rate = rate(batches, || {
        let mut shard = ready.get()?;
        let sum = shard.as_mut_slice()?.iter().sum();
        empty.put(shard)?;
        Ok(sum)
    })?;
    producers.join()?;
    Ok(rate)
}

/// Files as PPM has them, of which no two are alike.
fn images(directory: &Path, count: usize) -> anyhow::Result<Vec<PathBuf>> {
    let image = |number: usize| {
        let pixels = (0..IMAGE).map(|at| (at * (2 * number + 1) + number) as u8);
        let content: Vec<_> =
            format!("P6\n{SIDE} {SIDE}\n255\n").into_bytes().into_iter().chain(pixels).collect();
        let path = directory.join(format!("{number}.ppm"));
        fs::write(&path, content)?;
        Ok(path)
    };
    (0..count).map(image).collect()
}

type Way = fn(&Work) -> anyhow::Result<f64>;

const WAYS: [(&str, Way); 5] = [
    ("threads, a new `Vec` for each batch", by_threads),
    ("a new tensor for each batch", |work| by_tensors(work, new_tensors)),
    ("`TensorPool`", |work| by_tensors(work, pooled_tensors)),
    ("`TensorPool`, the tensor as a shard", by_pooled_shards),
    ("shards that the consumer gives back", by_shards_in_turn),
];

fn pipeline(extent: Extent) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let files = images(directory.path(), IMAGES)?;
    let (epochs, turns) = (extent.rounds(20), extent.rounds(9));
    // By turns; the first only warms up.
    let mut rates = vec![[0.0; WAYS.len()]; 0];
    for turn in 0..=turns {
        let mut of_turn = [0.0; WAYS.len()];
        for (rate, (_, way)) in of_turn.iter_mut().zip(WAYS) {
            *rate = way(&Work::new(&files, epochs)?)?;
        }
        rates.extend((turn > 0).then_some(of_turn));
    }
    table(
        &format!(
            "{PRODUCERS} producers read {IMAGES} images of {SIDE} × {SIDE}, and make batches of {BATCH}"
        ),
        &["batches", "images a second", "a batch", "of threads"],
    );
    for (way, (name, _)) in WAYS.iter().enumerate() {
        let rate = median(rates.iter().map(|turn| turn[way]));
        let ratio = median(rates.iter().map(|turn| turn[way] / turn[0]));
        row(&cells(name, rate, format!("{ratio:.2}")));
    }
    let threads = median(rates.iter().map(|turn| turn[0]));
    if let Some(rate) = of_torch(&files, epochs, turns)? {
        let ratio = rate / threads;
        row(&cells("torch's DataLoader", rate, format!("{ratio:.2} (not by turns)")));
    } else {
        println!("\ntorch is not here");
    }
    Ok(())
}

fn cells(name: &str, rate: f64, ratio: String) -> [String; 4] {
    [name.to_owned(), format!("{rate:.0}"), time(BATCH as f64 / rate), ratio]
}

/// Images a second of torch's DataLoader.
fn of_torch(files: &[PathBuf], epochs: usize, turns: usize) -> anyhow::Result<Option<f64>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/pipeline/peer.py");
    let paths: Vec<_> = files.iter().map(|file| file.to_string_lossy()).collect();
    let numbers = [BATCH, PRODUCERS, epochs, turns].map(|number| number.to_string());
    let paths = paths.join("\n");
    let arguments: Vec<_> = [script, &paths].into_iter().chain(numbers.iter().map(String::as_str)).collect();
    let Some(printed) = run_python(&arguments)? else { return Ok(None) };
    let rates: Result<Vec<f64>, _> = printed.lines().skip(1).map(str::parse).collect();
    Ok(Some(median(rates?)))
}
