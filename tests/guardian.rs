//! The guardian: when a launcher is killed, what its workers have started is ended too.

mod common;
#[path = "common/seccomp.rs"]
mod seccomp;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{await_post, await_that, board, post, race_time, wait_for_ever, watched};
use phalanx::{Options, StartMethod, Tensor, start_processes};

phalanx::auto_init!();

/// The variable by which the processes of one test are found again.
const TAG: &str = "PHALANX_TEST_TAG";

/// Living processes that were started with this tag.
fn tagged(tag: &str) -> BTreeSet<u32> {
    common::tagged(TAG, tag)
}

/// Waits until nobody is left, which the watchdog limits; returns how long that took from the kill on. On a machine that
/// is not overloaded it is some milliseconds: the promise is a second.
fn await_nobody(tag: &str, killed: Instant) -> Duration {
    await_that(|| tagged(tag).is_empty());
    killed.elapsed()
}

#[expect(clippy::print_stdout, reason = "a long run is to show it")]
fn show(longest: Duration, rounds: u32) {
    println!("the longest of {rounds} rounds until nobody was left: {longest:?}");
}

/// A worker with a child and a grandchild of its own, which ignores SIGTERM.
fn with_children(rank: usize, ready: Tensor<i64>) -> anyhow::Result<()> {
    let script = "trap '' TERM; sleep 1000 & sleep 1000; wait";
    let _child = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn()?;
    ready.fetch_add(0, 1 << (8 * rank))?;
    wait_for_ever()
}

/// Each start method, on this kernel and as if it were older than 6.9.
fn ways() -> impl Iterator<Item = (StartMethod, bool)> {
    let methods = [StartMethod::Spawn, StartMethod::Fork, StartMethod::ForkServer];
    methods.into_iter().flat_map(|method| [(method, false), (method, true)])
}

/// A launcher of such workers, of whose methods `Fork` only works in a process with one thread.
fn launch(_: usize, (method, old, ready): (StartMethod, bool, Tensor<i64>)) -> anyhow::Result<()> {
    const PIDFD_SIGNAL_PROCESS_GROUP: u32 = 1 << 2;
    if old {
        let flags = seccomp::Where::Has(3, PIDFD_SIGNAL_PROCESS_GROUP);
        seccomp::refuse_where(libc::SYS_pidfd_send_signal, flags, libc::EINVAL);
    }
    let options = Options::new(3).start_method(method).guardian(true);
    start_processes(with_children, ready, options)?.join()?;
    Ok(())
}

fn tag_of(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

#[test]
fn nobody_is_left_after_a_launcher_was_killed_at_any_moment() {
    watched(|| {
        let end = Instant::now() + race_time();
        let (mut round, mut longest) = (0, Duration::ZERO);
        while Instant::now() < end {
            for (method, old) in ways() {
                round += 1;
                let (tag, ready) = (tag_of(&format!("race-{round}")), board(1));
                let options = Options::new(1).env(TAG, &tag).daemon(true);
                let mut context = start_processes(launch, (method, old, ready), options).unwrap();
                // Moments that the golden ratio spreads evenly over a start.
                let moment = Duration::from_micros(
                    (f64::from(round) * 0.618_033_988_75).fract().mul_add(30_000.0, 1.0) as u64,
                );
                assert!(!context.join_timeout(moment).unwrap());
                // Not by the context: it would sweep the launcher's group.
                common::send(context.pids()[0], nix::sys::signal::Signal::SIGKILL);
                let killed = Instant::now();
                longest = longest.max(await_nobody(&tag, killed));
                assert!(common::poll_join(&mut context).is_err());
            }
        }
        show(longest, round);
    });
}

#[test]
fn guarded_workers_with_children_are_all_ended_with_their_launcher() {
    watched(|| {
        for (method, old) in ways() {
            let (tag, ready) = (tag_of(&format!("{method:?}-{old}")), board(1));
            let options = Options::new(1).env(TAG, &tag).daemon(true);
            let mut context = start_processes(launch, (method, old, ready.clone()), options).unwrap();
            await_that(|| ready.get(0).unwrap() == 0x01_01_01);
            // Launcher, server, 3 workers, 3 shells, and what these have started. Not at once: posix_spawn(3) returns when the
            // shell's execve(2) has its new memory, and only then the kernel notes where the environment lies in it.
            await_that(|| tagged(&tag).len() >= 8);
            common::send(context.pids()[0], nix::sys::signal::Signal::SIGKILL);
            let killed = Instant::now();
            await_nobody(&tag, killed);
            assert!(common::poll_join(&mut context).is_err());
        }
    });
}

#[test]
fn stopped_server_does_not_keep_anybody_alive() {
    fn launch_and_stop_the_server(_: usize, ready: Tensor<i64>) -> anyhow::Result<()> {
        let options = Options::new(2).start_method(StartMethod::ForkServer);
        let context = start_processes(with_children, ready.clone(), options)?;
        await_that(|| ready.get(0).unwrap() == 0x01_01);
        common::send(phalanx::ForkServer::pid().unwrap(), nix::sys::signal::Signal::SIGSTOP);
        post(&ready, 1, 1);
        context.join()?;
        Ok(())
    }
    watched(|| {
        let (tag, ready) = (tag_of("stopped"), board(2));
        let options = Options::new(1).env(TAG, &tag).daemon(true);
        let mut context = start_processes(launch_and_stop_the_server, ready.clone(), options).unwrap();
        await_post(&ready, 1);
        common::send(context.pids()[0], nix::sys::signal::Signal::SIGKILL);
        let killed = Instant::now();
        await_nobody(&tag, killed);
        assert!(common::poll_join(&mut context).is_err());
    });
}

#[test]
fn worker_without_a_death_signal_is_let_go() {
    fn outlive(_: usize, board: Tensor<i64>) -> anyhow::Result<()> {
        post(&board, 0, std::process::id());
        await_post(&board, 1);
        post(&board, 2, 1);
        Ok(())
    }
    fn launch_one(_: usize, (method, board): (StartMethod, Tensor<i64>)) -> anyhow::Result<()> {
        let options = Options::new(1).start_method(method).guardian(true).death_signal(None);
        start_processes(outlive, board, options)?.join()?;
        Ok(())
    }
    watched(|| {
        for method in [StartMethod::Spawn, StartMethod::ForkServer] {
            let board = board(3);
            let mut context = start_processes(launch_one, (method, board.clone()), Options::new(1)).unwrap();
            let pid = await_post(&board, 0);
            common::send(context.pids()[0], nix::sys::signal::Signal::SIGKILL);
            assert!(common::poll_join(&mut context).is_err());
            post(&board, 1, 1);
            assert_eq!(await_post(&board, 2), 1, "{method:?}");
            common::await_end(pid);
        }
    });
}
