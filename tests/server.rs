//! What is done to the fork server, and what becomes of its workers.

mod common;

use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use common::{
    await_end, await_post, await_that, board, launched, post, served, start, wait_for_ever, watched,
};
use nix::sys::signal::Signal as NixSignal;
use phalanx::{ForkServer, Options, ProcessContext, StartMethod, Status, Tensor, start_processes};

phalanx::auto_init!();

#[test]
fn killed_server_takes_its_workers_along_is_told_and_followed_by_another() {
    launched(|_, ()| {
        let mut context = start(|_, ()| -> anyhow::Result<()> { wait_for_ever() }, 3);
        let first = ForkServer::pid().unwrap();
        common::send(first, NixSignal::SIGKILL);
        let error = common::poll_join(&mut context).unwrap_err().to_string();
        assert!(error.contains("the fork server died"), "{error}");
        assert!(context.outcomes()?.iter().all(|outcome| outcome.status() == Status::Lost));
        drop(context);
        assert_eq!(start(|rank, ()| Ok(rank), 2).join()?, [0, 1]);
        assert_ne!(ForkServer::pid(), Some(first));
        Ok(())
    });
}

#[test]
fn order_for_which_the_server_has_no_descriptors_left_fails_alone() {
    launched(|_, ()| {
        let board = board(1);
        let work = |_, board: Tensor<i64>| anyhow::Ok(await_post(&board, 0));
        let others = start_processes(work, board.clone(), served(2))?;
        let server = ForkServer::pid().unwrap();
        let few = libc::rlimit { rlim_cur: 100, rlim_max: 100 };
        #[expect(unsafe_code, reason = "nix has no prlimit of another process")]
        // SAFETY: the limit is ours and outlives the call.
        let done = unsafe {
            libc::prlimit(server as i32, libc::RLIMIT_NOFILE, &raw const few, std::ptr::null_mut())
        };
        assert_eq!(done, 0);
        // Each is a descriptor of its own, and all of them are more than one message takes.
        let many: Vec<_> = (0..400).map(|_| Tensor::<u8>::zeros(&[300 << 10])).collect::<Result<_, _>>()?;
        let error = start_processes(|_, _: Vec<Tensor<u8>>| anyhow::Ok(()), many, served(1)).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(" of its 410 descriptors arrived: "), "{error}");
        assert!(error.contains("RLIMIT_NOFILE is 100 of at most 100"), "{error}");
        // Workers could not get more than the server has.
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 100, 100)?;
        assert_eq!(start(|rank, ()| Ok(rank), 2).join()?, [0, 1]);
        post(&board, 0, 5);
        assert_eq!(others.join()?, [5, 5]);
        assert_eq!(ForkServer::pid(), Some(server));
        Ok(())
    });
}

#[test]
fn stopped_server_is_woken() {
    launched(|_, ()| {
        start(|_, ()| Ok(()), 1).join()?;
        for _ in 0..3 {
            common::send(ForkServer::pid().unwrap(), NixSignal::SIGSTOP);
            assert_eq!(start(|rank, ()| Ok(rank), 2).join()?, [0, 1]);
            let board = board(1);
            let work = |_, board: Tensor<i64>| anyhow::Ok(await_post(&board, 0));
            let context = start_processes(work, board.clone(), served(2))?;
            common::send(ForkServer::pid().unwrap(), NixSignal::SIGSTOP);
            post(&board, 0, 5);
            assert_eq!(context.join()?, [5, 5]);
        }
        Ok(())
    });
}

#[test]
fn signals_of_the_terminal_do_not_reach_the_server() {
    launched(|_, ()| {
        start(|_, ()| Ok(()), 1).join()?;
        let server = ForkServer::pid();
        for signal in [NixSignal::SIGINT, NixSignal::SIGQUIT, NixSignal::SIGHUP, NixSignal::SIGTERM] {
            #[expect(unsafe_code, reason = "signal(2) is unsafe")]
            // SAFETY: SIG_IGN runs no code.
            unsafe {
                libc::signal(signal as i32, libc::SIG_IGN)
            };
            // As a terminal does: to the foreground group, which is the launcher's.
            nix::sys::signal::killpg(nix::unistd::getpgrp(), signal)?;
            assert_eq!(start(|rank, ()| Ok(rank), 2).join()?, [0, 1]);
            assert_eq!(ForkServer::pid(), server, "{signal}");
        }
        Ok(())
    });
}

static CAUGHT: AtomicBool = AtomicBool::new(false);

/// Catches a signal, says that it is ready, and returns well when the signal has come.
#[expect(unsafe_code, reason = "signal(2) is unsafe")]
fn catch(rank: usize, (number, ready): (i32, Tensor<i64>)) -> anyhow::Result<usize> {
    extern "C" fn note(_: i32) {
        CAUGHT.store(true, Relaxed);
    }
    let note: extern "C" fn(i32) = note;
    // SAFETY: the handler stores to an atomic, which is async-signal-safe.
    unsafe { libc::signal(number, note as libc::sighandler_t) };
    post(&ready, rank, 1);
    await_that(|| CAUGHT.load(Relaxed));
    Ok(rank)
}

