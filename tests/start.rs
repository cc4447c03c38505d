//! Starting workers: how functions are found, what a worker finds, all or none.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::IntoRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{assert_fresh_signals, children, descriptors, watched};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal as NixSignal, pthread_sigmask};
use phalanx::{Error, Options, StartMethod, spawn, start_processes, start_processes_with};
use serde::{Deserialize, Serialize, Serializer, ser};

phalanx::auto_init!();

fn scaled(rank: usize, by: u64) -> anyhow::Result<u64> {
    Ok(rank as u64 * by)
}

#[test]
fn spawn_returns_results_by_rank() {
    watched(|| assert_eq!(spawn(scaled, 3, 5).unwrap(), [0, 3, 6, 9, 12]));
}

#[test]
fn generic_function_and_closure_without_captures_are_found() {
    fn default_of<T: Default>(rank: usize, _: ()) -> anyhow::Result<(usize, T)> {
        Ok((rank, T::default()))
    }
    watched(|| {
        assert_eq!(spawn(default_of::<String>, (), 2).unwrap(), [(0, String::new()), (1, String::new())]);
        assert_eq!(spawn(default_of::<u8>, (), 1).unwrap(), [(0, 0)]);
        assert_eq!(spawn(|rank, x: i32| anyhow::Ok(x - rank as i32), 7, 2).unwrap(), [7, 6]);
        assert_eq!(spawn(|_, _: ()| Ok::<_, std::io::Error>(()), (), 2).unwrap(), [(), ()]);
    });
}

#[test]
fn start_processes_with_gives_each_rank_its_own() {
    watched(|| {
        let each = |rank: usize| vec![rank as u64; rank];
        let context = start_processes_with(
            |_, part: Vec<u64>| anyhow::Ok(part.iter().sum::<u64>()),
            each,
            Options::new(4),
        );
        assert_eq!(context.unwrap().join().unwrap(), [0, 1, 4, 9]);
    });
}

#[test]
fn no_workers_are_no_results() {
    watched(|| {
        assert_eq!(spawn(scaled, 3, 0).unwrap(), [] as [u64; 0]);
        let mut context = start_processes(scaled, 3, Options::new(0)).unwrap();
        assert!(context.join_timeout(std::time::Duration::ZERO).unwrap());
        assert!(context.join_timeout(std::time::Duration::ZERO).unwrap());
    });
}

#[test]
fn fork_with_threads_is_refused_with_their_number() {
    // In a worker, since the threads of the test harness come and go.
    fn fork_beside_two(_: usize, (): ()) -> anyhow::Result<(usize, String)> {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Mutex::new(held);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| held.lock().map(|held| held.recv().is_ok()).is_ok());
            }
            let options = Options::new(2).start_method(StartMethod::Fork);
            let refused = start_processes(scaled, 3, options);
            drop(release);
            match refused {
                Err(error @ Error::ForkWithThreads { threads }) => Ok((threads, error.to_string())),
                other => anyhow::bail!("{other:?}"),
            }
        })
    }
    watched(|| {
        let [(threads, text)] = <[_; 1]>::try_from(spawn(fork_beside_two, (), 1).unwrap()).unwrap();
        assert_eq!(threads, 3, "{text}");
        assert!(text.contains("3 threads") && text.contains("StartMethod::Spawn"), "{text}");
    });
}

#[test]
fn bad_options_start_nobody() {
    watched(|| {
        let error = start_processes(scaled, 3, Options::new(2).env("A=B", "x")).unwrap_err();
        assert!(matches!(error, Error::InvalidOption(_)), "{error}");
        assert!(error.to_string().contains("A=B"), "{error}");
    });
}

#[derive(Deserialize)]
struct RefusesThree(u32);

impl Serialize for RefusesThree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 == 3 {
            Err(ser::Error::custom("three is right out"))
        } else {
            serializer.serialize_u32(self.0)
        }
    }
}

#[test]
fn argument_that_does_not_serialise_starts_nobody() {
    watched(|| {
        let take = |_, args: RefusesThree| anyhow::Ok(args.0);
        let error =
            start_processes_with(take, |rank| RefusesThree(rank as u32), Options::new(5)).unwrap_err();
        assert!(
            matches!(&error, Error::Arguments { rank: 3, reason } if reason.contains("three is right out"))
        );
        assert!(children().is_empty());
    });
}

/// What a worker sees of itself.
#[derive(Serialize, Deserialize, Debug)]
struct Situation {
    descriptors: BTreeSet<(i32, String)>,
    status: String,
    comm: String,
    group: i32,
    pid: i32,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    on_main_thread: bool,
}

