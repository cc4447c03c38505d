//! What collectives cost, beside a sum by threads and beside torch's gloo, where torch is installed. It prints tables for
//! docs/performance.md.
//!
//! `cargo bench -p phalanx-benches --bench collective`; with `PHALANX_BENCH_QUICK=1` fewer rounds.
//!
//! Threads and ranks run by turns. Figures are medians of turns, each of which is the median of some rounds; ratios are the medians
//! of those of the turns.

#![expect(clippy::print_stdout, reason = "the tables are what it is for")]

use std::hint::black_box;
use std::process::Command;

use phalanx::Tensor;
use phalanx::collective::{Collective, Reduce};

use figures::{Extent, median, row, run_parts, table, time, timed};

#[path = "../figures/mod.rs"]
mod figures;

/// Elements of a tensor: 25 MB of f32.
const LEN: usize = 25_000_000 / 4;
const BYTES: f64 = 4.0 * LEN as f64;
/// Elements that a thread sums at a time, which stay in its first cache.
const BLOCK: usize = 2048;

fn main() -> anyhow::Result<()> {
    phalanx::init();
    run_parts(&[("sums", sums), ("small", small)])
}

/// What the ranks are given: a row for each, whether they pass these rows, and the number of rounds.
type Given = (Collective, Tensor<f32>, bool, usize);

/// One turn of ranks: seconds of an all_reduce.
fn reduce(rank: usize, (crew, all, in_place, rounds): Given) -> anyhow::Result<f64> {
    let own = if in_place { all.select(0, rank)? } else { Tensor::zeros(&all.shape()[1..])? };
    let mut crew = crew.join(rank)?;
    own.fill(1.0)?;
    let mut times = Vec::new();
    // The first two only warm up.
    for round in 0..rounds + 2 {
        crew.barrier()?;
        let (seconds, done) = timed(|| crew.all_reduce(&own, Reduce::Mean));
        done?;
        times.extend((round >= 2).then_some(seconds));
    }
    Ok(median(times))
}

/// Seconds of a sum of as many `Vec`s as there are threads into another one, each thread a part.
fn by_threads(vecs: &[Vec<f32>], sum: &mut [f32]) -> f64 {
    let part = sum.len().div_ceil(vecs.len());
    timed(|| {
        std::thread::scope(|scope| {
            for (thread, sum) in sum.chunks_mut(part).enumerate() {
                scope.spawn(move || sum_part(vecs, thread * part, sum));
            }
        });
    })
    .0
}

fn sum_part(vecs: &[Vec<f32>], begin: usize, sum: &mut [f32]) {
    for (at, sum) in (begin..).step_by(BLOCK).zip(sum.chunks_mut(BLOCK)) {
        let len = sum.len();
        let of = |vec: usize| &vecs[vec][at..at + len];
        sum.iter_mut().zip(of(0).iter().zip(of(1))).for_each(|(sum, (one, other))| *sum = one + other);
        for vec in 2..vecs.len() {
            sum.iter_mut().zip(of(vec)).for_each(|(sum, next)| *sum += next);
        }
    }
    black_box(sum);
}

fn sums(extent: Extent) -> anyhow::Result<()> {
    let columns = [
        "ranks or threads",
        "tensors",
        "all_reduce",
        "of tensors' memory",
        "sum by threads",
        "of memory",
        "all_reduce / threads, bytes a second",
        "gloo",
        "gloo / all_reduce",
    ];
    table("all_reduce of 25 MB of f32 a rank", &columns);
    for ranks in [2, 4] {
        let gloo = gloo(ranks)?;
        sum_row(extent, ranks, true, gloo)?;
        sum_row(extent, ranks, false, gloo)?;
    }
    Ok(())
}

