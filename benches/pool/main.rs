//! What calls on a pool cost, beside the queue that carries them, procspawn's pool, and Python's `Pool`, `ProcessPoolExecutor` and loky
//! where `python3` and they are there. It prints one table, for docs/performance.md.
//!
//! `cargo bench -p phalanx-benches --bench pool`; with `PHALANX_BENCH_QUICK=1` fewer rounds, and fewer calls in each. The names of
//! single parts may follow after `--`.
//!
//! All that stands in one row runs by turns. Figures are the medians of the turns.

#![expect(clippy::print_stdout, reason = "the table is what it is for")]
#![expect(clippy::disallowed_methods, reason = "a pause is what lets a worker fall asleep")]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use figures::{Extent, median, row, run_parts, table, time, timed};
use phalanx::pool::Pool;
use phalanx::{ForkServer, Options, Queue, StartMethod, start_processes};
use script::run_python;

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../figures/mod.rs"]
mod figures;
#[path = "../figures/script.rs"]
mod script;

/// After this number of seconds it is taken to hang: SIGALRM ends it, and its workers with it.
const WATCHDOG_SECONDS: u32 = 600;
const TURNS: usize = 9;
const WORKERS: usize = 2;
/// Of the fork server, where it has some.
const SPARES: usize = 8;
const OUTSTANDING: usize = 1000;
const PEER: &str = include_str!("peer.py");

fn main() -> anyhow::Result<()> {
    phalanx::init();
    procspawn::init();
    nix::unistd::alarm::set(WATCHDOG_SECONDS);
    run_parts(&[
        ("calls", calls),
        ("map", map),
        ("trip", trip),
        ("death", death),
        ("recycle", recycle),
        ("idle", idle),
    ])
}

fn same(x: u64) -> anyhow::Result<u64> {
    Ok(x)
}

fn some(extent: Extent, all: u64) -> u64 {
    if extent.quick { all / 20 } else { all }
}

/// A rate as text.
fn rate(per_second: f64) -> String {
    match per_second {
        none if none.is_nan() => "-".to_owned(),
        many if many >= 1e6 => format!("{:.2} M/s", many / 1e6),
        some if some >= 1e3 => format!("{:.1} k/s", some / 1e3),
        few => format!("{few:.0} /s"),
    }
}

/// What Python's script prints for a part: one figure a line.
fn python(part: &str, count: u64) -> anyhow::Result<Vec<f64>> {
    let printed = run_python(&["-c", PEER, part, &count.to_string()])?;
    Ok(printed.unwrap_or_default().lines().map(str::parse).collect::<Result<_, _>>()?)
}

/// Messages a second through a queue from this process to a worker.
fn queue_rate(count: u64) -> anyhow::Result<f64> {
    let drain = |_: usize, queue: Queue<u64>| {
        queue.iter().try_for_each(|value| value.map(drop))?;
        anyhow::Ok(())
    };
    let queue = Queue::bounded(16 << 10)?;
    let context = start_processes(drain, queue.clone(), Options::new(1))?;
    let (seconds, done) = timed(|| {
        (0..count).try_for_each(|value| queue.put(value))?;
        queue.close()?;
        context.join()?;
        anyhow::Ok(())
    });
    done?;
    Ok(count as f64 / seconds)
}

/// Calls a second, with [`OUTSTANDING`] of them on their way.
fn calls_rate(pool: &Pool, count: u64) -> anyhow::Result<f64> {
    let mut tasks = VecDeque::with_capacity(OUTSTANDING);
    let (seconds, done) = timed(|| {
        for x in 0..count {
            if tasks.len() == OUTSTANDING {
                tasks.pop_front().map(phalanx::pool::Task::join).transpose()?;
            }
            tasks.push_back(pool.submit(same, x)?);
        }
        for task in tasks {
            task.join()?;
        }
        anyhow::Ok(())
    });
    done?;
    Ok(count as f64 / seconds)
}

fn calls(extent: Extent) -> anyhow::Result<()> {
    let count = some(extent, 300_000);
    let pool = Pool::new(WORKERS)?;
    let procspawn = procspawn::Pool::new(WORKERS)?;
    let (mut ours, mut queue, mut procspawns, mut pythons) = (vec![], vec![], vec![], Pythons::default());
    for _ in 0..extent.rounds(TURNS) {
        ours.push(calls_rate(&pool, count)?);
        queue.push(queue_rate(count)?);
        procspawns.push(procspawn_rate(&procspawn, count / 30)?);
        pythons.add(&python("calls", count / 30)?);
    }
    table(
        &format!("Trivial calls of one caller, {OUTSTANDING} outstanding, {WORKERS} workers"),
        &[&["`Pool::submit`", "a bare queue", "share of it", "procspawn's `Pool`"], &Pythons::NAMES[..]]
            .concat(),
    );
    let share = median(ours.iter().zip(&queue).map(|(ours, queue)| ours / queue));
    let own = [rate(median(ours)), rate(median(queue)), format!("{share:.2}"), rate(median(procspawns))];
    row(&[&own[..], &pythons.medians().map(rate)].concat());
    Ok(())
}