#[expect(unsafe_code, reason = "kill(2) of a number that nix has no name for")]
fn send_number(pid: u32, number: i32) {
    // SAFETY: takes integers.
    assert_eq!(unsafe { libc::syscall(libc::SYS_kill, pid, number) }, 0);
}

#[test]
fn signal_to_every_process_of_the_job_leaves_the_server_and_who_handles_it() {
    launched(|_, ()| {
        start(|_, ()| Ok(()), 1).join()?;
        let server = ForkServer::pid().unwrap();
        // What systemd, Slurm and others send to all processes of a job, to end it, to stop it or to warn it.
        let named = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];
        let rare = [libc::SIGALRM, libc::SIGXCPU, libc::SIGPIPE, libc::SIGRTMIN(), libc::SIGRTMAX()];
        for number in named.into_iter().chain(rare) {
            let ready = board(2);
            let context = start_processes(catch, (number, ready.clone()), served(2))?;
            for rank in 0..2 {
                await_post(&ready, rank);
            }
            context.pids().iter().chain([&server]).for_each(|&pid| send_number(pid, number));
            assert_eq!(context.join().map_err(|error| error.to_string()), Ok(vec![0, 1]), "signal {number}");
            assert_eq!(ForkServer::pid(), Some(server), "signal {number}");
        }
        for number in [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU] {
            send_number(server, number);
            assert_eq!(start(|rank, ()| Ok(rank), 2).join()?, [0, 1]);
            assert_ne!(common::state_of(server), Some('T'), "signal {number}");
        }
        Ok(())
    });
}

#[test]
fn signal_to_the_server_as_soon_as_it_exists_does_not_end_it() {
    launched(|_, ()| {
        let early = std::thread::spawn(|| {
            let mut found = None;
            await_that(|| {
                found = common::children().first().copied();
                found.is_some()
            });
            common::send(found.unwrap(), NixSignal::SIGTERM);
            found
        });
        assert_eq!(start(|rank, ()| Ok(rank), 2).join()?, [0, 1]);
        assert_eq!(early.join().unwrap(), ForkServer::pid());
        Ok(())
    });
}

/// Signals that come while this runs do not end it, and what it starts does not know of that.
fn be_signalled() -> anyhow::Result<()> {
    let own = std::process::id();
    [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1, libc::SIGRTMIN()]
        .into_iter()
        .for_each(|number| send_number(own, number));
    let status = std::process::Command::new("cat").arg("/proc/self/status").output()?;
    let status = String::from_utf8(status.stdout)?;
    let seen = ["SigBlk", "SigIgn", "SigCgt"].map(|name| common::signal_set(&status, name));
    anyhow::ensure!(seen == [0; 3], "{status}");
    Ok(())
}

#[test]
fn signals_during_the_preload_function_do_not_end_the_server() {
    launched(|_, ()| {
        ForkServer::preload(be_signalled)?;
        let look = |_, ()| Ok(std::fs::read_to_string("/proc/self/status")?);
        common::assert_fresh_signals(&start(look, 1).join()?[0]);
        common::send(ForkServer::pid().unwrap(), NixSignal::SIGTERM);
        assert_eq!(start(|rank, ()| Ok(rank), 2).join()?, [0, 1]);
        Ok(())
    });
}

#[test]
fn killed_worker_hurts_neither_the_server_nor_its_siblings_and_its_children_go_with_it() {
    fn work(rank: usize, board: Tensor<i64>) -> anyhow::Result<()> {
        if rank == 1 {
            await_post(&board, 1);
            return Ok(());
        }
        let child = std::process::Command::new("sleep").arg("1000").spawn()?;
        post(&board, 0, child.id());
        // Never waited for: the worker is to leave it behind.
        std::mem::forget(child);
        wait_for_ever()
    }
    launched(|_, ()| {
        let board = board(2);
        let options = served(2).grace_period(std::time::Duration::from_secs(3600));
        let mut context = start_processes(work, board.clone(), options)?;
        let (server, child) = (ForkServer::pid(), await_post(&board, 0));
        common::send(context.pids()[0], NixSignal::SIGKILL);
        await_end(child);
        assert_eq!(context.status(1)?, Status::Running);
        post(&board, 1, 1);
        assert!(common::poll_join(&mut context).is_err());
        assert_eq!(context.status(1)?, Status::Succeeded);
        assert_eq!(start(|rank, ()| Ok(rank), 2).join()?, [0, 1]);
        assert_eq!(ForkServer::pid(), server);
        Ok(())
    });
}

