//! Bulk copies between a `Vec` and a tensor, beside memcpy.

use std::cell::RefCell;
use std::hint::black_box;
use std::ops::Range;

use phalanx::Tensor;

use crate::figures::{Extent, median, row, table, time, timed};
use crate::turns::{Turns, size};
use crate::{GIB, KIB, MIB, sizes};

const PAGE: usize = 4 * KIB;

/// Three places of the same size, all of them touched.
struct Places {
    source: Paged,
    target: Paged,
    tensor: Tensor<u8>,
}

/// Bytes in a `Vec` that begin at a page, as the tensors do: memcpy is many times slower where the target begins a few
/// bytes after the source in its page, as two `Vec`s side by side in the heap may.
struct Paged {
    vec: Vec<u8>,
    part: Range<usize>,
}

impl Paged {
    fn new(bytes: usize) -> Self {
        let vec = vec![1; bytes + PAGE];
        let begin = vec.as_ptr().align_offset(PAGE);
        Self { vec, part: begin..begin + bytes }
    }

    fn bytes(&self) -> &[u8] {
        &self.vec[self.part.clone()]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.vec[self.part.clone()]
    }
}

impl Places {
    fn new(bytes: usize) -> anyhow::Result<Self> {
        let (source, target) = (Paged::new(bytes), Paged::new(bytes));
        let tensor = Tensor::from_slice(source.bytes(), &[bytes])?;
        Ok(Self { source, target, tensor })
    }

    fn memcpy(&mut self, times: usize) -> f64 {
        self.repeat(times, |places| places.target.bytes_mut().copy_from_slice(places.source.bytes()))
    }

    fn write(&mut self, times: usize) -> anyhow::Result<f64> {
        let mut done = Ok(());
        let seconds = self.repeat(times, |places| done = places.tensor.write_from(places.source.bytes()));
        Ok(done.map(|()| seconds)?)
    }

    fn read(&mut self, times: usize) -> anyhow::Result<f64> {
        let mut done = Ok(());
        let seconds = self.repeat(times, |places| done = places.tensor.read_into(places.target.bytes_mut()));
        Ok(done.map(|()| seconds)?)
    }

    /// Seconds of one of so many calls.
    fn repeat(&mut self, times: usize, mut work: impl FnMut(&mut Self)) -> f64 {
        timed(|| (0..times).for_each(|_| work(black_box(self)))).0 / times as f64
    }
}

pub(crate) fn copies(extent: Extent) -> anyhow::Result<()> {
    let columns =
        ["bytes", "memcpy", "`write_from`", "`read_into`", "`write_from` / memcpy", "`read_into` / memcpy"];
    table(
        "Copying between a `Vec` and a tensor, beside memcpy between two `Vec`s, all touched before",
        &columns,
    );
    for bytes in sizes(extent, &[64, KIB, 64 * KIB, MIB, 64 * MIB, GIB]) {
        let places = RefCell::new(Places::new(bytes)?);
        // So many that a turn takes longer than the clock is coarse.
        let times = (4 * MIB / bytes).clamp(1, 10_000);
        let rounds = extent.rounds(if bytes == GIB { 15 } else { 100 });
        let memcpy = || Ok(places.borrow_mut().memcpy(times));
        let written = Turns::run(rounds, memcpy, || places.borrow_mut().write(times))?;
        let read = Turns::run(rounds, memcpy, || places.borrow_mut().read(times))?;
        let base = median([written.base(), read.base()]);
        let [base, write, read_time] = [base, written.other(), read.other()].map(time);
        let ratios = [written.ratio(), read.ratio()].map(|ratio| format!("{ratio:.2}"));
        let [write_ratio, read_ratio] = ratios;
        row(&[size(bytes), base, write, read_time, write_ratio, read_ratio]);
    }
    Ok(())
}
