//! `phalanx::launch` as a library.

use std::cell::RefCell;
use std::fs;
use std::rc::Rc;
use std::time::Duration;

mod common;

use common::watched;
use phalanx::launch::{
    Command, Ending, Event, Launch, LaunchError, Nproc, Prefix, RankList, Role, Streams, record,
};
use phalanx::{Signal, Tensor};

fn shell(script: &str) -> Launch {
    Launch::new(Command::new("sh").args(["-c", script]))
}

#[test]
fn events_come_in_their_order() {
    watched(|| {
        let told = Rc::new(RefCell::new(Vec::new()));
        let events = Rc::clone(&told);
        let script = "[ $TORCHELASTIC_RESTART_COUNT = 1 ] || exit 4";
        let launch =
            shell(script).max_restarts(1).on_event(move |event| events.borrow_mut().push(event.clone()));
        let summary = launch.run().unwrap();
        assert!(summary.succeeded() && summary.attempts.len() == 2, "{summary}");
        let told = told.borrow();
        assert!(
            matches!(
                &told[..],
                [
                    Event::Started { attempt: 0, .. },
                    Event::Ended { rank: 0, ending: Ending::Exited { code: 4 } },
                    Event::Restarting { attempt: 1, .. },
                    Event::Started { attempt: 1, .. },
                    Event::Ended { rank: 0, ending: Ending::Succeeded },
                ]
            ),
            "{told:?}"
        );
    });
}

#[test]
fn no_signal_of_the_process_is_touched() {
    watched(|| {
        let dispositions = || {
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            let of_signals =
                status.lines().filter(|line| line.starts_with("Sig") && !line.starts_with("SigQ"));
            of_signals.map(str::to_owned).collect::<Vec<_>>()
        };
        let before = dispositions();
        let during = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&during);
        let launch = shell("exit 0").on_event(move |_| *seen.borrow_mut() = dispositions());
        assert!(launch.run().unwrap().succeeded());
        assert_eq!(*during.borrow(), before);
        assert_eq!(dispositions(), before);
    });
}

#[test]
fn process_of_several_threads_cannot_be_given_to_the_job() {
    watched(|| {
        // The harness has a thread for each test.
        let error = shell("exit 0").handle_signals(true).run().unwrap_err();
        assert!(error.to_string().contains("threads, and must have one"), "{error}");
    });
}

#[test]
fn summary_says_how_each_worker_ended() {
    watched(|| {
        let script = "[ $RANK = 1 ] && kill -USR1 $$; exec sleep 600";
        let summary =
            shell(script).nproc(Nproc::Count(3)).shutdown_timeout(Duration::from_secs(60)).run().unwrap();
        let workers = &summary.attempts[0].workers;
        let root = summary.attempts[0].root_cause().unwrap();
        assert_eq!(
            (root.rank, root.role, summary.exit_code()),
            (1, Some(Role::RootCause), 128 + Signal::USR1.number())
        );
        assert!(workers[0].ended_by_launcher && !root.ended_by_launcher, "{summary}");
        assert_eq!(workers[2].ending, Ending::Signaled { signal: Signal::TERM, core_dumped: false });
        assert!(root.lifetime <= summary.attempts[0].lasted);
    });
}

#[test]
fn library_finds_descendants_that_have_left_their_group() {
    watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let script = "setsid sh -c 'touch up; exec sleep 600' & while [ ! -e up ]; do sleep 0.01; done";
        let summary = shell(script).directory(dir.path()).run().unwrap();
        assert!(summary.succeeded() && summary.attempts[0].stray.len() == 1, "{summary:?}");
    });
}

#[test]
fn ended_children_of_the_program_itself_are_left_to_it() {
    watched(|| {
        let mut own = std::process::Command::new("sh").args(["-c", "exit 5"]).spawn().unwrap();
        common::await_that(|| common::state_of(own.id()) == Some('Z'));
        let dir = tempfile::tempdir().unwrap();
        let script = "setsid sh -c 'touch up; exec sleep 600' & while [ ! -e up ]; do sleep 0.01; done";
        let summary = shell(script).directory(dir.path()).run().unwrap();
        assert_eq!(summary.attempts[0].stray.len(), 1, "{summary:?}");
        assert_eq!(own.wait().unwrap().code(), Some(5));
    });
}

