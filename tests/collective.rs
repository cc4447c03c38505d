//! Collectives: what every rank has after a call, and what it is told when another rank dies, leaves or errs.

#![expect(clippy::exit, clippy::disallowed_methods, reason = "a worker that exits is what is tested")]

mod common;

use std::time::Duration;

use common::{
    await_asleep, await_end, await_post, board, exited, launched, post, served, wait_for_ever, watched,
};
use phalanx::collective::{Collective, CollectiveError, Member, Reduce};
use phalanx::shm::Number;
use phalanx::sync::{AbortedBy, BrokenBy, SyncError};
use phalanx::{Error, Options, ProcessContext, Signal, Tensor, spawn, start_processes, start_processes_with};

phalanx::auto_init!();

const RANKS: usize = 3;

/// Elements of a tensor that is staged in one piece, and of one that takes several: a piece has 262,144 of 4 bytes. None can be
/// divided by three.
const LENGTHS: [usize; 4] = [1, 1000, 10_000, 300_001];

/// What a rank passes at a place: of different sizes, so that the order of additions shows in the sum.
fn element(rank: usize, at: usize) -> f32 {
    ((at * 31 + rank * 17) % 1009) as f32 * 10_f32.powi(rank as i32 * 4 - 4) + 0.1
}

fn passed(rank: usize, len: usize) -> Vec<f32> {
    (0..len).map(|at| element(rank, at)).collect()
}

