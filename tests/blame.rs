//! Workers that fail because they waited for another: the other is blamed.

mod common;

use std::time::Duration;

use common::{
    await_asleep, await_end, await_post, await_that, board, kill_self, post, raised, send, state_of,
};
use common::{wait_for_ever, watched};
use nix::sys::signal::Signal::SIGSTOP;
use phalanx::sync::{Barrier, Event, Lock};
use phalanx::{
    Error, FailureKind, JoinableQueue, Options, Peer, ProcessRaisedException, Queue, Standing, Status,
    Tensor, start_processes,
};
use serde::{Deserialize, Serialize};

phalanx::auto_init!();

/// What rank 1 does while the others wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Way {
    Loops,
    IsStopped,
    Returns,
    IsKilled,
    Fails,
}

const SHORT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(100);

/// Rank 1 does it, and says before by the board that it is about to.
fn misbehave(way: Way, pids: &Tensor<i64>) -> anyhow::Result<()> {
    post(pids, 1, std::process::id());
    match way {
        Way::Loops => wait_for_ever(),
        Way::IsStopped => loop {
            send(std::process::id(), SIGSTOP);
        },
        Way::Returns => Ok(()),
        Way::IsKilled => kill_self(),
        Way::Fails => anyhow::bail!("rank 1 is out of luck"),
    }
}

/// Waits until rank 1 has done it.
fn await_misdeed(way: Way, pids: &Tensor<i64>) {
    let pid = await_post(pids, 1);
    match way {
        Way::Loops => {}
        Way::IsStopped => await_that(|| state_of(pid) == Some('T')),
        Way::Returns | Way::IsKilled | Way::Fails => await_end(pid),
    }
}

/// Each with a grace period that lets all end by themselves who do, and without; with `abort_on_failure` and without.
fn all_options(way: Way) -> Vec<Options> {
    let ends = !matches!(way, Way::Loops | Way::IsStopped);
    let plain = || [Options::new(4), Options::new(4).abort_on_failure(true)];
    let patient = plain().map(|options| options.grace_period(LONG)).into_iter().filter(|_| ends);
    plain().into_iter().chain(patient).collect()
}

/// All wait at a barrier, to which rank 1 does not come. Rank 2 gives up when the others wait and rank 1 has gone astray.
fn meet(rank: usize, (way, barrier, pids): (Way, Barrier, Tensor<i64>)) -> anyhow::Result<()> {
    if rank == 2 {
        post(&pids, rank, std::process::id());
    }
    match rank {
        1 => {
            // Who is killed or fails ends the waiting of the others. Else rank 2 has to give up.
            let others = if matches!(way, Way::IsKilled | Way::Fails) { 3 } else { 2 };
            await_that(|| barrier.waiting() == others);
            // Whoever leaves before another has the barrier is forgotten for it.
            await_post(&pids, 2);
            misbehave(way, &pids)
        }
        2 if !matches!(way, Way::IsKilled | Way::Fails) => {
            await_misdeed(way, &pids);
            barrier.wait_timeout(SHORT)?;
            Ok(())
        }
        _ => barrier.wait().map(drop).map_err(anyhow::Error::from),
    }
}

/// A failure that is a consequence of what rank 1 did: who failed, its text, and that of the whole.
fn assert_rank_1_kept_waiting(error: Error, standings: &[Standing]) -> ProcessRaisedException {
    let exception = raised(error);
    let (text, first) = (exception.to_string(), exception.error_index());
    let pid = exception.outcomes()[1].pid();
    let [culprit] = exception.culprits() else { panic!("{text}") };
    assert_eq!(culprit.peer, Peer::Rank { rank: 1, pid }, "{text}\n{:#?}", exception.outcomes());
    let standing = culprit.standing.unwrap();
    assert!(standings.contains(&standing), "{text}");
    assert_ne!(first, 1);
    let lead =
        format!("rank 1 (pid {pid}) kept rank {first} waiting: {standing}\n\n-- Process {first} terminated");
    assert!(text.starts_with(&lead), "{text}");
    assert!(exception.chain().concat().contains(&format!("rank 1 (pid {pid})")), "{text}");
    assert_others_are_secondary(&exception);
    exception
}

