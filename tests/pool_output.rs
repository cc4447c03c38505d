//! What the workers of a pool print, carried by its process, also of those that take the places of others.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what is printed is what is tested")]

mod common;
#[path = "common/console.rs"]
mod shown;

use std::fs;
use std::os::fd::AsRawFd;
use std::time::Duration;

use common::{by, kill_self, watched};
use phalanx::pool::{Pool, TaskFailure};
use phalanx::{Options, OutputFile, Prefix, Queue, QueueError, RankOptions, StartMethod, spawn};
use shown::console;

phalanx::auto_init!();

fn speak(how: String) -> anyhow::Result<()> {
    println!("out {how}");
    eprintln!("says {how}");
    if how == "dies" { kill_self() } else { Ok(()) }
}

#[test]
fn workers_of_a_pool_and_those_that_take_their_places_have_prefixes_and_tails() {
    let test = |_: usize, method: StartMethod| {
        let workers =
            by(method, 1).name("job").prefix("${role_name}/${rank}> ".parse::<Prefix>()?).stderr_tail(2);
        let pool = Pool::options(workers).build()?;
        for last in ["first", "next"] {
            pool.submit(speak, last.to_owned())?.join()?;
            let failed = pool.submit(speak, "dies".to_owned())?.join().unwrap_err();
            let said = [format!("says {last}"), "says dies".to_owned()];
            assert_eq!(failed.outcome().unwrap().stderr_tail(), said);
            let text = failed.to_string();
            assert!(text.contains(&format!("\nthe end of its stderr:\n  {}", said.join("\n  "))), "{text}");
        }
        pool.join()?;
        Ok(())
    };
    let look = |[stdout, stderr]: [String; 2]| {
        let all =
            |before| ["first", "dies", "next", "dies"].map(|how| format!("job/0> {before} {how}\n")).concat();
        assert_eq!((stdout, stderr), (all("out"), all("says")));
    };
    watched(|| {
        [StartMethod::Spawn, StartMethod::ForkServer]
            .into_iter()
            .for_each(|method| look(console(test, method)))
    });
}

#[test]
fn stderr_of_a_pools_worker_goes_on_in_the_file_of_its_number() {
    let test = |_: usize, method: StartMethod| {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("stderr");
        let own = |_| RankOptions::new().stderr(OutputFile::truncate(dir.path().join("stderr")));
        let pool = Pool::options(by(method, 1).rank_options(own).stderr_tail(1)).build()?;
        let failed = pool.submit(speak, "dies".to_owned())?.join().unwrap_err();
        assert_eq!(failed.outcome().unwrap().stderr_tail(), ["says dies"]);
        pool.submit(speak, "next".to_owned())?.join()?;
        pool.join()?;
        assert_eq!(fs::read_to_string(path)?, "says dies\nsays next\n");
        Ok(())
    };
    watched(|| assert_eq!(console(test, StartMethod::Spawn)[1], ""));
}

fn flood(_: ()) -> anyhow::Result<()> {
    let text: String = (0..5000).map(|line| format!("line {line} of many\n")).collect();
    eprint!("{text}last words");
    kill_self()
}

#[test]
fn death_is_told_when_all_that_the_worker_has_printed_is_known() {
    let test = |_: usize, method: StartMethod| {
        let pool = Pool::options(by(method, 1).stderr_tail(1)).build()?;
        let failed = pool.submit(flood, ())?.join().unwrap_err();
        assert_eq!(failed.outcome().unwrap().stderr_tail(), ["last words"]);
        pool.join()?;
        Ok(())
    };
    watched(|| assert_eq!(console(test, StartMethod::Spawn)[1].lines().count(), 5001));
}

/// Prints for ever.
fn print_for_ever(told: Queue<u32>) -> anyhow::Result<()> {
    told.put(std::process::id())?;
    loop {
        eprintln!("{}", "says a lot ".repeat(100));
    }
}

fn wait_a_moment(never: Queue<u32>) -> anyhow::Result<bool> {
    Ok(matches!(never.get_timeout(Duration::from_millis(300)), Err(QueueError::TimedOut { .. })))
}

/// A pool whose stderr takes nothing: what its worker has printed cannot be written, so that its end is told a second later.
#[expect(unsafe_code, reason = "dup2")]
fn kill_a_call_whose_worker_has_died(_rank: usize, _: ()) -> anyhow::Result<()> {
    let (reader, writer) = nix::unistd::pipe()?;
    // SAFETY: two descriptors; the second one is nobody's but the process's stderr.
    anyhow::ensure!(unsafe { libc::dup2(writer.as_raw_fd(), 2) } == 2, "dup2");
    let (told, never) = (Queue::bounded(1)?, Queue::bounded(1)?);
    let pool = Pool::options(Options::new(1).stderr_tail(3)).grace(Duration::ZERO).build()?;
    let task = pool.submit(print_for_ever, told.clone())?;
    let pid = told.get()?;
    common::send(pid, nix::sys::signal::Signal::SIGKILL);
    common::await_that(|| pool.workers().iter().all(|worker| worker.pid != pid));
    let next = pool.submit(wait_a_moment, never)?;
    anyhow::ensure!(!task.kill(), "its worker was dead");
    let failed = task.join().unwrap_err();
    anyhow::ensure!(matches!(failed.failure(), TaskFailure::WorkerEnded(_)), "{failed}");
    anyhow::ensure!(next.join()?, "the next call was asked to end");
    // The end of the pool waits until what its workers have printed is written.
    std::thread::spawn(move || std::io::copy(&mut fs::File::from(reader), &mut std::io::sink()));
    drop(pool);
    Ok(())
}

#[test]
fn kill_of_a_call_whose_worker_has_died_meets_no_other_call_however_long_its_output_takes() {
    watched(|| spawn(kill_a_call_whose_worker_has_died, (), 1).unwrap());
}