fn situation(_: usize, _: ()) -> anyhow::Result<Situation> {
    Ok(Situation {
        descriptors: descriptors(),
        status: fs::read_to_string("/proc/self/status")?,
        comm: fs::read_to_string("/proc/self/comm")?.trim().to_owned(),
        group: nix::unistd::getpgrp().as_raw(),
        pid: nix::unistd::getpid().as_raw(),
        arguments: std::env::args().collect(),
        environment: std::env::vars().collect(),
        on_main_thread: nix::unistd::gettid() == nix::unistd::getpid(),
    })
}

#[test]
fn worker_inherits_stdio_and_its_own_descriptors_only() {
    watched(|| {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Descriptors without close-on-exec, opened and closed all the time, as careless libraries do.
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    leaky_descriptor();
                }
            });
            let workers: Vec<_> = (0..20).map(|_| spawn(situation, (), 4)).collect();
            stop.store(true, Ordering::Relaxed);
            for seen in workers.into_iter().flat_map(Result::unwrap) {
                let others: Vec<_> = seen.descriptors.iter().filter(|(number, _)| *number > 2).collect();
                let is = |what: &str| others.iter().any(|(_, target)| target.contains(what));
                // The report slot, the way for results, the lifeline and the event of the stop word.
                assert_eq!(others.len(), 4, "{others:?}");
                assert!(is("memfd:phalanx-report") && is("socket:"), "{others:?}");
                assert!(seen.descriptors.contains(&(0, "/dev/null".to_owned())), "{seen:?}");
            }
        });
    });
}

#[expect(unsafe_code, reason = "std has no way to open without close-on-exec")]
fn leaky_descriptor() {
    // SAFETY: opens a file that is there.
    let fd = unsafe { libc::open(c"/dev/zero".as_ptr(), libc::O_RDONLY) };
    // SAFETY: a fresh descriptor that nobody else knows.
    unsafe { libc::close(fd) };
}

#[test]
fn descriptor_without_close_on_exec_does_not_reach_the_worker() {
    watched(|| {
        let file = File::open("/dev/zero").unwrap();
        // A low number, and one so high that the worker must list its descriptors to find it.
        let high = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_DUPFD(300)).unwrap();
        let low = nix::unistd::dup(&file).unwrap().into_raw_fd();
        let seen = spawn(situation, (), 1).unwrap();
        assert!(!seen[0].descriptors.iter().any(|(_, target)| target == "/dev/zero"), "{seen:?}");
        for leaky in [high, low] {
            nix::unistd::close(leaky).unwrap();
        }
    });
}

#[test]
fn worker_has_fresh_signals_whatever_the_launcher_did() {
    watched(|| {
        let mut blocked = SigSet::empty();
        blocked.add(NixSignal::SIGUSR1);
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None).unwrap();
        set_disposition(NixSignal::SIGHUP, libc::SIG_IGN);
        let seen = spawn(situation, (), 1).unwrap().remove(0);
        set_disposition(NixSignal::SIGHUP, libc::SIG_DFL);
        pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&blocked), None).unwrap();
        assert_fresh_signals(&seen.status);
    });
}

#[expect(unsafe_code, reason = "nix calls it unsafe too")]
fn set_disposition(signal: NixSignal, disposition: libc::sighandler_t) {
    // SAFETY: SIG_IGN and SIG_DFL run no code.
    unsafe { libc::signal(signal as i32, disposition) };
}

#[test]
fn worker_leads_its_group_and_has_name_arguments_and_environment() {
    watched(|| {
        let options = Options::new(2).name("digits").env("PHALANX_TEST", "1").env("HOME", "/nowhere");
        let seen = start_processes(situation, (), options).unwrap().join().unwrap();
        for (rank, seen) in seen.iter().enumerate() {
            assert_eq!(seen.comm, format!("digits:{rank}"));
            assert_eq!(seen.group, seen.pid);
            assert_eq!(seen.arguments, std::env::args().collect::<Vec<_>>());
            assert!(seen.on_main_thread);
            let value = |key| {
                seen.environment.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
            };
            assert_eq!((value("PHALANX_TEST"), value("HOME")), (Some("1"), Some("/nowhere")));
            assert_eq!(value("PATH").map(str::to_owned), std::env::var("PATH").ok());
            assert_eq!((value("__PHALANX_WORKER"), value("RUST_LIB_BACKTRACE")), (None, None));
        }
    });
}

