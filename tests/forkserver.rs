//! The fork server. Each test has a launcher in a process of its own, since a server stays as long as its launcher.

mod common;
#[path = "common/seccomp.rs"]
mod seccomp;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use common::{
    await_end, await_post, board, descriptors, kill_self, launched, own_frames, post, served, start,
    wait_for_ever, write_to,
};
use phalanx::{
    Error, ForkServer, SharingStrategy, Tensor, set_sharing_strategy, start_processes, start_processes_with,
};

phalanx::auto_init!();

#[test]
fn results_come_by_rank_from_a_program_with_threads() {
    launched(|_, ()| {
        std::thread::scope(|scope| {
            let starts = (0..3).map(|n: u64| {
                scope.spawn(move || {
                    let work = |rank: usize, by: u64| anyhow::Ok(rank as u64 * by);
                    start_processes(work, n, served(5)).unwrap().join().unwrap()
                })
            });
            let results: Vec<_> =
                starts.collect::<Vec<_>>().into_iter().map(|start| start.join().unwrap()).collect();
            assert_eq!(results, [[0, 0, 0, 0, 0], [0, 1, 2, 3, 4], [0, 2, 4, 6, 8]]);
        });
        let each =
            start_processes_with(|_, own: String| anyhow::Ok(own), |rank| rank.to_string(), served(130))?;
        assert!(each.join()?.iter().enumerate().all(|(rank, own)| *own == rank.to_string()));
        assert_eq!(ForkServer::pid().map(|pid| BTreeSet::from([pid])), Some(common::children()));
        assert!(start_processes(|_, ()| anyhow::Ok(()), (), served(0))?.join()?.is_empty());
        Ok(())
    });
}

#[test]
fn tensors_travel_by_both_strategies_and_more_than_one_message_takes() {
    fn work(rank: usize, given: Vec<Tensor<u8>>) -> anyhow::Result<Vec<Tensor<u8>>> {
        given.iter().try_for_each(|tensor| tensor.set(rank, 1 + rank as u8))?;
        Ok(vec![given[0].clone(), Tensor::from_slice(&vec![9; 300 << 10], &[300 << 10])?])
    }
    launched(|_, ()| {
        for &strategy in phalanx::get_all_sharing_strategies() {
            set_sharing_strategy(strategy);
            let given: Vec<_> =
                (0..300).map(|_| Tensor::<u8>::zeros(&[300 << 10])).collect::<Result<_, _>>()?;
            let results = start_processes(work, given.clone(), served(3))?.join()?;
            assert!(given.iter().all(|tensor| tensor.narrow(0, 0, 4).unwrap().to_vec() == [1, 2, 3, 0]));
            assert!(results.iter().all(|tensors| tensors[0].storage().is_same(given[0].storage())));
            assert!(results.iter().all(|tensors| tensors[1].get(5).unwrap() == 9));
        }
        set_sharing_strategy(SharingStrategy::FileDescriptor);
        Ok(())
    });
}

#[test]
fn worker_looks_as_if_its_launcher_had_started_it() {
    type Seen = (
        BTreeSet<(i32, String)>,
        Option<String>,
        Option<String>,
        std::path::PathBuf,
        u32,
        String,
        (u64, u64),
    );
    fn look(_: usize, _: ()) -> anyhow::Result<Seen> {
        let open = descriptors();
        let file = tempfile::NamedTempFile::new()?.path().with_extension("x");
        let mode = std::fs::File::create(&file)?.metadata()?.permissions().mode();
        std::fs::remove_file(file)?;
        let var = |key| std::env::var(key).ok();
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
        let comm = std::fs::read_to_string("/proc/self/comm")?.trim().to_owned();
        assert_eq!(nix::unistd::getpgrp(), nix::unistd::getpid());
        common::assert_fresh_signals(&std::fs::read_to_string("/proc/self/status")?);
        Ok((
            open,
            var("PHALANX_NOW"),
            var("PHALANX_GONE"),
            std::env::current_dir()?,
            mode & 0o777,
            comm,
            limit,
        ))
    }
    launched(|_, ()| {
        #[expect(unsafe_code, clippy::disallowed_methods, reason = "this process has one thread")]
        // SAFETY: as the reason says.
        unsafe {
            std::env::set_var("PHALANX_GONE", "x");
        }
        start(|_, ()| Ok(()), 1).join()?;
        // All of this is after the server's start.
        #[expect(unsafe_code, clippy::disallowed_methods, reason = "this process has one thread")]
        // SAFETY: as the reason says.
        unsafe {
            std::env::remove_var("PHALANX_GONE");
        }
        std::env::set_current_dir("/")?;
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 500, 1000)?;
        let options = served(2).env("PHALANX_NOW", "yes").name("looker");
        for (rank, seen) in start_processes(look, (), options)?.join()?.into_iter().enumerate() {
            let others: Vec<_> = seen.0.iter().filter(|(number, _)| *number > 2).collect();
            let is = |what: &str| others.iter().any(|(_, target)| target.contains(what));
            assert!(
                others.len() == 4 && is("phalanx-report") && is("socket:") && is("eventfd"),
                "{others:?}"
            );
            assert!(seen.0.contains(&(0, "/dev/null".to_owned())));
            assert_eq!((seen.1.as_deref(), seen.2, seen.3.to_str()), (Some("yes"), None, Some("/")));
            assert_eq!((seen.4, seen.5, seen.6), (0o600, format!("looker:{rank}"), (500, 1000)));
        }
        Ok(())
    });
}

