//! What shared memory costs: handing tensors to workers and back, thousands of them at once, page tables, bulk copies
//! beside memcpy, and access to single elements beside a `Vec`. It prints tables for docs/performance.md.
//!
//! `cargo bench --bench share`; with `PHALANX_BENCH_QUICK=1` fewer rounds, and nothing larger than 64 MiB. The names of
//! single parts (`PARTS`) may follow after `--`.
//!
//! Two things to be compared run by turns, so that a slow moment of the machine meets both. Figures are medians; a
//! difference or a ratio is the median of those of the turns.

#![expect(clippy::print_stdout, reason = "the tables are what it is for")]

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::ops::{AddAssign, Range};
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use phalanx::{
    MemoryError, Number, Options, SharingStrategy, Tensor, set_sharing_strategy, spawn, start_processes,
};
use serde::{Deserialize, Serialize};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;
const PAGE: usize = 4 * KIB;

/// Elements on a side of the square that single accesses go over.
const SIDE: usize = 256;

fn main() -> anyhow::Result<()> {
    phalanx::init();
    // Without --bench it is `cargo test` that runs this, to see that it works.
    let asked_quick = std::env::var_os("PHALANX_BENCH_QUICK").is_some_and(|value| value != "0");
    let quick = asked_quick || !std::env::args().any(|argument| argument == "--bench");
    let extent = Extent { quick };
    environment(extent)?;
    let chosen: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, run) in PARTS {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == name) {
            run(extent)?;
        }
    }
    Ok(())
}

type Part = fn(Extent) -> anyhow::Result<()>;
const PARTS: [(&str, Part); 7] = [
    ("arguments", arguments),
    ("results", results),
    ("prefault", prefaulting),
    ("copies", copies),
    ("many", many_tensors),
    ("elements", elements),
    ("torch", torch),
];

/// How much is measured.
#[derive(Clone, Copy)]
struct Extent {
    quick: bool,
}

impl Extent {
    fn rounds(self, all: usize) -> usize {
        if self.quick { (all / 20).max(3) } else { all }
    }

    fn sizes(self, all: &[usize]) -> impl Iterator<Item = usize> {
        all.iter().copied().filter(move |&bytes| !self.quick || bytes <= 64 * MIB)
    }
}

fn environment(extent: Extent) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let quick = if extent.quick { "; quick: few rounds, figures mean little" } else { "" };
    println!("{cores} cores, {}, Linux {}{quick}", std::env::consts::ARCH, kernel.trim());
    Ok(())
}

/// Seconds of one call, and what it returned.
fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64(), result)
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Two things that ran by turns: the seconds of each turn.
#[derive(Default)]
struct Turns(Vec<(f64, f64)>);

impl Turns {
    /// `base` and `other` return their seconds.
    fn run(
        rounds: usize,
        mut base: impl FnMut() -> anyhow::Result<f64>,
        mut other: impl FnMut() -> anyhow::Result<f64>,
    ) -> anyhow::Result<Self> {
        let mut turns = Self::default();
        // The first turn only warms up.
        for turn in 0..=rounds {
            let pair = (base()?, other()?);
            turns.0.extend((turn > 0).then_some(pair));
        }
        Ok(turns)
    }

    fn base(&self) -> f64 {
        median(self.0.iter().map(|turn| turn.0))
    }

    fn other(&self) -> f64 {
        median(self.0.iter().map(|turn| turn.1))
    }

    fn difference(&self) -> f64 {
        median(self.0.iter().map(|turn| turn.1 - turn.0))
    }

    fn ratio(&self) -> f64 {
        median(self.0.iter().map(|turn| turn.1 / turn.0))
    }
}

fn time(seconds: f64) -> String {
    match seconds.abs() {
        size if size < 1e-6 => format!("{:.2} ns", seconds * 1e9),
        size if size < 1e-3 => format!("{:.1} µs", seconds * 1e6),
        size if size < 1.0 => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        GIB.. => format!("{} GiB", bytes / GIB),
        MIB.. => format!("{} MiB", bytes / MIB),
        KIB.. => format!("{} KiB", bytes / KIB),
        _ => format!("{bytes} B"),
    }
}

