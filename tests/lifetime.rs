//! Who outlives whom: launchers that die, threads that end, workers with children of their own.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    await_end, await_post, await_that, board, children, kill_self, pidfd, post, race_time, send, state_of,
    wait_for_ever, watched,
};
use nix::sys::signal::Signal as NixSignal;
use phalanx::{Error, Options, Signal, StartMethod, Status, Tensor, spawn, start_processes};

phalanx::auto_init!();

/// The variable by which the processes of one test are found again.
const TAG: &str = "PHALANX_TEST_TAG";

/// Living processes that were started with this tag.
fn tagged(tag: &str) -> BTreeSet<u32> {
    common::tagged(TAG, tag)
}

/// Waits until nobody with this tag is left.
fn await_nobody(tag: &str) {
    loop {
        let left = tagged(tag);
        if left.is_empty() {
            return;
        }
        left.into_iter().for_each(await_end);
    }
}

/// A launcher in a process of its own: starts `nprocs` idle workers, then says so.
fn launch_idle(_: usize, (nprocs, ready): (usize, Tensor<i64>)) -> anyhow::Result<()> {
    let context =
        start_processes(|_, ()| -> anyhow::Result<()> { wait_for_ever() }, (), Options::new(nprocs))?;
    post(&ready, 0, 1);
    context.join()?;
    Ok(())
}

#[test]
fn launcher_killed_at_any_moment_of_a_start_leaves_nobody() {
    watched(|| {
        let end = Instant::now() + race_time();
        // How long a whole start takes here, so that the kills fall into all of it.
        let whole = {
            let ready = board(1);
            let start = Instant::now();
            let mut context = start_processes(launch_idle, (8, ready.clone()), Options::new(1)).unwrap();
            await_post(&ready, 0);
            context.kill().unwrap();
            start.elapsed()
        };
        let mut round = 0;
        while Instant::now() < end || round <= 3 {
            round += 1;
            let tag = format!("{}-{round}", std::process::id());
            let options = Options::new(1).env(TAG, &tag).daemon(true);
            let mut context = start_processes(launch_idle, (8, board(1)), options).unwrap();
            // Moments that the golden ratio spreads evenly over one and a half starts.
            let moment = whole.mul_f64(1.5 * (f64::from(round) * 0.618_033_988_75).fract());
            assert!(!context.join_timeout(moment).unwrap());
            context.kill().unwrap();
            assert!(context.join().is_err());
            await_nobody(&tag);
        }
    });
}

#[test]
fn launcher_under_nohup_that_is_killed_leaves_nobody() {
    fn launch(_: usize, ready: Tensor<i64>) -> anyhow::Result<()> {
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
            #[expect(unsafe_code, reason = "signal(2) is unsafe")]
            // SAFETY: SIG_IGN runs no code.
            unsafe {
                libc::signal(signal, libc::SIG_IGN)
            };
        }
        launch_idle(0, (3, ready))
    }
    watched(|| {
        let (tag, ready) = (format!("nohup-{}", std::process::id()), board(1));
        let mut context = start_processes(launch, ready.clone(), Options::new(1).env(TAG, &tag)).unwrap();
        await_post(&ready, 0);
        // A worker that has just been started has no environment yet for an instant.
        await_that(|| tagged(&tag).len() == 4);
        context.kill().unwrap();
        assert!(context.join().is_err());
        await_nobody(&tag);
    });
}

#[test]
fn whole_tree_goes_with_its_root() {
    fn tree(rank: usize, (depth, ready): (u32, Tensor<i64>)) -> anyhow::Result<()> {
        if depth == 0 {
            ready.fetch_add(0, 1)?;
            wait_for_ever()
        }
        start_processes(tree, (depth - 1, ready), Options::new(2 + rank % 2))?.join()?;
        Ok(())
    }
    watched(|| {
        let (tag, ready) = (format!("tree-{}", std::process::id()), board(1));
        let mut context = start_processes(tree, (2, ready.clone()), Options::new(1).env(TAG, &tag)).unwrap();
        await_that(|| ready.get(0).unwrap() == 5);
        context.signal(0, Signal::KILL).unwrap();
        assert!(context.join().is_err());
        await_nobody(&tag);
    });
}

