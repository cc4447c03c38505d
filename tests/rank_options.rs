//! What a worker knows of itself, what runs before its function, and what each rank has of its own: by each start method.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "where the output goes is what is tested")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use common::{by, own_frames, raised, watched};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use phalanx::{
    Cause, Error, Options, OutputFile, RankOptions, StartMethod, WorkerInfo, spawn, start_processes,
    start_processes_with, worker_info,
};
use serde::{Deserialize, Serialize};

phalanx::auto_init!();

/// Runs a test by each method in a launcher of its own, which has one thread and whose fork server ends with it.
fn by_each_method(test: impl Fn(usize, StartMethod) -> anyhow::Result<()> + Copy + Send + 'static) {
    watched(|| {
        for method in [StartMethod::Spawn, StartMethod::Fork, StartMethod::ForkServer] {
            if let Err(error) = spawn(test, method, 1) {
                panic!("{method:?}: {error}");
            }
        }
    });
}

#[test]
fn worker_knows_which_it_is_and_nobody_else_does() {
    fn told(_: usize, _: ()) -> anyhow::Result<(usize, usize, String, u32)> {
        let WorkerInfo { rank, nprocs, name, launcher, .. } = worker_info().unwrap();
        Ok((rank, nprocs, name, launcher))
    }
    by_each_method(|_, method| {
        let own = std::process::id();
        let told = start_processes(told, (), by(method, 3).name("train"))?.join()?;
        let expected: Vec<_> = (0..3).map(|rank| (rank, 3, "train".to_owned(), own)).collect();
        anyhow::ensure!(told == expected, "{told:?}");
        anyhow::ensure!(
            worker_info().is_some_and(|info| info.rank == 0 && info.nprocs == 1),
            "a nested launcher"
        );
        Ok(())
    });
    assert_eq!(worker_info(), None);
}

#[test]
#[expect(unsafe_code, reason = "fork(2) is unsafe")]
fn fork_of_a_worker_is_no_worker() {
    by_each_method(|_, method| {
        let fork = |_: usize, _: ()| {
            // SAFETY: the child only asks what it is, which allocates nothing where it is no worker, and ends.
            let child = unsafe { nix::unistd::fork() }?;
            let nix::unistd::ForkResult::Parent { child } = child else {
                // SAFETY: takes an integer.
                unsafe { libc::_exit(i32::from(worker_info().is_some())) }
            };
            let ended = nix::sys::wait::waitpid(child, None)?;
            anyhow::ensure!(ended == nix::sys::wait::WaitStatus::Exited(child, 0), "{ended:?}");
            Ok(())
        };
        start_processes(fork, (), by(method, 1))?.join()?;
        Ok(())
    });
}

static SET_UP: Mutex<Option<WorkerInfo>> = Mutex::new(None);

fn set_up(worker: &WorkerInfo) -> anyhow::Result<()> {
    *SET_UP.lock().unwrap() = Some(worker.clone());
    Ok(())
}

#[test]
fn hook_runs_in_each_worker_before_its_function() {
    by_each_method(|_, method| {
        let seen = |rank: usize, _: ()| {
            let set_up = SET_UP.lock().unwrap().take();
            anyhow::Ok(set_up == worker_info() && set_up.is_some_and(|info| info.rank == rank))
        };
        let told = start_processes(seen, (), by(method, 2).on_start(set_up))?.join()?;
        anyhow::ensure!(told == [true, true] && SET_UP.lock().unwrap().is_none());
        Ok(())
    });
}

#[inline(never)]
fn fail_in_rank_1(worker: &WorkerInfo) -> anyhow::Result<()> {
    anyhow::ensure!(worker.rank != 1, "no device for rank {}", worker.rank);
    Ok(())
}

#[test]
fn failure_of_the_hook_is_the_workers_with_a_traceback() {
    by_each_method(|_, method| {
        let options = by(method, 2).on_start(fail_in_rank_1);
        let exception = raised(start_processes(|_, ()| anyhow::Ok(()), (), options)?.join().unwrap_err());
        assert_eq!(
            (exception.error_index(), exception.chain()),
            (1, &["no device for rank 1".to_owned()][..])
        );
        let frames = exception.traceback().frames();
        let names: Vec<_> = own_frames(exception.traceback()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["fail_in_rank_1"], "{frames:?}");
        assert_eq!(frames.len(), 1, "{frames:?}");
        let panics = by(method, 1).on_start(|_| -> anyhow::Result<()> { panic!("not today") });
        let exception = raised(start_processes(|_, ()| anyhow::Ok(()), (), panics)?.join().unwrap_err());
        assert_eq!(exception.chain(), ["not today"]);
        Ok(())
    });
}

/// What a rank may have of its own.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Own {
    variables: [Option<String>; 2],
    directory: PathBuf,
    processors: Vec<usize>,
}

fn own(_: usize, _: ()) -> anyhow::Result<Own> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok(Own {
        variables: ["PHALANX_A", "PHALANX_B"].map(|key| std::env::var(key).ok()),
        directory: std::env::current_dir()?,
        processors: (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap()).collect(),
    })
}

