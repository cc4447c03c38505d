//! `phalanx run`: what becomes of a job in which something fails, and what is said of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

mod common;
mod launcher;

use common::{tagged, watched};
use launcher::{Place, Ran, Running, workers};
use phalanx::launch::{Ending, Role, Summary};

/// Runs a job with a summary, and reads that.
fn summarized(place: &Place, nproc: usize, options: &[&str], script: &str) -> (Ran, Summary) {
    let options = [&["--summary", "summary.json"], options].concat();
    let ran = place.end(&mut place.shell(nproc, &options, script));
    (ran, summary_of(place))
}

fn summary_of(place: &Place) -> Summary {
    serde_json::from_str(&fs::read_to_string(place.path("summary.json")).unwrap()).unwrap()
}

#[test]
fn start_that_fails_midway_leaves_nobody() {
    watched(|| {
        if !nix::unistd::geteuid().is_root() {
            common::skipped("only root can run a job as a user who may have few processes");
            return;
        }
        let place = Place::new();
        fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let tag = format!("midway-{}", std::process::id());
        // The launcher, its guardian and its thread are three of them. A user of its own, so that nobody else's processes count.
        let limited = ["prlimit", "--nproc=8", "setpriv", "--reuid=61234", "--regid=61234", "--clear-groups"];
        let mut command = place.phalanx_under(&limited, &["--nproc-per-node", "50", "sleep", "600"]);
        fs::set_permissions(place.path("tmp"), fs::Permissions::from_mode(0o777)).unwrap();
        let ran = place.end(command.env("LAUNCH_TAG", &tag));
        assert!(ran.code == 126 && ran.err.contains("RLIMIT_NPROC is 8"), "{ran:?}");
        assert!(tagged("LAUNCH_TAG", &tag).is_empty());
    });
}

#[test]
fn background_process_of_a_failed_rank_ends_with_it() {
    watched(|| {
        let place = Place::new();
        let tag = format!("background-{}", std::process::id());
        // In its group, whose leader has ended.
        let script = "[ $RANK = 1 ] && exec sleep 600; sleep 600 & echo $!; exit 7";
        let ran = place.end(place.shell(2, &[], script).env("LAUNCH_TAG", &tag));
        assert_eq!(ran.code, 7, "{ran:?}");
        assert!(tagged("LAUNCH_TAG", &tag).is_empty(), "{ran:?}");
    });
}

#[test]
fn whole_group_is_restarted_after_one_failure() {
    watched(|| {
        let place = Place::new();
        let script = "echo $TORCHELASTIC_RESTART_COUNT $RANK $$ >> seen; [ $TORCHELASTIC_RESTART_COUNT = 1 ] && exit 0; [ $RANK = 1 ] && \
                      while [ $(wc -l < seen) -lt 3 ]; do sleep 0.01; done && exit 9; exec sleep 600";
        let (ran, summary) = summarized(&place, 3, &["--max-restarts", "3"], script);
        assert_eq!(ran.code, 0, "{ran:?}");
        let seen = fs::read_to_string(place.path("seen")).unwrap();
        let mut started: Vec<_> = seen.lines().map(|line| &line[..3]).collect();
        started.sort_unstable();
        assert_eq!(started, ["0 0", "0 1", "0 2", "1 0", "1 1", "1 2"]);
        let roles = summary.attempts[0].workers.iter().map(|worker| worker.role).collect::<Vec<_>>();
        assert_eq!(roles, [Some(Role::Stopped), Some(Role::RootCause), Some(Role::Stopped)]);
        // The processes are others, and each attempt knows its own.
        let pids = |attempt: usize| {
            summary.attempts[attempt].workers.iter().map(|worker| worker.pid).collect::<Vec<_>>()
        };
        assert!(pids(0).iter().all(|pid| !pids(1).contains(pid)), "{summary:?}");
        assert!(summary.succeeded());
    });
}

#[test]
fn seconds_in_error_files_order_nothing() {
    watched(|| {
        // Rank 1 fails first, and its clock is ahead.
        let json = |seconds: &str| {
            format!(
                r#"{{\"message\": {{\"message\": \"rank $RANK\", \"extraInfo\": {{\"py_callstack\": \"\", \"timestamp\": \"{seconds}\"}}}}}}"#
            )
        };
        let (late, early) = (json("9999999999"), json("1"));
        let script = format!(
            "trap '' TERM; if [ $RANK = 1 ]; then echo \"{late}\" > $TORCHELASTIC_ERROR_FILE; touch failed; exit 1; fi; while [ ! -e failed ]; do \
             sleep 0.01; done; echo \"{early}\" > $TORCHELASTIC_ERROR_FILE; exit 1"
        );
        let ran = workers(2, &[], &script);
        assert!(ran.err.contains("root cause: rank 1") && ran.err.contains("error: rank 1"), "{ran:?}");
    });
}