/// All but rank 1 are consequences of it, or victims of the teardown; or have got what they wanted when that ended it.
fn assert_others_are_secondary(exception: &ProcessRaisedException) {
    let of = vec![Peer::Rank { rank: 1, pid: exception.outcomes()[1].pid() }];
    let consequence = FailureKind::Consequence { of };
    for rank in [0, 2, 3] {
        let kind = exception.outcomes()[rank].failure_kind();
        let secondary = [None, Some(&consequence), Some(&FailureKind::Teardown)];
        assert!(secondary.contains(&kind), "{rank}: {exception}");
    }
}

fn meet_without_rank_1(way: Way, options: Options) -> Error {
    let given = (way, Barrier::new(4).unwrap(), board(4));
    start_processes(meet, given, options).unwrap().join().unwrap_err()
}

#[test]
fn rank_that_does_not_come_to_a_barrier_is_blamed_for_those_who_give_up() {
    for (way, standing) in [
        (Way::Loops, Standing::Running),
        (Way::IsStopped, Standing::Stopped),
        (Way::Returns, Standing::Returned),
    ] {
        for options in all_options(way) {
            watched(|| {
                let exception = assert_rank_1_kept_waiting(meet_without_rank_1(way, options), &[standing]);
                let text = exception.chain().concat();
                let gave_up = text.contains("waited no longer for rank 1 (pid ");
                let timed_out = text.contains("3 of 4 came to the barrier; missing: rank 1 (pid ");
                assert!(gave_up || timed_out, "{text}");
                assert_eq!(timed_out, exception.error_index() == 2, "{text}");
            });
        }
    }
}

#[test]
fn consequences_are_told_together() {
    let options = || Options::new(4).grace_period(LONG);
    watched(|| {
        let exception =
            assert_rank_1_kept_waiting(meet_without_rank_1(Way::Returns, options()), &[Standing::Returned]);
        let others: Vec<_> = [0, 2, 3].into_iter().filter(|&rank| rank != exception.error_index()).collect();
        let (pid, text) = (exception.outcomes()[1].pid(), exception.to_string());
        let told =
            format!("\nconsequences: ranks {}, {} (waited for rank 1 (pid {pid}))", others[0], others[1]);
        assert!(text.ends_with(&format!("{told}\nother ranks: 1 succeeded")), "{text}");
    });
    watched(|| {
        let exception = raised(meet_without_rank_1(Way::Fails, options().abort_on_failure(true)));
        let (pid, text) = (exception.error_pid(), exception.to_string());
        assert_eq!((exception.error_index(), exception.culprits()), (1, &[][..]), "{text}");
        assert_eq!(exception.chain(), ["rank 1 is out of luck"]);
        let told = format!("\nconsequences: ranks 0, 2, 3 (waited for rank 1 (pid {pid}))");
        assert!(text.ends_with(&told), "{text}");
        for rank in [0, 2, 3] {
            let error = exception.outcomes()[rank].error().unwrap();
            assert_eq!(error.chain(), [format!("the wait was aborted: rank 1 (pid {pid}) has failed")]);
        }
    });
}

#[test]
fn rank_that_is_killed_or_fails_while_others_wait_for_it_at_a_barrier_is_blamed_itself() {
    for options in all_options(Way::IsKilled) {
        watched(|| {
            let error = meet_without_rank_1(Way::IsKilled, options);
            let exception = common::exited(error);
            assert_eq!((exception.error_index(), exception.exit_code()), (1, Some(-9)), "{exception}");
            assert!(exception.to_string().starts_with("process 1 terminated with signal SIGKILL"));
        });
    }
    for options in [Options::new(4), Options::new(4).abort_on_failure(true)] {
        watched(|| {
            let exception = raised(meet_without_rank_1(Way::Fails, options));
            assert_eq!((exception.error_index(), exception.culprits()), (1, &[][..]), "{exception}");
            assert_others_are_secondary(&exception);
        });
    }
}

