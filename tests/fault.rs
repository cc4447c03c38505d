//! Faults on purpose: each action, in each kind of worker.

#[path = "common/calls.rs"]
mod calls;
mod common;
#[path = "common/steps.rs"]
mod steps;

use std::time::Duration;

use calls::double;
use common::watched;
use phalanx::fault::{self, Faults};
use phalanx::pool::{Pool, TaskFailure};
use phalanx::{Error, Options, Signal, StartMethod, Status, start_processes};
use steps::{run, served, steps};

phalanx::auto_init!();

/// Its workers are forks of this process, which has one thread, as that of a trial would not be.
fn fork_under_plans(_rank: usize, _: ()) -> anyhow::Result<()> {
    for action in ["kill", "segv", "panic", "exit=3"] {
        let faults = Faults::new(&format!("{action}@test.step:rank=2:hit=3"))?;
        let failed = run(StartMethod::Fork)(&faults).unwrap_err();
        let reported = match &failed {
            Error::ProcessRaised(exception) => exception.error_index(),
            Error::ProcessExited(exception) => exception.error_index(),
            _ => anyhow::bail!(failed),
        };
        let fired: Vec<_> = faults.fired().iter().map(|fired| (fired.rank, fired.hit)).collect();
        anyhow::ensure!(reported == 2 && fired == [(2, 3)], "{failed}; {fired:?}");
    }
    Ok(())
}

#[test]
fn each_end_is_told_as_what_it_was() {
    watched(|| {
        for action in ["kill", "term", "int", "segv", "bus", "abort", "overflow", "exit=0", "exit=7", "panic"]
        {
            let plan = format!("{action}@test.step:rank=1:hit=2");
            let trial =
                fault::trial(&plan, run(StartMethod::Spawn)).unwrap_or_else(|error| panic!("{error}"));
            let fired = trial.fired();
            assert_eq!(fired.len(), 1, "{fired:?}");
            assert!(trial.told_after().is_some_and(|time| !time.is_zero()), "{:?}", trial.told_after());
            assert_eq!((fired[0].rank, fired[0].hit, &*fired[0].site.to_string()), (1, 2, "test.step"));
        }
    });
}

#[test]
fn workers_of_all_methods_are_under_the_plan() {
    served(|| {
        for action in ["kill", "segv", "panic", "exit=3"] {
            let plan = format!("{action}@test.step:rank=2:hit=3");
            fault::trial(&plan, run(StartMethod::ForkServer)).unwrap_or_else(|error| panic!("{error}"));
        }
        phalanx::spawn(fork_under_plans, (), 1).unwrap_or_else(|error| panic!("{error}"));
    });
}

#[test]
fn point_that_fails_gives_the_error_that_the_plan_has() {
    watched(|| {
        let trial = fault::trial("error=ENOSPC@test.save:rank=0:hit=2", run(StartMethod::Spawn)).unwrap();
        let Err(Error::ProcessRaised(exception)) = trial.result() else { panic!("{:?}", trial.result()) };
        let text = "fault injected at test.save: No space left on device (os error 28)";
        assert_eq!(exception.chain(), [text]);
    });
}

/// Opens a number of files at once.
fn open_files(_rank: usize, number: usize) -> anyhow::Result<usize> {
    let files = (0..number).map(|_| std::fs::File::open("/dev/null")).collect::<Result<Vec<_>, _>>()?;
    Ok(files.len())
}