#[test]
fn shutdown_timeout_holds_after_a_failure_and_before_a_restart() {
    watched(|| {
        // A victim that takes no notice of SIGTERM would succeed at last.
        let script = "trap '' TERM; if [ $RANK = 0 ]; then touch up; sleep 25; exit 0; fi; while [ ! -e up ]; do sleep 0.01; done; rm up; exit 6";
        let place = Place::new();
        let options = ["--shutdown-timeout", "0.2", "--max-restarts", "1", "--summary", "summary.json"];
        let mut command = place.shell(2, &options, script);
        // The option goes before torchrun's variable.
        let ran = place.end(command.env("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "100000"));
        assert_eq!(ran.code, 6, "{ran:?}");
        let summary = summary_of(&place);
        let killed = Ending::Signaled { signal: phalanx::Signal::KILL, core_dumped: false };
        assert_eq!(
            summary.attempts.iter().map(|attempt| attempt.workers[0].ending).collect::<Vec<_>>(),
            [killed; 2]
        );
        assert!(summary.attempts.iter().all(|attempt| attempt.workers[0].role == Some(Role::Stopped)));
        // And the variable is its default.
        let mut command = place.shell(2, &["--summary", "summary.json"], script);
        assert_eq!(place.end(command.env("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "0.2")).code, 6);
        assert_eq!(summary_of(&place).attempts[0].workers[0].ending, killed);
    });
}

#[test]
fn summary_tells_failed_from_stopped_and_both_from_never_started() {
    watched(|| {
        let place = Place::new();
        let (failed, summary) = summarized(&place, 2, &[], "[ $RANK = 1 ] && exit 5; exec sleep 600");
        assert_eq!((failed.code, summary.exit_code(), summary.stopped_by), (5, 5, None));
        assert_eq!(summary.attempts[0].root_cause().unwrap().rank, 1);
        fs::remove_file(place.path("summary.json")).unwrap();

        // Pre-empted: by the engine's signal, which is also the launcher's end.
        let mut running =
            Running::start(&mut place.shell(2, &["--summary", "summary.json"], "echo up; exec sleep 600"));
        running.hear();
        running.hear();
        running.send(Signal::SIGTERM);
        assert_eq!(running.end().code, -15);
        let summary = summary_of(&place);
        assert_eq!((summary.exit_code(), summary.stopped_by), (143, Some(phalanx::Signal::TERM)));
        assert!(summary.attempts[0].root_cause().is_none());
        assert!(summary.attempts[0].workers.iter().all(|worker| worker.role == Some(Role::Stopped)));
        fs::remove_file(place.path("summary.json")).unwrap();

        let never = place.run(&["--summary", "summary.json", "no-program-has-this-name"]);
        assert!(never.code == 127 && !place.path("summary.json").exists(), "{never:?}");
    });
}

#[test]
fn summary_takes_its_place_in_one_step_after_each_attempt() {
    watched(|| {
        let place = Place::new();
        // What a reader sees while the second attempt runs is the first one's, whole.
        let script =
            "if [ $TORCHELASTIC_RESTART_COUNT = 1 ]; then cp summary.json seen.json; exit 0; fi; exit 3";
        let (ran, whole) = summarized(&place, 1, &["--max-restarts", "1"], script);
        assert_eq!(ran.code, 0, "{ran:?}");
        let seen: Summary =
            serde_json::from_str(&fs::read_to_string(place.path("seen.json")).unwrap()).unwrap();
        assert_eq!((seen.attempts.len(), seen.exit_code()), (1, 3));
        assert_eq!((whole.attempts.len(), whole.exit_code()), (2, 0));
        let names: Vec<_> = launcher::tree(place.dir.path());
        assert_eq!(names, ["seen.json", "summary.json"], "nothing half written stays");
    });
}

#[test]
fn exit_code_of_a_worker_that_had_failed_is_the_one_that_it_asks_for() {
    watched(|| {
        // It hangs after its failure, so that its own exit code is never seen.
        let script = "trap '' TERM; echo '{\"message\": {\"message\": \"no\", \"errorCode\": 17}}' > $TORCHELASTIC_ERROR_FILE; sleep 600";
        let ran = workers(1, &["--shutdown-timeout", "0.1"], script);
        assert!(ran.code == 17 && ran.err.contains("error: no"), "{ran:?}");
    });
}

#[test]
fn rank_that_is_not_shown_is_heard_in_the_report() {
    watched(|| {
        let script = "echo out $RANK; echo why $RANK >&2; [ $RANK = 0 ] || exit 4; exec sleep 600";
        let ran = workers(2, &["--local-ranks-filter", "0"], script);
        assert_eq!(ran.code, 4, "{ran:?}");
        assert!(!ran.out.contains("out 1") && !ran.err.contains("[default1]"), "{ran:?}");
        assert!(ran.err.contains("the end of its stderr:\n    why 1\n"), "{ran:?}");
    });
}

#[test]
fn output_that_was_lost_stands_in_the_summary() {
    watched(|| {
        let place = Place::new();
        let mut command = place.shell(2, &["--summary", "summary.json"], "echo x; echo y >&2");
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let ran =
            Ran::of(command.stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap());
        assert_eq!(ran.code, 0, "{ran:?}");
        let lost = summary_of(&place).lost_output;
        assert!(
            lost.len() == 1 && lost[0].starts_with("stdout takes no more output (No space left"),
            "{lost:?}"
        );
        // What still takes output has had all of its own.
        assert_eq!(ran.err.matches("]:y").count(), 2, "{ran:?}");
        place.assert_clean();
    });
}

#[test]
fn summary_tells_a_slow_launcher_from_slow_programs() {
    watched(|| {
        let place = Place::new();
        // Its second line comes when the test has seen the first one.
        let script = "[ $RANK = 1 ] && exit 0; sleep 0.5; echo first; while [ ! -e go ]; do sleep 0.02; done; sleep 0.3; echo second";
        let begun = Instant::now();
        let mut running = Running::start(&mut place.shell(2, &["--summary", "summary.json"], script));
        running.hear();
        let heard = begun.elapsed();
        place.script("go", "");
        assert_eq!(running.end().code, 0);
        let summary = summary_of(&place);
        let attempt = &summary.attempts[0];
        assert!(attempt.starting > Duration::ZERO && attempt.starting <= attempt.lasted, "{summary:?}");
        let first = |rank: usize| attempt.workers[rank].first_output;
        assert!(Duration::from_millis(500) <= first(0).unwrap() && first(0).unwrap() <= heard, "{summary:?}");
        assert_eq!(first(1), None);
    });
}