/// Rank 1 has a lock, and the others want it.
fn want(rank: usize, (way, lock, pids): (Way, Lock<u8>, Tensor<i64>)) -> anyhow::Result<()> {
    if rank == 1 {
        let guard = lock.lock()?;
        if way == Way::Fails {
            // Not for the same reason, and after all others.
            post(&pids, 1, std::process::id());
            [0, 2, 3].into_iter().for_each(|rank| await_end(await_post(&pids, rank)));
            anyhow::bail!("rank 1 is out of luck");
        }
        std::mem::forget(guard);
        return misbehave(way, &pids);
    }
    match way {
        Way::Fails => {
            await_post(&pids, 1);
            let error = lock.lock_timeout(SHORT).unwrap_err();
            post(&pids, rank, std::process::id());
            // As text, so that the type is lost.
            anyhow::bail!("step 7: {error}")
        }
        _ => await_misdeed(way, &pids),
    }
    lock.lock_timeout(SHORT).map(drop).map_err(anyhow::Error::from)
}

#[test]
fn rank_that_keeps_a_lock_is_blamed_for_those_who_want_it() {
    for (way, standing, told) in [
        (Way::Loops, Standing::Running, "timed out after 100ms: the lock is held by rank 1 (pid "),
        (Way::IsStopped, Standing::Stopped, "timed out after 100ms: the lock is held by rank 1 (pid "),
        (Way::Returns, Standing::Returned, " died or panicked while it held the lock"),
    ] {
        for options in all_options(way) {
            watched(|| {
                let given = (way, Lock::new(0).unwrap(), board(4));
                let error = start_processes(want, given, options).unwrap().join().unwrap_err();
                let exception = assert_rank_1_kept_waiting(error, &[standing]);
                assert!(exception.chain().concat().contains(told), "{exception}");
            });
        }
    }
}

#[test]
fn rank_that_is_killed_with_a_lock_is_blamed_itself() {
    for options in all_options(Way::IsKilled) {
        watched(|| {
            let given = (Way::IsKilled, Lock::new(0).unwrap(), board(4));
            let error = start_processes(want, given, options).unwrap().join().unwrap_err();
            assert_eq!(common::exited(error).error_index(), 1);
        });
    }
}

#[test]
fn failure_of_its_own_is_reported_though_consequences_came_before() {
    watched(|| {
        let given = (Way::Fails, Lock::new(0).unwrap(), board(4));
        let options = Options::new(4).grace_period(LONG);
        let error = start_processes(want, given, options).unwrap().join().unwrap_err();
        let exception = raised(error);
        assert_eq!((exception.error_index(), exception.chain()[0].as_str()), (1, "rank 1 is out of luck"));
        assert_others_are_secondary(&exception);
        let zero = exception.outcomes()[0].error().unwrap();
        assert!(
            zero.message().starts_with("step 7: timed out after 100ms: the lock is held by rank 1 (pid ")
        );
    });
}

/// Rank 1 is in the middle of taking a value when it is stopped; one is there for the others, or for nobody.
fn take(rank: usize, (queue, pids): (Queue<u8>, Tensor<i64>)) -> anyhow::Result<()> {
    if rank == 1 {
        post(&pids, 1, std::process::id());
        queue.get()?;
        return Ok(());
    }
    let pid = await_post(&pids, 1);
    await_that(|| state_of(pid) == Some('T'));
    await_post(&pids, 0);
    queue.get_timeout(SHORT).map(drop).map_err(anyhow::Error::from)
}