fn table(title: &str, columns: &[&str]) {
    println!("\n## {title}\n\n| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len()));
}

fn row<const N: usize>(cells: [String; N]) {
    println!("| {} |", cells.join(" | "));
}

/// Runs `work` under each strategy.
fn under_both(mut work: impl FnMut(SharingStrategy) -> anyhow::Result<()>) -> anyhow::Result<()> {
    for &strategy in phalanx::get_all_sharing_strategies() {
        set_sharing_strategy(strategy);
        work(strategy)?;
    }
    set_sharing_strategy(SharingStrategy::FileDescriptor);
    Ok(())
}

fn nothing(_: usize, (): ()) -> anyhow::Result<()> {
    Ok(())
}

fn first_element(_: usize, tensor: Tensor<u8>) -> anyhow::Result<u8> {
    Ok(tensor.get(0)?)
}

/// Seconds of a whole `spawn` of one worker that has no arguments.
fn bare_spawn() -> anyhow::Result<f64> {
    let (seconds, done) = timed(|| spawn(nothing, (), 1));
    done?;
    Ok(seconds)
}

fn arguments(extent: Extent) -> anyhow::Result<()> {
    let columns = ["strategy", "tensor", "`spawn` with `()`", "`spawn` with the tensor", "difference"];
    table("A tensor in the arguments of one worker, which reads its first element", &columns);
    under_both(|strategy| {
        for bytes in extent.sizes(&[KIB, MIB, 64 * MIB, GIB]) {
            let tensor = Tensor::<u8>::zeros(&[bytes])?;
            let with = || {
                let (seconds, done) = timed(|| spawn(first_element, tensor.clone(), 1));
                done?;
                Ok(seconds)
            };
            let turns = Turns::run(extent.rounds(300), bare_spawn, with)?;
            let times = [turns.base(), turns.other(), turns.difference()].map(time);
            let [bare, whole, difference] = times;
            row([strategy.to_string(), size(bytes), bare, whole, difference]);
        }
        Ok(())
    })
}

/// Seconds in which the launcher reads what a worker of `work` has returned.
fn reading_result<A, R>(
    work: impl Fn(usize, A) -> anyhow::Result<R> + Copy + Send + 'static,
    arguments: A,
) -> anyhow::Result<f64>
where
    A: Serialize + serde::de::DeserializeOwned,
    R: Serialize + serde::de::DeserializeOwned,
{
    let mut context = start_processes(work, arguments, Options::new(1))?;
    while !context.join_timeout(Duration::from_secs(10))? {}
    let (seconds, result) = timed(|| context.result(0));
    result?.ok_or_else(|| anyhow::anyhow!("a worker that succeeded has a result"))?;
    Ok(seconds)
}

fn results(extent: Extent) -> anyhow::Result<()> {
    let columns = ["strategy", "tensor", "`result` of a number", "`result` of the tensor", "difference"];
    table("A tensor in the result of one worker: how long the launcher takes to open it", &columns);
    let make = |_, bytes: usize| anyhow::Ok(Tensor::<u8>::zeros(&[bytes])?);
    under_both(|strategy| {
        for bytes in extent.sizes(&[KIB, MIB, 64 * MIB, GIB]) {
            let rounds = extent.rounds(if bytes == GIB { 15 } else { 100 });
            let number = || reading_result(|_, bytes: usize| Ok(bytes), bytes);
            let turns = Turns::run(rounds, number, || reading_result(make, bytes))?;
            let [bare, whole, difference] = [turns.base(), turns.other(), turns.difference()].map(time);
            row([strategy.to_string(), size(bytes), bare, whole, difference]);
        }
        Ok(())
    })
}

/// Seconds that filling in the page tables takes.
fn prefault(_: usize, tensor: Tensor<u8>) -> anyhow::Result<f64> {
    let (seconds, done) = timed(|| tensor.storage().prefault());
    done?;
    black_box(tensor.get(0)?);
    Ok(seconds)
}

fn prefaulting(extent: Extent) -> anyhow::Result<()> {
    let columns = ["strategy", "tensor", "`spawn` with the tensor", "the same with `prefault`", "`prefault`"];
    table("A worker that fills in its page tables at once", &columns);
    under_both(|strategy| {
        for bytes in extent.sizes(&[64 * MIB, GIB]) {
            let tensor = Tensor::<u8>::zeros(&[bytes])?;
            let without = || Ok(timed(|| spawn(first_element, tensor.clone(), 1)).0);
            let mut inside = Vec::new();
            let with = || {
                let (seconds, done) = timed(|| spawn(prefault, tensor.clone(), 1));
                inside.extend(done?);
                Ok(seconds)
            };
            let turns = Turns::run(extent.rounds(20), without, with)?;
            let [without, with, inside] = [turns.base(), turns.other(), median(inside)].map(time);
            row([strategy.to_string(), size(bytes), without, with, inside]);
        }
        Ok(())
    })
}

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

fn copies(extent: Extent) -> anyhow::Result<()> {
    let columns =
        ["bytes", "memcpy", "`write_from`", "`read_into`", "`write_from` / memcpy", "`read_into` / memcpy"];
    table(
        "Copying between a `Vec` and a tensor, beside memcpy between two `Vec`s, all touched before",
        &columns,
    );
    for bytes in extent.sizes(&[64, KIB, 64 * KIB, MIB, 64 * MIB, GIB]) {
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
        row([size(bytes), base, write, read_time, write_ratio, read_ratio]);
    }
    Ok(())
}

/// What 10,000 tensors cost.
#[derive(Serialize, Deserialize)]
struct Many {
    made: f64,
    bare: f64,
    with: f64,
    /// In each worker: segments, mappings and descriptors.
    seen: Vec<(usize, usize, usize)>,
}

fn look(_: usize, tensors: Vec<Tensor<u8>>) -> anyhow::Result<(usize, usize, usize)> {
    let stats = phalanx::shm::stats();
    anyhow::ensure!(tensors.last().is_some_and(|last| last.get(0).is_ok()), "they did not arrive");
    Ok((stats.segments, stats.mappings, stats.descriptors))
}

/// Hands 10,000 tensors of 1 KiB to two workers.
fn many(_: usize, (strategy, rounds): (SharingStrategy, usize)) -> anyhow::Result<Many> {
    set_sharing_strategy(strategy);
    let make = || (0..10_000).map(|_| Tensor::<u8>::zeros(&[KIB])).collect::<Result<Vec<_>, _>>();
    let made = (0..rounds).map(|_| timed(make)).map(|(seconds, made)| made.map(|_| seconds));
    let made = median(made.collect::<Result<Vec<_>, _>>()?);
    let tensors = make()?;
    let mut seen = Vec::new();
    let bare = || {
        let (seconds, done) = timed(|| spawn(nothing, (), 2));
        done?;
        Ok(seconds)
    };
    let with = || {
        let arguments = tensors.clone();
        let (seconds, done) = timed(|| spawn(look, arguments, 2));
        seen = done?;
        Ok(seconds)
    };
    let turns = Turns::run(rounds, bare, with)?;
    Ok(Many { made, bare: turns.base(), with: turns.other(), seen })
}

/// As [`many`], in a process that may have 64 descriptors.
fn many_with_few_descriptors(rank: usize, plan: (SharingStrategy, usize)) -> anyhow::Result<Many> {
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64)?;
    many(rank, plan)
}

