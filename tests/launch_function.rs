//! `Launch::function`: a job whose workers run a function of this program.

#![expect(clippy::print_stdout, reason = "where that goes is tested")]

mod common;

use std::fs;
use std::time::Duration;

use common::{under_both_strategies, watched};
use phalanx::launch::{Ending, Launch, LaunchError, Nproc, Streams};
use phalanx::{Error, Queue, Tensor, stopping, worker_info};

phalanx::auto_init!();

const LONG: Duration = Duration::from_secs(3600);

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// Tells what it was given, and what it knows of itself.
fn tell(rank: usize, (scale, told): (f64, Queue<String>)) -> anyhow::Result<()> {
    let info = worker_info().expect("this is a worker");
    let names =
        ["RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT", "OWN", "__PHALANX_FUNCTION"];
    let variables = names.map(variable).join(",");
    println!("rank {rank} prints");
    told.put(format!("{rank} {} {} {} {scale} {variables}", info.rank, info.nprocs, info.name))?;
    Ok(())
}

#[test]
fn function_has_its_rank_its_arguments_and_the_variables_of_a_program() {
    watched(|| {
        let (told, dir) = (Queue::bounded(2).unwrap(), tempfile::tempdir().unwrap());
        let launch =
            Launch::function(tell, (0.5, told.clone())).unwrap().nproc(Nproc::Count(2)).role("train");
        let summary = launch.env("OWN", "x").log_dir(dir.path()).redirects(Streams::BOTH).run().unwrap();
        assert!(summary.succeeded(), "{summary}");
        assert_eq!(summary.command, "launch_function::tell");
        let mut lines = [told.get().unwrap(), told.get().unwrap()];
        lines.sort();
        assert_eq!(lines, ["0 0 2 train 0.5 0,0,2,0,x,", "1 1 2 train 0.5 1,1,2,0,x,"]);
        let logs = summary.attempts[0].log_dir.clone().unwrap();
        assert_eq!(fs::read_to_string(logs.join("1/stdout.log")).unwrap(), "rank 1 prints\n");
    });
}

fn fail(rank: usize, panics: bool) -> anyhow::Result<()> {
    use anyhow::Context;
    match rank {
        0 => common::wait_for_ever(),
        _ if panics => panic!("out of luck"),
        _ => fs::read("/nowhere").map(drop).context("loading the model"),
    }
}

#[test]
fn error_and_panic_stand_in_the_report_with_their_tracebacks() {
    watched(|| {
        for (panics, code, message, on_stderr) in [
            (
                false,
                1,
                "loading the model: No such file or directory (os error 2)",
                "Error: loading the model",
            ),
            (true, 101, "panicked at tests/launch_function.rs:", "out of luck"),
        ] {
            let launch = Launch::function(fail, panics).unwrap().nproc(Nproc::Count(2));
            let summary = launch.shutdown_timeout(LONG).run().unwrap();
            let root = summary.attempts[0].root_cause().unwrap();
            assert_eq!((root.rank, root.ending), (1, Ending::Exited { code }), "{summary}");
            let error = root.error.as_ref().unwrap();
            assert!(error.message.starts_with(message), "{summary}");
            let traceback = error.traceback.as_ref().unwrap();
            assert!(traceback.contains("launch_function::fail\n"), "{traceback}");
            assert!(!traceback.contains("phalanx::worker"), "{traceback}");
            assert!(root.stderr_tail.iter().any(|line| line.contains(on_stderr)), "{:?}", root.stderr_tail);
        }
    });
}

/// Both ranks go on from where the last attempt has left the tensor; the second rank fails once.
fn count(rank: usize, steps: Tensor<i64>) -> anyhow::Result<()> {
    let before = steps.fetch_add(rank, 1)?;
    anyhow::ensure!(rank != 1 || before > 0, "the first attempt");
    Ok(())
}

#[test]
fn memory_in_arguments_is_shared_from_attempt_to_attempt() {
    under_both_strategies(|| {
        let steps = Tensor::zeros(&[2]).unwrap();
        let launch = Launch::function(count, steps.clone()).unwrap().nproc(Nproc::Count(2));
        // The workers will write to it.
        let steps = steps.freeze().unwrap_err().into_inner();
        let summary = launch.max_restarts(1).run().unwrap();
        assert!(summary.succeeded() && summary.attempts.len() == 2, "{summary}");
        assert_eq!(steps.get(1).unwrap(), 2);
        // Nobody writes to it any more.
        assert!(steps.freeze().is_ok());
    });
}

fn fail_when_the_other_is_up(rank: usize, seen: Tensor<i64>) -> anyhow::Result<()> {
    common::ignore_term();
    anyhow::ensure!(!stopping(), "nobody has failed yet");
    if rank == 0 {
        common::await_post(&seen, 0);
        anyhow::bail!("out of luck");
    }
    common::post(&seen, 0, 1);
    common::await_that(stopping);
    common::post(&seen, 1, 1);
    Ok(())
}

#[test]
fn function_sees_that_its_job_is_being_stopped() {
    watched(|| {
        let seen = common::board(2);
        let launch = Launch::function(fail_when_the_other_is_up, seen.clone()).unwrap();
        let summary = launch.nproc(Nproc::Count(2)).shutdown_timeout(LONG).run().unwrap();
        assert_eq!(summary.attempts[0].workers[1].ending, Ending::Succeeded, "{summary}");
        assert_eq!(seen.get(1).unwrap(), 1);
    });
}

/// Is a launcher itself, of either kind.
fn launch_others(_: usize, (): ()) -> anyhow::Result<()> {
    let doubled = phalanx::spawn(|rank, by: usize| anyhow::Ok(by * rank), 2, 2)?;
    anyhow::ensure!(doubled == [0, 2]);
    let summary =
        Launch::function(count, Tensor::from_slice(&[1, 1], &[2])?)?.nproc(Nproc::Count(2)).run()?;
    anyhow::ensure!(summary.succeeded(), "{summary}");
    Ok(())
}

#[test]
fn function_can_launch_others() {
    watched(|| {
        let summary = Launch::function(launch_others, ()).unwrap().run().unwrap();
        assert!(summary.succeeded(), "{summary}");
    });
}

#[test]
fn what_cannot_travel_is_refused_before_anything_is_started() {
    watched(|| {
        let shard = Tensor::<u8>::zeros(&[4]).unwrap().into_shards(1).unwrap().remove(0);
        let refused = Launch::function(|_, _: phalanx::Shard<u8>| anyhow::Ok(()), shard).unwrap_err();
        let LaunchError::Function { error, .. } = &refused else { panic!("{refused}") };
        assert!(matches!(**error, Error::Arguments { .. }), "{refused}");
        assert!(refused.to_string().contains("a shard can go to one process once"), "{refused}");
        let described = Launch::function(count, Tensor::zeros(&[1]).unwrap()).unwrap().describe().unwrap();
        assert!(described.contains("RANK=0") && !described.contains("__PHALANX"), "{described}");
    });
}