#[test]
fn thread_that_started_workers_may_end() {
    watched(|| {
        let gate = board(1);
        let arguments = gate.clone();
        let starter = std::thread::spawn(move || {
            let work = |_, gate: Tensor<i64>| anyhow::Ok(await_post(&gate, 0));
            start_processes(work, arguments, Options::new(3)).unwrap()
        });
        let mut context = starter.join().unwrap();
        // The thread is gone: a worker bound to it would be dead.
        assert!(!context.join_timeout(Duration::from_millis(100)).unwrap());
        post(&gate, 0, 6);
        assert_eq!(context.join().unwrap(), [6, 6, 6]);
    });
}

#[test]
fn death_signal_may_be_another_or_none() {
    fn launch(_: usize, (signal, ready): (Option<Signal>, Tensor<i64>)) -> anyhow::Result<()> {
        let work = |_, ready: Tensor<i64>| {
            post(&ready, 0, std::process::id());
            wait_for_ever()
        };
        let work = move |rank, ready| -> anyhow::Result<()> { work(rank, ready) };
        start_processes(work, ready, Options::new(1).death_signal(signal))?.join()?;
        Ok(())
    }
    watched(|| {
        for signal in [Some(Signal::TERM), None] {
            let ready = board(1);
            let mut context = start_processes(launch, (signal, ready.clone()), Options::new(1)).unwrap();
            let worker = await_post(&ready, 0);
            let handle = pidfd(worker).unwrap();
            context.kill().unwrap();
            assert!(context.join().is_err());
            if signal.is_none() {
                assert!(state_of(worker).is_some_and(|state| state != 'Z'), "it outlives its launcher");
                send(worker, NixSignal::SIGKILL);
            }
            await_end(worker);
            drop(handle);
        }
    });
}

/// Gives up root, which a process cannot take back.
fn become_nobody() -> anyhow::Result<()> {
    nix::unistd::setgid(nix::unistd::Gid::from_raw(65_534))?;
    nix::unistd::setuid(nix::unistd::Uid::from_raw(65_534))?;
    Ok(())
}

#[test]
#[expect(clippy::print_stdout, reason = "what was not tested is said")]
fn workers_of_a_launcher_that_gave_up_root_go_with_it() {
    fn work(rank: usize, ready: Tensor<i64>) -> anyhow::Result<()> {
        if rank == 2 {
            become_nobody()?;
        }
        post(&ready, rank, std::process::id());
        if rank == 1 {
            send(std::process::id(), NixSignal::SIGSTOP);
        }
        wait_for_ever()
    }
    fn launch(_: usize, (method, ready): (StartMethod, Tensor<i64>)) -> anyhow::Result<()> {
        let options = Options::new(3).start_method(method);
        let context = start_processes(work, ready.clone(), options)?;
        let pids = [0, 1, 2].map(|rank| await_post(&ready, rank));
        await_that(|| state_of(pids[1]) == Some('T'));
        become_nobody()?;
        std::mem::forget(context);
        kill_self()
    }
    if !nix::unistd::geteuid().is_root() {
        return println!("not tested: only root can give up root");
    }
    watched(|| {
        for method in [StartMethod::Spawn, StartMethod::Fork, StartMethod::ForkServer] {
            let tag = format!("nobody-{method:?}-{}", std::process::id());
            let options = Options::new(1).env(TAG, &tag);
            let context = start_processes(launch, (method, board(3)), options).unwrap();
            let exception = common::exited(context.join().unwrap_err());
            assert_eq!(exception.signal_name().as_deref(), Some("SIGKILL"), "{exception}");
            await_nobody(&tag);
        }
    });
}

/// Starts a child of the worker's own, which would sleep for a long time.
fn start_grandchild(pids: &Tensor<i64>) -> anyhow::Result<()> {
    let child = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn()?;
    post(pids, 0, child.id());
    // Never waited for: the worker is to leave it behind.
    std::mem::forget(child);
    Ok(())
}