#[test]
fn tensor_is_the_same_memory_in_a_program() {
    watched(|| {
        let tensor = Tensor::from_slice(&[1_u8, 2, 3, 4, 5, 6], &[2, 3]).unwrap();
        let view = tensor.select(0, 1).unwrap();
        // Writes over the second element of the view, which lies in the middle of a larger file.
        let script = "eval $(echo \"$PHALANX_TENSORS\" | sed 's/.*\"fd\":\\([0-9]*\\).*\"offset\":\\([0-9]*\\).*/fd=\\1 offset=\\2/'); printf '\\t' | dd \
                      of=/proc/self/fd/$fd bs=1 seek=$((offset + 1)) conv=notrunc 2>/dev/null; echo \"$PHALANX_TENSORS\" > \"$OUT\"";
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let summary = shell(script).env("OUT", &out).tensor("view", &view.clone().into()).run().unwrap();
        assert!(summary.succeeded(), "{summary}");
        assert_eq!(tensor.to_vec(), [1, 2, 3, 4, 9, 6]);
        let described: serde_json::Value = serde_json::from_str(&fs::read_to_string(out).unwrap()).unwrap();
        assert_eq!((&described[0]["name"], &described[0]["dtype"]), (&"view".into(), &"u8".into()));
        assert_eq!((&described[0]["shape"], &described[0]["strides"]), (&[3].into(), &[1].into()));
    });
}

#[test]
fn what_is_wrong_is_an_error_before_anything_is_started() {
    watched(|| {
        let error = |launch: Launch| match launch.run().unwrap_err() {
            LaunchError::Invalid { what, hint } => format!("{what}; {hint}"),
            other => panic!("{other}"),
        };
        assert!(error(shell("").log_dir("/dev/null")).contains("is a file"));
        assert!(error(shell("").env("A=", "")).contains("no name of a variable"));
        assert!(error(shell("a\0b")).contains("zero byte"));
        assert!("${nothing}".parse::<Prefix>().unwrap_err().to_string().contains("stands for nothing"));
        let missing = Launch::new(Command::new("/nowhere/program")).run().unwrap_err();
        assert!(missing.to_string().contains("cannot run /nowhere/program"), "{missing}");
    });
}

#[test]
fn logs_of_a_library_are_files_too() {
    watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let ranks: RankList = "1".parse().unwrap();
        let launch = shell("echo $RANK")
            .nproc(Nproc::Count(2))
            .log_dir(dir.path())
            .redirects(Streams::BOTH)
            .show_ranks(ranks);
        let summary = launch.run().unwrap();
        let attempt = summary.attempts[0].log_dir.clone().unwrap();
        for rank in ["0", "1"] {
            assert_eq!(
                fs::read_to_string(attempt.join(rank).join("stdout.log")).unwrap(),
                format!("{rank}\n")
            );
        }
    });
}

/// What the workers of the next test run: this test executable, which then runs this alone.
#[test]
fn recorded_program() {
    match std::env::var("RECORDED").as_deref() {
        Ok("panic") => drop(record(|| -> Result<(), String> { panic!("out of luck") })),
        Ok(_) => drop(record(|| Err::<(), _>(anyhow::anyhow!("no cheese").context("cannot serve")))),
        Err(_) => {}
    }
}

#[test]
fn recorded_errors_and_panics_stand_in_the_report() {
    watched(|| {
        for (how, code, message) in
            [("error", 0, "cannot serve: no cheese"), ("panic", 101, "panicked at tests/launch_library.rs:")]
        {
            let program = Command::new(std::env::current_exe().unwrap());
            let launch = Launch::new(program.args(["--exact", "recorded_program"])).env("RECORDED", how);
            let summary = launch.run().unwrap();
            let worker = &summary.attempts[0].workers[0];
            assert_eq!(worker.ending.exit_code(), code, "{summary}");
            let error = worker.error.as_ref().unwrap();
            assert!(error.message.starts_with(message), "{error:?}");
            let traceback = error.traceback.clone().unwrap_or_default();
            assert_eq!(traceback.contains("launch_library::recorded_program"), how == "panic", "{traceback}");
        }
    });
}

#[test]
fn record_passes_errors_and_panics_on() {
    // Without the variable it writes nothing.
    assert_eq!(record(|| Ok::<_, String>(5)), Ok(5));
    assert_eq!(record(|| Err::<(), _>("no".to_owned())), Err("no".to_owned()));
    let panic =
        std::panic::catch_unwind(|| record::<(), String>(|| std::panic::panic_any(7_u8))).unwrap_err();
    assert_eq!(panic.downcast_ref::<u8>(), Some(&7));
}
