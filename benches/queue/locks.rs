//! Taking a lock and giving it back: alone, and against other processes.

use std::sync::Mutex;

use phalanx::sync::Lock;
use phalanx::{Descriptor, Tensor};

use crate::bare::Words;
use crate::common;
use crate::figures::{Extent, time, timed};
use crate::fleet::{Span, at_once, hull, run};
use crate::robust::RobustMutex;
use crate::rows::Column::{Bare, Phalanx};
use crate::rows::Group;
use crate::some;

pub(crate) fn locks(extent: Extent) -> anyhow::Result<()> {
    let all = some(extent, 2_000_000);
    Group::default()
        .line("a lock that nobody else wants, taken and given back", "≤ 60 ns", time)
        .way(Phalanx, "", || alone(all))
        .python("`Lock`", "lock", &[1, some(extent, 500_000)])
        .way(Bare, "robust pthread mutex", || bare_alone(all))
        .way(Bare, "std `Mutex`, for threads", || std_alone(all))
        .print(extent.rounds(5))?;
    for nprocs in [2, 4] {
        let (each, pythons) = (some(extent, 4_000_000) / nprocs, [nprocs, some(extent, 1_000_000) / nprocs]);
        Group::default()
            .line(
                format!("the same while {nprocs} processes want it: time in all, by how often it was taken"),
                "–",
                time,
            )
            .way(Phalanx, "", || together(nprocs, each))
            .python("`Lock`", "lock", &pythons)
            .way(Bare, "robust pthread mutex", || bare_together(nprocs, each))
            .way(Bare, "std `Mutex`, threads", || std_together(nprocs, each))
            .print(extent.rounds(5))?;
    }
    Ok(())
}

/// Seconds of one of so many calls.
fn each_of(count: usize, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let (seconds, done) = timed(|| (0..count).try_for_each(|_| work()));
    done.map(|()| seconds / count as f64)
}

fn alone(count: usize) -> anyhow::Result<f64> {
    let lock = Lock::new(0_u64)?;
    each_of(count, || {
        *lock.lock()? += 1;
        Ok(())
    })
}

fn bare_alone(count: usize) -> anyhow::Result<f64> {
    let mutex = RobustMutex::make(Words::open(&Words::make()?)?)?;
    each_of(count, || mutex.count())
}

fn count_std(mutex: &Mutex<u64>) -> anyhow::Result<()> {
    *mutex.lock().map_err(|_| anyhow::anyhow!("poisoned"))? += 1;
    Ok(())
}

fn std_alone(count: usize) -> anyhow::Result<f64> {
    let mutex = std::hint::black_box(Mutex::new(0));
    each_of(count, || count_std(&mutex))
}

/// What each of several takes part in: the board, how many they are, and how often each takes the lock.
type Contest<L> = (L, Tensor<i64>, (usize, usize));

fn contend(_: usize, (lock, board, (all, each)): Contest<Lock<u64>>) -> anyhow::Result<Span> {
    at_once(&board, all, || {
        (0..each).try_for_each(|_| {
            *lock.lock()? += 1;
            Ok(())
        })
    })
}

fn together(nprocs: usize, each: usize) -> anyhow::Result<f64> {
    let lock = Lock::new(0_u64)?;
    let seconds = run(contend, (lock.clone(), common::board(1), (nprocs, each)), nprocs)?;
    anyhow::ensure!(*lock.lock()? == (nprocs * each) as u64, "two were inside");
    Ok(seconds / (nprocs * each) as f64)
}

fn contend_bare(_: usize, (memory, board, (all, each)): Contest<Descriptor>) -> anyhow::Result<Span> {
    let mutex = RobustMutex::open(Words::open(&memory)?);
    at_once(&board, all, || (0..each).try_for_each(|_| mutex.count()))
}

fn bare_together(nprocs: usize, each: usize) -> anyhow::Result<f64> {
    let memory = Words::make()?;
    let mutex = RobustMutex::make(Words::open(&memory)?)?;
    let seconds = run(contend_bare, (memory, common::board(1), (nprocs, each)), nprocs)?;
    anyhow::ensure!(mutex.counted() as usize == nprocs * each, "two were inside");
    Ok(seconds / (nprocs * each) as f64)
}

fn std_together(threads: usize, each: usize) -> anyhow::Result<f64> {
    let (mutex, board) = (Mutex::new(0), common::board(1));
    let one = || at_once(&board, threads, || (0..each).try_for_each(|_| count_std(&mutex)));
    let spans = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|span| span.unwrap_or_else(|_| anyhow::bail!("it panicked")))
            .collect::<Result<Vec<_>, _>>()
    })?;
    Ok(hull(&spans) / (threads * each) as f64)
}
