//! Starting and joining workers that do nothing, beside posix_spawn and wait of the same executable and beside the
//! crate procspawn; the same with 2 GiB of touched memory; and the time from a worker's death to the error.
//!
//! `cargo bench -p phalanx-benches --bench spawn`

use std::ffi::CString;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn};
use nix::sys::signal::{SIGKILL, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use phalanx::{Options, Tensor, spawn, start_processes};

#[path = "../tests/common/mod.rs"]
mod common;

/// Makes a bare child: `leave` ends at once, `stay` waits for ever.
const RAW: &str = "PHALANX_BENCH_RAW";

fn main() {
    phalanx::init();
    match std::env::var(RAW).as_deref() {
        Ok("leave") => return,
        Ok(_) => common::wait_for_ever(),
        Err(_) => {}
    }
    procspawn::init();
    benches();
    Criterion::default().configure_from_args().final_summary();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).configure_from_args();
    targets = start_and_join, with_memory, death_to_error
}

/// Runs this executable again, as a bare child.
fn raw_child(what: &str) -> Pid {
    let actions = PosixSpawnFileActions::init().expect("posix_spawn_file_actions_init");
    let attributes = PosixSpawnAttr::init().expect("posix_spawnattr_init");
    let own = |(key, value)| CString::new(format!("{key}={value}")).expect("no NUL in the environment");
    let mut environment: Vec<CString> = std::env::vars().map(own).collect();
    environment.push(own((RAW.to_owned(), what.to_owned())));
    posix_spawn(c"/proc/self/exe", &actions, &attributes, &[c"raw"], &environment).expect("posix_spawn")
}

fn raw(nprocs: usize) {
    let children: Vec<_> = (0..nprocs).map(|_| raw_child("leave")).collect();
    for child in children {
        waitpid(child, None).expect("waitpid");
    }
}

fn with_phalanx(nprocs: usize) {
    spawn(|_, ()| anyhow::Ok(()), (), nprocs).expect("all succeed");
}

fn with_procspawn(nprocs: usize) {
    let handles: Vec<_> = (0..nprocs).map(|_| procspawn::spawn((), |()| ())).collect();
    for handle in handles {
        handle.join().expect("all succeed");
    }
}

fn start_and_join(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("start_and_join");
    for nprocs in [4, 64] {
        group.bench_function(BenchmarkId::new("posix_spawn", nprocs), |b| b.iter(|| raw(nprocs)));
        group.bench_function(BenchmarkId::new("phalanx", nprocs), |b| b.iter(|| with_phalanx(nprocs)));
        group.bench_function(BenchmarkId::new("procspawn", nprocs), |b| b.iter(|| with_procspawn(nprocs)));
    }
    group.finish();
}

fn with_memory(criterion: &mut Criterion) {
    let ballast = std::hint::black_box(vec![1_u8; 2 << 30]);
    let mut group = criterion.benchmark_group("start_and_join_with_2_GiB");
    for nprocs in [4, 64] {
        group.bench_function(BenchmarkId::new("posix_spawn", nprocs), |b| b.iter(|| raw(nprocs)));
        group.bench_function(BenchmarkId::new("phalanx", nprocs), |b| b.iter(|| with_phalanx(nprocs)));
    }
    group.finish();
    drop(ballast);
}

fn death_to_error(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("death_to_error");
    group.bench_function("bare_pidfd_wait", |b| {
        b.iter_custom(|rounds| (0..rounds).map(|_| bare_death()).sum())
    });
    for nprocs in [1, 4] {
        group.bench_function(BenchmarkId::new("phalanx", nprocs), |b| {
            b.iter_custom(|rounds| (0..rounds).map(|_| death_of_one_of(nprocs)).sum());
        });
    }
    group.finish();
}

fn bare_death() -> Duration {
    let child = raw_child("stay");
    let pidfd = common::pidfd(child.as_raw().unsigned_abs()).expect("pidfd_open");
    common::await_that(|| common::state_of(child.as_raw().unsigned_abs()) == Some('S'));
    let start = Instant::now();
    kill(child, SIGKILL).expect("kill");
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).expect("poll");
    waitpid(child, None).expect("waitpid");
    start.elapsed()
}

/// From the SIGKILL of one worker to the error, which is there when the others have been ended too.
fn death_of_one_of(nprocs: usize) -> Duration {
    let ready = common::board(1);
    let work = |_, ready: Tensor<i64>| -> anyhow::Result<()> {
        ready.fetch_add(0, 1)?;
        common::wait_for_ever()
    };
    let context = start_processes(work, ready.clone(), Options::new(nprocs)).expect("all start");
    common::await_that(|| ready.get(0).is_ok_and(|count| count == nprocs as i64));
    let victim = context.pids()[0];
    let start = Instant::now();
    common::send(victim, SIGKILL);
    context.join().expect_err("one was killed");
    start.elapsed()
}
