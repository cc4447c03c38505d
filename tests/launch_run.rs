//! `phalanx run`: what workers are started with, where their output goes, and what is said of their failures.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

mod common;
mod launcher;

use common::watched;
use launcher::{Place, workers};
use phalanx::Signal;
use phalanx::launch::{Ending, Role, Summary};

#[test]
fn workers_have_torchruns_environment() {
    watched(|| {
        let script = "echo $RANK $LOCAL_RANK $GROUP_RANK $ROLE_RANK $ROLE_NAME $WORLD_SIZE $LOCAL_WORLD_SIZE $GROUP_WORLD_SIZE \
                      $ROLE_WORLD_SIZE $MASTER_ADDR $TORCHELASTIC_RESTART_COUNT $TORCHELASTIC_MAX_RESTARTS $TORCHELASTIC_RUN_ID \
                      $TORCH_NCCL_ASYNC_ERROR_HANDLING ${TORCHELASTIC_USE_AGENT_STORE-unset}; [ $MASTER_PORT -gt 0 ] && [ -n \
                      \"$TORCHELASTIC_ERROR_FILE\" ] && [ $OMP_NUM_THREADS -ge 1 ]";
        let ran = workers(2, &["--rdzv-id", "j7", "--role", "trainer", "--max-restarts", "2"], script);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(
            ran.lines(),
            [
                "[trainer0]:0 0 0 0 trainer 2 2 1 2 127.0.0.1 0 2 j7 1 unset",
                "[trainer1]:1 1 0 1 trainer 2 2 1 2 127.0.0.1 0 2 j7 1 unset"
            ]
        );
        assert_eq!(ran.err.matches("OMP_NUM_THREADS").count(), 1, "{}", ran.err);
    });
}

#[test]
fn program_is_run_by_python_as_module_or_as_it_is() {
    watched(|| {
        let place = Place::new();
        // It stands in the place of Python, and shows what it is called with.
        let python = place.script("python", "#!/bin/sh\necho \"$@\"\n");
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        place.script("train.py", "");
        let out = |arguments: &[&str]| {
            let ran = place.end(place.phalanx(arguments).env("PYTHON_EXEC", &python));
            assert_eq!(ran.code, 0, "{ran:?}");
            ran.out.trim().to_owned()
        };
        assert_eq!(out(&["train.py", "--lr", "1"]), "[default0]:-u train.py --lr 1");
        assert_eq!(out(&["-m", "pkg.train", "${local_rank}"]), "[default0]:-u -m pkg.train 0");
        assert_eq!(out(&["--no-python", "echo", "a${local_rank}"]), "[default0]:a0");
        let both = place.run(&["-m", "--no-python", "x"]);
        assert_eq!(both.code, 2);
        assert!(both.err.contains("cannot be used with"), "{}", both.err);
    });
}

