//! Workers of a pool are killed at random moments while maps and calls run: each item is given out exactly once, returned or failed,
//! nothing is begun twice without leave, nobody hangs, and nothing is left.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "kills at random moments, and how many there were"
)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::{race_time, watched};
use phalanx::pool::{Pool, TaskFailed, TaskFailure};
use phalanx::{StartMethod, Tensor};

phalanx::auto_init!();

const WORKERS: usize = 3;
const ITEMS: u64 = 2000;
/// Names the file in which each begin of an item is written down.
const BOOK: &str = "PHALANX_TEST_BOOK";

/// Writes down that an item has begun: 8 bytes behind what others have written (O_APPEND of open(2)).
fn note_begin(item: u64) -> anyhow::Result<()> {
    static BEGINS: OnceLock<File> = OnceLock::new();
    let open = || OpenOptions::new().append(true).open(std::env::var(BOOK).unwrap()).unwrap();
    Ok(BEGINS.get_or_init(open).write_all(&item.to_le_bytes())?)
}

fn work(item: u64) -> anyhow::Result<u64> {
    note_begin(item)?;
    // Some take a while, so that kills find them in the middle.
    if item.is_multiple_of(16) {
        thread::sleep(Duration::from_micros(200));
    }
    Ok(3 * item)
}

fn work_on_memory((item, tensor): (u64, Tensor<u64>)) -> anyhow::Result<Tensor<u64>> {
    note_begin(item)?;
    Ok(Tensor::from_slice(&[tensor.to_vec()[0] * 3], &[1])?)
}

/// How often each item has begun.
fn begins(book: &Path) -> Vec<u32> {
    let mut begins = vec![0; ITEMS as usize];
    for item in fs::read(book).unwrap().as_chunks::<8>().0 {
        begins[u64::from_le_bytes(*item) as usize] += 1;
    }
    File::options().write(true).truncate(true).open(book).unwrap();
    begins
}

/// A sequence of numbers that looks random.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Kills workers at random moments, until it is told to end; returns how many.
fn kill_at_random(pool: &Pool, over: &AtomicBool, mut random: Random) -> u32 {
    let mut killed = 0;
    while !over.load(Relaxed) {
        thread::sleep(Duration::from_micros(random.below(4000)));
        // A number is not given to another process before all others have been.
        // Those that are there now: one that was killed has not been replaced yet.
        let workers = pool.workers();
        let Some(worker) = workers.get(random.below(WORKERS as u64) as usize) else { continue };
        let pid = nix::unistd::Pid::from_raw(worker.pid.cast_signed());
        killed += u32::from(nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).is_ok());
    }
    killed
}

fn check(item: u64, failed: &TaskFailed, begun: u32, most: u32) {
    assert_eq!(failed.item(), Some(item));
    assert!(matches!(failed.failure(), TaskFailure::WorkerEnded(_)), "{failed}");
    // Between the begin and the line in the book there is a moment.
    assert!(begun <= most && (failed.began() || begun == 0), "begun {begun} times: {failed}");
    assert!(failed.attempts() <= most, "{failed}");
}

/// Maps for as long as races last, while workers are killed.
fn survive(method: StartMethod, retries: u32, seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let book = dir.path().join("book");
    File::create(&book).unwrap();
    let workers = common::by(method, WORKERS).env(BOOK, book.to_str().unwrap());
    let pool = Pool::options(workers).retries(retries).build().unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let killer = scope.spawn(|| kill_at_random(&pool, &over, Random(seed)));
        let (end, mut maps, mut failures) = (Instant::now() + race_time(), 0, 0);
        while Instant::now() < end {
            let results: Vec<_> = pool.map(work, 0..ITEMS).unwrap().collect();
            let begun = begins(&book);
            assert_eq!(results.len(), ITEMS as usize);
            for (item, (result, begun)) in (0..).zip(results.iter().zip(begun)) {
                match result {
                    Ok(value) => assert!(*value == 3 * item && (1..=retries + 1).contains(&begun)),
                    Err(failed) => {
                        check(item, failed, begun, retries + 1);
                        failures += 1;
                    }
                }
            }
            let tensors = (0..ITEMS / 10).map(|item| (item, Tensor::from_slice(&[item], &[1]).unwrap()));
            let results: Vec<_> = pool.map(work_on_memory, tensors).unwrap().unordered().collect();
            let begun = begins(&book);
            assert_eq!(results.len(), ITEMS as usize / 10);
            for (item, result) in results {
                match result {
                    Ok(tensor) => assert_eq!(tensor.to_vec(), [3 * item]),
                    // It is tried again too: the process of the pool keeps a copy of the message.
                    Err(failed) => check(item, &failed, begun[item as usize], retries + 1),
                }
            }
            assert!(begun.into_iter().all(|begun| begun <= retries + 1));
            maps += 1;
        }
        over.store(true, Relaxed);
        let killed = killer.join().unwrap();
        eprintln!("{maps} maps, {killed} workers killed, {failures} items failed");
    });
    assert_eq!(pool.submit(|x: u64| anyhow::Ok(x), 7).unwrap().join().unwrap(), 7);
    pool.join().unwrap();
}

#[test]
fn every_item_is_given_out_once_and_begun_once() {
    watched(|| survive(StartMethod::Spawn, 0, 0x9e37_79b9));
}

#[test]
fn item_with_retries_is_begun_no_more_often_than_it_may_be() {
    // The fork server stays.
    let nothing = |_, ()| anyhow::Ok(());
    let server = common::by(StartMethod::ForkServer, 1);
    common::alone(|| phalanx::start_processes(nothing, (), server).unwrap().join()).unwrap();
    watched(|| survive(StartMethod::ForkServer, 2, 0x7f4a_7c15));
}

#[test]
fn call_for_one_worker_is_told_however_its_death_meets_it() {
    watched(|| {
        let (pool, mut random) = (Pool::new(1).unwrap(), Random(0x5eed));
        let (end, mut rounds, mut died) = (Instant::now() + race_time(), 0_u32, 0_u32);
        while Instant::now() < end {
            let pid = pool.submit(|()| anyhow::Ok(std::process::id()), ()).unwrap().join().unwrap();
            let mut calls = pool.broadcast(|()| anyhow::Ok(std::process::id()), ()).unwrap();
            // From before the worker asks for it until after it has handed in the result.
            let kill_at = Instant::now() + Duration::from_micros(random.below(150));
            while Instant::now() < kill_at {
                std::hint::spin_loop();
            }
            let worker = nix::unistd::Pid::from_raw(pid.cast_signed());
            let _ = nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGKILL);
            for call in calls.drain(..) {
                match call.join() {
                    Ok(own) => assert_eq!(own, pid),
                    Err(failed) => {
                        assert!(matches!(failed.failure(), TaskFailure::WorkerEnded(_)), "{failed}");
                        died += 1;
                    }
                }
            }
            rounds += 1;
        }
        eprintln!("{rounds} calls, of which {died} ended with their worker");
        pool.join().unwrap();
    });
}
