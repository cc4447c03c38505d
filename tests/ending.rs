//! Ending workers that do not exit, and where the system refuses to send signals.

mod common;
#[path = "common/seccomp.rs"]
mod seccomp;

use std::process::{Command, Stdio};
use std::time::Duration;

use common::{
    await_post, await_that, board, by, fail_or_ignore_term, launched, poll_join, post, raised, skipped,
    state_of, wait_for_ever, watched,
};
use phalanx::{Cause, Error, Options, Signal, StartMethod, Status, Tensor, start_processes};

phalanx::auto_init!();

/// Keeps this process from exiting.
#[expect(unsafe_code, reason = "nix has no atexit")]
fn hang_at_exit() {
    extern "C" fn hang() {
        wait_for_ever()
    }
    // SAFETY: the function is a static of this program.
    unsafe { libc::atexit(hang) };
}

#[test]
fn worker_that_has_reported_but_does_not_exit_is_ended_and_its_report_stands() {
    let work = |rank: usize, ()| {
        hang_at_exit();
        anyhow::ensure!(rank == 0, "the report of rank 1");
        Ok(5)
    };
    watched(|| {
        let options = Options::new(2).grace_period(Duration::from_millis(1));
        let mut context = start_processes(work, (), options).unwrap();
        await_that(|| context.outcomes().unwrap().iter().all(|outcome| outcome.status() == Status::Exiting));
        assert!(context.status(0).unwrap().is_alive() && context.result(0).unwrap().is_none());
        let exception = raised(poll_join(&mut context).unwrap_err());
        assert_eq!(exception.chain(), ["the report of rank 1"]);
        let [first, second] = exception.outcomes() else { panic!("{exception}") };
        assert_eq!((first.status(), first.cause()), (Status::Succeeded, Some(Cause::EndedWhileExiting)));
        assert_eq!((second.status(), second.cause()), (Status::Raised, Some(Cause::EndedWhileExiting)));
        assert!(first.to_string().contains("succeeded; its function had ended, but"), "{first}");
        assert_eq!(context.result(0).unwrap(), Some(5));
    });
}

#[test]
fn worker_that_does_not_exit_is_ended_by_sigterm_when_its_context_is_dropped() {
    watched(|| {
        // Only SIGTERM can end it before the watchdog does.
        let options = Options::new(1).grace_period(Duration::from_secs(3600));
        let work = |_, ()| {
            common::ignore_term();
            hang_at_exit();
            anyhow::Ok(())
        };
        let mut context = start_processes(work, (), options).unwrap();
        await_that(|| context.status(0).unwrap() == Status::Exiting);
        drop(context);
    });
}

/// A launcher that gives up root after the start.
#[expect(unsafe_code, reason = "setuid of the whole process, which nix does not wrap for threads either")]
fn give_up_root_and_join(method: StartMethod, death_signal: Signal) -> anyhow::Result<()> {
    let work = |rank, gate: Tensor<i64>| -> anyhow::Result<()> {
        post(&gate, 2 + rank, 1);
        await_post(&gate, rank);
        anyhow::ensure!(rank != 0, "the first");
        Ok(())
    };
    let gate = board(4);
    let options = by(method, 2).death_signal(Some(death_signal));
    let mut context = start_processes(work, gate.clone(), options)?;
    // Both have come to their function: one that has not is refused there.
    for at in 2..4 {
        await_post(&gate, at);
    }
    // SAFETY: takes integers.
    let given_up = unsafe { libc::setgid(65534) } == 0 && unsafe { libc::setuid(65534) } == 0;
    anyhow::ensure!(given_up, "setuid: {}", std::io::Error::last_os_error());
    let refused = context.terminate().unwrap_err();
    anyhow::ensure!(matches!(refused, Error::Signal { rank: 0, .. }), "{refused}");
    post(&gate, 0, 1);
    let exception = raised(poll_join(&mut context).unwrap_err());
    let other = &exception.outcomes()[1];
    if death_signal == Signal::KILL {
        // By the way in which it would have died with its launcher.
        let killed = Status::Signaled { signal: Signal::KILL, core_dumped: false };
        anyhow::ensure!(other.status() == killed && other.is_victim(), "{other}");
        return Ok(());
    }
    // Left at the first signal that was refused: SIGKILL was not tried, nor waited for.
    let cause = Cause::SignalRefused { signal: Signal::TERM, errno: libc::EPERM };
    anyhow::ensure!((other.status(), other.cause()) == (Status::Abandoned, Some(cause)), "{other}");
    let told = exception.to_string();
    anyhow::ensure!(
        told.contains("was left running; the launcher could not send it SIGTERM: Operation not permitted"),
        "{told}"
    );
    anyhow::ensure!(state_of(other.pid()).is_some_and(|state| state != 'Z'), "it runs");
    post(&gate, 1, 1);
    await_that(|| state_of(other.pid()).is_none_or(|state| state == 'Z'));
    Ok(())
}

#[test]
fn worker_that_the_launcher_may_not_signal_is_said_to_be_left_running() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("only root can change its user");
    }
    launched(|_, ()| give_up_root_and_join(StartMethod::Fork, Signal::TERM));
    launched(|_, ()| give_up_root_and_join(StartMethod::Spawn, Signal::TERM));
    launched(|_, ()| give_up_root_and_join(StartMethod::ForkServer, Signal::TERM));
}

#[test]
fn worker_that_the_launcher_may_not_signal_is_killed_by_its_lifeline() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("only root can change its user");
    }
    launched(|_, ()| give_up_root_and_join(StartMethod::Fork, Signal::KILL));
    launched(|_, ()| give_up_root_and_join(StartMethod::Spawn, Signal::KILL));
    launched(|_, ()| give_up_root_and_join(StartMethod::ForkServer, Signal::KILL));
}

/// A launcher that must not send signals by pidfds.
fn end_without_pidfds(method: StartMethod, errno: i32) -> anyhow::Result<()> {
    seccomp::refuse(libc::SYS_pidfd_send_signal, errno);
    let work = |rank: usize, pids: Tensor<i64>| -> anyhow::Result<()> {
        if rank == 1 {
            // It ends by itself should it not be swept, and keeps nobody's output open.
            let mut sleep = Command::new("sleep");
            let sleep = sleep.arg("100").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            post(&pids, 2, sleep.spawn()?.id());
        }
        fail_or_ignore_term(rank, pids)
    };
    let pids = board(3);
    let options = by(method, 2).grace_period(Duration::from_millis(50));
    let exception = raised(start_processes(work, pids.clone(), options)?.join().unwrap_err());
    let other = &exception.outcomes()[1];
    let killed = Status::Signaled { signal: Signal::KILL, core_dumped: false };
    anyhow::ensure!(other.status() == killed && other.is_victim(), "{other}");
    // What it had started was swept.
    let sleep = await_post(&pids, 2);
    await_that(|| state_of(sleep).is_none_or(|state| state == 'Z'));
    Ok(())
}

#[test]
fn workers_are_ended_also_where_signals_by_pidfd_are_refused() {
    launched(|_, ()| end_without_pidfds(StartMethod::Fork, libc::EPERM));
    launched(|_, ()| end_without_pidfds(StartMethod::Spawn, libc::ENOSYS));
    launched(|_, ()| end_without_pidfds(StartMethod::ForkServer, libc::EPERM));
}
