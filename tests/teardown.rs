//! How workers are ended: after a failure, by drop, and not by detach.

mod common;

use std::time::{Duration, Instant};

use common::{
    SOON, await_post, await_that, board, children, fail_or_ignore_term, ignore_term, poll_join, post, raised,
    state_of, wait_for_ever, watched,
};
use phalanx::{Error, Options, Signal, Status, Tensor, start_processes};

phalanx::auto_init!();

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
fn stopped_worker_goes_on_by_sigcont_or_ends_by_sigterm() {
    watched(|| {
        for ended in [false, true] {
            let gate = board(1);
            let work = |_, gate: Tensor<i64>| anyhow::Ok(await_post(&gate, 0));
            let mut context = start_processes(work, gate.clone(), Options::new(1)).unwrap();
            let pid = context.pids()[0];
            context.signal(0, Signal::STOP).unwrap();
            await_that(|| state_of(pid) == Some('T'));
            assert!(context.status(0).unwrap().is_alive());
            post(&gate, 0, 7);
            if ended {
                context.terminate().unwrap();
                let Error::ProcessExited(exception) = context.join().unwrap_err() else { panic!() };
                assert_eq!(exception.exit_code(), Some(-15));
            } else {
                context.signal(0, Signal::CONT).unwrap();
                assert_eq!(context.join().unwrap(), [7]);
            }
        }
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

#[test]
fn detached_failures_do_not_keep_the_reaper_busy() {
    fn launch(_: usize, joins: bool) -> anyhow::Result<(Duration, Duration)> {
        let work = |rank, ()| -> anyhow::Result<()> {
            if rank == 0 { anyhow::bail!("the first") } else { wait_for_ever() }
        };
        let mut context = start_processes(work, (), Options::new(2).grace_period(Duration::from_millis(20)))?;
        while context.status(0)?.is_alive() {}
        if joins {
            anyhow::ensure!(!context.join_timeout(Duration::ZERO)?);
        }
        context.detach()?;
        let start = Instant::now();
        let before = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
        std::thread::park_timeout(Duration::from_millis(400));
        let after = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
        let used = after.user_time() + after.system_time() - before.user_time() - before.system_time();
        let used = Duration::from_micros(used.tv_sec() as u64 * 1_000_000 + used.tv_usec() as u64);
        Ok((used, start.elapsed()))
    }
    watched(|| {
        for joins in [false, true] {
            let (used, passed) = phalanx::spawn(launch, joins, 1).unwrap().remove(0);
            assert!(used < passed / 2, "{used:?} of {passed:?}");
        }
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