#[test]
fn what_cannot_be_run_is_told_before_anything_runs() {
    watched(|| {
        let place = Place::new();
        let code = |arguments: &[&str], text: &str| {
            let ran = place.run(arguments);
            assert!(ran.err.contains(text) && ran.out.is_empty(), "{ran:?}");
            ran.code
        };
        assert_eq!(code(&["no-program-has-this-name"], "cannot run no-program-has-this-name"), 127);
        assert_eq!(code(&["nowhere/train.py"], "is the path right"), 127);
        place.script("plain", "no program");
        assert_eq!(code(&["./plain"], "Permission denied"), 126);
        fs::set_permissions(place.path("plain"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(code(&["./plain"], "nor a script that begins with #!"), 126);
        let usage: [(&[&str], &str); 8] = [
            (&["--nnodes", "2", "x"], "one node only"),
            (&["--nnodes", "x", "x"], "write N or MIN:MAX"),
            (&["--node-rank", "1", "x"], "ranks of one node"),
            (&["--rdzv-backend", "etcd", "x"], "--rdzv-backend etcd"),
            (&["--nproc-per-node", "many", "x"], "auto, cpu, gpu, xpu"),
            (&["--shutdown-timeout", "-1", "x"], "give 0 or more"),
            (&["--redirects", "4", "x"], "names no streams"),
            (&["--signals-to-handle", "SIGX", "x"], "is no signal"),
        ];
        for (arguments, text) in usage {
            assert_eq!(code(arguments, text), 2, "{arguments:?}");
        }
    });
}

#[test]
fn options_without_meaning_are_taken_and_told_once() {
    watched(|| {
        let options = [
            "--standalone",
            "--rdzv_backend=c10d",
            "--rdzv-endpoint=localhost:0",
            "--rdzv-conf=timeout=3",
            "--monitor-interval=1",
            "--start-method=fork",
            "--event-log-handler=null",
            "--logs-specs=default",
            "--local-addr=127.0.0.1",
        ];
        let ran = workers(1, &options, "exit 0");
        assert_eq!(ran.code, 0, "{ran:?}");
        for name in [
            "--rdzv-endpoint",
            "--rdzv-conf",
            "--monitor-interval",
            "--start-method",
            "--local-addr",
            "--logs-specs",
        ] {
            assert_eq!(ran.err.matches(&format!("{name} does nothing here")).count(), 1, "{}", ran.err);
        }
    });
}

#[test]
fn dry_run_starts_nothing_and_completions_and_the_page_are_printed() {
    watched(|| {
        let place = Place::new();
        let ran = place.run(&["--dry-run", "--nproc-per-node", "2", "touch", "made"]);
        assert!(ran.out.contains("rank 1: touch made") && !place.path("made").exists(), "{ran:?}");
        let other = |words: &[&str]| {
            let output =
                std::process::Command::new(env!("CARGO_BIN_EXE_phalanx")).args(words).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert!(other(&["completions", "bash"]).contains("--nproc-per-node"));
        assert!(other(&["man"]).contains(".TH phalanx"));
        assert!(other(&["run", "--help"]).contains("Rendezvous:"));
    });
}

#[test]
fn grandchild_that_keeps_the_pipe_holds_nobody_up() {
    watched(|| {
        // In a session of its own the group's end does not reach it.
        let ran = workers(2, &[], "echo first; setsid sleep 600 & echo last");
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(ran.out.matches("last").count(), 2, "{}", ran.out);
    });
}

#[test]
fn output_of_a_killed_worker_is_not_lost() {
    watched(|| {
        let ran = workers(
            1,
            &[],
            "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; printf last; kill -9 $$",
        );
        assert_eq!(ran.code, 137, "{ran:?}");
        assert_eq!(ran.out.lines().count(), 5001);
        assert!(ran.out.ends_with("[default0]:line 4999\n[default0]:last\n"));
        assert!(ran.err.contains("was ended by SIGKILL"), "{}", ran.err);
    });
}

#[test]
fn console_that_breaks_does_not_end_the_job() {
    watched(|| {
        let place = Place::new();
        let done = place.path("done");
        let script = format!(
            "i=0; while [ $i -lt 3000 ]; do echo {}; i=$((i+1)); done; touch {}",
            "x".repeat(200),
            done.display()
        );
        let mut launcher = place
            .phalanx(&["sh", "-c", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(launcher.stdout.take());
        let ran = launcher::Ran::of(launcher.wait_with_output().unwrap());
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(done.exists());
        assert_eq!(ran.err.matches("stdout takes no more output").count(), 1, "{}", ran.err);
    });
}

#[test]
fn report_names_the_first_failure_and_its_evidence() {
    watched(|| {
        let place = Place::new();
        let summary = place.path("summary.json");
        // Rank 2 fails once the launcher has reaped rank 1, which has succeeded; rank 0 is stopped and says so by another code.
        let script = "case $RANK in 1) echo $$ >one; exit 0;; \
                      2) while [ ! -e ready -o ! -s one ] || [ -e /proc/$(cat one) ]; do :; done; \
                      echo 'the disk is full' >&2; exit 7;; \
                      esac; trap 'exit 3' TERM; touch ready; while :; do sleep 0.05; done";
        let ran =
            place.run(&["--nproc-per-node", "3", "--summary", summary.to_str().unwrap(), "sh", "-c", script]);
        assert_eq!(ran.code, 7, "{ran:?}");
        for text in [
            "root cause: rank 2 (pid ",
            ") exited with code 7",
            "the disk is full",
            "stopped by the launcher: rank 0",
            "succeeded: rank 1",
        ] {
            assert!(ran.err.contains(text), "{text}: {}", ran.err);
        }
        let summary: Summary = serde_json::from_str(&fs::read_to_string(summary).unwrap()).unwrap();
        let workers = &summary.attempts[0].workers;
        assert_eq!(
            workers.iter().map(|worker| worker.role).collect::<Vec<_>>(),
            [Some(Role::Stopped), None, Some(Role::RootCause)]
        );
        assert_eq!(workers[2].stderr_tail, ["the disk is full"]);
        assert_eq!((summary.exit_code(), workers[0].ending), (7, Ending::Exited { code: 3 }));
    });
}

#[test]
fn error_file_is_the_moment_of_the_failure_and_its_text() {
    watched(|| {
        // Rank 0 ends first, as its peer has gone; rank 1 had failed before, and ends later.
        let json = r#"{\"message\": {\"message\": \"ValueError: no\", \"extraInfo\": {\"py_callstack\": \"Traceback, line 3\", \"timestamp\": \"1\"}}}"#;
        let script = format!(
            "if [ $RANK = 1 ]; then echo \"{json}\" > $TORCHELASTIC_ERROR_FILE; touch failed; while [ -e failed ]; do sleep 0.02; done; exit 1; fi; \
             while [ ! -e failed ]; do sleep 0.02; done; rm failed; exit 5"
        );
        let ran = workers(2, &[], &script);
        assert_eq!(ran.code, 1, "{ran:?}");
        for text in ["root cause: rank 1", "error: ValueError: no", "Traceback, line 3"] {
            assert!(ran.err.contains(text), "{text}: {}", ran.err);
        }
        let damaged = workers(1, &[], "printf '{\"mess' > $TORCHELASTIC_ERROR_FILE; exit 4");
        assert!(damaged.code == 4 && damaged.err.contains("no whole JSON"), "{damaged:?}");
    });
}

#[test]
fn worker_that_has_failed_and_does_not_end_is_ended() {
    watched(|| {
        let script = "trap '' TERM; echo '{\"message\": \"stuck\"}' > $TORCHELASTIC_ERROR_FILE; while :; do sleep 0.05; done";
        let ran = workers(2, &["--shutdown-timeout", "0.2"], script);
        assert_eq!(ran.code, 1, "{ran:?}");
        for text in
            ["was ended by SIGKILL, sent by the launcher as it had failed and did not end", "error: stuck"]
        {
            assert!(ran.err.contains(text), "{text}: {}", ran.err);
        }
    });
}

#[test]
fn timer_of_torch_that_expires_is_the_workers_failure() {
    watched(|| {
        // As torch's FileTimerClient writes it: rank 0 has its timer over in time, rank 1 hangs.
        let request = "request() { printf '{\"version\": 1, \"pid\": %d, \"scope_id\": \"step\", \"expiration_time\": %s, \"signal\": 9}\\n' $$ $1 > \
                       $TORCHELASTIC_TIMER_FILE; }";
        let script = format!(
            "{request}; now=$(date +%s); if [ $RANK = 0 ]; then request $((now+600)); request -1; else request $now; fi; while :; do sleep 0.05; done"
        );
        let place = Place::new();
        let mut command = place.phalanx(&["--nproc-per-node", "2", "sh", "-c", &script]);
        let ran = place.end(command.env("TORCHELASTIC_ENABLE_FILE_TIMER", "1"));
        assert_eq!(ran.code, 137, "{ran:?}");
        assert!(
            ran.err.contains("was ended by SIGKILL, sent by the launcher as its timer \"step\" had expired"),
            "{}",
            ran.err
        );
    });
}

#[test]
fn equal_failures_are_told_once() {
    watched(|| {
        let script = "echo '{\"message\": \"same for all\"}' > $TORCHELASTIC_ERROR_FILE; touch at$RANK; while [ $(ls at* | wc -l) -lt 16 ]; do :; \
                      done; exit 1";
        let ran = workers(16, &["--shutdown-timeout", "20"], &format!("trap '' TERM; {script}"));
        assert_eq!(ran.err.matches("error: same for all").count(), 1, "{}", ran.err);
        assert!(ran.err.contains("failed in the same way"), "{}", ran.err);
    });
}

#[test]
fn group_is_restarted_with_a_new_port_and_a_new_count() {
    watched(|| {
        let place = Place::new();
        let script = "echo $TORCHELASTIC_RESTART_COUNT $RANK $MASTER_PORT >> seen; [ $TORCHELASTIC_RESTART_COUNT = 2 ] || exit 9";
        let ran = place.run(&[
            "--nproc-per-node",
            "1",
            "--max-restarts",
            "5",
            "--restart-on",
            "9",
            "sh",
            "-c",
            script,
        ]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let seen = fs::read_to_string(place.path("seen")).unwrap();
        let counts: Vec<_> = seen.lines().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(counts, ["0", "1", "2"]);
        let ports: std::collections::BTreeSet<_> =
            seen.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
        assert!(ports.len() > 1, "{seen}");
        assert_eq!(ran.err.matches("follows in").count(), 2, "{}", ran.err);
    });
}

#[test]
fn pointless_restarts_are_refused() {
    watched(|| {
        let ran = workers(1, &["--max-restarts", "9"], "exit 93");
        assert!(
            ran.code == 93 && ran.err.contains("no further attempt: rank 0 says by exit code 93"),
            "{ran:?}"
        );
        let other = workers(1, &["--max-restarts", "9", "--restart-on", "7"], "exit 8");
        assert!(
            other.code == 8 && other.err.contains("not among the failures to restart after (7)"),
            "{other:?}"
        );
    });
}

#[test]
fn next_attempt_begins_when_nobody_of_the_last_is_left() {
    watched(|| {
        let place = Place::new();
        let script = "if [ -e first ]; then if kill -0 $(cat first) 2>/dev/null; then echo alive; fi; exit 0; fi; setsid sleep 600 & echo $! > \
                      first; exit 1";
        let ran = place.run(&["--max-restarts", "1", "sh", "-c", script]);
        assert!(ran.code == 0 && !ran.out.contains("alive"), "{ran:?}");
    });
}

#[test]
fn stdin_goes_to_the_only_worker_or_to_the_chosen_one() {
    watched(|| {
        let place = Place::new();
        let typed = |arguments: &[&str]| {
            let mut command = place.phalanx(arguments);
            let mut launcher = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            launcher.stdin.take().unwrap().write_all(b"typed\n").unwrap();
            launcher::Ran::of(launcher.wait_with_output().unwrap()).lines().join(" ")
        };
        assert_eq!(typed(&["cat"]), "[default0]:typed");
        assert_eq!(typed(&["--nproc-per-node", "2", "--stdin", "1", "cat"]), "[default1]:typed");
        assert_eq!(typed(&["--nproc-per-node", "2", "cat"]), "");
    });
}

#[test]
fn environment_is_the_default_of_options() {
    watched(|| {
        let place = Place::new();
        let mut command = place.phalanx(&["sh", "-c", "echo $WORLD_SIZE"]);
        let ran = place.end(command.env("PET_NPROC_PER_NODE", "2").env("PHALANX_ROLE", "r"));
        assert_eq!(ran.lines(), ["[r0]:2", "[r1]:2"]);
    });
}

#[test]
fn hundred_workers_run_with_few_descriptors() {
    watched(|| {
        let place = Place::new();
        let script =
            format!("ulimit -Sn 64; exec {} run --nproc-per-node 100 echo ok", env!("CARGO_BIN_EXE_phalanx"));
        let ran = launcher::Ran::of(
            std::process::Command::new("sh")
                .args(["-c", &script])
                .env("TMPDIR", place.dir.path())
                .output()
                .unwrap(),
        );
        assert_eq!((ran.code, ran.out.lines().count()), (0, 100), "{ran:?}");
    });
}

#[test]
fn signal_that_ends_a_worker_is_the_exit_code() {
    watched(|| {
        let ran = workers(1, &[], "kill -SEGV $$");
        assert_eq!(ran.code, 128 + Signal::SEGV.number());
        assert!(ran.err.contains("was ended by SIGSEGV"), "{}", ran.err);
    });
}