/// The sum in the order of the ranks, as bits.
fn sum_bits(at: usize) -> u32 {
    (1..RANKS).fold(element(0, at), |sum, rank| sum + element(rank, at)).to_bits()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The tensor that a rank passes: its own, or its row of a table that all have.
fn own(rank: usize, len: usize, table: Option<&Tensor<f32>>) -> anyhow::Result<Tensor<f32>> {
    let own = table.map_or_else(|| Tensor::zeros(&[len]), |table| table.select(0, rank))?;
    own.write_from(&passed(rank, len))?;
    Ok(own)
}

/// All calls with tensors of this length, as a rank makes them.
fn all_calls(crew: &mut Member, len: usize, table: Option<&Tensor<f32>>) -> anyhow::Result<()> {
    let (rank, expected) = (crew.rank(), (0..len).map(sum_bits).collect::<Vec<_>>());
    let tensor = own(rank, len, table)?;
    crew.all_reduce(&tensor, Reduce::Sum)?;
    anyhow::ensure!(bits(&tensor.to_vec()) == expected, "all_reduce of {len}");

    let tensor = own(rank, len, table)?;
    crew.broadcast(&tensor, 1)?;
    anyhow::ensure!(tensor.to_vec() == passed(1, len), "broadcast of {len}");

    // Whoever is first is not to write to what the others still read.
    crew.barrier()?;
    let (tensor, all) = (own(rank, len, table)?, Tensor::zeros(&[RANKS * len])?);
    crew.all_gather(&tensor, &all)?;
    let every = (0..RANKS).flat_map(|rank| passed(rank, len)).collect::<Vec<_>>();
    anyhow::ensure!(all.to_vec() == every, "all_gather of {len}");

    // Of as many parts as there are ranks: of a row that can be divided so.
    let part = len / RANKS;
    let (source, target) = (own(rank, len, table)?.narrow(0, 0, part * RANKS)?, Tensor::zeros(&[part])?);
    crew.reduce_scatter(&source, &target, Reduce::Sum)?;
    let mine = &expected[rank * part..(rank + 1) * part];
    anyhow::ensure!(bits(&target.to_vec()) == mine, "reduce_scatter of {len}");
    Ok(())
}

fn make_all_calls(rank: usize, (crew, tables): (Collective, Vec<Tensor<f32>>)) -> anyhow::Result<()> {
    let mut crew = crew.join(rank)?;
    for _ in 0..3 {
        for (len, table) in LENGTHS.into_iter().zip(&tables) {
            all_calls(&mut crew, len, None)?;
            all_calls(&mut crew, len, Some(table))?;
        }
    }
    Ok(())
}

fn given() -> (Collective, Vec<Tensor<f32>>) {
    let tables = LENGTHS.map(|len| Tensor::zeros(&[RANKS, len]).unwrap());
    (Collective::new(RANKS).unwrap(), tables.to_vec())
}

#[test]
fn every_rank_has_the_same_bits_whatever_the_length_and_wherever_tensors_lie() {
    watched(|| drop(spawn(make_all_calls, given(), RANKS).unwrap()));
}

#[test]
fn collectives_work_under_the_fork_server() {
    launched(|_, ()| {
        start_processes(make_all_calls, given(), served(RANKS))?.join()?;
        Ok(())
    });
}

#[test]
fn elements_of_every_size_and_each_reduction() {
    fn check<T: Number>(crew: &mut Member, values: [T; 2], expected: [T; 4]) -> anyhow::Result<()> {
        let reductions = [Reduce::Sum, Reduce::Mean, Reduce::Min, Reduce::Max];
        // An odd number of small elements ends in the middle of a word of staging memory.
        for len in [1, 7, 300_001] {
            for (reduce, expected) in reductions.into_iter().zip(expected) {
                let tensor = Tensor::full(&[len], values[crew.rank()])?;
                crew.all_reduce(&tensor, reduce)?;
                let all = tensor.to_vec();
                anyhow::ensure!(all.iter().all(|&one| one == expected), "{reduce} of {len} {}", T::DTYPE);
            }
        }
        Ok(())
    }
    watched(|| {
        let work = |rank, crew: Collective| -> anyhow::Result<()> {
            let mut crew = crew.join(rank)?;
            check(&mut crew, [250_u8, 9], [3, 1, 9, 250])?;
            check(&mut crew, [-7_i64, 2], [-5, -2, -7, 2])?;
            check(&mut crew, [0.5_f64, 2.0], [2.5, 1.25, 0.5, 2.0])?;
            let half = phalanx::shm::bf16::from_f32;
            check(&mut crew, [0.5, 2.0].map(half), [2.5, 1.25, 0.5, 2.0].map(half))
        };
        spawn(work, Collective::new(2).unwrap(), 2).unwrap();
    });
}

/// Sums that never end; returns what ends them.
fn reduce_until_told(rank: usize, (crew, board): (Collective, Tensor<i64>)) -> anyhow::Result<(String, u32)> {
    let mut crew = crew.join(rank)?;
    let tensor = Tensor::<f32>::zeros(&[100_000])?;
    post(&board, rank, std::process::id());
    loop {
        match crew.all_reduce(&tensor, Reduce::Sum) {
            Ok(()) => {}
            Err(CollectiveError::Sync(
                error @ SyncError::Broken { pid: Some(pid), by: BrokenBy::Death, .. },
            )) => {
                return Ok((error.to_string(), pid));
            }
            Err(other) => anyhow::bail!("{other:?}"),
        }
    }
}

/// The last rank is killed; the others, who return, have been told that it was it.
fn kill_the_last(mut context: ProcessContext<(String, u32)>) {
    let (last, pid) = (RANKS - 1, *context.pids().last().unwrap());
    context.signal(last, Signal::KILL).unwrap();
    let exception = exited(loop {
        match context.join_timeout(Duration::from_secs(1)) {
            Ok(finished) => assert!(!finished),
            Err(error) => break error,
        }
    });
    assert_eq!(exception.error_pid(), pid);
    for rank in 0..last {
        let (text, blamed) = context.result(rank).unwrap().unwrap();
        assert_eq!((blamed, text.contains("rank 2")), (pid, true), "{text}");
    }
}

fn patient(nprocs: usize) -> Options {
    Options::new(nprocs).grace_period(Duration::from_secs(60))
}

#[test]
fn rank_that_is_killed_in_the_middle_is_named_to_all() {
    watched(|| {
        let (crew, board) = (Collective::new(RANKS).unwrap(), board(RANKS));
        let context = start_processes(reduce_until_told, (crew, board.clone()), patient(RANKS)).unwrap();
        (0..RANKS).for_each(|rank| _ = await_post(&board, rank));
        kill_the_last(context);
    });
}

#[test]
fn rank_that_is_killed_before_it_joins_is_named_to_all() {
    watched(|| {
        let (crew, board) = (Collective::new(RANKS).unwrap(), board(RANKS));
        let work = |rank, given: (Collective, Tensor<i64>)| {
            if rank + 1 == RANKS {
                post(&given.1, rank, 1);
                wait_for_ever();
            }
            reduce_until_told(rank, given)
        };
        let context = start_processes(work, (crew, board.clone()), patient(RANKS)).unwrap();
        await_post(&board, RANKS - 1);
        context.pids()[..RANKS - 1].iter().for_each(|&pid| await_asleep(pid));
        kill_the_last(context);
    });
}

/// What a barrier tells rank 0 when rank 1 does something else.
fn told(other: impl Fn(usize, Collective) -> anyhow::Result<String> + Copy + Send + 'static) -> Vec<String> {
    spawn(other, Collective::new(2).unwrap(), 2).unwrap()
}

/// The error of a rank that expects one.
fn error_of(crew: Collective, rank: usize) -> anyhow::Result<String> {
    let refused = crew.join(rank)?.barrier().err();
    refused.map(|error| error.to_string()).ok_or_else(|| anyhow::anyhow!("there was no error"))
}

#[test]
fn rank_that_leaves_is_told_to_those_who_still_call() {
    watched(|| {
        let after_joining = told(|rank, crew| match rank {
            0 => error_of(crew, 0),
            _ => Ok(crew.join(rank).map(|_| String::new())?),
        });
        assert!(after_joining[0].starts_with("rank 1"), "{after_joining:?}");
        assert!(after_joining[0].contains("has left the crew, while others waited"), "{after_joining:?}");
        let without_joining =
            told(|rank, crew| if rank == 0 { error_of(crew, 0) } else { Ok(String::new()) });
        assert!(without_joining[0].starts_with("rank 1"), "{without_joining:?}");
        assert!(without_joining[0].contains("without having joined it"), "{without_joining:?}");
    });
}

#[test]
fn last_call_of_a_rank_that_leaves_at_once_is_whole_for_all() {
    watched(|| {
        for _ in 0..20 {
            let work = |rank: usize, crew: Collective| -> anyhow::Result<u64> {
                let tensor = Tensor::full(&[70_000], rank as u64)?;
                let mut crew = crew.join(rank)?;
                crew.broadcast(&tensor, 2)?;
                Ok(tensor.to_vec().iter().sum())
            };
            assert_eq!(spawn(work, Collective::new(RANKS).unwrap(), RANKS).unwrap(), [140_000; RANKS]);
        }
    });
}

#[test]
fn failure_of_a_rank_is_reported_and_not_what_came_of_it_to_the_others() {
    watched(|| {
        for start in 0..6 {
            let work = |rank: usize, (crew, start): (Collective, usize)| -> anyhow::Result<()> {
                let mut crew = crew.join(rank)?;
                crew.barrier()?;
                match (rank, start % 3) {
                    (0, 0) => anyhow::bail!("no more data"),
                    (0, 1) => panic!("no more data"),
                    (0, _) => std::process::exit(3),
                    _ => Ok(crew.barrier()?),
                }
            };
            let given = (Collective::new(RANKS).unwrap(), start);
            let rank = match start_processes(work, given, patient(RANKS)).unwrap().join().unwrap_err() {
                Error::ProcessRaised(raised) => raised.error_index(),
                Error::ProcessExited(exited) => exited.error_index(),
                other => panic!("{other}"),
            };
            assert_eq!(rank, 0);
        }
    });
}

#[test]
fn rank_that_leaves_and_fails_later_is_to_blame_for_those_who_failed_before_it() {
    watched(|| {
        let work = |rank: usize, (crew, board): (Collective, Tensor<i64>)| -> anyhow::Result<()> {
            let mut crew = crew.join(rank)?;
            if rank == 0 {
                drop(crew);
                await_end(await_post(&board, 1));
                anyhow::bail!("no more data");
            }
            let refused = crew.barrier();
            post(&board, 1, std::process::id());
            Ok(refused?)
        };
        let given = (Collective::new(2).unwrap(), board(2));
        let error = common::raised(start_processes(work, given, patient(2)).unwrap().join().unwrap_err());
        assert_eq!((error.error_index(), error.chain()), (0, &["no more data".to_owned()][..]));
    });
}

#[test]
fn aborted_context_ends_every_wait() {
    watched(|| {
        let work = |rank: usize, (crew, board): (Option<Collective>, Tensor<i64>)| -> anyhow::Result<()> {
            let Some(crew) = crew else {
                (0..2).for_each(|rank| _ = await_post(&board, rank));
                anyhow::bail!("rank {rank} gives up")
            };
            let mut crew = crew.join(rank)?;
            post(&board, rank, 1);
            let refused = crew.all_reduce(&Tensor::<f32>::zeros(&[9])?, Reduce::Sum).unwrap_err();
            let aborted =
                matches!(refused, CollectiveError::Sync(SyncError::Aborted { by: AbortedBy::Rank(2) }));
            post(&board, 2 + rank, if aborted { 1 } else { 2 });
            Err(refused.into())
        };
        // The rank that fails has no part in the crew, which waits for a third one.
        let (crew, board) = (Collective::new(RANKS).unwrap(), board(4));
        let given = |rank| ((rank < 2).then(|| crew.clone()), board.clone());
        let context = start_processes_with(work, given, patient(RANKS).abort_on_failure(true)).unwrap();
        let error = context.join().unwrap_err().to_string();
        assert!(error.contains("rank 2 gives up"), "{error}");
        assert_eq!((await_post(&board, 2), await_post(&board, 3)), (1, 1));
    });
}

#[test]
fn misuse_is_told_on_every_rank_with_what_each_passed_and_the_crew_goes_on() {
    watched(|| {
        let work = |rank: usize, crew: Collective| -> anyhow::Result<Vec<String>> {
            let mut crew = crew.join(rank)?;
            let mut texts = Vec::new();
            let (tensor, other) = (Tensor::<f32>::zeros(&[4])?, Tensor::<f32>::zeros(&[300_000])?);
            let lengths = if rank == 0 { &tensor } else { &other };
            texts.push(crew.all_reduce(lengths, Reduce::Sum));
            texts.push(match rank {
                0 => crew.all_reduce(&Tensor::<i32>::zeros(&[4])?, Reduce::Sum),
                _ => crew.all_reduce(&tensor, Reduce::Sum),
            });
            texts.push(if rank == 0 { crew.barrier() } else { crew.broadcast(&tensor, 0) });
            texts.push(match rank {
                0 => crew.all_reduce(&Tensor::<f32>::zeros(&[2, 4])?.select(1, 0)?, Reduce::Sum),
                _ => crew.all_reduce(&Tensor::<f32>::zeros(&[2])?, Reduce::Sum),
            });
            texts.push(crew.all_gather(&tensor, &tensor.narrow(0, 0, 3)?));
            tensor.fill(rank as f32)?;
            crew.all_reduce(&tensor, Reduce::Max)?;
            anyhow::ensure!(tensor.to_vec() == [1.0; 4], "the crew is out of step");
            Ok(texts.into_iter().map(|text| text.unwrap_err().to_string()).collect())
        };
        let told = spawn(work, Collective::new(2).unwrap(), 2).unwrap();
        assert_eq!(told[0], told[1]);
        let said = |text: &str| format!("the ranks' calls do not fit together: {text}");
        assert_eq!(
            told[0][..3],
            [
                said("rank 0 passed all_reduce(sum) of 4 f32; rank 1 passed all_reduce(sum) of 300000 f32"),
                said("rank 0 passed all_reduce(sum) of 4 i32; rank 1 passed all_reduce(sum) of 4 f32"),
                said("rank 0 passed barrier; rank 1 passed broadcast of 4 f32 from rank 0"),
            ]
        );
        assert!(
            told[0][3]
                .contains("rank 0 passed all_reduce(sum) of 2 f32, which do not lie one after the other")
        );
        assert!(
            told[0][4].contains("rank 0 and rank 1 passed all_gather of 4 f32 to 3, which must be 2 times")
        );
    });
}

#[test]
fn two_ranks_that_pass_the_same_memory_are_told() {
    watched(|| {
        let work = |rank: usize, (crew, shared): (Collective, Tensor<f32>)| -> anyhow::Result<String> {
            Ok(crew.join(rank)?.all_reduce(&shared, Reduce::Sum).unwrap_err().to_string())
        };
        let given = (Collective::new(2).unwrap(), Tensor::full(&[5], 1.0).unwrap());
        for text in spawn(work, given.clone(), 2).unwrap() {
            assert!(
                text.contains("rank 1 passed all_reduce(sum) of 5 f32, which overlap those of rank 0"),
                "{text}"
            );
        }
        assert_eq!(given.1.to_vec(), [1.0; 5], "nothing is changed");
    });
}

#[test]
fn rank_that_joins_twice_is_told_to_every_rank() {
    watched(|| {
        let work = |rank: usize, (crew, board): (Collective, Tensor<i64>)| -> anyhow::Result<String> {
            // Rank 2 joins as rank 1 when that has joined.
            if rank == 2 {
                await_post(&board, 1);
            }
            let refused = crew.join(rank.min(1)).and_then(|mut crew| {
                post(&board, rank, 1);
                crew.barrier()
            });
            Ok(refused.unwrap_err().to_string())
        };
        let told = spawn(work, (Collective::new(RANKS).unwrap(), board(RANKS)), RANKS).unwrap();
        for text in &told {
            assert!(text.starts_with("rank 1 was joined twice, by rank 1"), "{text}");
            assert!(text.contains("and by rank 2"), "{text}");
        }
    });
}

#[test]
fn time_that_is_up_names_who_had_not_come() {
    watched(|| {
        let (crew, board) = (Collective::new(2).unwrap(), board(2));
        let work = |rank: usize, (crew, board): (Collective, Tensor<i64>)| -> anyhow::Result<String> {
            if rank == 1 {
                await_post(&board, 0);
                return error_of(crew, 1);
            }
            let refused = crew.join(0)?.timeout(Duration::from_millis(20)).barrier().unwrap_err();
            post(&board, 0, 1);
            Ok(refused.to_string())
        };
        let told = spawn(work, (crew, board), 2).unwrap();
        assert!(
            told[0].starts_with("timed out after 20ms: 1 of 2 came to the barrier; missing: rank 1"),
            "{told:?}"
        );
        assert!(told[1].starts_with("the barrier is broken: rank 0"), "{told:?}");
    });
}
