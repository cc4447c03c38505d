//! The harness of faults: what trials, sweeps and drawn plans say when something is wrong.

mod common;
#[path = "common/steps.rs"]
mod steps;

use std::process::Command;

use common::{await_that, children, watched};
use phalanx::fault::{self, ChaosError, ChaosFailure, Faults, Menu, Misdiagnosed, TrialError, Wrong};
use phalanx::{Error, Options, StartMethod, start_processes};
use steps::{run, served, steps};

phalanx::auto_init!();

#[test]
fn fault_that_does_not_happen_fails_the_trial() {
    watched(|| {
        for plan in ["kill@test.step:rank=1:hit=4", "slow=1ms@test.step,kill@start:rank=0:hit=2"] {
            let error = fault::trial(plan, run(StartMethod::Spawn)).unwrap_err();
            let TrialError::Wrong { what: Wrong::Unfired { rule, .. }, .. } = &error else {
                panic!("{error}")
            };
            assert!(
                plan.ends_with(rule) && error.to_string().contains("the run was told: the run succeeded"),
                "{error}"
            );
        }
    });
}

#[test]
fn run_that_tells_something_else_fails_the_trial_and_both_are_shown() {
    watched(|| {
        let error = fault::trial("kill@test.step:rank=1", |faults| {
            // An error of another run, in which rank 0 has ended by an exit.
            let other = Faults::new("exit=1@test.step:rank=0").expect("the same point");
            let _ = run(StartMethod::Spawn)(faults);
            run(StartMethod::Spawn)(&other)
        });
        let error = error.unwrap_err();
        let TrialError::Wrong { what: Wrong::Misdiagnosed(Misdiagnosed { told, truth, .. }), .. } = &error
        else {
            panic!("{error}")
        };
        assert!(told.starts_with("rank 0 (pid ") && told.contains("exit code 1"), "{told}");
        assert!(truth.starts_with("kill at test.step, hit 1, in rank 1 (pid "), "{truth}");
        let last = error.to_string().lines().last().unwrap().to_owned();
        let test = "run_that_tells_something_else_fails_the_trial_and_both_are_shown";
        assert_eq!(last, format!("again: PHALANX_FAULTS=kill@test.step:rank=1 cargo test {test} -- --exact"));
    });
}

#[test]
fn plan_that_does_not_fit_is_refused_at_the_start() {
    watched(|| {
        let error = Faults::new("kill@test.setp").unwrap_err().to_string();
        assert_eq!(error, "this program has no fault point `test.setp`: did you mean `test.step`?");
        let error = Faults::new("error@test.step").unwrap_err().to_string();
        assert!(error.contains("admits deaths, delays and panics, but no errors"), "{error}");
        let faults = Faults::new("kill@test.step:rank=3").unwrap();
        let error = start_processes(steps, (), Options::new(3).faults(&faults)).err().unwrap();
        assert!(matches!(&error, Error::InvalidOption(reason) if reason.contains("names rank 3")), "{error}");
    });
}

#[test]
fn worker_that_is_left_behind_fails_the_trial_and_is_ended() {
    watched(|| {
        let before = children();
        let error = fault::trial("hang@test.step:rank=0", |faults| {
            let context = start_processes(steps, (), Options::new(1).faults(faults))?;
            while faults.fired().is_empty() {
                std::thread::yield_now();
            }
            context.detach()?;
            Ok(())
        });
        let error = error.unwrap_err();
        let TrialError::Wrong { what: Wrong::Left(left), .. } = &error else { panic!("{error}") };
        assert!(left.len() == 1 && left[0].contains("of rank 0's group"), "{error}");
        // The thread of the detached context reaps it.
        await_that(|| children().is_subset(&before));
    });
}

/// Runs a test of this file again as a process of its own, with this in the environment; what it prints.
fn again(test: &str, environment: &[(&str, &str)]) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env("PHALANX_TEST_INNER", "1");
    let output = command.envs(environment.iter().copied()).output().unwrap();
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), text)
}

#[expect(clippy::print_stdout, reason = "the test that has started this process reads it")]
fn tell(text: String) {
    println!("{text}");
}

fn is_inner() -> bool {
    std::env::var_os("PHALANX_TEST_INNER").is_some()
}

#[test]
fn run_that_hangs_is_ended_and_the_trial_tells_where_all_stood() {
    if is_inner() {
        let error = fault::trial("hang@test.step:rank=1", run(StartMethod::Spawn)).unwrap_err();
        return tell(error.to_string());
    }
    watched(|| {
        let test = "run_that_hangs_is_ended_and_the_trial_tells_where_all_stood";
        let (_, text) = again(test, &[("PHALANX_FAULTS_SECONDS", "1")]);
        assert!(text.contains("the run hung, and its workers were killed; before that:"), "{text}");
        assert!(text.contains("rank 1 (pid ") && text.contains("this process (pid "), "{text}");
        assert!(text.contains("happened: hang at test.step, hit 1, in rank 1"), "{text}");
    });
}