fn many_tensors(extent: Extent) -> anyhow::Result<()> {
    let columns = [
        "strategy",
        "`ulimit -n`",
        "making them",
        "`spawn` of 2 with `()`",
        "`spawn` of 2 with them",
        "in each worker",
    ];
    table("10,000 tensors of 1 KiB in the arguments of 2 workers", &columns);
    under_both(|strategy| {
        let plan = (strategy, extent.rounds(40));
        // Both in a worker, which is a launcher itself, so that they differ in nothing else.
        let unlimited = spawn(many, plan, 1)?.remove(0);
        let limited = spawn(many_with_few_descriptors, plan, 1)?.remove(0);
        for (limit, Many { made, bare, with, seen }) in [("as it was", unlimited), ("64", limited)] {
            let [made, bare, with] = [made, bare, with].map(time);
            let told = |(segments, mappings, descriptors)| {
                format!("{segments} segments, {mappings} mappings, {descriptors} descriptors")
            };
            let mut told: Vec<_> = seen.into_iter().map(told).collect();
            told.dedup();
            row([strategy.to_string(), limit.to_owned(), made, bare, with, told.join(" / ")]);
        }
        Ok(())
    })
}

/// Runs an access to each element of a `Vec` and the like of a tensor by turns; tells the time for one element.
fn per_element(
    extent: Extent,
    name: String,
    vec: impl Fn(usize),
    tensor: impl Fn(usize) -> Result<(), MemoryError>,
) -> anyhow::Result<()> {
    let all = SIDE * SIDE;
    let turns = Turns::run(
        extent.rounds(300),
        || Ok(timed(|| (0..all).for_each(&vec)).0 / all as f64),
        || {
            let (seconds, done) = timed(|| (0..all).try_for_each(&tensor));
            Ok(done.map(|()| seconds / all as f64)?)
        },
    )?;
    let [vec, tensor] = [turns.base(), turns.other()].map(time);
    row([name, vec, tensor, format!("{:.1}", turns.ratio())]);
    Ok(())
}

