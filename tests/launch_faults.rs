//! Faults of a launcher's workers, whatever their program is.

use std::fs;

use phalanx::Signal;
use phalanx::launch::{Ending, Role, Summary};

mod common;
mod launcher;

use common::{await_that, state_of, watched};
use launcher::{Place, Ran, Running, workers};

/// Says that it runs, and would run for long.
const RUNS: &str = "echo up; exec sleep 600";

/// What became of a job under a plan, by its output and its summary.
fn under(plan: &str, nproc: usize, options: &[&str], script: &str) -> (Ran, Summary) {
    let place = Place::new();
    let file = place.path("summary.json");
    let options = [&["--faults", plan, "--summary", file.to_str().unwrap()], options].concat();
    let ran = place.end(&mut place.shell(nproc, &options, script));
    let summary = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    (ran, summary)
}

#[test]
fn each_signal_is_told_as_what_it_was_and_of_the_rank_that_it_met() {
    watched(|| {
        for (action, signal) in [
            ("kill", Signal::KILL),
            ("term", Signal::TERM),
            ("int", Signal::INT),
            ("abort", Signal::ABRT),
            ("segv", Signal::SEGV),
            ("bus", Signal::BUS),
        ] {
            let (ran, summary) = under(&format!("{action}@time=20ms:rank=1"), 3, &[], RUNS);
            assert_eq!(ran.code, 128 + signal.number(), "{ran:?}");
            let attempt = &summary.attempts[0];
            let root = attempt.root_cause().unwrap();
            assert!(matches!(root.ending, Ending::Signaled { signal: by, .. } if by == signal), "{root:?}");
            // The launcher's own signals are the others'.
            assert_eq!((root.rank, root.ended_by_launcher), (1, false), "{root:?}");
            let roles = attempt.workers.iter().map(|worker| worker.role).collect::<Vec<_>>();
            assert_eq!(roles, [Some(Role::Stopped), Some(Role::RootCause), Some(Role::Stopped)]);
            let happened = &summary.faults[0].happened;
            assert_eq!((happened.len(), happened[0].rank, happened[0].pid), (1, Some(1), root.pid));
            assert!(happened[0].after.as_millis() >= 20, "{happened:?}");
            assert!(
                ran.err.contains(&format!("faults are to happen on purpose: {action}@time=20ms:rank=1")),
                "{}",
                ran.err
            );
            assert!(
                ran.err.contains(&format!("happened on purpose: {action}@time=20ms:rank=1: rank 1 (pid ")),
                "{}",
                ran.err
            );
        }
    });
}

#[test]
fn line_is_met_wherever_it_goes_and_at_the_hit_that_is_asked_for() {
    watched(|| {
        // It ends if it is not killed, so that a fault that does not come hangs nothing.
        let script = "for step in 1 2 3 4 5; do echo step $step; sleep 0.05; done; exit 9";
        let err = script.replace("echo step $step", "echo step $step >&2");
        let place = Place::new();
        let dir = place.path("logs");
        let to_files = ["--log-dir", dir.to_str().unwrap(), "-r", "3"];
        for (options, script) in
            [(&[][..], script), (&to_files, script), (&["--local-ranks-filter", "0"], script), (&[], &err)]
        {
            let (ran, summary) = under("kill@line=step_:rank=1:hit=3", 2, options, script);
            assert_eq!(ran.code, 137, "{ran:?}");
            assert_eq!(summary.attempts[0].root_cause().unwrap().rank, 1, "{ran:?}");
        }
        // The text is told by whichever rank says it, and the last line needs no end.
        let (ran, _) = under(
            "term@line=half_a_line",
            2,
            &[],
            "[ $RANK = 1 ] && { printf 'half a line'; exec >&- ; }; exec sleep 600",
        );
        assert_eq!(ran.code, 143, "{ran:?}");
    });
}

#[test]
fn file_is_met_when_it_is_made_and_when_it_is_moved_there() {
    watched(|| {
        for (hit, make) in
            [(1, "> ckpt.tmp"), (1, "> a; mv a ckpt.tmp"), (2, "> ckpt.tmp; rm ckpt.tmp; > ckpt.tmp")]
        {
            let plan = format!("kill@file=ckpt.tmp:rank=0:hit={hit}");
            let script = format!("[ $RANK = 1 ] && {{ {make}; }}; exec sleep 600");
            let (ran, summary) = under(&plan, 2, &[], &script);
            assert_eq!((ran.code, summary.attempts[0].root_cause().unwrap().rank), (137, 0), "{ran:?}");
        }
    });
}

