//! Barriers between processes, whose members die in every way, waiting or not.
//!
//! The times that are printed are from the kill to the moment at which the last of the others has been told.

#![expect(clippy::print_stdout, reason = "how long it takes to be told of a death is worth knowing")]
#![expect(clippy::exit, clippy::disallowed_methods, reason = "a worker that exits is what is tested")]

mod common;

use std::time::{Duration, Instant};

use common::{await_asleep, await_that, exited, kill, launched, served, wait_for_ever, watched};
use phalanx::sync::{Barrier, Event, SyncError, Value};
use phalanx::{Options, ProcessContext, spawn, start_processes};

phalanx::auto_init!();

/// Waits; returns whom the barrier blames.
fn blame(_: usize, barrier: Barrier) -> anyhow::Result<u32> {
    match barrier.wait() {
        Err(SyncError::Broken { pid: Some(pid), .. }) => Ok(pid),
        other => anyhow::bail!("{other:?}"),
    }
}

/// Starts workers that wait at the barrier.
fn begin_asleep(barrier: &Barrier, nprocs: usize) -> ProcessContext<u32> {
    let waiting = barrier.waiting();
    let context = start_processes(blame, barrier.clone(), Options::new(nprocs)).unwrap();
    await_that(|| barrier.waiting() == waiting + nprocs);
    context.pids().into_iter().for_each(await_asleep);
    context
}

/// Starts one that has the barrier and does not come.
fn begin_absent(barrier: &Barrier) -> ProcessContext<()> {
    let ready = Event::new().unwrap();
    let work = |_, (_barrier, ready): (Barrier, Event)| -> anyhow::Result<()> {
        ready.set();
        wait_for_ever()
    };
    let context = start_processes(work, (barrier.clone(), ready.clone()), Options::new(1)).unwrap();
    ready.wait().unwrap();
    context
}

/// Kills `victim`: `others` are told that it was it.
fn kill_before(victim: ProcessContext<()>, others: ProcessContext<u32>, what: &str) {
    let begin = Instant::now();
    let pid = kill(victim);
    let blamed = others.join().unwrap();
    println!("{what}: {:?}, with their end", begin.elapsed());
    assert_eq!(blamed, vec![pid; blamed.len()]);
}

#[test]
fn member_that_is_killed_while_it_waits_breaks_it() {
    watched(|| {
        let barrier = Barrier::new(5).unwrap();
        let wait = |_, barrier: Barrier| barrier.wait().map(drop);
        let victim = start_processes(wait, barrier.clone(), Options::new(1)).unwrap();
        await_that(|| barrier.waiting() == 1);
        await_asleep(victim.pids()[0]);
        let others = begin_asleep(&barrier, 3);
        kill_before(victim, others, "killed while it waited");
        assert!(barrier.is_broken());
        barrier.reset().unwrap();
        let pass = |_, barrier: Barrier| barrier.wait().map(|result| result.index());
        let mut indices = spawn(pass, barrier.clone(), 5).unwrap();
        indices.sort_unstable();
        assert_eq!(indices, [0, 1, 2, 3, 4]);
    });
}

#[test]
fn member_that_is_killed_before_it_comes_breaks_it() {
    watched(|| {
        let barrier = Barrier::new(4).unwrap();
        let victim = begin_absent(&barrier);
        let others = begin_asleep(&barrier, 3);
        kill_before(victim, others, "killed before it came");
        assert!(matches!(barrier.wait(), Err(SyncError::Broken { pid: Some(_), .. })));

        barrier.reset().unwrap();
        let (others, victim) = (begin_asleep(&barrier, 3), begin_absent(&barrier));
        kill_before(victim, others, "killed before it came, and after the others had");

        barrier.reset().unwrap();
        let victim = kill(begin_absent(&barrier));
        let late = spawn(blame, barrier.clone(), 2).unwrap();
        assert_eq!(late, [victim, victim], "they are told though they come later");
    });
}

