//! Workers that the fork server has forked ahead of demand: they have what a fresh one has, and a dead one is never handed out.

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use common::{await_end, await_post, await_that, board, children_of, launched, post, send, served, start};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal as NixSignal;
use nix::unistd::Pid;
use phalanx::{ForkServer, Options, Signal, StartMethod, Status, Tensor, start_processes};

phalanx::auto_init!();

const SPARES: usize = 3;

/// The processes that wait in the fork server.
fn spares() -> BTreeSet<u32> {
    let mut found = children_of(ForkServer::pid().unwrap());
    found.retain(|pid| common::state_of(*pid).is_some_and(|state| state != 'Z'));
    found
}

/// Waits until as many wait as there are to be, and returns them.
fn all_spares() -> BTreeSet<u32> {
    await_that(|| spares().len() == SPARES);
    spares()
}

fn own_pid(_: usize, (): ()) -> anyhow::Result<u32> {
    Ok(std::process::id())
}

#[test]
fn workers_are_spares_as_long_as_there_are_some_and_others_take_their_place() {
    launched(|_, ()| {
        ForkServer::spares(SPARES)?;
        let first = spares();
        assert_eq!(first.len(), SPARES);
        let pids: BTreeSet<_> = start(own_pid, SPARES + 2).join()?.into_iter().collect();
        assert!(pids.is_superset(&first), "{pids:?} {first:?}");
        let second = all_spares();
        assert!(second.is_disjoint(&first));
        assert!(second.contains(&start(own_pid, 1).join()?[0]));
        ForkServer::spares(0)?;
        await_that(|| spares().is_empty());
        Ok(())
    });
}

/// Seeds that the hook was given.
static HOOKED: AtomicU64 = AtomicU64::new(0);

/// Environment, working directory, umask, soft limit of core files, processors, the hook's seed, and the seed.
type Seen = (Option<String>, String, u32, u64, usize, u64, u64);

fn look() -> Seen {
    let umask = std::fs::read_to_string("/proc/self/status").unwrap();
    let umask = umask.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap().trim().to_owned();
    let processors = sched_getaffinity(Pid::from_raw(0)).unwrap();
    (
        std::env::var("SPARES_TEST").ok(),
        std::env::current_dir().unwrap().to_string_lossy().into_owned(),
        u32::from_str_radix(&umask, 8).unwrap(),
        getrlimit(Resource::RLIMIT_CORE).unwrap().0,
        (0..CpuSet::count()).filter(|&number| processors.is_set(number).unwrap()).count(),
        HOOKED.load(Relaxed),
        phalanx::seed(),
    )
}

fn hook() -> anyhow::Result<()> {
    phalanx::after_fork(|seed| HOOKED.store(seed, Relaxed));
    Ok(())
}

#[test]
fn spares_take_on_what_their_starter_has_by_then_and_have_seeds_of_their_own() {
    launched(|_, ()| {
        ForkServer::preload(hook)?;
        ForkServer::spares(SPARES)?;
        let waiting = all_spares();
        std::env::set_current_dir("/proc")?;
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o031));
        setrlimit(Resource::RLIMIT_CORE, 0, getrlimit(Resource::RLIMIT_CORE)?.1)?;
        let mut one = CpuSet::new();
        let mine = sched_getaffinity(Pid::from_raw(0))?;
        one.set((0..CpuSet::count()).find(|&number| mine.is_set(number).unwrap()).unwrap())?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        let options = || served(SPARES).env("SPARES_TEST", "changed since");
        let pid_too = |_, ()| anyhow::Ok((std::process::id(), look()));
        let seen = start_processes(pid_too, (), options())?.join()?;
        assert_eq!(seen.iter().map(|(pid, _)| *pid).collect::<BTreeSet<_>>(), waiting);
        for (_, seen) in &seen {
            let (variable, directory, umask, core, processors, hooked, seed) = seen;
            assert_eq!((variable.as_deref(), directory.as_str()), (Some("changed since"), "/proc"));
            assert_eq!((*umask, *core, *processors), (0o031, 0, 1));
            assert_eq!(hooked, seed);
        }
        let seeds: BTreeSet<_> = seen.iter().map(|(_, seen)| seen.6).collect();
        assert_eq!(seeds.len(), SPARES);
        // Those of the next start were forked in a server that had all of it.
        all_spares();
        let work = |_, ()| anyhow::Ok(std::env::var("SPARES_TEST").ok());
        assert!(start_processes(work, (), served(SPARES))?.join()?.iter().all(Option::is_none));
        Ok(())
    });
}