#[test]
fn attempts_that_the_plan_does_not_name_are_left_alone() {
    watched(|| {
        let script = "[ $TORCHELASTIC_RESTART_COUNT -lt 2 ] && exec sleep 600; exit 0";
        let (ran, summary) =
            under("kill@start:attempt=0..1:rank=one,seed=3", 2, &["--max-restarts", "2"], script);
        assert_eq!((ran.code, summary.attempts.len()), (0, 3), "{ran:?}");
        let happened = &summary.faults[0].happened;
        assert_eq!(happened.iter().map(|fault| fault.attempt).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(happened[0].rank, happened[1].rank);
        assert_eq!(ran.err.matches("happened on purpose").count(), 2, "{}", ran.err);
    });
}

#[test]
fn worker_that_was_stopped_goes_on_after_its_time() {
    watched(|| {
        let script = "echo up; for i in 1 2 3; do sleep 0.02; done; echo done";
        let (ran, summary) = under("stop@line=up:rank=1:for=300ms", 2, &[], script);
        assert_eq!((ran.code, ran.out.matches("done").count()), (0, 2), "{ran:?}");
        let workers = &summary.attempts[0].workers;
        assert!(workers[1].lifetime.as_millis() >= 300, "{workers:?}");
    });
}

#[test]
fn worker_has_no_more_than_its_limit() {
    watched(|| {
        // Without the limit it would wait for ever.
        let script = "echo up; [ $RANK = 0 ] || while [ $(ulimit -n) != 16 ]; do sleep 0.02; done; ulimit -n";
        let (ran, summary) = under("limit=nofile/16@line=up:rank=1", 2, &[], script);
        assert_eq!((ran.code, ran.out.matches("[default1]:16\n").count()), (0, 1), "{ran:?}");
        assert!(!ran.out.contains("[default0]:16\n"), "{ran:?}");
        assert_eq!(summary.faults[0].happened.len(), 1);
    });
}

#[test]
fn worker_that_stays_stopped_is_ended_with_the_others() {
    watched(|| {
        let (ran, summary) =
            under("stop@start:rank=0,kill@time=100ms:rank=1", 2, &["--shutdown-timeout", "1"], RUNS);
        assert_eq!((ran.code, summary.attempts[0].root_cause().unwrap().rank), (137, 1), "{ran:?}");
        assert_eq!(summary.faults.iter().map(|fault| fault.happened.len()).collect::<Vec<_>>(), [1, 1]);
    });
}

#[test]
fn launcher_itself_is_killed_and_nobody_is_left() {
    watched(|| {
        let place = Place::new();
        let mut command =
            place.shell(2, &["--faults", "kill@line=up:role=launcher"], "echo up $$; exec sleep 600");
        let running = Running::start(&mut command);
        let pids = |ran: &Ran| {
            ran.out.lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect::<Vec<u32>>()
        };
        let ran = running.end();
        assert_eq!(ran.code, -9, "{ran:?}");
        pids(&ran).into_iter().for_each(|pid| await_that(|| state_of(pid).is_none()));
        // By its guardian.
        await_that(|| fs::read_dir(place.path("tmp")).unwrap().next().is_none());
    });
}

#[test]
fn fault_that_did_not_happen_fails_a_job_that_succeeded_otherwise() {
    watched(|| {
        for plan in [
            "kill@time=1h:rank=0".replace("1h", "3600s"),
            "kill@line=never".to_owned(),
            "kill@start:attempt=1".to_owned(),
        ] {
            let (ran, summary) = under(&plan, 1, &[], "exit 0");
            assert_eq!((ran.code, summary.succeeded(), summary.exit_code()), (1, true, 1), "{ran:?}");
            assert!(
                ran.err.contains("succeeded, but not all faults of its plan have happened"),
                "{}",
                ran.err
            );
            assert!(ran.err.contains(&format!("planned, but it has NOT happened: {plan}")), "{}", ran.err);
        }
        let (ran, _) = under("kill@time=3600s", 1, &[], "exit 3");
        assert_eq!(ran.code, 3, "{ran:?}");
        assert!(ran.err.contains("has NOT happened"), "{}", ran.err);
    });
}

#[test]
fn plan_that_means_nothing_is_told_before_anything_runs() {
    watched(|| {
        for (plan, expected) in [
            ("kil@start", "did you mean `kill`"),
            ("kill@train.step", "a launcher knows no points of a program"),
            ("exit=3@time=1s", "a launcher can send signals and set limits"),
            ("kill@time=1s:rank=1", "names rank 1, but there are 1 (0 to 0)"),
        ] {
            let ran = workers(1, &["--faults", plan], "echo ran");
            assert_eq!((ran.code, &*ran.out), (2, ""), "{ran:?}");
            assert!(ran.err.contains(expected), "{}", ran.err);
        }
        let ran = workers(1, &["--faults", "kill@file=no/such/file"], "echo ran");
        assert_eq!((ran.code, &*ran.out), (1, ""), "{ran:?}");
        assert!(
            ran.err.contains("watching ") && ran.err.contains("no/such for the file of a fault"),
            "{}",
            ran.err
        );
    });
}

#[test]
fn no_variable_puts_a_plan_in_force() {
    watched(|| {
        let place = Place::new();
        let mut command = place.shell(1, &[], "exit 0");
        let ran = place.end(command.env("PHALANX_FAULTS", "kill@start").env("PET_FAULTS", "kill@start"));
        assert_eq!((ran.code, ran.err.contains("on purpose")), (0, false), "{ran:?}");
    });
}