#[test]
fn forked_worker_of_a_launcher_with_a_server_gets_its_own_and_hurts_nothing() {
    fn inner(_: usize, _: ()) -> anyhow::Result<Vec<usize>> {
        let files: Vec<_> = (0..64).map(|_| std::fs::File::open("/dev/null")).collect::<Result<_, _>>()?;
        let results = start(|rank, ()| Ok(rank), 3).join()?;
        anyhow::ensure!(files.iter().all(|file| file.metadata().is_ok()), "a descriptor was closed");
        Ok(results)
    }
    launched(|_, ()| {
        let options = Options::new(2).start_method(StartMethod::Fork).guardian(true);
        assert_eq!(start_processes(inner, (), options)?.join()?, [[0, 1, 2], [0, 1, 2]]);
        Ok(())
    });
}

#[test]
fn worker_may_use_a_server_of_its_own() {
    fn outer(rank: usize, _: ()) -> anyhow::Result<Vec<usize>> {
        Ok(start_processes(|rank, by: usize| anyhow::Ok(rank + by), 10 * rank, served(2))?.join()?)
    }
    launched(|_, ()| {
        assert_eq!(start(outer, 2).join()?, [[0, 1], [10, 11]]);
        Ok(())
    });
}

#[test]
fn server_killed_at_any_moment_of_a_start_hangs_nobody_and_leaves_nobody() {
    launched(|_, ()| {
        let end = std::time::Instant::now() + common::race_time();
        let (mut well, mut badly) = (0_u32, 0_u32);
        while std::time::Instant::now() < end || well + badly <= 10 {
            start(|_, ()| Ok(()), 1).join()?;
            let server = ForkServer::pid().unwrap();
            let moment = std::time::Duration::from_micros(u64::from(well + badly) * 618 % 12_000);
            let killer = std::thread::spawn(move || {
                // Till then it may be anywhere: writing orders, forking, reaping.
                let until = std::time::Instant::now() + moment;
                await_that(|| std::time::Instant::now() >= until);
                common::send(server, NixSignal::SIGKILL);
            });
            let started = start_processes(|rank, ()| anyhow::Ok(rank), (), served(40));
            match started.and_then(ProcessContext::join) {
                Ok(results) => {
                    assert_eq!(results.len(), 40);
                    well += 1;
                }
                Err(_) => badly += 1,
            }
            killer.join().unwrap();
            await_end(server);
        }
        start(|_, ()| Ok(()), 1).join()?;
        let server = ForkServer::pid().unwrap();
        common::send(server, NixSignal::SIGKILL);
        await_end(server);
        // It is reaped by the next start, or with this process.
        assert!(common::children().into_iter().all(|pid| pid == server), "{:?}", common::children());
        Ok(())
    });
}

#[test]
fn launcher_that_is_the_subreaper_reaps_the_workers_of_a_dead_server() {
    launched(|_, ()| {
        #[expect(unsafe_code, reason = "nix has prctl behind a feature")]
        // SAFETY: takes integers.
        unsafe {
            libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
        };
        let wait = |rank, ready: Tensor<i64>| -> anyhow::Result<()> {
            post(&ready, rank, 1);
            wait_for_ever()
        };
        let ready = board(3);
        let mut context = start_processes(wait, ready.clone(), served(3))?;
        let server = ForkServer::pid().unwrap();
        // One that is still on its way would find its parent gone, and say so.
        for rank in 0..3 {
            await_post(&ready, rank);
        }
        common::send(server, NixSignal::SIGKILL);
        assert!(common::poll_join(&mut context).is_err());
        let killed = |status| matches!(status, Status::Signaled { signal, .. } if signal.number() == 9);
        let outcomes = context.outcomes()?;
        assert!(outcomes.iter().all(|outcome| killed(outcome.status())), "{outcomes:?}");
        assert!(common::children().into_iter().all(|pid| pid == server), "{:?}", common::children());
        Ok(())
    });
}

#[test]
fn launcher_that_runs_another_program_leaves_a_server_that_sleeps() {
    fn become_another(_: usize, pids: Tensor<i64>) -> anyhow::Result<()> {
        start(|_, ()| Ok(()), 1).join()?;
        post(&pids, 0, ForkServer::pid().unwrap());
        Err(std::process::Command::new("sleep").arg("1000").exec().into())
    }
    watched(|| {
        let pids = board(1);
        let options = Options::new(1).daemon(true);
        let mut context = start_processes(become_another, pids.clone(), options).unwrap();
        let (launcher, server) = (context.pids()[0], await_post(&pids, 0));
        await_that(|| std::fs::read(format!("/proc/{launcher}/cmdline")).unwrap().starts_with(b"sleep"));
        await_that(|| common::state_of(server) == Some('S'));
        let ticks = || {
            let stat = std::fs::read_to_string(format!("/proc/{server}/stat")).unwrap();
            let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        // One that spins has used up some of any second.
        let before = ticks();
        assert!(!context.join_timeout(std::time::Duration::from_millis(500)).unwrap());
        assert!(ticks() - before < 10, "it spins");
        drop(context);
        await_end(server);
    });
}