#[test]
fn member_that_exits_early_or_panics_breaks_it_and_one_that_leaves_in_order_does_not() {
    watched(|| {
        let barrier = Barrier::new(2).unwrap();
        let others = begin_asleep(&barrier, 1);
        let exit = |_, _barrier: Barrier| -> anyhow::Result<()> { std::process::exit(3) };
        let error = exited(spawn(exit, barrier.clone(), 1).unwrap_err());
        assert_eq!(others.join().unwrap(), [error.error_pid()]);

        barrier.reset().unwrap();
        let others = begin_asleep(&barrier, 1);
        let panic = |_, barrier: Barrier| -> anyhow::Result<()> {
            let _barrier = barrier;
            panic!("not today")
        };
        let error = common::raised(spawn(panic, barrier.clone(), 1).unwrap_err());
        assert_eq!(others.join().unwrap(), [error.error_pid()]);

        barrier.reset().unwrap();
        let wait = |_, barrier: Barrier| barrier.wait().map(drop);
        let waiter = start_processes(wait, barrier.clone(), Options::new(1)).unwrap();
        await_that(|| barrier.waiting() == 1);
        spawn(|_, _: Barrier| anyhow::Ok(()), barrier.clone(), 2).unwrap();
        assert!(!barrier.is_broken());
        barrier.wait().unwrap();
        waiter.join().unwrap();
    });
}

#[test]
fn one_whose_time_is_up_or_who_aborts_sends_the_others_away() {
    watched(|| {
        let barrier = Barrier::new(3).unwrap();
        let own = std::process::id();
        let others = begin_asleep(&barrier, 1);
        let error = barrier.wait_timeout(Duration::from_millis(1)).unwrap_err();
        assert!(matches!(error, SyncError::TimedOut { .. }));
        assert_eq!(others.join().unwrap(), [own]);
        barrier.reset().unwrap();
        let others = begin_asleep(&barrier, 2);
        barrier.abort();
        assert_eq!(others.join().unwrap(), [own, own]);
    });
}

#[test]
fn more_members_than_the_kernel_can_watch_at_once_learn_of_a_death() {
    watched(|| {
        let barrier = Barrier::new(142).unwrap();
        let threads = |_, barrier: Barrier| -> anyhow::Result<Vec<u32>> {
            let wait = |own: Barrier| move || blame(0, own);
            let clones = std::iter::repeat_with(|| barrier.clone()).take(140);
            let threads: Vec<_> = clones.map(|own| std::thread::spawn(wait(own))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        };
        let others = start_processes(threads, barrier.clone(), Options::new(1)).unwrap();
        await_that(|| barrier.waiting() == 140);
        let victim = begin_absent(&barrier);
        let begin = Instant::now();
        let pid = kill(victim);
        assert_eq!(others.join().unwrap(), [vec![pid; 140]]);
        println!("of 140 members: {:?}, with their end", begin.elapsed());
    });
}

#[test]
fn handle_given_to_a_thread_is_its_own() {
    watched(|| {
        let barrier = Barrier::new(3).unwrap();
        let work = |_, (barrier, sum): (Barrier, Value<u32>)| -> anyhow::Result<u32> {
            let thread = std::thread::spawn(move || -> anyhow::Result<u32> {
                for round in 0..20 {
                    sum.fetch_add(1);
                    barrier.wait()?;
                    anyhow::ensure!(sum.get() >= 3 * (round + 1));
                    barrier.wait()?;
                }
                Ok(sum.get())
            });
            thread.join().unwrap()
        };
        let given = (barrier.clone(), Value::new(0).unwrap());
        assert_eq!(spawn(work, given, 3).unwrap(), [60, 60, 60]);
        assert!(!barrier.is_broken());
    });
}

#[test]
fn death_is_told_under_the_fork_server() {
    launched(|_, ()| {
        let barrier = Barrier::new(3)?;
        let others = start_processes(blame, barrier.clone(), served(2))?;
        await_that(|| barrier.waiting() == 2);
        let victim = begin_absent(&barrier);
        kill_before(victim, others, "under the fork server");
        Ok(())
    });
}