#[test]
fn rank_has_its_environment_directory_and_processors() {
    by_each_method(|_, method| {
        let launchers = own(0, ())?;
        let last = *launchers.processors.last().unwrap();
        let options = || {
            by(method, 3).env("PHALANX_A", "all").env("PHALANX_B", "all").rank_options(|rank| match rank {
                1 => RankOptions::new().env("PHALANX_A", "one").current_dir("/proc").processors([last]),
                _ => RankOptions::new(),
            })
        };
        let plain = |seen: &Own| {
            seen.variables == [Some("all".to_owned()), Some("all".to_owned())]
                && (&seen.directory, &seen.processors) == (&launchers.directory, &launchers.processors)
        };
        let special = Own {
            variables: [Some("one".to_owned()), Some("all".to_owned())],
            directory: "/proc".into(),
            processors: vec![last],
        };
        // One job for all, and one for each.
        let for_all = start_processes(own, (), options())?.join()?;
        let for_each = start_processes_with(own, |_| (), options())?.join()?;
        for seen in [for_all, for_each] {
            anyhow::ensure!(plain(&seen[0]) && seen[1] == special && plain(&seen[2]), "{seen:?}");
        }
        Ok(())
    });
}

#[test]
fn output_of_each_rank_goes_to_its_file() {
    fn print(rank: usize, _: ()) -> anyhow::Result<()> {
        println!("out {rank}");
        eprintln!("err {rank}");
        let status = std::process::Command::new("sh").args(["-c", "echo child"]).status()?;
        anyhow::ensure!(status.success());
        Ok(())
    }
    by_each_method(|_, method| {
        let dir = tempfile::tempdir()?;
        std::env::set_current_dir(dir.path())?;
        fs::create_dir("elsewhere")?;
        // Relative paths are the launcher's, whatever the rank's directory is.
        let options = || {
            by(method, 3).rank_options(|rank| {
                let file = |name: &str| format!("{name}{rank}");
                match rank {
                    0 => RankOptions::new()
                        .stdout(OutputFile::truncate(file("out")))
                        .stderr(OutputFile::append(file("err")))
                        .current_dir("elsewhere"),
                    1 => RankOptions::new()
                        .stdout(OutputFile::truncate(file("both")))
                        .stderr(OutputFile::truncate(file("both"))),
                    _ => RankOptions::new()
                        .stdout(OutputFile::truncate("/dev/null"))
                        .stderr(OutputFile::append("/dev/null")),
                }
            })
        };
        for round in 1..=2 {
            start_processes(print, (), options())?.join()?;
            assert_eq!(fs::read_to_string("out0")?, "out 0\nchild\n");
            assert_eq!(fs::read_to_string("err0")?, "err 0\n".repeat(round));
            assert_eq!(fs::read_to_string("both1")?, "out 1\nerr 1\nchild\n");
        }
        Ok(())
    });
}

#[test]
fn what_a_rank_cannot_have_is_refused_with_its_name() {
    by_each_method(|_, method| {
        let start = |options: Options| start_processes(|_, ()| anyhow::Ok(()), (), options);
        let shared = by(method, 2).rank_options(|_| RankOptions::new().stdout(OutputFile::append("same")));
        let dir = tempfile::tempdir()?;
        std::env::set_current_dir(dir.path())?;
        let error = start(shared).unwrap_err().to_string();
        assert!(error.contains("rank 1: stdout: same: it is rank 0's file too"), "{error}");
        let nowhere = |rank: usize| RankOptions::new().stderr(OutputFile::append(format!("none/{rank}")));
        let error = start(by(method, 2).rank_options(nowhere)).unwrap_err().to_string();
        assert!(error.contains("rank 0: stderr: none/0: No such file"), "{error}");
        let missing = |rank: usize| match rank {
            1 => RankOptions::new().current_dir("/not/there"),
            _ => RankOptions::new(),
        };
        // No machine has that one, and of two the kernel would leave it out in silence.
        let own = own(0, ())?.processors[0];
        for (processors, told) in [(vec![9999], "Invalid argument"), (vec![own, 9999], "may only run on")] {
            let refused =
                start(by(method, 1).rank_options(|_| RankOptions::new().processors(processors.clone())));
            let text = refused?.join().unwrap_err().to_string();
            assert!(text.contains("rank 0: taking on its processors") && text.contains(told), "{text}");
            assert!(text.contains(&format!("{processors:?}")), "{text}");
        }
        // Only the worker can tell, whose root or rights may be others.
        match start(by(method, 2).rank_options(missing))?.join() {
            Err(Error::ProcessExited(exception)) => {
                assert_eq!((exception.error_index(), exception.cause()), (1, Some(Cause::CouldNotBegin)));
                let text = exception.to_string();
                assert!(
                    text.contains("rank 1: entering its working directory: /not/there: No such file"),
                    "{text}"
                );
            }
            other => anyhow::bail!("{other:?}"),
        }
        Ok(())
    });
}