/// Where the element at `place` of the transposed square lies in the square.
fn transposed(place: usize) -> usize {
    place % SIDE * SIDE + place / SIDE
}

fn square<T: Number>() -> anyhow::Result<(Vec<Cell<T>>, Tensor<T>)> {
    Ok((vec![Cell::default(); SIDE * SIDE], Tensor::zeros(&[SIDE, SIDE])?))
}

fn contiguous<T: Number + AddAssign>(extent: Extent, one: T) -> anyhow::Result<()> {
    let (vec, tensor) = square::<T>()?;
    let name = |what: &str| format!("`{what}`, {}", T::DTYPE);
    let plain = |place: usize| drop_value(vec[place].get());
    per_element(extent, name("get"), plain, |place| tensor.get(place).map(drop_value))?;
    let by_index = |place| tensor.get(tensor.position(&[place / SIDE, place % SIDE])?).map(drop_value);
    per_element(extent, name("get(position(&[i, j]))"), plain, by_index)?;
    let plain = |place: usize| vec[place].set(black_box(one));
    per_element(extent, name("set"), plain, |place| tensor.set(place, black_box(one)))?;
    let plain = |place: usize| {
        let mut sum = vec[place].get();
        sum += black_box(one);
        vec[place].set(sum);
    };
    per_element(extent, name("fetch_add"), plain, |place| {
        tensor.fetch_add(place, black_box(one)).map(drop_value)
    })
}

fn of_a_transposed_view<T: Number>(extent: Extent, one: T) -> anyhow::Result<()> {
    let (vec, tensor) = square::<T>()?;
    let view = tensor.transpose(0, 1)?;
    let name = |what: &str| format!("`{what}`, {}, transposed", T::DTYPE);
    let plain = |place| drop_value(vec[transposed(place)].get());
    per_element(extent, name("get"), plain, |place| view.get(place).map(drop_value))?;
    let plain = |place| vec[transposed(place)].set(black_box(one));
    per_element(extent, name("set"), plain, |place| view.set(place, black_box(one)))?;
    let target = RefCell::new(vec![T::default(); SIDE * SIDE]);
    let plain = |place| target.borrow_mut()[place] = black_box(vec[transposed(place)].get());
    // All at once, at the first place.
    let bulk = |place| if place == 0 { view.read_into(&mut target.borrow_mut()) } else { Ok(()) };
    per_element(extent, name("read_into"), plain, bulk)
}

