//! Joining: which failure is reported, what the others' outcomes are, and how long each call takes.

mod common;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{
    await_end, await_post, await_that, board, children, kill_self, post, send, state_of, wait_for_ever,
    watched,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal as NixSignal;
use phalanx::{
    Cause, Error, Options, ProcessContext, Signal, Status, Tensor, start_processes, start_processes_with,
};

phalanx::auto_init!();

const SOON: Duration = Duration::from_millis(20);

/// Polls until something else than "still running" comes.
fn poll_join<R>(context: &mut ProcessContext<R>) -> Result<(), Error> {
    while !context.join_timeout(SOON)? {}
    Ok(())
}

fn raised(error: Error) -> phalanx::ProcessRaisedException {
    match error {
        Error::ProcessRaised(exception) => *exception,
        other => panic!("{other}"),
    }
}

fn exited(error: Error) -> phalanx::ProcessExitedException {
    match error {
        Error::ProcessExited(exception) => *exception,
        other => panic!("{other}"),
    }
}

#[test]
fn join_timeout_is_false_while_something_runs_and_true_ever_after() {
    watched(|| {
        let gate = board(2);
        let wait = |rank, gate: Tensor<i64>| anyhow::Ok(await_post(&gate, rank));
        let mut context = start_processes(wait, gate.clone(), Options::new(2)).unwrap();
        assert!(!context.join_timeout(Duration::ZERO).unwrap());
        post(&gate, 1, 11);
        await_that(|| context.status(1).unwrap() == Status::Succeeded);
        assert!(!context.join_timeout(SOON).unwrap());
        assert_eq!(context.status(0).unwrap(), Status::Running);
        assert!(matches!(context.status(2), Err(Error::NoSuchRank { rank: 2, nprocs: 2 })));
        post(&gate, 0, 10);
        poll_join(&mut context).unwrap();
        assert!(context.join_timeout(Duration::ZERO).unwrap());
        assert!(context.join_timeout(Duration::ZERO).unwrap());
        assert_eq!(context.into_results().unwrap(), [10, 11]);
    });
}

#[test]
fn join_timeout_waits_its_time() {
    watched(|| {
        let mut context = start_processes(
            |_, ()| -> anyhow::Result<()> { wait_for_ever() },
            (),
            Options::new(1).daemon(true),
        )
        .unwrap();
        let start = Instant::now();
        assert!(!context.join_timeout(Duration::from_millis(120)).unwrap());
        assert!(start.elapsed() >= Duration::from_millis(120));
    });
}

/// Rank 0 dies when rank 1 is gone, and rank 1 at once: in the order opposite to their ranks.
fn die_after_the_next(rank: usize, pids: Tensor<i64>) -> anyhow::Result<()> {
    post(&pids, rank, std::process::id());
    if rank + 1 < pids.len() {
        await_end(await_post(&pids, rank + 1));
    }
    kill_self()
}

#[test]
fn first_of_silent_deaths_is_reported_though_nobody_was_waiting() {
    watched(|| {
        let pids = board(4);
        let mut context = start_processes(die_after_the_next, pids.clone(), Options::new(4)).unwrap();
        // Nobody asks until all are dead.
        await_that(|| context.pids().into_iter().all(|pid| state_of(pid) == Some('Z')));
        let exception = exited(poll_join(&mut context).unwrap_err());
        assert_eq!((exception.error_index(), exception.exit_code()), (3, Some(-9)));
        assert_eq!(exception.error_pid(), context.pids()[3]);
        assert!(exception.outcomes().iter().all(|outcome| !outcome.is_victim()), "{exception}");
        assert!(exception.to_string().contains("later, rank 0 "), "{exception}");
    });
}

/// Rank 1 raises; rank 0 sees its end and is killed; both before anybody asks.
fn raise_then_kill(rank: usize, pids: Tensor<i64>) -> anyhow::Result<()> {
    post(&pids, rank, std::process::id());
    if rank == 1 {
        anyhow::bail!("rank 1 was first");
    }
    await_end(await_post(&pids, 1));
    kill_self()
}

#[test]
fn raised_before_a_kill_is_reported() {
    watched(|| {
        let mut context = start_processes(raise_then_kill, board(2), Options::new(2)).unwrap();
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

#[expect(unsafe_code, reason = "signal(2) is unsafe")]
fn ignore_term() {
    // SAFETY: SIG_IGN runs no code.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
}

fn fail_or_ignore_term(rank: usize, ready: Tensor<i64>) -> anyhow::Result<()> {
    if rank == 0 {
        await_post(&ready, 1);
        anyhow::bail!("the first")
    }
    ignore_term();
    post(&ready, rank, 1);
    wait_for_ever()
}

#[test]
fn sibling_that_ignores_sigterm_is_killed_after_the_grace_period() {
    watched(|| {
        let grace = Duration::from_millis(100);
        let start = Instant::now();
        let context =
            start_processes(fail_or_ignore_term, board(2), Options::new(2).grace_period(grace)).unwrap();
        let exception = raised(context.join().unwrap_err());
        assert!(start.elapsed() >= 2 * grace, "grace before SIGTERM and after it");
        let other = &exception.outcomes()[1];
        assert_eq!(other.status(), Status::Signaled { signal: Signal::KILL, core_dumped: false });
        assert!(other.is_victim() && other.cause().is_none());
    });
}

#[test]
fn join_timeout_does_not_outlast_its_time_during_a_teardown() {
    watched(|| {
        // With a grace period of an hour a call that waited for the teardown would meet the watchdog.
        let options = Options::new(2).grace_period(Duration::from_secs(3600));
        let mut context = start_processes(fail_or_ignore_term, board(2), options).unwrap();
        await_that(|| context.status(0).unwrap() == Status::Raised);
        for timeout in [Duration::ZERO, SOON, SOON] {
            assert!(!context.join_timeout(timeout).unwrap());
        }
        context.kill().unwrap();
        assert_eq!(raised(poll_join(&mut context).unwrap_err()).error_index(), 0);
    });
}

#[test]
fn sibling_that_ends_well_within_the_grace_period_is_no_victim() {
    watched(|| {
        let work = |rank, gate: Tensor<i64>| -> anyhow::Result<u32> {
            if rank == 0 { anyhow::bail!("the first") } else { Ok(await_post(&gate, 0)) }
        };
        let gate = board(1);
        let options = Options::new(2).grace_period(Duration::from_secs(3600));
        let mut context = start_processes(work, gate.clone(), options).unwrap();
        await_that(|| context.status(0).unwrap() == Status::Raised);
        assert!(!context.join_timeout(SOON).unwrap());
        post(&gate, 0, 5);
        let exception = raised(poll_join(&mut context).unwrap_err());
        assert_eq!(exception.outcomes()[1].status(), Status::Succeeded);
        assert_eq!(context.result(1).unwrap(), Some(5));
    });
}

#[test]
fn stopped_worker_runs_on_for_join_and_is_ended_by_drop() {
    watched(|| {
        // So long a grace period that only SIGTERM can end it, which a stopped process takes note of when it goes on.
        let options = Options::new(2).grace_period(Duration::from_secs(3600));
        let mut context =
            start_processes(|_, ()| -> anyhow::Result<()> { wait_for_ever() }, (), options).unwrap();
        let pid = context.pids()[0];
        context.signal(0, Signal::STOP).unwrap();
        await_that(|| state_of(pid) == Some('T'));
        assert!(!context.join_timeout(SOON).unwrap());
        assert_eq!(context.status(0).unwrap(), Status::Running);
        drop(context);
        assert_eq!(state_of(pid), None);
    });
}

#[test]
fn two_hundred_workers_at_once() {
    watched(|| {
        let context = start_processes(|rank, ()| anyhow::Ok(rank), (), Options::new(200)).unwrap();
        assert_eq!(context.join().unwrap(), (0..200).collect::<Vec<_>>());
        let work = |rank, ()| -> anyhow::Result<()> {
            if rank == 133 { anyhow::bail!("the one") } else { wait_for_ever() }
        };
        let exception = raised(start_processes(work, (), Options::new(200)).unwrap().join().unwrap_err());
        assert_eq!(exception.error_index(), 133);
        assert_eq!(exception.outcomes().iter().filter(|outcome| outcome.is_victim()).count(), 199);
    });
}

#[test]
fn signal_storm_during_join_timeout_changes_nothing() {
    watched(|| {
        let hits = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&hits);
        #[expect(unsafe_code, reason = "a signal handler")]
        // SAFETY: the handler only counts, which is async-signal-safe.
        let handler = unsafe {
            signal_hook::low_level::register(libc::SIGUSR1, move || {
                let _ = counter.fetch_add(1, Ordering::Relaxed);
            })
        };
        let gate = board(1);
        let work = |_, gate: Tensor<i64>| anyhow::Ok(await_post(&gate, 0));
        let mut context = start_processes(work, gate.clone(), Options::new(2)).unwrap();
        let stop = AtomicBool::new(false);
        let target = nix::sys::pthread::pthread_self();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    nix::sys::pthread::pthread_kill(target, NixSignal::SIGUSR1).unwrap();
                }
            });
            let (start, timeout) = (Instant::now(), Duration::from_millis(200));
            assert!(!context.join_timeout(timeout).unwrap());
            assert!(start.elapsed() >= timeout);
            post(&gate, 0, 3);
            assert_eq!(context.join().unwrap(), [3, 3]);
            stop.store(true, Ordering::Relaxed);
        });
        assert!(hits.load(Ordering::Relaxed) > 0);
        signal_hook::low_level::unregister(handler.unwrap());
    });
}