#[test]
fn spare_is_not_used_where_a_fork_would_have_what_it_has_not() {
    launched(|_, ()| {
        ForkServer::spares(SPARES)?;
        let waiting = spares();
        std::fs::write(format!("/proc/{}/oom_score_adj", ForkServer::pid().unwrap()), "700")?;
        let look =
            |_, ()| anyhow::Ok((std::process::id(), std::fs::read_to_string("/proc/self/oom_score_adj")?));
        for (pid, score) in start(look, 2).join()? {
            assert!(!waiting.contains(&pid));
            assert_eq!(score.trim(), "700");
        }
        waiting.into_iter().take(2).for_each(await_end);
        Ok(())
    });
}

#[test]
fn spare_that_was_killed_is_never_handed_out_and_one_that_was_stopped_goes_on() {
    launched(|_, ()| {
        ForkServer::spares(SPARES)?;
        for round in 0..20 {
            let waiting: Vec<_> = spares().into_iter().collect();
            for (number, &pid) in waiting.iter().enumerate() {
                let signal =
                    [NixSignal::SIGKILL, NixSignal::SIGTERM, NixSignal::SIGSTOP][(number + round) % 3];
                send(pid, signal);
                if signal != NixSignal::SIGSTOP {
                    await_end(pid);
                }
            }
            assert_eq!(start(|rank, ()| Ok(rank), SPARES).join()?, [0, 1, 2]);
            ForkServer::spares(SPARES)?;
        }
        Ok(())
    });
}

#[test]
fn worker_that_was_a_spare_ends_as_any_other_and_its_children_with_it() {
    launched(|_, ()| {
        ForkServer::spares(SPARES)?;
        let board = board(1);
        let work = |rank: usize, board: Tensor<i64>| -> anyhow::Result<()> {
            if rank == 0 {
                post(&board, 0, std::process::Command::new("sleep").arg("1000").spawn()?.id());
                await_that(|| false);
            }
            await_post(&board, 0);
            common::kill_self()
        };
        let waiting = all_spares();
        let mut context = start_processes(work, board.clone(), served(2))?;
        let pids = context.pids();
        assert!(pids.iter().all(|pid| waiting.contains(pid)));
        let error = common::poll_join(&mut context).unwrap_err().to_string();
        assert!(error.contains("SIGKILL"), "{error}");
        let killed = Status::Signaled { signal: Signal::KILL, core_dumped: false };
        assert_eq!(context.outcomes()?[1].status(), killed);
        await_end(await_post(&board, 0));
        assert!(pids.iter().all(|&pid| common::state_of(pid).is_none()), "they were reaped");
        Ok(())
    });
}

#[test]
fn spares_end_with_their_server_and_the_next_one_has_as_many() {
    launched(|_, ()| {
        ForkServer::spares(SPARES)?;
        let (server, waiting) = (ForkServer::pid().unwrap(), spares());
        send(server, NixSignal::SIGKILL);
        waiting.into_iter().for_each(await_end);
        assert_eq!(start(|rank, ()| Ok(rank), 2).join()?, [0, 1]);
        assert_ne!(ForkServer::pid(), Some(server));
        all_spares();
        Ok(())
    });
}

#[test]
fn descriptors_stay_as_many() {
    launched(|_, ()| {
        ForkServer::spares(SPARES)?;
        let server = ForkServer::pid().unwrap();
        let count = || {
            let of = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
            (of(server), of(std::process::id()), of(*all_spares().first().unwrap()))
        };
        start(|_, ()| Ok(()), SPARES).join()?;
        let before = count();
        for round in 0..30 {
            start(|_, ()| Ok(()), 1 + round % 5).join()?;
        }
        assert_eq!(count(), before);
        // Its socket, stdin, stdout and stderr.
        assert_eq!(before.2, 4);
        Ok(())
    });
}

#[test]
fn program_that_ends_leaves_no_spare() {
    // `launched` waits until no process has the launcher's tag, and spares have its environment.
    launched(|_, ()| {
        let options = Options::new(1).start_method(StartMethod::ForkServer);
        ForkServer::spares(SPARES)?;
        assert_eq!(start_processes(|rank, ()| anyhow::Ok(rank), (), options)?.join()?, [0]);
        Ok(())
    });
}