#[test]
fn children_of_a_worker_go_with_it_however_it_ends() {
    fn work(_: usize, (how, pids): (u32, Tensor<i64>)) -> anyhow::Result<()> {
        start_grandchild(&pids)?;
        await_post(&pids, 1);
        match how {
            0 => Ok(()),
            1 => kill_self(),
            2 => anyhow::bail!("failed"),
            3 => std::process::abort(),
            _ => wait_for_ever(),
        }
    }
    watched(|| {
        for how in 0..5 {
            let pids = board(2);
            let mut context = start_processes(work, (how, pids.clone()), Options::new(1)).unwrap();
            let grandchild = await_post(&pids, 0);
            let handle = pidfd(grandchild).unwrap();
            assert!(!context.join_timeout(Duration::ZERO).unwrap());
            post(&pids, 1, 1);
            match how {
                4 => drop(context),
                _ => assert_eq!(context.join().is_ok(), how == 0),
            }
            drop(handle);
            await_end(grandchild);
        }
    });
}

#[test]
fn children_of_a_worker_go_with_it_though_somebody_else_reaped_it() {
    fn work(_: usize, pids: Tensor<i64>) -> anyhow::Result<()> {
        start_grandchild(&pids)?;
        kill_self()
    }
    watched(|| {
        let pids = board(1);
        let context = start_processes(work, pids.clone(), Options::new(1)).unwrap();
        let grandchild = await_post(&pids, 0);
        let worker = nix::unistd::Pid::from_raw(context.pids()[0] as i32);
        nix::sys::wait::waitpid(worker, None).unwrap();
        assert!(context.join().is_err());
        if kernel_signals_groups_by_pidfd() {
            await_end(grandchild);
        } else {
            send(grandchild, NixSignal::SIGKILL);
        }
    });
}

/// Linux 6.9 and newer: without that a group whose leader is reaped has no handle that is safe to use.
fn kernel_signals_groups_by_pidfd() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(9))
}

#[test]
fn children_of_a_victim_go_with_it() {
    fn work(rank: usize, pids: Tensor<i64>) -> anyhow::Result<()> {
        if rank == 0 {
            await_post(&pids, 1);
            anyhow::bail!("the first")
        }
        start_grandchild(&pids)?;
        wait_for_ever()
    }
    watched(|| {
        let pids = board(2);
        let context = start_processes(work, pids.clone(), Options::new(2)).unwrap();
        let grandchild = await_post(&pids, 0);
        post(&pids, 1, 1);
        assert!(context.join().is_err());
        await_end(grandchild);
    });
}

#[test]
fn interrupt_of_the_launchers_group_does_not_reach_the_workers() {
    // As Ctrl-C does: to the foreground group, which is the launcher's.
    fn launch(_: usize, _: ()) -> anyhow::Result<bool> {
        let work = |_, ()| -> anyhow::Result<()> { wait_for_ever() };
        let mut context = start_processes(work, (), Options::new(2))?;
        #[expect(unsafe_code, reason = "signal(2) is unsafe")]
        // SAFETY: SIG_IGN runs no code.
        unsafe {
            libc::signal(libc::SIGINT, libc::SIG_IGN)
        };
        nix::sys::signal::killpg(nix::unistd::getpgrp(), NixSignal::SIGINT)?;
        let ended = context.join_timeout(Duration::from_millis(50))?;
        Ok(!ended && context.status(0)? == Status::Running)
    }
    watched(|| assert_eq!(spawn(launch, (), 1).unwrap(), [true]));
}

#[test]
fn worker_that_fails_while_others_start_their_children_leaves_nobody() {
    // Random moments again: rank 0 is killed while its siblings start children.
    fn work(rank: usize, started: Tensor<i64>) -> anyhow::Result<()> {
        loop {
            start_grandchild(&started)?;
            if rank == 0 && started.get(0)? % 3 == 0 {
                kill_self();
            }
        }
    }
    watched(|| {
        let end = Instant::now() + race_time().min(Duration::from_secs(10)) / 2;
        let mut round = 0;
        while Instant::now() < end {
            round += 1;
            let tag = format!("fork-{}-{round}", std::process::id());
            let options = Options::new(3).env(TAG, &tag).grace_period(Duration::ZERO);
            let error = start_processes(work, board(1), options).unwrap().join().unwrap_err();
            assert!(matches!(error, Error::ProcessExited(_)), "{error}");
            await_nobody(&tag);
        }
        assert!(children().is_empty());
    });
}