#[test]
fn spawn_inside_a_worker_works() {
    fn outer(rank: usize, depth: u32) -> anyhow::Result<u64> {
        if depth == 0 {
            return Ok(rank as u64 + 1);
        }
        Ok(spawn(outer, depth - 1, 2)?.into_iter().sum())
    }
    watched(|| assert_eq!(spawn(outer, 2, 2).unwrap(), [6, 6]));
}

#[test]
fn many_threads_may_start_at_once() {
    watched(|| {
        let starters: Vec<_> =
            (0..6_u64).map(|by| std::thread::spawn(move || spawn(scaled, by, 3).unwrap())).collect();
        for (by, starter) in starters.into_iter().enumerate() {
            assert_eq!(starter.join().unwrap(), [0, by as u64, 2 * by as u64]);
        }
    });
}

#[test]
fn arguments_of_many_megabytes_arrive_whole() {
    watched(|| {
        let sum = |_, data: Vec<u8>| anyhow::Ok(data.iter().map(|&byte| u64::from(byte)).sum::<u64>());
        assert_eq!(spawn(sum, vec![3_u8; 50_000_000], 2).unwrap(), [150_000_000, 150_000_000]);
    });
}

#[test]
fn result_of_many_megabytes_arrives_whole() {
    watched(|| {
        let results = spawn(|rank, ()| anyhow::Ok(vec![rank as u8 + 1; 30_000_000]), (), 2).unwrap();
        assert_eq!((results[0].len(), results[1].len(), results[1][29_999_999]), (30_000_000, 30_000_000, 2));
    });
}

/// Runs as a launcher in a process of its own, whose limits it may spoil.
fn start_under_descriptor_limit(_: usize, (soft, hard): (u64, u64)) -> anyhow::Result<Result<usize, String>> {
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    let before = descriptors();
    let result = start_processes(|_, ()| anyhow::Ok(()), (), Options::new(60));
    let result = match result {
        Ok(context) => Ok(context.join()?.len()),
        Err(error) => Err(format!("{error} | {error:?}")),
    };
    anyhow::ensure!(before == descriptors(), "descriptors were left open");
    anyhow::ensure!(children().is_empty(), "workers were left");
    Ok(result)
}

#[test]
fn soft_descriptor_limit_is_raised_when_needed() {
    watched(|| assert_eq!(spawn(start_under_descriptor_limit, (32, 1000), 1).unwrap(), [Ok(60)]));
}

fn start_each_under_descriptor_limit(_: usize, _: ()) -> anyhow::Result<usize> {
    setrlimit(Resource::RLIMIT_NOFILE, 32, 1000)?;
    // The table is full up to the soft limit.
    let files: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    let context = start_processes_with(|_, rank: usize| anyhow::Ok(rank), |rank| rank, Options::new(60))?;
    drop(files);
    Ok(context.join()?.into_iter().sum())
}

#[test]
fn soft_descriptor_limit_is_raised_for_jobs_of_their_own_too() {
    watched(|| assert_eq!(spawn(start_each_under_descriptor_limit, (), 1).unwrap(), [60 * 59 / 2]));
}

#[test]
fn closed_stdout_is_not_replaced_by_a_descriptor_of_ours() {
    fn launch(_: usize, _: ()) -> anyhow::Result<(Vec<usize>, Vec<i32>)> {
        nix::unistd::close(1)?;
        nix::unistd::close(2)?;
        let mut context = start_processes(|rank, ()| anyhow::Ok(rank), (), Options::new(2))?;
        let open = descriptors().into_iter().map(|(number, _)| number).collect();
        while !context.join_timeout(std::time::Duration::from_secs(1))? {}
        Ok((context.into_results()?, open))
    }
    watched(|| {
        let (results, open) = spawn(launch, (), 1).unwrap().remove(0);
        assert_eq!(results, [0, 1]);
        assert!(!open.contains(&1) && !open.contains(&2), "{open:?}");
    });
}

#[test]
fn workers_run_where_the_thread_that_starts_them_may() {
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    use nix::unistd::Pid;
    watched(|| {
        let all = cpus_allowed();
        // The first thread that starts workers here may only use one processor; the next must not be bound by that.
        let pinned = std::thread::spawn(move || {
            let mut one = CpuSet::new();
            one.set(all[0]).unwrap();
            sched_setaffinity(Pid::from_raw(0), &one).unwrap();
            spawn(|_, ()| anyhow::Ok(cpus_allowed()), (), 1).unwrap().remove(0)
        });
        assert_eq!(pinned.join().unwrap(), [cpus_allowed()[0]]);
        assert_eq!(spawn(|_, ()| anyhow::Ok(cpus_allowed()), (), 1).unwrap(), [cpus_allowed()]);
    });
    fn cpus_allowed() -> Vec<usize> {
        let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
        (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap()).collect()
    }
}

