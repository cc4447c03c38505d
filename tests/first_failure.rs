//! Which failure is reported, and what is said of the others.

mod common;

use std::os::fd::AsFd;
use std::time::Duration;

use common::{
    SOON, await_end, await_post, await_that, board, exited, kill_self, poll_join, post, raised, send,
    state_of, wait_for_ever, watched,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal as NixSignal;
use phalanx::sync::{Barrier, Event, Lock};
use phalanx::{Cause, Error, Options, ProcessContext, Signal, Status, Tensor, start_processes};

phalanx::auto_init!();

/// Each rank dies when the next one is gone, and the last one when it is told to: in the order opposite to their ranks.
fn die_after_the_next(rank: usize, (pids, told): (Tensor<i64>, Tensor<i64>)) -> anyhow::Result<()> {
    post(&pids, rank, std::process::id());
    if rank + 1 < pids.len() {
        await_end(await_post(&pids, rank + 1));
    } else {
        await_post(&told, 0);
    }
    kill_self()
}

#[test]
fn first_of_silent_deaths_is_reported_though_nobody_was_waiting() {
    watched(|| {
        let (pids, told) = (board(4), board(1));
        let mut context = start_processes(die_after_the_next, (pids, told.clone()), Options::new(4)).unwrap();
        // By now the launcher watches all of them. A worker is watched a moment after its start: if the last one died before
        // that, the one before it could die before that too, and would be the first of which the launcher hears.
        post(&told, 0, 1);
        // Nobody asks until all are dead.
        await_that(|| context.pids().into_iter().all(|pid| state_of(pid) == Some('Z')));
        let exception = exited(poll_join(&mut context).unwrap_err());
        assert_eq!((exception.error_index(), exception.exit_code()), (3, Some(-9)));
        assert_eq!(exception.error_pid(), context.pids()[3]);
        assert!(exception.outcomes().iter().all(|outcome| !outcome.is_victim()), "{exception}");
        assert!(exception.to_string().contains("later, rank 0 "), "{exception}");
    });
}

/// Rank 1 raises; rank 0 is killed when it is told to.
fn raise_then_kill(rank: usize, board: Tensor<i64>) -> anyhow::Result<()> {
    if rank == 1 {
        anyhow::bail!("rank 1 was first");
    }
    await_post(&board, 0);
    kill_self()
}

#[test]
fn raised_before_a_kill_is_reported() {
    watched(|| {
        let board = board(1);
        let mut context = start_processes(raise_then_kill, board.clone(), Options::new(2)).unwrap();
        // The kernel has the first end in the launcher's list before the second comes. Nobody asks until both are dead.
        let mut ended = [PollFd::new(context.as_fd(), PollFlags::POLLIN)];
        await_end(context.pids()[1]);
        poll(&mut ended, PollTimeout::NONE).unwrap();
        post(&board, 0, 1);
        await_that(|| context.pids().into_iter().all(|pid| state_of(pid) == Some('Z')));
        assert_eq!(raised(poll_join(&mut context).unwrap_err()).chain(), ["rank 1 was first"]);
    });
}

/// Rank 0 raises an error whose text takes until after rank 1 has raised too: it failed first, but ends last.
fn slow_report(rank: usize, board: Tensor<i64>) -> anyhow::Result<()> {
    struct Slow(Tensor<i64>);
    impl std::fmt::Display for Slow {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            post(&self.0, 0, 1);
            await_end(await_post(&self.0, 1));
            f.write_str("slow but first")
        }
    }
    impl std::fmt::Debug for Slow {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Slow")
        }
    }
    impl std::error::Error for Slow {}
    if rank == 0 {
        return Err(Slow(board).into());
    }
    post(&board, 1, std::process::id());
    await_post(&board, 0);
    anyhow::bail!("quick but second")
}

#[test]
fn failure_that_was_recorded_first_is_reported_though_it_ended_last() {
    watched(|| {
        let error = start_processes(slow_report, board(2), Options::new(2)).unwrap().join().unwrap_err();
        let exception = raised(error);
        assert_eq!(exception.chain(), ["slow but first"]);
        assert!(!exception.outcomes()[1].is_victim());
    });
}