/// Calls a second of procspawn's pool.
fn procspawn_rate(pool: &procspawn::Pool, count: u64) -> anyhow::Result<f64> {
    let mut tasks = VecDeque::with_capacity(OUTSTANDING);
    let (seconds, done) = timed(|| {
        for x in 0..count {
            if tasks.len() == OUTSTANDING {
                tasks.pop_front().map(procspawn::JoinHandle::join).transpose()?;
            }
            tasks.push_back(pool.spawn(x, |x: u64| x));
        }
        for task in tasks {
            task.join()?;
        }
        anyhow::Ok(())
    });
    done?;
    Ok(count as f64 / seconds)
}

/// What Python's executors reach, turn by turn.
#[derive(Default)]
struct Pythons([Vec<f64>; 3]);

impl Pythons {
    const NAMES: [&str; 3] = ["Python `Pool`", "`ProcessPoolExecutor`", "loky"];

    fn add(&mut self, figures: &[f64]) {
        self.0.iter_mut().zip(figures).for_each(|(all, figure)| all.push(*figure));
    }

    fn medians(self) -> [f64; 3] {
        self.0.map(median)
    }
}

fn map(extent: Extent) -> anyhow::Result<()> {
    let count = some(extent, 3_000_000);
    let pool = Pool::new(WORKERS)?;
    let (mut ours, mut unordered, mut queue, mut pools) = (vec![], vec![], vec![], vec![]);
    for _ in 0..extent.rounds(TURNS) {
        let (seconds, found) = timed(|| pool.map(same, 0..count).map(Iterator::count));
        anyhow::ensure!(found? as u64 == count, "items are lost");
        ours.push(count as f64 / seconds);
        let (seconds, found) = timed(|| pool.map(same, 0..count).map(|map| map.unordered().count()));
        anyhow::ensure!(found? as u64 == count, "items are lost");
        unordered.push(count as f64 / seconds);
        queue.push(queue_rate(count)?);
        pools.extend(python("map", count / 10)?);
    }
    table(
        &format!("`map` of `u64`, chunks chosen by the pool, {WORKERS} workers, items a second"),
        &["`Pool::map`", "unordered", "a bare queue", "share of it", "Python `Pool.map`, its chunks"],
    );
    let share = median(ours.iter().zip(&queue).map(|(ours, queue)| ours / queue));
    row(&[
        rate(median(ours)),
        rate(median(unordered)),
        rate(median(queue)),
        format!("{share:.2}"),
        rate(median(pools)),
    ]);
    Ok(())
}

/// The median time of something, in seconds, each time after a pause.
fn times_of(
    count: u64,
    pause: Duration,
    mut call: impl FnMut(u64) -> anyhow::Result<u64>,
) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    for x in 0..count {
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        let (seconds, result) = timed(|| call(x));
        result?;
        times.push(seconds);
    }
    Ok(median(times))
}

/// Seconds of a message there and back through two queues.
fn queue_trip(count: u64, pause: Duration) -> anyhow::Result<f64> {
    let echo = |_: usize, (there, back): (Queue<u64>, Queue<u64>)| {
        for value in there {
            back.put(value?)?;
        }
        anyhow::Ok(())
    };
    let (there, back) = (Queue::bounded(64)?, Queue::bounded(64)?);
    let context = start_processes(echo, (there.clone(), back.clone()), Options::new(1))?;
    let taken = times_of(count, pause, |x| {
        there.put(x)?;
        Ok(back.get()?)
    })?;
    there.close()?;
    context.join()?;
    Ok(taken)
}

fn trip(extent: Extent) -> anyhow::Result<()> {
    let pool = Pool::new(1)?;
    table(
        "One call there and back, one worker",
        &[
            &["", "`Pool::submit` and `join`", "two queues", "ratio", "procspawn's `Pool`"],
            &Pythons::NAMES[..],
        ]
        .concat(),
    );
    let procspawn = procspawn::Pool::new(1)?;
    for (name, pause) in [("at once", Duration::ZERO), ("after 1 ms of sleep", Duration::from_millis(1))] {
        let count = some(extent, if pause.is_zero() { 20_000 } else { 1000 });
        let (mut ours, mut queues, mut procspawns, mut pythons) =
            (vec![], vec![], vec![], Pythons::default());
        for _ in 0..extent.rounds(TURNS) {
            ours.push(times_of(count, pause, |x| Ok(pool.submit(same, x)?.join()?))?);
            queues.push(queue_trip(count, pause)?);
            procspawns.push(times_of(count / 20, pause, |x| Ok(procspawn.spawn(x, |x: u64| x).join()?))?);
            pythons.add(&python(if pause.is_zero() { "trip" } else { "rest" }, count / 20)?);
        }
        let ratio = median(ours.iter().zip(&queues).map(|(ours, queues)| ours / queues));
        let [ours, queues, procspawns] = [ours, queues, procspawns].map(|times| time(median(times)));
        let own = [name.to_owned(), ours, queues, format!("{ratio:.2}"), procspawns];
        row(&[&own[..], &pythons.medians().map(time)].concat());
    }
    Ok(())
}