#[test]
fn rank_that_is_stopped_as_it_takes_a_value_is_blamed_for_those_who_want_one() {
    for options in all_options(Way::IsStopped) {
        watched(|| {
            let (queue, pids) = (Queue::bounded(8).unwrap(), board(4));
            let mut context = start_processes(take, (queue.clone(), pids.clone()), options).unwrap();
            let pid = await_post(&pids, 1);
            await_asleep(pid);
            send(pid, SIGSTOP);
            await_that(|| state_of(pid) == Some('T'));
            queue.put(1).unwrap();
            post(&pids, 0, 1);
            let error = common::poll_join(&mut context).unwrap_err();
            let exception = assert_rank_1_kept_waiting(error, &[Standing::Stopped]);
            let told =
                "timed out after 100ms: there are values, but the consumers' side is held by rank 1 (pid ";
            assert!(exception.chain().concat().contains(told), "{exception}");
        });
    }
}

/// Rank 1 is to put a value.
fn expect(rank: usize, (way, queue, pids): (Way, Queue<u8>, Tensor<i64>)) -> anyhow::Result<()> {
    if rank == 1 {
        return misbehave(way, &pids);
    }
    await_misdeed(way, &pids);
    queue.get_timeout(SHORT).map(drop).map_err(anyhow::Error::from)
}

#[test]
fn empty_queue_blames_nobody_who_is_not_known_to_be_the_cause() {
    for way in [Way::Loops, Way::IsStopped, Way::Returns] {
        for options in all_options(way) {
            watched(|| {
                let given = (way, Queue::bounded(8).unwrap(), board(4));
                let error = start_processes(expect, given, options).unwrap().join().unwrap_err();
                let exception = raised(error);
                assert_eq!(
                    exception.chain(),
                    ["timed out after 100ms: nobody put a value into the empty queue"],
                    "{exception}"
                );
                assert_eq!((exception.culprits(), exception.error_index() == 1), (&[][..], false));
                let kind = exception.outcomes()[exception.error_index()].failure_kind();
                assert_eq!(kind, Some(&FailureKind::Consequence { of: vec![] }));
                assert!(exception.to_string().starts_with("-- Process"), "{exception}");
            });
        }
    }
    for way in [Way::IsKilled, Way::Fails] {
        for options in all_options(way) {
            watched(|| {
                let given = (way, Queue::bounded(8).unwrap(), board(4));
                let error = start_processes(expect, given, options).unwrap().join().unwrap_err();
                let first = match &error {
                    Error::ProcessRaised(exception) => exception.error_index(),
                    Error::ProcessExited(exception) => exception.error_index(),
                    other => panic!("{other}"),
                };
                assert_eq!(first, 1, "{error}");
            });
        }
    }
}

/// Rank 1 takes a task and does not do it.
fn toil(rank: usize, (tasks, pids): (JoinableQueue<u8>, Tensor<i64>)) -> anyhow::Result<()> {
    if rank == 1 {
        tasks.get()?;
        return misbehave(Way::Loops, &pids);
    }
    await_post(&pids, 1);
    tasks.join_timeout(SHORT).unwrap();
    Ok(())
}

#[test]
fn rank_that_does_not_do_its_task_is_blamed_and_a_panic_is_a_consequence_too() {
    watched(|| {
        let (tasks, pids) = (JoinableQueue::bounded(8).unwrap(), board(4));
        tasks.put(1).unwrap();
        let error = start_processes(toil, (tasks, pids), Options::new(4)).unwrap().join().unwrap_err();
        let Error::ProcessRaised(exception) = error else { panic!("{error}") };
        let text = exception.to_string();
        assert!(exception.error().is_panic() && exception.culprits().len() == 1, "{text}");
        assert_eq!(exception.culprits()[0].peer.rank(), Some(1), "{text}");
        assert!(text.starts_with("rank 1 (pid "), "{text}");
    });
}