/// What /proc tells of this process in one line.
fn status_of_this_process(name: &str) -> anyhow::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.unwrap_or_default().trim().to_owned())
}

#[test]
fn processors_are_the_callers_where_the_kernels_mask_is_longer_than_1024_bits() {
    launched(|_, ()| {
        // As with 2,048 processors, to whose kernel 128 bytes are too few.
        seccomp::refuse_where(libc::SYS_sched_getaffinity, seccomp::Where::Is(1, 128), libc::EINVAL);
        start(|_, ()| Ok(()), 1).join()?;
        let allowed = status_of_this_process("Cpus_allowed_list")?;
        let first = allowed.split([',', '-']).next().unwrap();
        let mut only = nix::sched::CpuSet::new();
        only.set(first.parse()?)?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &only)?;
        let look = |_, ()| status_of_this_process("Cpus_allowed_list");
        assert_eq!(start(look, 2).join()?, [first, first]);
        Ok(())
    });
}

#[test]
fn processors_that_cannot_be_asked_for_are_no_error() {
    launched(|_, ()| {
        seccomp::refuse(libc::SYS_sched_getaffinity, libc::EINVAL);
        assert_eq!(start(|rank, ()| Ok(rank), 2).join()?, [0, 1]);
        Ok(())
    });
}

#[test]
fn failures_are_told_as_with_spawn() {
    launched(|_, ()| {
        let raised = common::raised(
            start(|_, ()| -> anyhow::Result<()> { anyhow::bail!("not well") }, 2).join().unwrap_err(),
        );
        assert_eq!(raised.chain(), ["not well"]);
        assert!(!own_frames(raised.traceback()).is_empty());
        let panicked = common::raised(
            start(|_, ()| -> anyhow::Result<()> { panic!("boo {}", 7) }, 1).join().unwrap_err(),
        );
        assert_eq!(
            (panicked.chain(), panicked.panic_location().is_some()),
            (&["boo 7".to_owned()][..], true)
        );
        let crashed = common::exited(start(|_, ()| crash(), 1).join().unwrap_err());
        assert_eq!(crashed.signal_name().as_deref(), Some("SIGSEGV"));
        assert!(own_frames(crashed.traceback().unwrap())[0].0.contains("write_to"));
        let killed =
            common::exited(start(|_, ()| -> anyhow::Result<()> { kill_self() }, 1).join().unwrap_err());
        assert_eq!((killed.exit_code(), killed.signal_name().as_deref()), (Some(-9), Some("SIGKILL")));
        let rare = |_, ()| -> anyhow::Result<()> {
            let number = nix::sys::signal::Signal::SIGUSR2 as i32 + 28;
            #[expect(unsafe_code, reason = "nix has no real-time signals")]
            // SAFETY: takes an integer.
            unsafe {
                libc::raise(number)
            };
            wait_for_ever()
        };
        assert_eq!(common::exited(start(rare, 1).join().unwrap_err()).exit_code(), Some(-40));
        #[expect(clippy::exit, clippy::disallowed_methods, reason = "a worker that leaves")]
        let left = common::exited(
            start(|_, ()| -> anyhow::Result<()> { std::process::exit(3) }, 1).join().unwrap_err(),
        );
        assert_eq!(left.exit_code(), Some(3));
        let busy = start(|_, ()| Ok((0..50_000_000_u64).fold(0, |a, b| std::hint::black_box(a ^ b))), 1);
        let mut busy = busy;
        common::poll_join(&mut busy)?;
        let usage = busy.outcomes()?[0].usage();
        assert!(usage.user.as_millis() > 10, "{usage:?}");
        Ok(())
    });
}

#[test]
fn first_failure_in_time_is_the_one_that_is_told() {
    fn work(rank: usize, board: Tensor<i64>) -> anyhow::Result<()> {
        match rank {
            2 => kill_self(),
            0 => {
                await_end(await_post(&board, 2));
                anyhow::bail!("later")
            }
            _ => wait_for_ever(),
        }
    }
    launched(|_, ()| {
        for _ in 0..20 {
            let board = board(3);
            let context = start_processes(work, board.clone(), served(4))?;
            post(&board, 2, context.pids()[2]);
            let exception = common::exited(context.join().unwrap_err());
            assert_eq!(exception.error_index(), 2, "{exception}");
        }
        Ok(())
    });
}

