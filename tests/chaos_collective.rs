//! Collectives while a rank is killed at any moment: the others are told which, by each start method, and no sum is wrong.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "the moment of a kill is to be any; how many there were is to be seen"
)]

mod common;

use std::time::{Duration, Instant};

use common::{board, by, by_each_method, exited, launched, post, race_time};
use phalanx::collective::{Collective, CollectiveError, Reduce};
use phalanx::sync::{BrokenBy, SyncError};
use phalanx::{Signal, StartMethod, Tensor, start_processes};

phalanx::auto_init!();

const RANKS: usize = 4;
/// From one element to more than fits into one piece of the memory in which a sum is made.
const LENGTHS: [usize; 4] = [1, 1000, 70_000, 300_001];

/// Sums and barriers until another rank has died; returns which process that was.
fn sum_until_told(rank: usize, (crew, board): (Collective, Tensor<i64>)) -> anyhow::Result<u32> {
    let mut crew = crew.join(rank)?;
    let tensors = LENGTHS.map(|len| Tensor::<f32>::zeros(&[len]));
    post(&board, rank, std::process::id());
    for round in 0_u64.. {
        let tensor = tensors[round as usize % LENGTHS.len()].as_ref().unwrap();
        tensor.fill((rank + 1) as f32)?;
        let called = crew.all_reduce(tensor, Reduce::Sum).and_then(|()| crew.barrier());
        match called {
            Ok(()) => anyhow::ensure!(tensor.to_vec().iter().all(|&sum| sum == 10.0), "round {round}"),
            Err(CollectiveError::Sync(SyncError::Broken { pid: Some(pid), by: BrokenBy::Death, .. })) => {
                return Ok(pid);
            }
            Err(other) => anyhow::bail!("{other:?}"),
        }
    }
    unreachable!("the loop has no end")
}

/// One crew, of which a rank is killed after a while.
fn kill_one(method: StartMethod, victim: usize, after: Duration) {
    let (crew, board) = (Collective::new(RANKS).unwrap(), board(RANKS));
    // Those that were told are to return before they are ended.
    let options = by(method, RANKS).grace_period(Duration::from_secs(100));
    let mut context = start_processes(sum_until_told, (crew, board.clone()), options).unwrap();
    (0..RANKS).for_each(|rank| _ = common::await_post(&board, rank));
    std::thread::sleep(after);
    let pid = context.pids()[victim];
    context.signal(victim, Signal::KILL).unwrap();
    let failure = exited(common::poll_join(&mut context).unwrap_err());
    assert_eq!((failure.error_index(), failure.error_pid()), (victim, pid), "{failure}");
    for rank in (0..RANKS).filter(|rank| *rank != victim) {
        assert_eq!(context.result(rank).unwrap(), Some(pid), "rank {rank} was told of another process");
    }
}

#[test]
fn rank_that_is_killed_at_any_moment_is_named_to_all_others() {
    // In a process of one thread, as Fork needs it.
    launched(|_, ()| {
        by_each_method(|method| {
            let (end, mut crews) = (Instant::now() + race_time() / 3, 0_u32);
            while crews < RANKS as u32 || Instant::now() < end {
                // Another moment each time, up to two milliseconds: some hundred sums of one element, and a part of one of the longest.
                let after = Duration::from_micros(u64::from(crews.wrapping_mul(0x9e37_79b9) % 2000));
                kill_one(method, crews as usize % RANKS, after);
                crews += 1;
            }
            eprintln!("{method:?}: {crews} crews, of each of which a rank was killed");
        })
    });
}