/// Two that wait for each other.
fn embrace(rank: usize, (locks, taken): ([Lock<u8>; 2], [Event; 2])) -> anyhow::Result<()> {
    let _own = locks[rank].lock()?;
    taken[rank].set();
    taken[1 - rank].wait()?;
    let timeout = if rank == 0 { SHORT } else { LONG };
    // Not given back: the other is not to go on.
    let _other = std::mem::ManuallyDrop::new(locks[1 - rank].lock_timeout(timeout)?);
    wait_for_ever()
}

#[test]
fn of_two_who_wait_for_each_other_the_one_that_goes_on_is_named() {
    watched(|| {
        let locks = [0, 0].map(|value| Lock::new(value).unwrap());
        let taken = [(); 2].map(|()| Event::new().unwrap());
        let error = start_processes(embrace, (locks, taken), Options::new(2)).unwrap().join().unwrap_err();
        let exception = raised(error);
        assert_eq!(
            (exception.error_index(), exception.culprits()[0].peer.rank()),
            (0, Some(1)),
            "{exception}"
        );
    });
}

#[test]
fn those_who_wait_for_one_another_in_a_circle_are_told() {
    let work = |rank: usize, (locks, pids): ([Lock<u8>; 3], Tensor<i64>)| -> anyhow::Result<()> {
        let _own = locks[rank].lock()?;
        post(&pids, rank, 1);
        (0..3).for_each(|rank| _ = await_post(&pids, rank));
        let waited = locks[(rank + 1) % 3].lock_timeout(SHORT).map(drop);
        // Nobody goes on because another has given up.
        post(&pids, 3 + rank, 1);
        (3..6).for_each(|rank| _ = await_post(&pids, rank));
        Ok(waited?)
    };
    watched(|| {
        let locks = [0, 0, 0].map(|value| Lock::new(value).unwrap());
        let options = Options::new(3).grace_period(LONG);
        let error = start_processes(work, (locks, board(6)), options).unwrap().join().unwrap_err();
        let exception = raised(error);
        let (first, text) = (exception.error_index(), exception.to_string());
        let next = &exception.outcomes()[(first + 1) % 3];
        let lead = format!(
            "rank {} (pid {}) kept rank {first} waiting: it was waiting as well, and none of them could go on\n\n",
            next.rank(),
            next.pid()
        );
        assert!(text.starts_with(&lead), "{text}");
        assert_eq!(text.matches(" s later, rank ").count(), 2, "{text}");
    });
}

#[test]
fn launcher_knows_the_ranks_of_those_it_waits_for_and_is_known_itself() {
    let work = |rank, (barrier, lock, pids): (Barrier, Lock<u8>, Tensor<i64>)| -> anyhow::Result<()> {
        if rank == 1 {
            post(&pids, 1, std::process::id());
            wait_for_ever();
        }
        if rank == 0 {
            drop(lock.lock_timeout(SHORT)?);
            return Ok(());
        }
        barrier.wait()?;
        Ok(())
    };
    watched(|| {
        let (barrier, lock, pids) = (Barrier::new(4).unwrap(), Lock::new(0).unwrap(), board(3));
        let held = lock.lock().unwrap();
        let given = (barrier.clone(), lock.clone(), pids.clone());
        let mut context = start_processes(work, given, Options::new(3)).unwrap();
        await_post(&pids, 1);
        await_that(|| barrier.waiting() == 1);
        let told = barrier.wait_timeout(SHORT).unwrap_err().to_string();
        assert!(told.contains("2 of 4 came to the barrier; missing: "), "{told}");
        assert!(told.contains(&format!("rank 1 (pid {})", context.pids()[1])), "{told}");
        let exception = raised(common::poll_join(&mut context).unwrap_err());
        drop(held);
        let own = std::process::id();
        let text = exception.to_string();
        assert!(text.contains(&format!("the launcher (pid {own})")), "{text}");
        let peers = exception.outcomes().iter().map(|outcome| outcome.status() == Status::Succeeded);
        assert_eq!(peers.filter(|&succeeded| succeeded).count(), 0);
    });
}
