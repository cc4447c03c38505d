//! Faults of workers at no point: at a time, or when a file appears.

mod common;
#[path = "common/steps.rs"]
mod steps;

use std::path::PathBuf;
use std::time::Duration;

use common::watched;
use phalanx::fault::{self, Faults, PlanError, Site};
use phalanx::sync::Barrier;
use phalanx::{Error, Options, Signal, StartMethod, Status, start_processes};
use steps::served;

phalanx::auto_init!();

/// It would run for ever.
fn sleep(_rank: usize, _: ()) -> anyhow::Result<()> {
    loop {
        std::thread::park();
    }
}

fn sleepers(method: StartMethod) -> impl Fn(&Faults) -> Result<Vec<()>, Error> {
    move |faults| start_processes(sleep, (), Options::new(3).start_method(method).faults(faults))?.join()
}

/// Rank 1 makes a file twice when all have begun, and so look for it; then all would run for ever.
fn write_and_sleep(rank: usize, (path, barrier): (PathBuf, Barrier)) -> anyhow::Result<()> {
    barrier.wait()?;
    if rank == 1 {
        std::fs::write(&path, "weights")?;
        std::fs::remove_file(&path)?;
        std::fs::write(&path, "weights")?;
    }
    sleep(rank, ())
}

#[test]
fn each_end_at_a_time_is_told_as_what_it_was() {
    served(|| {
        for action in ["kill", "term", "int", "segv", "bus", "abort", "exit=0", "exit=7"] {
            for method in [StartMethod::Spawn, StartMethod::ForkServer] {
                let plan = format!("{action}@time=10ms:rank=1");
                let trial = fault::trial(&plan, sleepers(method)).unwrap_or_else(|error| panic!("{error}"));
                let fired = trial.fired();
                assert_eq!((fired.len(), fired[0].rank), (1, 1), "{fired:?}");
                assert_eq!(fired[0].site, Site::Time(Duration::from_millis(10)));
            }
        }
    });
}

#[test]
fn time_that_does_not_come_fails_the_trial() {
    watched(|| {
        let trial =
            fault::trial("kill@time=10ms:rank=2,exit=3@time=600s:rank=0", sleepers(StartMethod::Spawn));
        let error = trial.err().unwrap().to_string();
        assert!(error.contains("exit=3@time=600s:rank=0"), "{error}");
    });
}

#[test]
fn file_that_appears_is_met_by_the_ranks_that_are_named() {
    watched(|| {
        let dir = tempfile::tempdir().unwrap();
        for (rank, name, hit) in [(0, "a b,c%", 1), (2, "weights_1.pt", 2)] {
            let path = dir.path().join(name);
            let escaped = path.to_str().unwrap().replace('%', "%25").replace(' ', "%20").replace(',', "%2C");
            let trial = fault::trial(&format!("kill@file={escaped}:rank={rank}:hit={hit}"), |faults| {
                let arguments = (path.clone(), Barrier::new(3).unwrap());
                start_processes(write_and_sleep, arguments, Options::new(3).faults(faults))?.join()
            });
            let trial = trial.unwrap_or_else(|error| panic!("{error}"));
            let fired = &trial.fired()[0];
            assert_eq!((fired.rank, fired.hit, &fired.site), (rank, hit, &Site::File(path)));
        }
    });
}

#[test]
fn file_in_no_directory_is_an_error_of_the_start() {
    watched(|| {
        let faults = Faults::new("kill@file=no/such/file").unwrap();
        let error = sleepers(StartMethod::Spawn)(&faults).unwrap_err().to_string();
        assert!(error.contains("watching no/such for the file of a fault"), "{error}");
    });
}

#[test]
fn worker_that_stops_itself_is_ended_with_the_others() {
    watched(|| {
        let trial = fault::trial("stop@time=1ms:rank=0,kill@time=200ms:rank=1", |faults| {
            let options = Options::new(2).faults(faults).grace_period(Duration::from_millis(50));
            start_processes(sleep, (), options)?.join()
        });
        let trial = trial.unwrap_or_else(|error| panic!("{error}"));
        let Err(Error::ProcessExited(exception)) = trial.result() else { panic!("{:?}", trial.result()) };
        assert_eq!(exception.error_index(), 1);
        assert!(matches!(
            exception.outcomes()[0].status(),
            Status::Signaled { signal: Signal::TERM | Signal::KILL, .. }
        ));
    });
}

#[test]
fn what_only_a_launcher_of_programs_does_is_refused() {
    for plan in ["kill@line=up", "panic@time=1s", "stop@time=1s:for=1s", "kill@time=1s:role=launcher"] {
        assert!(matches!(Faults::new(plan), Err(PlanError::Never { .. })), "{plan}");
    }
}
