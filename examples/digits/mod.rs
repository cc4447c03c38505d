//! What the examples that learn have in common: images of digits, and a model of 64 pixels, 32 hidden units and 10 digits.

use std::array;

const PIXELS: usize = 64;
const HIDDEN: usize = 32;
const DIGITS: usize = 10;
/// The weights of the hidden layer come first. A neuron is a row: the weights of its inputs, then its bias.
const HIDDEN_LAYER: usize = HIDDEN * (PIXELS + 1);
pub(crate) const WEIGHTS: usize = HIDDEN_LAYER + DIGITS * (HIDDEN + 1);

/// The outputs of the hidden layer, and the chance of each digit.
fn forward(weights: &[f32], image: &Image) -> ([f32; HIDDEN], [f32; DIGITS]) {
    let (first, second) = weights.split_at(HIDDEN_LAYER);
    let hidden = layer(first, &image.pixels).map(|sum: f32| sum.max(0.0));
    (hidden, softmax(layer(second, &hidden)))
}

fn layer<const OUT: usize>(weights: &[f32], inputs: &[f32]) -> [f32; OUT] {
    array::from_fn(|neuron| {
        let row = &weights[neuron * (inputs.len() + 1)..][..=inputs.len()];
        let weighted = row.iter().zip(inputs).map(|(weight, input)| weight * input);
        weighted.sum::<f32>() + row[inputs.len()]
    })
}

fn softmax(scores: [f32; DIGITS]) -> [f32; DIGITS] {
    let highest = scores.into_iter().fold(f32::MIN, f32::max);
    let powers = scores.map(|score| (score - highest).exp());
    let sum: f32 = powers.iter().sum();
    // Never quite zero, so that its logarithm is finite.
    powers.map(|power| (power / sum).max(f32::MIN_POSITIVE))
}

/// Adds the gradient of an image's cross-entropy loss; returns the chance of each digit.
pub(crate) fn backward(weights: &[f32], image: &Image, gradient: &mut [f32]) -> [f32; DIGITS] {
    let (hidden, chances) = forward(weights, image);
    let (first, second) = gradient.split_at_mut(HIDDEN_LAYER);
    let mut slopes = chances;
    slopes[image.digit] -= 1.0;
    add_products(second, &slopes, &hidden);
    let back = |unit: usize| -> f32 {
        let column = weights[HIDDEN_LAYER + unit..].iter().step_by(HIDDEN + 1);
        column.zip(&slopes).map(|(weight, slope)| weight * slope).sum()
    };
    let slopes: [f32; HIDDEN] = array::from_fn(|unit| if hidden[unit] > 0.0 { back(unit) } else { 0.0 });
    add_products(first, &slopes, &image.pixels);
    chances
}

fn add_products(gradient: &mut [f32], slopes: &[f32], inputs: &[f32]) {
    for (row, slope) in gradient.chunks_exact_mut(inputs.len() + 1).zip(slopes) {
        // The input of the bias is one.
        row.iter_mut().zip(inputs.iter().chain([&1.0])).for_each(|(cell, input)| *cell += slope * input);
    }
}

pub(crate) fn likeliest(chances: &[f32]) -> usize {
    (0..chances.len()).max_by(|&a, &b| chances[a].total_cmp(&chances[b])).unwrap_or_default()
}

pub(crate) fn accuracy(weights: &[f32], images: &[Image]) -> f64 {
    let right = images.iter().filter(|image| likeliest(&forward(weights, image).1) == image.digit).count();
    right as f64 / images.len() as f64
}

/// Uniform within ±1/√inputs, as torch initialises a linear layer.
pub(crate) fn initial_weights() -> Vec<f32> {
    let mut random = Random(0);
    let inputs = |place| if place < HIDDEN_LAYER { PIXELS } else { HIDDEN };
    (0..WEIGHTS).map(|place| random.within_one() / (inputs(place) as f32).sqrt()).collect()
}

pub(crate) struct Image {
    pixels: [f32; PIXELS],
    pub(crate) digit: usize,
}

/// The held-out fifth and the rest, the same in every process.
pub(crate) fn split() -> (Vec<Image>, Vec<Image>) {
    let mut images: Vec<_> = include_str!("../data/digits.csv").lines().map(image).collect();
    Random(1).shuffle(&mut images);
    let training = images.split_off(images.len().div_ceil(5));
    (images, training)
}

fn image(line: &str) -> Image {
    let numbers: Vec<u8> =
        line.split(',').map(|number| number.parse().expect("the data are numbers")).collect();
    Image { pixels: array::from_fn(|at| f32::from(numbers[at]) / 16.0), digit: numbers[PIXELS].into() }
}

/// splitmix64
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From -1 to 1.
    fn within_one(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, (self.next() % (last as u64 + 1)) as usize);
        }
    }
}