#[test]
fn hard_descriptor_limit_leaves_nobody_and_names_rank_call_and_limit() {
    watched(|| {
        let error = spawn(start_under_descriptor_limit, (32, 40), 1).unwrap().remove(0).unwrap_err();
        assert!(error.starts_with("cannot start rank ") && error.contains(" of 60: "), "{error}");
        assert!(error.contains("RLIMIT_NOFILE is 40 of at most 40"), "{error}");
        assert!(
            ["(memfd_create)", "(pidfd_open)", "(socketpair)", "posix_spawn"]
                .iter()
                .any(|call| error.contains(call)),
            "{error}"
        );
    });
}

fn start_under_process_limit(_: usize, _: ()) -> anyhow::Result<String> {
    let nobody = nix::unistd::Uid::from_raw(65_534);
    setrlimit(Resource::RLIMIT_NPROC, 5, 5)?;
    if nix::unistd::geteuid().is_root() {
        nix::unistd::setuid(nobody)?;
    }
    let error =
        start_processes(|_, ()| -> anyhow::Result<()> { common::wait_for_ever() }, (), Options::new(20));
    let error = error.err().map(|error| error.to_string());
    anyhow::ensure!(children().is_empty(), "workers were left");
    error.ok_or_else(|| anyhow::anyhow!("20 workers started under a limit of 5 processes"))
}

#[test]
fn process_limit_leaves_nobody_and_names_rank_call_and_limit() {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata("/proc/self/exe").unwrap().permissions().mode();
    if nix::unistd::geteuid().is_root() && mode & 0o001 == 0 {
        // Root has no such limit, and nobody else may run this file.
        return;
    }
    watched(|| {
        let error = spawn(start_under_process_limit, (), 1).unwrap().remove(0);
        assert!(error.contains("cannot start rank ") && error.contains("(posix_spawn)"), "{error}");
        assert!(error.contains("RLIMIT_NPROC is 5 of at most 5"), "{error}");
    });
}

fn start_without_memory(_: usize, _: ()) -> anyhow::Result<String> {
    let (soft, hard) = nix::sys::resource::getrlimit(Resource::RLIMIT_AS)?;
    // What the launcher itself needs comes from here, once no new memory is to be had.
    drop(std::hint::black_box(vec![1_u8; 100_000]));
    let last_argument = |rank: usize| {
        if rank == 2 {
            setrlimit(Resource::RLIMIT_AS, 1, hard).unwrap();
        }
        rank as u64
    };
    let error = start_processes_with(scaled, last_argument, Options::new(3)).err();
    setrlimit(Resource::RLIMIT_AS, soft, hard)?;
    anyhow::ensure!(children().is_empty(), "workers were left");
    Ok(error.map(|error| error.to_string()).unwrap_or_default())
}

#[test]
fn want_of_memory_leaves_nobody_and_names_rank_call_and_what_there_is() {
    watched(|| {
        let error = spawn(start_without_memory, (), 1).unwrap().remove(0);
        assert!(error.contains("cannot start rank 0 of 3") && error.contains("(posix_spawn)"), "{error}");
        assert!(error.contains(" of memory are available"), "{error}");
    });
}

fn start_with_sigchld_ignored(_: usize, _: ()) -> anyhow::Result<String> {
    set_disposition(NixSignal::SIGCHLD, libc::SIG_IGN);
    let error = spawn(scaled, 1, 2).err();
    Ok(error.map(|error| error.to_string()).unwrap_or_default())
}

#[test]
fn ignored_sigchld_is_a_clear_error() {
    watched(|| {
        let error = spawn(start_with_sigchld_ignored, (), 1).unwrap().remove(0);
        assert!(error.contains("SIGCHLD is ignored") && error.contains("SIG_DFL"), "{error}");
    });
}

#[test]
fn other_children_of_the_program_are_left_alone() {
    watched(|| {
        let mut other = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        spawn(scaled, 1, 3).unwrap();
        assert_eq!(other.wait().unwrap().code(), Some(7));
    });
}

#[test]
fn panic_in_the_arguments_closure_starts_nobody() {
    watched(|| {
        let outcome = std::panic::catch_unwind(|| {
            let args = |rank: usize| if rank == 2 { panic!("no arguments today") } else { rank as u64 };
            start_processes_with(scaled, args, Options::new(4)).map(drop)
        });
        assert!(outcome.is_err());
        assert!(children().is_empty());
    });
}