fn sum_row(extent: Extent, ranks: usize, in_place: bool, gloo: Option<f64>) -> anyhow::Result<()> {
    let vecs = vec![vec![1.0_f32; LEN]; ranks];
    let mut sum = vec![0.0_f32; LEN];
    let rounds = extent.rounds(40);
    let mut turns = Vec::new();
    for _ in 0..extent.rounds(20) {
        let threads = median((0..rounds).map(|_| by_threads(&vecs, &mut sum)));
        let all = Tensor::zeros(&[ranks, LEN])?;
        all.storage().prefault()?;
        let ours = phalanx::spawn(reduce, (Collective::new(ranks)?, all, in_place, rounds), ranks)?;
        turns.push((ours[0], threads));
    }
    let [ours, threads] = [0, 1].map(|which| median(turns.iter().map(|turn| [turn.0, turn.1][which])));
    // A sum reads all and writes one; an all_reduce reads all and writes all.
    let (moved, summed) = (2.0 * ranks as f64 * BYTES, (ranks + 1) as f64 * BYTES);
    let rate = |bytes: f64, seconds: f64| format!("{:.1} GB/s", bytes / seconds / 1e9);
    let ratio = median(turns.iter().map(|(ours, threads)| moved / ours / (summed / threads)));
    let (gloo_time, gloo_ratio) = gloo.map_or_else(
        || ("not measured".to_owned(), "–".to_owned()),
        |gloo| (time(gloo), format!("{:.1}", gloo / ours)),
    );
    row(&[
        ranks.to_string(),
        if in_place { "of one storage" } else { "each its own" }.to_owned(),
        time(ours),
        rate(moved, ours),
        time(threads),
        rate(summed, threads),
        format!("{ratio:.2}"),
        gloo_time,
        gloo_ratio,
    ]);
    Ok(())
}

/// The shortest calls: what a wait for the others costs.
fn small(extent: Extent) -> anyhow::Result<()> {
    table("The shortest calls", &["ranks", "barrier", "all_reduce of one f32"]);
    for ranks in [2, 4] {
        let work = |rank: usize, (crew, rounds): (Collective, usize)| -> anyhow::Result<[f64; 2]> {
            let (mut crew, one) = (crew.join(rank)?, Tensor::full(&[1], 1.0_f32)?);
            crew.barrier()?;
            let (barriers, done) = timed(|| (0..rounds).try_for_each(|_| crew.barrier()));
            done?;
            let (sums, done) = timed(|| (0..rounds).try_for_each(|_| crew.all_reduce(&one, Reduce::Mean)));
            done?;
            Ok([barriers, sums].map(|seconds| seconds / rounds as f64))
        };
        let rounds = extent.rounds(20_000);
        let [barrier, sum] = phalanx::spawn(work, (Collective::new(ranks)?, rounds), ranks)?[0];
        row(&[ranks.to_string(), time(barrier), time(sum)]);
    }
    Ok(())
}

/// As `reduce` has it, by torch and gloo.
const GLOO: &str = r#"
import statistics, sys, time
import torch, torch.distributed as dist, torch.multiprocessing as mp

def work(rank, ranks, length, port):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    tensor, times = torch.ones(length), []
    for turn in range(12):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(tensor)
        times.append(time.perf_counter() - start)
    if rank == 0:
        print(statistics.median(times[2:]), flush=True)
    dist.destroy_process_group()

if __name__ == "__main__":
    ranks, length, port = map(int, sys.argv[1:])
    mp.start_processes(work, (ranks, length, port), ranks, start_method="fork")
"#;

/// Seconds of gloo; `None`: torch is not here.
fn gloo(ranks: usize) -> anyhow::Result<Option<f64>> {
    let python = |arguments: &[&str]| Command::new("python3").args(arguments).output();
    if !python(&["-c", "import torch.distributed"]).is_ok_and(|output| output.status.success()) {
        return Ok(None);
    }
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let output = python(&["-c", GLOO, &ranks.to_string(), &LEN.to_string(), &port.to_string()])?;
    anyhow::ensure!(output.status.success(), "gloo: {}", String::from_utf8_lossy(&output.stderr));
    Ok(Some(String::from_utf8(output.stdout)?.trim().parse()?))
}