static LOADED: OnceLock<Vec<u64>> = OnceLock::new();
static SEEDS: AtomicU64 = AtomicU64::new(0);

fn load() -> anyhow::Result<()> {
    LOADED.get_or_init(|| vec![u64::from(std::process::id()); 1000]);
    phalanx::after_fork(|seed| SEEDS.store(seed, Relaxed));
    Ok(())
}

#[test]
fn preload_runs_once_in_the_server_and_hooks_in_every_worker() {
    launched(|_, ()| {
        ForkServer::preload(load)?;
        let look = |_, ()| Ok((LOADED.get().map(|loaded| loaded[999]), SEEDS.load(Relaxed), phalanx::seed()));
        let mut seeds = BTreeSet::new();
        for _ in 0..2 {
            for (loaded, hooked, seed) in start(look, 3).join()? {
                assert_eq!(loaded, ForkServer::pid().map(u64::from));
                assert_eq!(hooked, seed);
                assert!(seeds.insert(seed), "a seed came twice");
            }
        }
        let error = ForkServer::preload(load).unwrap_err().to_string();
        assert!(error.contains("runs already"), "{error}");
        Ok(())
    });
}

fn fail() -> anyhow::Result<()> {
    Err(anyhow::anyhow!("no such file").context("cannot load the words"))
}

fn break_down() -> anyhow::Result<()> {
    panic!("out of words")
}

fn crash() -> anyhow::Result<()> {
    write_to(8);
    Ok(())
}

fn leave_a_thread() -> anyhow::Result<()> {
    std::thread::spawn(|| wait_for_ever());
    Ok(())
}

#[test]
fn workers_have_their_standard_streams_though_the_preload_function_has_closed_them() {
    fn close_them() -> anyhow::Result<()> {
        (0..3).try_for_each(nix::unistd::close)?;
        Ok(())
    }
    #[expect(clippy::print_stdout, reason = "it is what is tested")]
    fn look(_: usize, (): ()) -> anyhow::Result<(usize, String)> {
        let read = std::io::stdin().read_to_end(&mut Vec::new())?;
        println!("stdout and stderr are those of the launcher");
        Ok((read, fs::read_link("/proc/self/fd/0")?.display().to_string()))
    }
    launched(|_, ()| {
        ForkServer::preload(close_them)?;
        for looked in start(look, 2).join()? {
            assert_eq!(looked, (0, "/dev/null".to_owned()));
        }
        Ok(())
    });
}

#[test]
fn preload_that_fails_is_an_error_of_every_start_with_its_traceback() {
    launched(|_, ()| {
        ForkServer::preload(fail)?;
        for _ in 0..2 {
            let error = start_processes(|_, ()| anyhow::Ok(()), (), served(2)).unwrap_err();
            let Error::Preload(raised) = &error else { panic!("{error}") };
            assert_eq!(raised.chain(), ["cannot load the words", "no such file"]);
            assert!(own_frames(raised.traceback()).iter().any(|(name, _)| name == "fail"), "{error}");
        }
        ForkServer::preload(break_down)?;
        let error = start_processes(|_, ()| anyhow::Ok(()), (), served(2)).unwrap_err().to_string();
        assert!(
            error.contains("panicked at tests/forkserver.rs") && error.contains("out of words"),
            "{error}"
        );
        ForkServer::preload(crash)?;
        let error = start_processes(|_, ()| anyhow::Ok(()), (), served(2)).unwrap_err().to_string();
        assert!(error.contains("it ended while it was asked: signal SIGSEGV"), "{error}");
        ForkServer::preload(leave_a_thread)?;
        let error = start_processes(|_, ()| anyhow::Ok(()), (), served(2)).unwrap_err().to_string();
        assert!(error.contains("it has 2 threads, so it cannot fork"), "{error}");
        assert!(common::children().len() <= 1);
        Ok(())
    });
}

#[test]
fn hook_that_panics_fails_its_worker() {
    fn register() -> anyhow::Result<()> {
        phalanx::after_fork(|_| phalanx::after_fork(|_| ()));
        phalanx::after_fork(|_| panic!("no entropy"));
        Ok(())
    }
    launched(|_, ()| {
        ForkServer::preload(register)?;
        let error = start(|_, ()| Ok(()), 2).join().unwrap_err().to_string();
        assert!(error.contains("an after_fork hook panicked: no entropy"), "{error}");
        Ok(())
    });
}
