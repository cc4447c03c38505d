//! A thousand workers in one context.

mod common;

use std::time::{Duration, Instant};

use common::{
    await_post, await_that, board, descriptors, ignore_term, launched, post, served, wait_for_ever,
};
use phalanx::{Options, Status, Tensor, start_processes};

phalanx::auto_init!();

const MANY: usize = 1000;

#[test]
fn a_thousand_hand_in_their_results_for_three_descriptors_each() {
    launched(|_, ()| {
        // The server and what it needs are there already.
        start_processes(|_, ()| anyhow::Ok(()), (), served(1))?.join()?;
        let (before, gate) = (descriptors().len(), board(2));
        let work = |rank, gate: Tensor<i64>| {
            gate.fetch_add(1, 1)?;
            await_post(&gate, 0);
            anyhow::Ok(rank * 3)
        };
        let context = start_processes(work, gate.clone(), served(MANY))?;
        await_that(|| gate.get(1).unwrap() == MANY as i64);
        let cost = descriptors().len() - before;
        // Besides: the segment of the gate, the epoll, its timer, the socket for results with both ends, the list of ranks,
        // the event of the stop word.
        anyhow::ensure!(cost <= 3 * MANY + 7, "{cost} descriptors for {MANY} workers");
        post(&gate, 0, 1);
        let results = context.join()?;
        anyhow::ensure!(results.into_iter().eq((0..MANY).map(|rank| 3 * rank)));
        Ok(())
    });
}

#[test]
fn a_thousand_by_spawn_work_too() {
    launched(|_, ()| {
        let results = start_processes(|rank, ()| anyhow::Ok(rank), (), Options::new(MANY))?.join()?;
        anyhow::ensure!(results.into_iter().eq(0..MANY));
        Ok(())
    });
}

#[test]
fn one_failure_among_a_thousand_is_told_and_all_others_have_an_outcome() {
    launched(|_, ()| {
        let work = |rank, ()| -> anyhow::Result<()> {
            if rank == 777 {
                anyhow::bail!("not well")
            }
            wait_for_ever()
        };
        let exception = common::raised(start_processes(work, (), served(MANY))?.join().unwrap_err());
        anyhow::ensure!(exception.error_index() == 777 && exception.chain() == ["not well"]);
        let outcomes = exception.outcomes();
        let ended =
            |outcome: &phalanx::Outcome| matches!(outcome.status(), Status::Signaled { .. } | Status::Raised);
        anyhow::ensure!(outcomes.len() == MANY && outcomes.iter().all(ended));
        Ok(())
    });
}

#[test]
fn teardown_of_a_thousand_who_ignore_sigterm_takes_the_grace_period_not_theirs_together() {
    launched(|_, ()| {
        let grace = Duration::from_millis(300);
        let work = |rank, ready: Tensor<i64>| -> anyhow::Result<()> {
            ignore_term();
            ready.fetch_add(0, 1)?;
            if rank == 0 {
                await_that(|| ready.get(0).unwrap() == MANY as i64);
                anyhow::bail!("the first")
            }
            wait_for_ever()
        };
        let ready = board(1);
        let mut context = start_processes(work, ready.clone(), served(MANY).grace_period(grace))?;
        await_that(|| ready.get(0).unwrap() == MANY as i64);
        let start = Instant::now();
        let error = common::poll_join(&mut context).unwrap_err();
        anyhow::ensure!(common::raised(error).error_index() == 0);
        // Two grace periods. Were each worker given its own, the watchdog would bark long before the end.
        anyhow::ensure!(start.elapsed() >= 2 * grace);
        Ok(())
    });
}

#[test]
fn a_poll_costs_the_same_with_a_thousand_as_with_ten() {
    /// The shortest of many: only that is free of what else runs on the machine.
    fn poll(nprocs: usize) -> anyhow::Result<Duration> {
        let wait = |_, ()| -> anyhow::Result<()> { wait_for_ever() };
        let mut context = start_processes(wait, (), served(nprocs).daemon(true))?;
        // The workers come to rest first.
        await_that(|| !context.join_timeout(Duration::from_millis(200)).unwrap());
        let mut shortest = Duration::MAX;
        for _ in 0..2000 {
            let start = Instant::now();
            context.join_timeout(Duration::ZERO)?;
            shortest = shortest.min(start.elapsed());
        }
        Ok(shortest)
    }
    launched(|_, ()| {
        let (few, many) = (poll(10)?, poll(MANY)?);
        // Were there any work for each worker, it would be a hundred times as much.
        anyhow::ensure!(many < few * 10, "{few:?} with 10, {many:?} with {MANY}");
        Ok(())
    });
}
