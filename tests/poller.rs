//! Programs that poll the descriptor, and workers that a debugger holds.

mod common;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::{
    await_post, await_that, board, fail_or_ignore_term, poll_join, post, raised, state_of, wait_for_ever,
    watched,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use phalanx::{Options, ProcessContext, Status, Tensor, start_processes};

phalanx::auto_init!();

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
        while context.outcomes().unwrap()[0].status().is_alive() {
            poll(&mut [PollFd::new(context.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
        }
        assert!(!asleep_for_the_most(|| context.join_timeout(Duration::from_millis(300)).unwrap()));
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
            assert!(!asleep_for_the_most(|| context.join_timeout(Duration::from_millis(300)).unwrap()));
        }
        post(&debugging, 1, 1);
        debugger.join().unwrap();
        poll_join(&mut context).unwrap();
        assert_eq!(context.into_results().unwrap(), [5]);
    });
}

/// Sees that `call` waits and does not spin: however slow the machine is, it computes for less than half of its time.
fn asleep_for_the_most<T>(call: impl FnOnce() -> T) -> T {
    let (start, before) = (Instant::now(), cpu_time());
    let result = call();
    let (used, passed) = (cpu_time() - before, start.elapsed());
    assert!(used < passed / 2, "{used:?} of {passed:?}");
    result
}

/// What this thread has computed so far.
fn cpu_time() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD).unwrap();
    let time = usage.user_time() + usage.system_time();
    Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000)
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
