//! `phalanx logs`: what the workers of a running job have printed, and print.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::Signal;

mod common;
mod launcher;

use common::{await_that, watched};
use launcher::people::{command, name, phalanx, start};
use launcher::{Place, Running};

#[test]
fn logs_of_streams_without_files_are_the_last_that_was_printed() {
    watched(|| {
        let (place, job) = (Place::new(), name("memory"));
        // The console shows rank 1 only.
        let script = "i=0; while [ $i -lt 3000 ]; do echo line $i of $RANK is a long one; i=$((i+1)); done; \
                      echo error of $RANK >&2; echo up; while :; do sleep 0.02; done";
        let mut command = place.shell(2, &["--job-name", &job, "--local-ranks-filter", "1"], script);
        let mut running = Running::start(&mut command);
        while running.hear() != "[default1]:up" {}
        await_that(|| phalanx(&["logs", &job]).out.matches(":up\n").count() == 2);
        let all = phalanx(&["logs", &job]);
        for rank in 0..2 {
            let prefix = format!("[default{rank}]:");
            let own: Vec<_> = all.out.lines().filter(|line| line.starts_with(&prefix)).collect();
            assert_eq!(own[own.len() - 2], format!("{prefix}line 2999 of {rank} is a long one"));
            assert!(all.err.contains(&format!("{prefix}error of {rank}\n")), "{}", all.err);
        }
        // Of one rank, byte for byte; 64 KiB of it.
        let one = phalanx(&["logs", &job, "0"]);
        assert_eq!((one.out.len(), &*one.err), (64 * 1024, "error of 0\n"));
        assert!(one.out.ends_with("\nline 2999 of 0 is a long one\nup\n"));
        let none = phalanx(&["logs", &job, "0,7"]);
        assert!(none.code == 2 && none.err.contains("rank 7 is not among the 2 worker(s)"), "{none:?}");
        running.send(Signal::SIGTERM);
        running.end();
    });
}

#[test]
fn logs_of_files_are_whole_and_followed_from_attempt_to_attempt() {
    watched(|| {
        let (place, job) = (Place::new(), name("files"));
        // stdout of rank 0 goes to a file alone, that of rank 1 to a file and the console; stderr to no file.
        let script = "n=$TORCHELASTIC_RESTART_COUNT; echo begin $n; echo error $n >&2; \
                      while [ ! -e go$n ]; do sleep 0.02; done; echo end $n; [ $n = 1 ] || exit 5; exit 0";
        let options =
            ["--job-name", &job, "--log-dir", "logs", "-r", "0:1", "-t", "1:1", "--max-restarts", "1"];
        let mut running = Running::start(&mut place.shell(2, &options, script));
        assert_eq!(running.hear(), "[default1]:begin 0");
        await_that(|| phalanx(&["logs", &job, "0"]).out == "begin 0\n");
        let mut follow = command(&["logs", "-f", &job]);
        let mut follow = Running::start(&mut follow);
        let mut heard = [follow.hear(), follow.hear()];
        heard.sort();
        assert_eq!(heard, ["[default0]:begin 0", "[default1]:begin 0"]);
        for attempt in 0..2 {
            fs::write(place.path(&format!("go{attempt}")), "").unwrap();
        }
        let ran = follow.end();
        for line in ["[default0]:begin 1", "[default0]:end 1", "[default1]:begin 1", "[default1]:end 1"] {
            assert_eq!(ran.out.matches(line).count(), 1, "{line}: {ran:?}");
        }
        for rank in 0..2 {
            assert_eq!(ran.err.matches(&format!("[default{rank}]:error 1")).count(), 1, "{ran:?}");
        }
        assert_eq!((ran.code, running.end().code), (0, 0));
    });
}

#[test]
fn follower_sees_what_is_printed_and_ends_with_the_job() {
    watched(|| {
        let (place, job) = (Place::new(), name("follow"));
        let script = "echo up; while [ ! -e go ]; do sleep 0.02; done; i=0; \
                      while [ $i -lt 2000 ]; do echo $RANK $i; i=$((i+1)); done; printf 'no newline'";
        let running = start(&place, 2, &["--job-name", &job], script);
        let mut all = Running::start(&mut command(&["logs", "-f", &job]));
        let mut one = Running::start(&mut command(&["logs", "-f", &job, "1"]));
        assert!(all.hear().ends_with("up") && all.hear().ends_with("up") && one.hear() == "up");
        fs::write(place.path("go"), "").unwrap();
        // Each is read while the others are: what a console does not take holds up all.
        let ends = [running, all, one].map(|running| std::thread::spawn(|| running.end()));
        let [launched, all, one] = ends.map(|end| end.join().unwrap());
        for rank in 0..2 {
            let prefix = format!("[default{rank}]:");
            let own: Vec<_> = all.out.lines().filter_map(|line| line.strip_prefix(&*prefix)).collect();
            let lines = (0..2000).map(|line| format!("{rank} {line}"));
            let expected: Vec<_> = lines.chain(["no newline".to_owned()]).collect();
            assert_eq!(own, expected);
        }
        assert!(one.out.starts_with("1 0\n1 1\n") && one.out.ends_with("\n1 1999\nno newline"));
        assert_eq!((all.code, one.code, launched.code), (0, 0, 0));
    });
}

#[test]
fn reader_that_has_seen_enough_ends_the_command_without_a_word() {
    watched(|| {
        let (place, job) = (Place::new(), name("enough"));
        let running = start(&place, 1, &["--job-name", &job], "echo up; while :; do echo more; done >&2");
        let mut logs = command(&["logs", "-f", &job]);
        // Its stdout is closed, its stderr is the reader's.
        let mut logs = logs.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        drop(logs.stderr.take());
        assert!(logs.wait().unwrap().success());
        running.send(Signal::SIGKILL);
        assert_eq!(running.end().code, -9);
        // The guardian's last act.
        await_that(|| fs::read_dir(place.path("tmp")).unwrap().next().is_none());
    });
}