#[test]
fn worker_that_has_met_its_limit_fails_by_the_kernels_error() {
    watched(|| {
        let run = |number| {
            move |faults: &Faults| start_processes(open_files, number, Options::new(2).faults(faults))?.join()
        };
        let trial =
            fault::trial("limit=nofile/40@start:rank=1", run(50)).unwrap_or_else(|error| panic!("{error}"));
        let Err(Error::ProcessRaised(exception)) = trial.result() else { panic!("{:?}", trial.result()) };
        assert_eq!((exception.error_index(), trial.told_after()), (1, None));
        assert!(exception.to_string().contains("Too many open files"), "{exception}");
        // It may also be enough.
        let trial =
            fault::trial("limit=nofile/40@start:rank=1", run(2)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(trial.result().unwrap(), &[2, 2]);
    });
}

#[test]
fn panic_has_the_place_of_the_point() {
    watched(|| {
        let trial = fault::trial("panic@test.step:rank=0", run(StartMethod::Spawn)).unwrap();
        let Err(Error::ProcessRaised(exception)) = trial.result() else { panic!("{:?}", trial.result()) };
        let place = exception.panic_location().unwrap();
        assert!(place.starts_with("tests/common/steps.rs:"), "{place}");
    });
}

#[test]
fn what_only_takes_time_is_no_failure() {
    watched(|| {
        for plan in [
            "slow=20ms@test.step:rank=all:hit=1..3",
            "hang@test.step:rank=1:for=20ms",
            "spin@test.step:rank=1:for=20ms",
            "deaf@test.step:rank=1:for=20ms",
        ] {
            let trial = fault::trial(plan, run(StartMethod::Spawn)).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((trial.result().unwrap(), trial.told_after()), (&vec![3, 3, 3], None));
        }
    });
}

#[test]
fn worker_that_is_stopped_goes_on_when_it_is_continued() {
    watched(|| {
        let trial = fault::trial("stop@test.step:rank=1:hit=2", |faults| {
            let mut context = start_processes(steps, (), Options::new(3).faults(faults))?;
            while faults.fired().is_empty() {
                assert!(!context.join_timeout(Duration::from_millis(5))?);
            }
            // It is about to stop, and a signal to go on that came before the stop would be lost.
            while !context.join_timeout(Duration::from_millis(20))? {
                context.signal(1, Signal::CONT)?;
            }
            context.into_results()
        });
        assert_eq!(trial.unwrap_or_else(|error| panic!("{error}")).result().unwrap(), &[3, 3, 3]);
    });
}

#[test]
fn deaf_worker_outlives_the_signal_that_is_to_end_it() {
    watched(|| {
        let plan = "deaf@test.step:rank=0,kill@test.step:rank=1:hit=2";
        let trial = fault::trial(plan, |faults| {
            let options = Options::new(2).faults(faults).grace_period(Duration::from_millis(50));
            let mut context = start_processes(steps, (), options)?;
            // Only when it is deaf may the teardown begin.
            while !faults.fired().iter().any(|fired| fired.rank == 0) {
                std::thread::yield_now();
            }
            context.join_timeout(Duration::MAX)?;
            Ok(())
        });
        let trial = trial.unwrap_or_else(|error| panic!("{error}"));
        let Err(Error::ProcessExited(exception)) = trial.result() else { panic!("{:?}", trial.result()) };
        let deaf = &exception.outcomes()[0];
        assert!(deaf.is_victim());
        assert!(matches!(deaf.status(), Status::Signaled { signal: Signal::KILL, .. }), "{deaf}");
    });
}

#[test]
fn fault_happens_once_in_whichever_rank_comes_first_or_once_in_each() {
    watched(|| {
        let count = |plan: &str| {
            let trial = fault::trial(plan, run(StartMethod::Spawn)).unwrap_or_else(|error| panic!("{error}"));
            trial.fired().len()
        };
        assert_eq!(count("slow=1ms@test.step"), 1);
        assert_eq!(count("slow=1ms@test.step:rank=all"), 3);
        assert_eq!(count("slow=1ms@test.step:rank=all:hit=2..:max=5"), 5);
        // A prefix is one rule, and counts for all of its points.
        assert_eq!(count("slow=1ms@test.:rank=1..2:hit=1..3"), 6);
    });
}

#[test]
fn contexts_of_one_process_do_not_see_each_others_plans() {
    watched(|| {
        let faults =
            [0, 1].map(|rank| Faults::new(&format!("exit={rank}@test.step:rank={rank}:hit=2")).unwrap());
        let start = |faults: &Faults| start_processes(steps, (), Options::new(2).faults(faults)).unwrap();
        let contexts = faults.each_ref().map(start);
        let without = start_processes(steps, (), Options::new(2)).unwrap();
        for (rank, context) in contexts.into_iter().enumerate() {
            let Err(Error::ProcessExited(exception)) = context.join() else { panic!("rank {rank} exits") };
            assert_eq!((exception.error_index(), exception.exit_code()), (rank, Some(rank as i32)));
            assert_eq!(faults[rank].fired().len(), 1);
        }
        assert_eq!(without.join().unwrap(), [3, 3]);
    });
}

fn nested(_rank: usize, _: ()) -> anyhow::Result<u64> {
    let inner = start_processes(steps, (), Options::new(2).start_method(StartMethod::Fork))?.join()?;
    fault::point!("test.outer");
    Ok(inner.iter().sum())
}

#[test]
fn workers_of_a_worker_and_its_forks_are_under_no_plan() {
    watched(|| {
        let faults = Faults::new("kill@test.step:rank=all:hit=1..,slow=1ms@test.outer").unwrap();
        let sums = start_processes(nested, (), Options::new(1).faults(&faults)).unwrap().join().unwrap();
        assert_eq!((sums, faults.fired().len()), (vec![6], 1));
    });
}

#[test]
fn workers_of_a_pool_are_under_the_plan_and_their_successors_meet_the_fault_no_more() {
    watched(|| {
        let faults = Faults::new("kill@pool.begun:hit=3").unwrap();
        let pool = Pool::options(Options::new(1).faults(&faults)).build().unwrap();
        let ends: Vec<_> = (0..9).map(|x| pool.submit(double, x).unwrap().join()).collect();
        let failed: Vec<_> =
            ends.iter().enumerate().filter_map(|(n, end)| Some((n, end.as_ref().err()?))).collect();
        let [(2, failed)] = failed[..] else { panic!("{ends:?}") };
        assert!(
            matches!(failed.failure(), TaskFailure::WorkerEnded(outcome) if outcome.pid() == faults.fired()[0].pid)
        );
        pool.join().unwrap();
    });
}