#[test]
fn plan_of_the_environment_is_run_instead() {
    if is_inner() {
        let trial = fault::trial("kill@test.step:rank=1", run(StartMethod::Spawn)).unwrap();
        tell(format!("plan: {}; {}", trial.plan(), trial.fired()[0]));
        let sweep = fault::sweep("kill@test.step:rank=1", run(StartMethod::Spawn)).unwrap();
        let chaos = fault::chaos(&Menu::new(3), run(StartMethod::Spawn)).unwrap();
        tell(format!("swept: {}; drawn: {chaos}", sweep.trials()));
        let Err(ChaosError::Asked(error)) = fault::chaos(&Menu::new(3), |_| Ok(())) else {
            panic!("it is not met")
        };
        return tell(error.to_string());
    }
    watched(|| {
        let plan = "abort@test.step:rank=2:hit=3";
        let (passed, text) = again("plan_of_the_environment_is_run_instead", &[("PHALANX_FAULTS", plan)]);
        assert!(
            passed && text.contains(&format!("plan: {plan}; abort at test.step, hit 3, in rank 2")),
            "{text}"
        );
        assert!(
            text.contains("swept: 0; drawn: 1 plans of seed")
                && text.contains("test.step  abort           1"),
            "{text}"
        );
        assert!(text.contains("`abort@test.step:rank=2:hit=3` has not happened"), "{text}");
    });
}

#[test]
fn sweep_meets_each_hit_of_each_point_and_then_none() {
    served(|| {
        let sweep = fault::sweep("kill@test.:rank=0", run(StartMethod::ForkServer));
        let sweep = sweep.unwrap_or_else(|error| panic!("{error}"));
        // `test.after` is in another function.
        assert_eq!(sweep.to_string(), "test.after       0\ntest.save        3\ntest.step        3\n");
        assert_eq!((sweep.trials(), sweep.unreached()), (6, vec!["test.after"]));
        let sweep = fault::sweep("error=EIO@test.:rank=0:hit=2..", run(StartMethod::ForkServer)).unwrap();
        assert_eq!(sweep.to_string(), "test.save       2\n");
        let sweep = fault::sweep("panic@test.step:rank=2:hit=1..2", run(StartMethod::ForkServer)).unwrap();
        assert_eq!(sweep.trials(), 2);
    });
}

#[test]
fn sweep_whose_run_fails_without_faults_says_so() {
    watched(|| {
        let error = fault::sweep("kill@test.after", |faults| {
            run(StartMethod::Spawn)(faults)?;
            Err::<(), _>(Error::InvalidOption("something else".to_owned()))
        });
        let text = error.unwrap_err().to_string();
        assert!(text.contains("something else"), "{text}");
    });
}

/// A program that tells nothing where the plan has rank 1 end later than at its first step. It looks at the plan: what happens depends on
/// the order in which the ranks run, if two of them are to end.
fn silent_of_rank_1(faults: &Faults) -> Result<Vec<u64>, Error> {
    let result = run(StartMethod::ForkServer)(faults);
    let is_late = |rule: &str| rule.contains(":rank=1:") && !rule.contains(":hit=1");
    let is_hidden = faults.plan().rules().iter().any(|rule| is_late(&rule.to_string()));
    if is_hidden { Ok(Vec::new()) } else { result }
}

