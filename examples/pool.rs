//! A grid search: 18 fits of a network that reads digits, each in a call of its own, on a pool of workers; and one worker is killed in
//! the middle.
//!
//! Each candidate, a learning rate and a number of hidden units, is fitted three times, each time to two thirds of the images, and
//! judged by the other third. `Pool::map` gives the fits to the workers as they become free, and the scores back in order. When some
//! are done, this process kills a worker that is at work: the pool replaces it, and `retries(1)` lets the fit that it took along be
//! begun again. So no score is missing, which the end checks.
//!
//! ```sh
//! cargo run --release --example pool
//! cargo run --release --example pool -- --workers 4 --epochs 30
//! ```

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example shows its results")]

use std::process::{Command, ExitCode};

use anyhow::{Context, anyhow, bail, ensure};
use phalanx::Options;
use phalanx::pool::{self, Pool};
use serde::{Deserialize, Serialize};

const PIXELS: usize = 64;
const DIGITS: usize = 10;
const FOLDS: usize = 3;
const RATES: [f32; 3] = [0.01, 0.05, 0.2];
const HIDDEN: [usize; 2] = [8, 16];
/// So many that an unoptimised build takes some seconds.
const IMAGES: usize = 600;
/// Of the best candidate, in per cent.
const REQUIRED: f64 = 80.0;

const USAGE: &str = "usage: pool [--workers N] [--epochs N]";

/// The arguments of one call.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Fit {
    rate: f32,
    hidden: usize,
    fold: usize,
    epochs: usize,
}

fn main() -> ExitCode {
    phalanx::init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let (workers, epochs) = options(std::env::args().skip(1)).map_err(|error| anyhow!("{error}\n{USAGE}"))?;
    let fits = grid(epochs);
    let pool = Pool::options(Options::new(workers).name("grid")).retries(1).build()?;
    let mut killed = None;
    let mut scores = Vec::new();
    let mut map = pool.map(fit, fits.clone())?.chunk(1).status_line("grid search");
    for score in map.by_ref() {
        scores.push(score?);
        if scores.len() == fits.len() / 4 {
            killed = Some(kill_one(&pool)?);
        }
    }
    println!("{}; {}", map.progress(), killed.context("no worker was killed")?);
    drop(map);
    ensure!(scores.len() == fits.len(), "{} of {} scores have come", scores.len(), fits.len());
    let summary = pool.join()?;
    ensure!(summary.failed == 0, "{} fits have failed", summary.failed);
    report(&fits, &scores)
}

fn options(mut args: impl Iterator<Item = String>) -> anyhow::Result<(usize, usize)> {
    let (mut workers, mut epochs) = (2, 3);
    while let Some(option) = args.next() {
        let value = args.next().unwrap_or_default();
        let number = value.parse().ok().filter(|number| *number >= 1);
        let number = number.with_context(|| format!("{option} takes a number from 1, not {value:?}"))?;
        match option.as_str() {
            "--workers" => workers = number,
            "--epochs" => epochs = number,
            _ => bail!("unknown option {option:?}"),
        }
    }
    Ok((workers, epochs))
}

/// All fits; those of a candidate are next to each other.
fn grid(epochs: usize) -> Vec<Fit> {
    let candidates = RATES.into_iter().flat_map(|rate| HIDDEN.map(|hidden| (rate, hidden)));
    candidates
        .flat_map(|(rate, hidden)| (0..FOLDS).map(move |fold| Fit { rate, hidden, fold, epochs }))
        .collect()
}

/// Kills a worker in the middle of a fit, as the kernel does when memory runs out.
fn kill_one(pool: &Pool) -> anyhow::Result<String> {
    let busy = loop {
        if let Some(busy) = pool.workers().into_iter().find(|worker| worker.running.is_some()) {
            break busy;
        }
        std::thread::yield_now();
    };
    let status = Command::new("sh").args(["-c", &format!("kill -KILL {}", busy.pid)]).status()?;
    ensure!(status.success(), "cannot kill worker {} (pid {})", busy.number, busy.pid);
    let item = busy.item.map_or_else(String::new, |item| format!(" in fit {item}"));
    Ok(format!("worker {} (pid {}) was killed{item}", busy.number, busy.pid))
}

/// Prints the mean score of each candidate.
fn report(fits: &[Fit], scores: &[f64]) -> anyhow::Result<()> {
    let means = scores.chunks(FOLDS).map(|scores| 100.0 * scores.iter().sum::<f64>() / FOLDS as f64);
    let candidates: Vec<_> = fits.iter().step_by(FOLDS).zip(means).collect();
    println!("learning rate   hidden units   right");
    for (fit, mean) in &candidates {
        println!("{:13}   {:12}   {mean:4.1} %", fit.rate, fit.hidden);
    }
    let best = candidates.iter().max_by(|a, b| a.1.total_cmp(&b.1)).context("there is no candidate")?;
    println!("best: learning rate {}, {} hidden units", best.0.rate, best.0.hidden);
    ensure!(best.1 >= REQUIRED, "too few are right: it should be {REQUIRED} % or more");
    Ok(())
}