#[test]
fn drop_ends_workers_gently_daemons_at_once_and_while_panicking() {
    watched(|| {
        let work = |_, ready: Tensor<i64>| -> anyhow::Result<()> {
            ignore_term();
            post(&ready, 0, 1);
            wait_for_ever()
        };
        for daemon in [false, true] {
            let ready = board(1);
            let options = Options::new(1).daemon(daemon).grace_period(Duration::from_millis(50));
            let context = start_processes(work, ready.clone(), options).unwrap();
            await_post(&ready, 0);
            drop(context);
            assert!(children().is_empty());
        }
        // With patience of 30 s for SIGTERM the watchdog would not come, but while panicking it is SIGKILL at once.
        let ready = board(1);
        let outcome = std::panic::catch_unwind(|| {
            let _context =
                start_processes(work, ready.clone(), Options::new(1).grace_period(Duration::from_secs(3600)));
            await_post(&ready, 0);
            panic!("in the launcher");
        });
        assert!(outcome.is_err() && children().is_empty());
    });
}

#[test]
fn detached_workers_go_on_and_are_reaped() {
    watched(|| {
        let gate = board(2);
        let work = |_, gate: Tensor<i64>| {
            await_post(&gate, 0);
            post(&gate, 1, 1);
            anyhow::Ok(())
        };
        let context = start_processes(work, gate.clone(), Options::new(2)).unwrap();
        let pids = context.pids();
        context.detach().unwrap();
        assert!(pids.iter().all(|&pid| state_of(pid).is_some_and(|state| state != 'Z')));
        post(&gate, 0, 1);
        await_that(|| pids.iter().all(|&pid| state_of(pid).is_none()));
        assert_eq!(await_post(&gate, 1), 1);
        await_that(|| {
            std::fs::read_dir("/proc/self/task").unwrap().all(|task| {
                std::fs::read_to_string(task.unwrap().path().join("comm"))
                    .is_ok_and(|name| name != "phalanx-reap\n")
            })
        });
    });
}