/// The failure of a plan that was drawn or kept.
fn failure(menu: &Menu, run: impl FnMut(&Faults) -> Result<Vec<u64>, Error>) -> Box<ChaosFailure> {
    match fault::chaos(menu, run) {
        Err(ChaosError::Failed(failed)) => failed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn plan_that_fails_is_made_smaller_and_kept_and_run_first_the_next_time() {
    served(|| {
        let directory = tempfile::tempdir().unwrap();
        let menu =
            Menu::new(3).sites(["test.step", "test.save"]).actions(["kill", "abort", "exit=5"]).unwrap();
        let menu = menu.faults(2..=3).hits(3).trials(200).regressions(directory.path()).seed(7);
        let failed = failure(&menu, silent_of_rank_1);
        let TrialError::Wrong { what: Wrong::Misdiagnosed(_), plan, .. } = &failed.error else {
            panic!("{failed}")
        };
        let smallest = plan.to_string();
        let expected = ["test.step", "test.save"].map(|point| format!("kill@{point}:rank=1:hit=2"));
        assert!(expected.contains(&smallest), "{failed}");
        assert!(failed.drawn.rules().len() >= 2 && failed.failed == 3, "{failed}");
        let file = directory
            .path()
            .join("plan_that_fails_is_made_smaller_and_kept_and_run_first_the_next_time.plan");
        let text = failed.to_string();
        assert!(failed.origin.starts_with("plan ") && failed.origin.ends_with(" of seed 7"), "{text}");
        assert!(text.starts_with(&format!("{} has failed: {}\n", failed.origin, failed.drawn)), "{text}");
        assert!(text.contains(&format!("the plan is kept in {}", file.display())), "{text}");
        let again = format!("again: PHALANX_FAULTS={smallest} cargo test ");
        assert!(text.lines().last().unwrap().starts_with(&again), "{text}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{smallest}\n"));
        // Without a single plan drawn.
        let again = failure(&menu.clone().trials(0), silent_of_rank_1);
        assert_eq!(again.origin, format!("the plan of line 1 in {}", file.display()));
        assert_eq!(again.drawn.to_string(), smallest);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{smallest}\n"), "it is kept once");
        // Mended.
        let chaos = fault::chaos(&menu.trials(2), run(StartMethod::ForkServer));
        let chaos = chaos.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(chaos.trials, 3);
        let is_kept = |(point, action, times): (&str, &str, u64)| {
            smallest.contains(point) && action == "kill" && times > 0
        };
        assert!(chaos.happened().any(is_kept));
    });
}

#[test]
fn failure_that_does_not_come_each_time_is_told_as_that_and_not_made_smaller() {
    served(|| {
        let directory = tempfile::tempdir().unwrap();
        let menu =
            Menu::new(3).sites(["test.step"]).actions(["kill"]).unwrap().faults(3..=3).hits(1).trials(9);
        let mut runs = 0;
        // It leads to no directory, and keeps one from being made there.
        let taken = directory.path().join("taken");
        std::os::unix::fs::symlink("/nowhere/at/all", &taken).unwrap();
        let failed = failure(&menu.regressions(taken), |faults| {
            runs += 1;
            let result = run(StartMethod::ForkServer)(faults);
            if runs == 1 { Ok(Vec::new()) } else { result }
        });
        assert_eq!((failed.failed, runs), (0, 4), "{failed}");
        let text = failed.to_string();
        assert!(text.contains("it failed 0 times of 3: it depends on the order of things too"), "{text}");
        assert!(text.contains("the plan could not be kept in ") && text.contains("File exists"), "{text}");
        let TrialError::Wrong { plan, .. } = &failed.error else { panic!("{failed}") };
        assert_eq!(**plan, failed.drawn);
    });
}

#[test]
fn plan_that_was_kept_for_another_program_is_an_error_that_names_the_file() {
    watched(|| {
        let directory = tempfile::tempdir().unwrap();
        let file = directory
            .path()
            .join("plan_that_was_kept_for_another_program_is_an_error_that_names_the_file.plan");
        std::fs::write(&file, "# A point that there was once.\nkill@test.begin\n").unwrap();
        let error =
            fault::chaos(&Menu::new(3).regressions(directory.path()), run(StartMethod::Spawn)).unwrap_err();
        let expected =
            format!("the plan of line 2 in {}: this program has no fault point `test.begin`", file.display());
        assert!(error.to_string().starts_with(&expected), "{error}");
    });
}

#[test]
fn variable_that_is_no_number_is_an_error() {
    if is_inner() {
        let error = fault::chaos(&Menu::new(3), run(StartMethod::Spawn)).unwrap_err();
        return tell(error.to_string());
    }
    watched(|| {
        for variable in ["PHALANX_FAULTS_SEED", "PHALANX_FAULTS_SECONDS"] {
            let (_, text) = again("variable_that_is_no_number_is_an_error", &[(variable, "7x")]);
            assert!(text.contains(&format!("{variable}=7x: it is to be a whole number")), "{text}");
        }
    });
}

/// More delays than are noted, and then an end.
fn many_steps(rank: usize, _: ()) -> anyhow::Result<()> {
    for _ in 0..if rank == 0 { 2000 } else { 0 } {
        fault::point!("many.step");
    }
    fault::point!("test.after");
    Ok(())
}

#[test]
fn end_is_noted_though_very_many_delays_have_happened_before() {
    watched(|| {
        let plan = "slow=1us@many.step:rank=0:hit=1..,kill@test.after:rank=0";
        let run = |faults: &Faults| start_processes(many_steps, (), Options::new(2).faults(faults))?.join();
        let faults = Faults::new(plan).unwrap();
        run(&faults).unwrap_err();
        assert_eq!((faults.times(0), faults.times(1), faults.count()), (2000, 1, 2001));
        assert_eq!(faults.fired().len(), 513);
        fault::trial(plan, run).unwrap_or_else(|error| panic!("{error}"));
    });
}