/// In a worker: fits a network to all images but those of a fold; returns which part of that fold it reads right.
fn fit(fit: Fit) -> anyhow::Result<f64> {
    let images: Vec<_> = include_str!("data/digits.csv").lines().take(IMAGES).map(image).collect();
    let is_held_out = |place: usize| place % FOLDS == fit.fold;
    let mut network = Network::new(fit.hidden);
    for epoch in 0..fit.epochs {
        // What `Pool::workers` shows; a kill or a time limit is seen here, too.
        pool::progress(epoch as f64 / fit.epochs as f64);
        ensure!(!pool::cancelled(), "the fit was asked to end in epoch {epoch}");
        for (_, image) in images.iter().enumerate().filter(|(place, _)| !is_held_out(*place)) {
            network.learn(image, fit.rate);
        }
    }
    let held_out: Vec<_> = images.iter().enumerate().filter(|(place, _)| is_held_out(*place)).collect();
    let right = held_out.iter().filter(|(_, image)| network.reads(image) == image.digit).count();
    Ok(right as f64 / held_out.len() as f64)
}

struct Image {
    pixels: Vec<f32>,
    digit: usize,
}

fn image(line: &str) -> Image {
    let numbers: Vec<u8> =
        line.split(',').map(|number| number.parse().expect("the data are numbers")).collect();
    let pixels = numbers[..PIXELS].iter().map(|&number| f32::from(number) / 16.0).collect();
    Image { pixels, digit: numbers[PIXELS].into() }
}

/// Two layers; a neuron is a row: the weights of its inputs, then its bias.
struct Network {
    first: Vec<Vec<f32>>,
    second: Vec<Vec<f32>>,
}

impl Network {
    fn new(hidden: usize) -> Self {
        let mut state = 1_u64;
        let mut layer = |neurons: usize, inputs: usize| {
            let mut weight = || {
                // An LCG's upper bits (Knuth's MMIX), uniform within ±1/√inputs.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) / (inputs as f32).sqrt()
            };
            (0..neurons).map(|_| (0..=inputs).map(|_| weight()).collect()).collect()
        };
        Self { first: layer(hidden, PIXELS), second: layer(DIGITS, hidden) }
    }

    /// The outputs of the hidden layer, and the chance of each digit.
    fn forward(&self, image: &Image) -> (Vec<f32>, Vec<f32>) {
        let hidden: Vec<_> =
            outputs(&self.first, &image.pixels).into_iter().map(|sum| sum.max(0.0)).collect();
        let scores = outputs(&self.second, &hidden);
        let highest = scores.iter().copied().fold(f32::MIN, f32::max);
        let powers: Vec<_> = scores.into_iter().map(|score| (score - highest).exp()).collect();
        let sum: f32 = powers.iter().sum();
        (hidden, powers.into_iter().map(|power| power / sum).collect())
    }

    /// One step down the gradient of an image's cross-entropy loss.
    fn learn(&mut self, image: &Image, rate: f32) {
        let (hidden, mut slopes) = self.forward(image);
        slopes[image.digit] -= 1.0;
        let back = |unit: usize| -> f32 {
            let through = self.second.iter().zip(&slopes).map(|(row, slope)| row[unit] * slope).sum();
            if hidden[unit] > 0.0 { through } else { 0.0 }
        };
        let below: Vec<_> = (0..hidden.len()).map(back).collect();
        descend(&mut self.second, &slopes, &hidden, rate);
        descend(&mut self.first, &below, &image.pixels, rate);
    }

    fn reads(&self, image: &Image) -> usize {
        let chances = self.forward(image).1;
        (0..DIGITS).max_by(|&a, &b| chances[a].total_cmp(&chances[b])).unwrap_or_default()
    }
}

fn outputs(layer: &[Vec<f32>], inputs: &[f32]) -> Vec<f32> {
    let sum = |row: &Vec<f32>| {
        row[inputs.len()] + row.iter().zip(inputs).map(|(weight, input)| weight * input).sum::<f32>()
    };
    layer.iter().map(sum).collect()
}

fn descend(layer: &mut [Vec<f32>], slopes: &[f32], inputs: &[f32], rate: f32) {
    for (row, slope) in layer.iter_mut().zip(slopes) {
        // The input of the bias is one.
        row.iter_mut()
            .zip(inputs.iter().chain([&1.0]))
            .for_each(|(weight, input)| *weight -= rate * slope * input);
    }
}