#[test]
fn same_error_comes_again_at_every_call() {
    watched(|| {
        let work =
            |rank, ()| -> anyhow::Result<()> { if rank == 1 { panic!("once") } else { wait_for_ever() } };
        let mut context = start_processes(work, (), Options::new(3)).unwrap();
        let first = poll_join(&mut context).unwrap_err().to_string();
        for _ in 0..3 {
            assert_eq!(context.join_timeout(SOON).unwrap_err().to_string(), first);
        }
        assert_eq!(context.join().unwrap_err().to_string(), first);
    });
}

#[test]
fn outcomes_tell_victims_from_successes_and_results_of_these_remain() {
    watched(|| {
        let work = |rank, gate: Tensor<i64>| -> anyhow::Result<usize> {
            match rank {
                0 => Ok(40),
                1 => {
                    await_post(&gate, 0);
                    anyhow::bail!("rank 1 failed")
                }
                _ => wait_for_ever(),
            }
        };
        let gate = board(1);
        let mut context = start_processes(work, gate.clone(), Options::new(3)).unwrap();
        await_that(|| context.status(0).unwrap() == Status::Succeeded);
        post(&gate, 0, 1);
        let exception = raised(poll_join(&mut context).unwrap_err());
        let [zero, one, two] = exception.outcomes() else { panic!("{exception}") };
        assert_eq!((zero.status(), zero.is_victim()), (Status::Succeeded, false));
        assert_eq!((one.status(), one.is_victim()), (Status::Raised, false));
        assert_eq!(two.status(), Status::Signaled { signal: Signal::TERM, core_dumped: false });
        assert!(two.is_victim() && two.cause().is_none());
        assert!(
            exception.to_string().ends_with("other ranks: 1 succeeded, 1 ended by the teardown"),
            "{exception}"
        );
        assert_eq!((context.result(0).unwrap(), context.result(1).unwrap()), (Some(40), None));
        assert_eq!(context.outcomes().unwrap(), exception.outcomes());
    });
}

#[test]
fn signals_of_the_program_are_told_from_others() {
    watched(|| {
        let work = |_, ()| -> anyhow::Result<()> { wait_for_ever() };
        let start = || start_processes(work, (), Options::new(2)).unwrap();
        let mut context = start();
        context.terminate().unwrap();
        let exception = exited(poll_join(&mut context).unwrap_err());
        assert_eq!(exception.signal_name().as_deref(), Some("SIGTERM"));
        assert_eq!(exception.cause(), Some(Cause::SignaledByLauncher));
        assert!(exception.outcomes().iter().all(|outcome| !outcome.is_victim()), "there was no teardown yet");
        let mut context = start();
        context.kill().unwrap();
        assert_eq!(exited(poll_join(&mut context).unwrap_err()).cause(), Some(Cause::SignaledByLauncher));
        let mut context = start();
        context.signal(1, Signal::USR1).unwrap();
        let exception = exited(poll_join(&mut context).unwrap_err());
        assert_eq!((exception.error_index(), exception.exit_code()), (1, Some(-libc::SIGUSR1)));
        context.signal(1, Signal::USR1).unwrap();
        assert!(matches!(context.signal(2, Signal::USR1), Err(Error::NoSuchRank { rank: 2, nprocs: 2 })));
        let mut context = start();
        send(context.pids()[0], NixSignal::SIGTERM);
        assert_eq!(exited(poll_join(&mut context).unwrap_err()).cause(), None);
    });
}

#[test]
fn exit_status_taken_by_others_is_told() {
    watched(|| {
        let pids = board(2);
        let work = |rank, pids: Tensor<i64>| -> anyhow::Result<usize> {
            if rank == 0 {
                return Ok(7);
            }
            post(&pids, 1, std::process::id());
            kill_self()
        };
        let mut context = start_processes(work, pids.clone(), Options::new(2)).unwrap();
        for pid in context.pids() {
            nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid as i32), None).unwrap();
        }
        let exception = exited(poll_join(&mut context).unwrap_err());
        assert_eq!((exception.error_index(), exception.exit_code(), exception.cause()), (1, None, None));
        assert!(exception.to_string().contains("other code of the launcher took it"), "{exception}");
        assert_eq!(context.result(0).unwrap(), Some(7));
    });
}