/// What an addition to a float costs that loses none, wherever it is.
fn atomic_additions(extent: Extent) -> anyhow::Result<()> {
    let (narrow, tensor) = (atomics::<AtomicU32>(), Tensor::<f32>::zeros(&[SIDE, SIDE])?);
    let add = |bits| Some((f32::from_bits(bits) + black_box(1.0)).to_bits());
    let plain = |place: usize| drop_value(narrow[place].fetch_update(Relaxed, Relaxed, add));
    let name = |dtype| format!("`fetch_add`, {dtype}, beside atomics in the `Vec`");
    per_element(extent, name("f32"), plain, |place| tensor.fetch_add(place, black_box(1.0)).map(drop_value))?;
    let (wide, tensor) = (atomics::<AtomicU64>(), Tensor::<f64>::zeros(&[SIDE, SIDE])?);
    let add = |bits| Some((f64::from_bits(bits) + black_box(1.0)).to_bits());
    let plain = |place: usize| drop_value(wide[place].fetch_update(Relaxed, Relaxed, add));
    per_element(extent, name("f64"), plain, |place| tensor.fetch_add(place, black_box(1.0)).map(drop_value))
}

fn atomics<T: Default>() -> Vec<T> {
    std::iter::repeat_with(T::default).take(SIDE * SIDE).collect()
}

/// So that the compiler has to get it.
fn drop_value<T>(value: T) {
    black_box(value);
}

fn elements(extent: Extent) -> anyhow::Result<()> {
    let columns = ["access", "plain `Vec`", "tensor", "tensor / `Vec`"];
    table(&format!("One element of {SIDE} × {SIDE}, each in turn"), &columns);
    contiguous::<f32>(extent, 1.0)?;
    contiguous::<f64>(extent, 1.0)?;
    atomic_additions(extent)?;
    of_a_transposed_view::<f32>(extent, 1.0)?;
    of_a_transposed_view::<f64>(extent, 1.0)
}

/// From `put` to the answer that the other process has read the first element: torch has no figure without a queue.
const TORCH: &str = r#"
import statistics, time
import torch, torch.multiprocessing as mp

def answer(there, back, rounds):
    for _ in range(rounds):
        tensor = there.get()
        back.put(int(tensor[0]))
        del tensor

context = mp.get_context("fork")
for strategy in ("file_descriptor", "file_system"):
    mp.set_sharing_strategy(strategy)
    for mib, rounds in ((1, 200), (64, 20)):
        there, back, times = context.SimpleQueue(), context.SimpleQueue(), []
        process = context.Process(target=answer, args=(there, back, rounds))
        process.start()
        for turn in range(rounds):
            tensor = torch.full((mib << 18,), float(turn)).share_memory_()
            start = time.perf_counter()
            there.put(tensor)
            back.get()
            times.append(time.perf_counter() - start)
        process.join()
        print(f"| {strategy} | {mib} MiB | {statistics.median(times) * 1e6:.0f} µs |", flush=True)
"#;

fn torch(_: Extent) -> anyhow::Result<()> {
    let python = |script: &str| Command::new("python3").args(["-c", script]).output();
    if !python("import torch").is_ok_and(|output| output.status.success()) {
        println!("\ntorch is not here");
        return Ok(());
    }
    table(
        "torch: a tensor through `SimpleQueue`, its first element read, and an answer",
        &["strategy", "tensor", "time"],
    );
    let output = python(TORCH)?;
    anyhow::ensure!(output.status.success(), "torch: {}", String::from_utf8_lossy(&output.stderr));
    print!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}