#[test]
fn descriptor_is_readable_when_a_worker_has_ended() {
    watched(|| {
        let gate = board(1);
        let work = |_, gate: Tensor<i64>| anyhow::Ok(await_post(&gate, 0));
        let mut context = start_processes(work, gate.clone(), Options::new(1)).unwrap();
        let readable = |context: &ProcessContext<u32>, wait: PollTimeout| {
            poll(&mut [PollFd::new(context.as_fd(), PollFlags::POLLIN)], wait).unwrap() == 1
        };
        assert!(!readable(&context, PollTimeout::ZERO));
        post(&gate, 0, 1);
        assert!(readable(&context, PollTimeout::NONE));
        poll_join(&mut context).unwrap();
        assert!(!readable(&context, PollTimeout::ZERO));
    });
}

#[test]
fn descriptor_wakes_a_poller_for_the_deadlines_of_a_teardown() {
    watched(|| {
        let options = Options::new(2).grace_period(Duration::from_millis(30));
        let mut context = start_processes(fail_or_ignore_term, board(2), options).unwrap();
        // Only ever asks without waiting, when the descriptor says so.
        let error = loop {
            poll(&mut [PollFd::new(context.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
            if let Err(error) = context.join_timeout(Duration::ZERO) {
                break error;
            }
        };
        assert_eq!(raised(error).error_index(), 0);
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
        assert_eq!(exception.cause(), Some(Cause::SignalledByLauncher));
        assert!(exception.outcomes().iter().all(|outcome| !outcome.is_victim()), "there was no teardown yet");
        let mut context = start();
        context.kill().unwrap();
        assert_eq!(exited(poll_join(&mut context).unwrap_err()).cause(), Some(Cause::SignalledByLauncher));
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
fn into_results_before_the_end_is_an_error_and_ends_the_workers() {
    watched(|| {
        let context =
            start_processes(|_, ()| -> anyhow::Result<()> { wait_for_ever() }, (), Options::new(3)).unwrap();
        let error = context.into_results().unwrap_err();
        assert!(matches!(error, Error::StillRunning { running: 3, nprocs: 3 }), "{error}");
        assert!(children().is_empty());
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
        assert!(exception.to_string().contains("taken by somebody else"), "{exception}");
        assert_eq!(context.result(0).unwrap(), Some(7));
    });
}

#[test]
fn context_may_be_joined_on_another_thread_than_it_was_started_on() {
    watched(|| {
        let context =
            std::thread::spawn(|| start_processes(|rank, ()| anyhow::Ok(rank), (), Options::new(2)).unwrap());
        let context = context.join().unwrap();
        assert_eq!(std::thread::spawn(|| context.join().unwrap()).join().unwrap(), [0, 1]);
    });
}

#[test]
fn resource_use_is_told() {
    watched(|| {
        let work = |_, megabytes: usize| -> anyhow::Result<()> {
            let mut memory = vec![1_u8; megabytes << 20];
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(50) {
                memory.iter_mut().step_by(4096).for_each(|byte| *byte = byte.wrapping_add(1));
            }
            anyhow::ensure!(std::hint::black_box(&memory)[0] > 0 || megabytes > 0);
            Ok(())
        };
        let args = |rank: usize| if rank == 0 { 64 } else { 1 };
        let mut context = start_processes_with(work, args, Options::new(2)).unwrap();
        poll_join(&mut context).unwrap();
        let outcomes = context.outcomes().unwrap();
        let usage = outcomes[0].usage();
        assert!(usage.user + usage.system >= Duration::from_millis(20), "{usage:?}");
        let peaks: Vec<_> =
            outcomes.iter().map(|outcome| outcome.usage().peak_memory.unwrap() >> 20).collect();
        assert!(peaks[0] >= 64 && peaks[1] < 64, "{peaks:?}");
        assert!(outcomes[0].lifetime().unwrap() >= Duration::from_millis(50));
    });
}

#[test]
fn peak_memory_is_the_workers_own_though_the_launcher_has_more() {
    watched(|| {
        let ballast = std::hint::black_box(vec![1_u8; 200 << 20]);
        let mut context = start_processes(|_, ()| anyhow::Ok(()), (), Options::new(1)).unwrap();
        poll_join(&mut context).unwrap();
        let peak = context.outcomes().unwrap()[0].usage().peak_memory.unwrap() >> 20;
        assert!(peak < 100, "{peak} MiB of a launcher with {} MiB", ballast.len() >> 20);
    });
}

#[test]
fn drop_does_not_wait_for_the_grace_before_sigterm() {
    watched(|| {
        let work = |rank, ()| -> anyhow::Result<()> {
            if rank == 0 { anyhow::bail!("the first") } else { wait_for_ever() }
        };
        // An endless grace period: only a drop that goes on to SIGTERM at once comes to an end.
        let options = Options::new(2).grace_period(Duration::MAX);
        let mut context = start_processes(work, (), options).unwrap();
        await_that(|| context.status(0).unwrap() == Status::Raised);
        assert!(!context.join_timeout(SOON).unwrap());
        drop(context);
    });
}

#[test]
fn status_does_not_swallow_what_a_poller_waits_for() {
    watched(|| {
        let work = |rank, ()| -> anyhow::Result<()> {
            if rank == 0 { anyhow::bail!("the first") } else { wait_for_ever() }
        };
        let mut context = start_processes(work, (), Options::new(2)).unwrap();
        await_that(|| context.status(0).unwrap() == Status::Raised);
        loop {
            poll(&mut [PollFd::new(context.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
            if context.join_timeout(Duration::ZERO).is_err() {
                break;
            }
            let _ = context.outcomes().unwrap();
        }
        assert_eq!(
            poll(&mut [PollFd::new(context.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap(),
            0
        );
    });
}

#[test]
#[expect(unsafe_code, reason = "fork is what is tested")]
fn fork_of_the_launcher_does_no_harm_by_dropping_its_copy() {
    fn launch(_: usize, _: ()) -> anyhow::Result<Vec<u32>> {
        let gate = board(1);
        let wait = |_, gate: Tensor<i64>| anyhow::Ok(await_post(&gate, 0));
        let mut context = start_processes(wait, gate.clone(), Options::new(2))?;
        // SAFETY: this worker has a single thread.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let refused = matches!(context.join_timeout(SOON), Err(Error::ForeignContext { .. }));
            let refused = refused && matches!(context.kill(), Err(Error::ForeignContext { .. }));
            drop(context);
            // SAFETY: ends the copy.
            unsafe { libc::_exit(if refused { 0 } else { 1 }) };
        }
        let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None)?;
        anyhow::ensure!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)), "{status:?}");
        anyhow::ensure!(!context.join_timeout(SOON)?, "they run on");
        post(&gate, 0, 7);
        Ok(context.join()?)
    }
    watched(|| assert_eq!(phalanx::spawn(launch, (), 1).unwrap(), [[7, 7]]));
}

/// A debugger, which is another process, and does not ask what has become of the worker: posts 1 when it has it, and
/// lets it go when it is posted to.
#[expect(unsafe_code, reason = "nix has ptrace behind a feature of its own")]
fn debug(_: usize, (pid, board): (u32, Tensor<i64>)) -> anyhow::Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_SEIZE passes no memory.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, none, none) } == 0;
    post(&board, 0, if seized { 1 } else { 2 });
    await_post(&board, 1);
    Ok(())
}

#[test]
fn launcher_sleeps_on_when_a_debugger_has_let_go_and_a_poller_is_woken() {
    watched(|| {
        let (gate, debugging) = (board(2), board(2));
        let work = |rank, gate: Tensor<i64>| anyhow::Ok(await_post(&gate, rank));
        let mut context = start_processes(work, gate.clone(), Options::new(2)).unwrap();
        let pid = context.pids()[0];
        let debugger = start_processes(debug, (pid, debugging.clone()), Options::new(1)).unwrap();
        let _ = await_post(&debugging, 0);
        post(&gate, 0, 5);
        await_that(|| state_of(pid).is_none_or(|state| state == 'Z'));
        assert!(!context.join_timeout(Duration::ZERO).unwrap());
        let _ = context.status(0).unwrap();
        post(&debugging, 1, 1);
        debugger.join().unwrap();
        // Only ever looks when the descriptor says so.
        while context.outcomes().unwrap()[0].status() == Status::Running {
            poll(&mut [PollFd::new(context.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
        }
        let before = cpu_time();
        assert!(!context.join_timeout(Duration::from_millis(300)).unwrap());
        assert!(cpu_time() - before < Duration::from_millis(150), "it waits, it does not spin");
        post(&gate, 1, 6);
        assert_eq!(context.join().unwrap(), [5, 6]);
    });
}

#[test]
fn worker_that_a_debugger_holds_does_not_hold_the_launcher() {
    watched(|| {
        let gate = board(1);
        let work = |_, gate: Tensor<i64>| anyhow::Ok(await_post(&gate, 0));
        let mut context = start_processes(work, gate.clone(), Options::new(1)).unwrap();
        let pid = context.pids()[0];
        let debugging = board(2);
        let debugger = start_processes(debug, (pid, debugging.clone()), Options::new(1)).unwrap();
        let seized = await_post(&debugging, 0) == 1;
        post(&gate, 0, 5);
        if seized {
            await_that(|| state_of(pid) == Some('Z'));
            let before = cpu_time();
            assert!(!context.join_timeout(Duration::from_millis(300)).unwrap());
            assert!(cpu_time() - before < Duration::from_millis(150), "it waits, it does not spin");
        }
        post(&debugging, 1, 1);
        debugger.join().unwrap();
        poll_join(&mut context).unwrap();
        assert_eq!(context.into_results().unwrap(), [5]);
    });
}

/// What this thread has computed so far.
fn cpu_time() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD).unwrap();
    let time = usage.user_time() + usage.system_time();
    Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000)
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
fn worker_that_survives_sigkill_is_told_and_not_waited_for() {
    // One that a debugger holds looks as one that hangs in the kernel: it is killed, but never gone.
    fn work(rank: usize, gate: Tensor<i64>) -> anyhow::Result<()> {
        if rank == 0 {
            wait_for_ever();
        }
        await_post(&gate, 0);
        anyhow::bail!("the first")
    }
    watched(|| {
        let (gate, board) = (board(1), board(2));
        let options = Options::new(2).grace_period(Duration::ZERO);
        let context = start_processes(work, gate.clone(), options).unwrap();
        let held = context.pids()[0];
        let debugger = start_processes(debug, (held, board.clone()), Options::new(1)).unwrap();
        let seized = await_post(&board, 0) == 1;
        post(&gate, 0, 1);
        let exception = raised(context.join().unwrap_err());
        assert_eq!(exception.chain(), ["the first"]);
        post(&board, 1, 1);
        debugger.join().unwrap();
        if seized {
            assert_eq!(exception.outcomes()[0].status(), Status::Survived);
            assert!(exception.to_string().contains("survived SIGKILL and was left behind"), "{exception}");
            nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(held as i32), None).unwrap();
        }
    });
}

#[test]
fn detached_failures_do_not_keep_the_reaper_busy() {
    fn launch(_: usize, joins: bool) -> anyhow::Result<Duration> {
        let work = |rank, ()| -> anyhow::Result<()> {
            if rank == 0 { anyhow::bail!("the first") } else { wait_for_ever() }
        };
        let mut context = start_processes(work, (), Options::new(2).grace_period(Duration::from_millis(20)))?;
        while context.status(0)? == Status::Running {}
        if joins {
            anyhow::ensure!(!context.join_timeout(Duration::ZERO)?);
        }
        context.detach()?;
        let before = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
        std::thread::park_timeout(Duration::from_millis(400));
        let after = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
        let used = after.user_time() + after.system_time() - before.user_time() - before.system_time();
        Ok(Duration::from_micros(used.tv_sec() as u64 * 1_000_000 + used.tv_usec() as u64))
    }
    watched(|| {
        for joins in [false, true] {
            let used = phalanx::spawn(launch, joins, 1).unwrap().remove(0);
            assert!(used < Duration::from_millis(200), "{used:?} of 400 ms");
        }
    });
}

#[test]
fn poller_is_woken_again_when_a_large_report_used_up_its_time() {
    watched(|| {
        let work = |rank, ()| -> anyhow::Result<()> {
            if rank == 0 { anyhow::bail!("{}", "x".repeat(100 << 20)) } else { wait_for_ever() }
        };
        let mut context = start_processes(work, (), Options::new(2)).unwrap();
        let error = loop {
            poll(&mut [PollFd::new(context.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
            if let Err(error) = context.join_timeout(Duration::ZERO) {
                break error;
            }
        };
        assert_eq!(raised(error).chain()[0].len(), 100 << 20);
    });
}

#[test]
fn failure_is_reported_though_no_descriptor_is_left_for_the_teardown() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    fn launch(_: usize, _: ()) -> anyhow::Result<Vec<String>> {
        let options = Options::new(2).grace_period(Duration::from_millis(20));
        let context = start_processes(fail_or_ignore_term, board(2), options)?;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, 3, hard)?;
        let error = context.join().unwrap_err();
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        Ok(raised(error).chain().to_vec())
    }
    watched(|| assert_eq!(phalanx::spawn(launch, (), 1).unwrap(), [["the first"]]));
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