#[test]
fn consequence_is_not_blamed_when_the_launcher_was_stopped_meanwhile() {
    // Rank 0 is killed and rank 1 fails of it, both while the launcher is stopped inside of its wait.
    fn launch(_: usize, (pids, out): (Tensor<i64>, Tensor<i64>)) -> anyhow::Result<usize> {
        let work = |rank, pids: Tensor<i64>| -> anyhow::Result<()> {
            post(&pids, rank, std::process::id());
            if rank == 0 {
                wait_for_ever();
            }
            await_end(await_post(&pids, 0));
            anyhow::bail!("rank 0 is gone")
        };
        let mut context = start_processes(work, pids, Options::new(2))?;
        post(&out, 0, 1);
        let Err(Error::ProcessExited(exception)) = poll_long(&mut context) else {
            anyhow::bail!("rank 1 was blamed")
        };
        Ok(exception.error_index())
    }
    fn poll_long(context: &mut ProcessContext<()>) -> Result<(), Error> {
        while !context.join_timeout(Duration::from_secs(600))? {}
        Ok(())
    }
    watched(|| {
        let (pids, out) = (board(2), board(1));
        let mut outer = start_processes(launch, (pids.clone(), out.clone()), Options::new(1)).unwrap();
        let launcher = outer.pids()[0];
        await_post(&out, 0);
        let (zero, one) = (await_post(&pids, 0), await_post(&pids, 1));
        await_that(|| state_of(launcher) == Some('S'));
        outer.signal(0, Signal::STOP).unwrap();
        await_that(|| state_of(launcher) == Some('T'));
        send(zero, NixSignal::SIGKILL);
        await_that(|| state_of(one) == Some('Z'));
        // Long enough that "not long before I woke" would be after both ends.
        assert!(!outer.join_timeout(Duration::from_millis(200)).unwrap());
        outer.signal(0, Signal::CONT).unwrap();
        assert_eq!(outer.join().unwrap(), [0]);
    });
}

#[test]
fn signal_to_a_worker_that_is_dead_already_does_not_change_why() {
    watched(|| {
        let mut context =
            start_processes(|_, ()| -> anyhow::Result<()> { kill_self() }, (), Options::new(1)).unwrap();
        let pid = context.pids()[0];
        await_that(|| state_of(pid) == Some('Z'));
        context.signal(0, Signal::KILL).unwrap();
        assert_eq!(exited(poll_join(&mut context).unwrap_err()).cause(), None);
    });
}

#[test]
fn later_failures_are_told_by_their_distance_to_the_first() {
    let work = |rank, pids: Tensor<i64>| -> anyhow::Result<()> {
        post(&pids, rank, std::process::id());
        if rank == 0 {
            await_end(await_post(&pids, 1));
            send(await_post(&pids, 2), NixSignal::SIGKILL);
        }
        anyhow::ensure!(rank == 2, "one of two");
        wait_for_ever()
    };
    watched(|| {
        let options = Options::new(3).grace_period(Duration::from_secs(100));
        let error = start_processes(work, board(3), options).unwrap().join().unwrap_err();
        let exception = raised(error);
        let text = exception.to_string();
        let later: Vec<_> = text.lines().filter(|line| line.contains(" s later, rank ")).collect();
        assert_eq!((exception.error_index(), later.len()), (1, 2), "{text}");
    });
}

/// Takes its time when it is dropped, as a file that is written out.
struct Slow;

impl Drop for Slow {
    fn drop(&mut self) {
        // Nobody sets it.
        if std::thread::panicking() {
            let _ = Event::new().unwrap().wait_timeout(Duration::from_millis(20));
        }
    }
}

/// Rank 1 panics as the owner of a lock for which the others wait.
fn panic_as_owner(rank: usize, (barrier, lock): (Barrier, Lock<u64>)) -> anyhow::Result<()> {
    let _slow = Slow;
    let owned = if rank == 1 { Some(lock.lock()?) } else { None };
    barrier.wait()?;
    assert!(owned.is_none(), "weights became NaN");
    drop(lock.lock()?);
    Ok(())
}

/// The others learn of it while the panic still unwinds, and have reported what it means for them before the panic is.
#[test]
fn panic_is_reported_and_not_what_it_means_for_those_who_learn_of_it_first() {
    watched(|| {
        for _ in 0..5 {
            let error = phalanx::spawn(panic_as_owner, (Barrier::new(3).unwrap(), Lock::new(0).unwrap()), 3)
                .unwrap_err();
            let Error::ProcessRaised(exception) = &error else { panic!("{error}") };
            assert_eq!(
                (exception.error_index(), exception.chain()[0].as_str()),
                (1, "weights became NaN"),
                "{error}"
            );
        }
    });
}
