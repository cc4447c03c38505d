//! What workers print, carried by their launcher: prefixes, the end of stderr in the failure, and nothing lost or left behind.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what is printed is what is tested")]

mod common;
#[path = "common/console.rs"]
mod shown;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use common::{
    SOON, await_end, await_post, await_that, board, by, exited, kill_self, post, raised, send, tagged,
    wait_for_ever, watched,
};
use nix::sys::signal::Signal::SIGKILL;
use phalanx::{Error, Options, OutputFile, Prefix, RankOptions, StartMethod, Status, start_processes};
use shown::{TAG, console};

phalanx::auto_init!();

const METHODS: [StartMethod; 3] = [StartMethod::Spawn, StartMethod::Fork, StartMethod::ForkServer];

fn by_each_method(
    test: impl Fn(usize, StartMethod) -> anyhow::Result<()> + Copy + Send + 'static,
    look: impl Fn([String; 2]),
) {
    watched(|| METHODS.into_iter().for_each(|method| look(console(test, method))));
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

#[test]
fn lines_are_whole_and_behind_the_prefix_of_their_rank() {
    const LINES: usize = 300;
    fn talk(rank: usize, _: ()) -> anyhow::Result<()> {
        for line in 0..LINES {
            // In two halves: no other line comes between them.
            print!("rank {rank} ");
            std::io::stdout().flush()?;
            println!("line {line}");
        }
        eprintln!("rank {rank} is done");
        Ok(())
    }
    let test = |_: usize, method: StartMethod| {
        start_processes(talk, (), by(method, 3).name("job").prefix(prefix("${role_name}/${rank}> ")))?
            .join()?;
        Ok(())
    };
    by_each_method(test, |[stdout, stderr]| {
        for rank in 0..3 {
            let own: Vec<_> =
                stdout.lines().filter_map(|line| line.strip_prefix(&format!("job/{rank}> "))).collect();
            let expected: Vec<_> = (0..LINES).map(|line| format!("rank {rank} line {line}")).collect();
            assert_eq!(own, expected);
        }
        assert_eq!(stdout.lines().count(), 3 * LINES);
        let mut told: Vec<_> = stderr.lines().collect();
        told.sort_unstable();
        let expected = [0, 1, 2].map(|rank| format!("job/{rank}> rank {rank} is done"));
        assert_eq!(told, expected);
    });
}

#[test]
fn killed_worker_loses_nothing_and_the_end_of_its_stderr_stands_in_the_failure() {
    const LINES: usize = 3_000;
    fn talk(rank: usize, board: phalanx::Tensor<i64>) -> anyhow::Result<()> {
        if rank == 0 {
            eprintln!("rank 0 waits");
            post(&board, 0, 1);
            wait_for_ever();
        }
        await_post(&board, 0);
        let text: String = (0..LINES).map(|line| format!("line {line} of many\n")).collect();
        eprint!("{text}last words");
        kill_self()
    }
    let test = |_: usize, method: StartMethod| {
        let error = start_processes(talk, board(1), by(method, 2).stderr_tail(3))?.join().unwrap_err();
        let exception = exited(error);
        assert_eq!((exception.error_index(), exception.signal_name().as_deref()), (1, Some("SIGKILL")));
        let last = ["line 2998 of many", "line 2999 of many", "last words"];
        assert_eq!(exception.outcomes()[1].stderr_tail(), last);
        assert_eq!(exception.outcomes()[0].stderr_tail(), ["rank 0 waits"]);
        let text = exception.to_string();
        assert!(text.contains(&format!("\nthe end of its stderr:\n  {}\n", last.join("\n  "))), "{text}");
        Ok(())
    };
    by_each_method(test, |[stdout, stderr]| {
        assert_eq!(stdout, "");
        // Without a prefix nothing stands before the lines.
        let own: Vec<_> = stderr.lines().filter(|&line| line != "rank 0 waits").collect();
        assert_eq!((own.len(), own[0], own[LINES]), (LINES + 1, "line 0 of many", "last words"));
    });
}

#[test]
fn error_that_was_returned_has_the_end_of_stderr_beside_it() {
    fn fail(_: usize, _: ()) -> anyhow::Result<()> {
        eprintln!("warning: no data\r\n 10%\r 20%");
        anyhow::bail!("gave up")
    }
    let test = |_: usize, method: StartMethod| {
        let mut context = start_processes(fail, (), by(method, 1).stderr_tail(100))?;
        let exception = raised(loop {
            if let Err(error) = context.join_timeout(SOON) {
                break error;
            }
        });
        assert_eq!(exception.outcomes()[0].stderr_tail(), ["warning: no data", " 20%"]);
        let text = exception.to_string();
        assert!(text.ends_with("\nthe end of its stderr:\n  warning: no data\n   20%"), "{text}");
        // The context tells the same.
        assert_eq!(context.outcomes()?[0].stderr_tail(), exception.outcomes()[0].stderr_tail());
        // It is data: it survives a journey.
        let json = serde_json::to_string(&exception)?;
        assert_eq!(serde_json::from_str::<phalanx::ProcessRaisedException>(&json)?, exception);
        Ok(())
    };
    by_each_method(test, |_| {});
}

#[test]
fn process_that_is_left_behind_with_the_pipes_does_not_hold_join() {
    fn leave(_: usize, _: ()) -> anyhow::Result<u32> {
        println!("leaves");
        // In a session of its own, so that it does not end with the worker's process group.
        let left = Command::new("setsid").args(["sleep", "600"]).spawn()?;
        await_that(|| {
            fs::read_to_string(format!("/proc/{}/comm", left.id())).is_ok_and(|comm| comm == "sleep\n")
        });
        Ok(left.id())
    }
    let test = |_: usize, method: StartMethod| {
        let options = by(method, 1).prefix(Prefix::none()).stderr_tail(1);
        let left = start_processes(leave, (), options)?.join()?[0];
        let lives = common::state_of(left).is_some_and(|state| state != 'Z');
        send(left, SIGKILL);
        await_end(left);
        anyhow::ensure!(lives, "it has not outlived its worker");
        Ok(())
    };
    by_each_method(test, |[stdout, _]| assert_eq!(stdout, "leaves\n"));
}

#[test]
fn dropped_context_and_a_fork_of_the_launcher_leave_nothing() {
    fn talk(_: usize, _: ()) -> anyhow::Result<()> {
        println!("begins");
        wait_for_ever()
    }
    #[expect(unsafe_code, reason = "fork(2) is unsafe")]
    fn launcher(_: usize, method: StartMethod) -> anyhow::Result<()> {
        watched(|| {
            let mut context =
                start_processes(talk, (), by(method, 2).prefix(Prefix::default()).daemon(true))?;
            context.join_timeout(SOON)?;
            // SAFETY: the child drops what it has a copy of, and ends.
            let nix::unistd::ForkResult::Parent { child } = unsafe { nix::unistd::fork() }? else {
                drop(context);
                // SAFETY: takes an integer.
                unsafe { libc::_exit(7) }
            };
            let ended = nix::sys::wait::waitpid(child, None)?;
            anyhow::ensure!(ended == nix::sys::wait::WaitStatus::Exited(child, 7), "{ended:?}");
            anyhow::ensure!(
                context.status(1)? == Status::Running,
                "the fork has ended the launcher's worker"
            );
            drop(context);
            Ok(())
        })
    }
    fn warmed(rank: usize, method: StartMethod) -> anyhow::Result<()> {
        // The fork server stays.
        start_processes(|_, ()| anyhow::Ok(()), (), by(method, 1))?.join()?;
        launcher(rank, method)
    }
    by_each_method(warmed, |_| {});
}

#[test]
fn launcher_that_is_killed_leaves_nothing() {
    fn talk(rank: usize, board: phalanx::Tensor<i64>) -> anyhow::Result<()> {
        post(&board, rank, std::process::id());
        // Until nobody takes it any more, at the latest.
        while writeln!(std::io::stdout(), "more").is_ok() {}
        wait_for_ever()
    }
    fn launcher(_: usize, (method, board): (StartMethod, phalanx::Tensor<i64>)) -> anyhow::Result<()> {
        let options = by(method, 2).prefix(Prefix::default()).stderr_tail(5);
        start_processes(talk, board, options)?.join()?;
        Ok(())
    }
    watched(|| {
        for method in METHODS {
            let (board, tag) = (board(2), format!("killed-{}-{method:?}", std::process::id()));
            let own = |_| RankOptions::new().stdout(OutputFile::append("/dev/null"));
            let options = Options::new(1).env(TAG, &tag).rank_options(own);
            let context = start_processes(launcher, (method, board.clone()), options).unwrap();
            let workers = [await_post(&board, 0), await_post(&board, 1)];
            common::kill(context);
            workers.into_iter().for_each(await_end);
            await_that(|| tagged(TAG, &tag).is_empty());
        }
    });
}

#[test]
fn stderr_goes_to_the_files_of_its_rank_and_its_end_is_kept() {
    fn talk(rank: usize, _: ()) -> anyhow::Result<()> {
        println!("to stdout");
        eprintln!("one\nrank {rank}");
        anyhow::ensure!(rank != 1, "fails");
        Ok(())
    }
    let test = |_: usize, method: StartMethod| {
        let dir = tempfile::tempdir()?;
        let path = |rank: usize| dir.path().join(rank.to_string());
        (0..2).try_for_each(|rank| fs::write(path(rank), "old\n"))?;
        let own = |rank: usize| match rank {
            0 => RankOptions::new().stderr(OutputFile::append(path(0))),
            _ => RankOptions::new().stderr(OutputFile::truncate(path(1))).current_dir("/"),
        };
        let options = by(method, 2).rank_options(own).prefix(Prefix::none()).stderr_tail(1);
        let exception = raised(start_processes(talk, (), options)?.join().unwrap_err());
        assert_eq!(exception.outcomes()[1].stderr_tail(), ["rank 1"]);
        assert_eq!(fs::read_to_string(path(0))?, "old\none\nrank 0\n");
        assert_eq!(fs::read_to_string(path(1))?, "one\nrank 1\n");
        Ok(())
    };
    by_each_method(test, |[stdout, stderr]| {
        assert!(stdout.lines().all(|line| line == "to stdout"), "{stdout}");
        assert_eq!(stderr, "");
    });
}

#[test]
fn more_workers_than_go_into_one_request_have_their_pipes_too() {
    const WORKERS: usize = 70;
    let test = |_: usize, method: StartMethod| {
        let talk = |rank: usize, _: ()| {
            println!("{rank}");
            eprintln!("{rank}");
            anyhow::Ok(())
        };
        let options = by(method, WORKERS).prefix(prefix("${rank} is ")).stderr_tail(1);
        let mut context = start_processes(talk, (), options)?;
        common::poll_join(&mut context)?;
        for outcome in context.outcomes()? {
            assert_eq!(outcome.stderr_tail(), [outcome.rank().to_string()]);
        }
        Ok(())
    };
    watched(|| {
        for text in console(test, StartMethod::ForkServer) {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            let mut expected: Vec<_> = (0..WORKERS).map(|rank| format!("{rank} is {rank}")).collect();
            lines.sort_unstable();
            expected.sort_unstable();
            assert_eq!(lines, expected);
        }
    });
}

#[test]
fn what_the_loader_says_of_a_program_is_the_workers_output() {
    let test = |_: usize, method: StartMethod| {
        let options = by(method, 1).env("LD_PRELOAD", "/nowhere.so").stderr_tail(10);
        let exit = |_: usize, _: ()| -> anyhow::Result<()> { kill_self() };
        let exception = exited(start_processes(exit, (), options)?.join().unwrap_err());
        let tail = exception.outcomes()[0].stderr_tail();
        anyhow::ensure!(tail.len() == 1 && tail[0].contains("/nowhere.so"), "{tail:?}");
        Ok(())
    };
    watched(|| console(test, StartMethod::Spawn));
}

#[test]
fn without_these_options_workers_have_the_launchers_streams_and_it_has_no_thread() {
    fn streams(_: usize, _: ()) -> anyhow::Result<[std::path::PathBuf; 2]> {
        Ok([fs::read_link("/proc/self/fd/1")?, fs::read_link("/proc/self/fd/2")?])
    }
    let test = |rank: usize, method: StartMethod| {
        let mut context = start_processes(streams, (), by(method, 1))?;
        let threads = fs::read_dir("/proc/self/task")?.count();
        while !context.join_timeout(SOON)? {}
        anyhow::ensure!(context.into_results()? == [streams(rank, ())?] && threads == 1, "{threads} threads");
        Ok(())
    };
    by_each_method(test, |_| {});
}

#[test]
fn fork_is_refused_only_while_the_output_is_carried() {
    let test = |_: usize, method: StartMethod| {
        let options = || by(method, 1).stderr_tail(1);
        let mut context = start_processes(|_, ()| -> anyhow::Result<()> { wait_for_ever() }, (), options())?;
        let refused = start_processes(|_, ()| anyhow::Ok(()), (), options()).unwrap_err();
        anyhow::ensure!(matches!(refused, Error::ForkWithThreads { threads: 2 }), "{refused}");
        context.kill()?;
        let failed = common::poll_join(&mut context);
        anyhow::ensure!(failed.is_err(), "it was killed");
        start_processes(|_, ()| anyhow::Ok(()), (), options())?.join()?;
        Ok(())
    };
    watched(|| console(test, StartMethod::Fork));
}

#[test]
#[expect(unsafe_code, reason = "dup2")]
fn stream_that_takes_nothing_holds_join_but_no_call_with_a_limit() {
    const LINES: usize = 20_000;
    let talk = |_: usize, _: ()| {
        (0..LINES).for_each(|_| println!("0123456789"));
        anyhow::Ok(())
    };
    let test = move |_: usize, method: StartMethod| {
        let (reader, writer) = nix::unistd::pipe()?;
        // SAFETY: nobody owns stdout.
        anyhow::ensure!(unsafe { libc::dup2(writer.as_fd().as_raw_fd(), 1) } == 1, "dup2");
        drop(writer);
        let mut context = start_processes(talk, (), by(method, 1).prefix(Prefix::none()))?;
        while context.status(0)? != Status::Succeeded {
            anyhow::ensure!(!context.join_timeout(SOON)?, "its output has not been written");
        }
        anyhow::ensure!(!context.join_timeout(SOON)?, "its output has not been written");
        let reading = std::thread::spawn(move || {
            let mut read = vec![0; 11 * LINES];
            File::from(reader).read_exact(&mut read).map(|()| read)
        });
        context.join()?;
        let read = reading.join().unwrap()?;
        anyhow::ensure!(read.chunks(11).all(|line| line == b"0123456789\n"));
        Ok(())
    };
    watched(|| console(test, StartMethod::Spawn));
}

#[test]
#[expect(unsafe_code, reason = "dup2")]
fn output_of_ours_that_breaks_is_told_and_ends_no_job() {
    let test = |_: usize, method: StartMethod| {
        let full = File::options().write(true).open("/dev/full")?;
        // SAFETY: nobody owns stdout.
        anyhow::ensure!(unsafe { libc::dup2(full.as_fd().as_raw_fd(), 1) } == 1, "dup2");
        let talk = |_: usize, _: ()| {
            (0..20_000).for_each(|_| println!("0123456789"));
            anyhow::Ok(5)
        };
        let results = start_processes(talk, (), by(method, 2).prefix(Prefix::default()))?.join()?;
        anyhow::ensure!(results == [5, 5]);
        Ok(())
    };
    by_each_method(test, |[_, stderr]| {
        assert!(
            stderr.starts_with("phalanx: stdout takes no more output (No space left on device"),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    });
}