fn pid_and_wait(told: Queue<u32>) -> anyhow::Result<()> {
    told.put(std::process::id())?;
    loop {
        std::thread::park();
    }
}

/// Seconds from a SIGKILL of a running worker to the error of its call, and to the pid of its successor.
fn death_time(pool: &Pool, told: &Queue<u32>) -> anyhow::Result<(f64, f64)> {
    let task = pool.submit(pid_and_wait, told.clone())?;
    let pid = told.get()?;
    let start = Instant::now();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGKILL)?;
    anyhow::ensure!(task.join().is_err(), "it was killed");
    let failed = start.elapsed().as_secs_f64();
    pool.submit(same, 1)?.join()?;
    Ok((failed, start.elapsed().as_secs_f64()))
}

/// Seconds from a SIGKILL of a plain child to the return of the wait for it.
fn bare_death() -> anyhow::Result<f64> {
    let mut child = std::process::Command::new("sleep").arg("1000").spawn()?;
    let start = Instant::now();
    child.kill()?;
    child.wait()?;
    Ok(start.elapsed().as_secs_f64())
}

fn death(extent: Extent) -> anyhow::Result<()> {
    table(
        "A running worker is killed by SIGKILL, pool of one",
        &[
            "start method",
            "until its call has failed",
            "a bare `wait` for a child",
            "until the next call has returned",
        ],
    );
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        let pool = Pool::options(Options::new(1).start_method(method)).build()?;
        let told = Queue::bounded(8)?;
        let (mut failed, mut bare, mut whole) = (vec![], vec![], vec![]);
        for _ in 0..extent.rounds(200) {
            let (first, second) = death_time(&pool, &told)?;
            failed.push(first);
            whole.push(second);
            bare.push(bare_death()?);
        }
        let method = format!("{method:?}");
        row(&[method, time(median(failed)), time(median(bare)), time(median(whole))]);
    }
    Ok(())
}

fn recycle(extent: Extent) -> anyhow::Result<()> {
    table(
        "A process for each call (`recycle_after(1)`), 2 workers, calls a second",
        &["start method", "calls"],
    );
    for (method, spares) in
        [(StartMethod::Spawn, 0), (StartMethod::ForkServer, 0), (StartMethod::ForkServer, SPARES)]
    {
        if spares > 0 {
            ForkServer::spares(spares)?;
        }
        let mut rates = vec![];
        for _ in 0..extent.rounds(TURNS) {
            let pool = Pool::options(Options::new(WORKERS).start_method(method)).recycle_after(1).build()?;
            let count = some(extent, 1000).max(20);
            let (seconds, done) = timed(|| {
                let tasks = (0..count).map(|x| pool.submit(same, x)).collect::<Result<Vec<_>, _>>()?;
                tasks.into_iter().try_for_each(|task| task.join().map(drop).map_err(anyhow::Error::from))
            });
            done?;
            rates.push(count as f64 / seconds);
        }
        let spares = if spares > 0 { format!(", {spares} spares") } else { String::new() };
        row(&[format!("{method:?}{spares}"), rate(median(rates))]);
    }
    ForkServer::spares(0)?;
    Ok(())
}

/// Descriptors, and the proportional set sizes of the workers in KiB.
fn idle(_: Extent) -> anyhow::Result<()> {
    let descriptors = || std::fs::read_dir("/proc/self/fd").map(Iterator::count);
    let before = descriptors()?;
    let pool = Pool::new(8)?;
    pool.map(same, 0..1000)?.try_for_each(|result| result.map(drop))?;
    let own = descriptors()? - before;
    let pids = pool.map(|_: u64| anyhow::Ok(std::process::id()), 0..1000)?.chunk(1);
    let pids: std::collections::BTreeSet<_> = pids.collect::<Result<_, _>>()?;
    let pss = |pid: &u32| {
        let all = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = all.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default().to_owned();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(f64::NAN)
    };
    table("An idle pool of 8", &["descriptors of its process", "memory of a worker (PSS)"]);
    row(&[own.to_string(), format!("{:.0} KiB", median(pids.iter().map(pss)))]);
    Ok(())
}
