//! `phalanx run` at a terminal: which process has it in the foreground, and what its keys do.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

mod common;
mod launcher;

use common::watched;
use launcher::{Place, Terminal};

#[test]
fn only_worker_has_the_terminal_for_itself() {
    watched(|| {
        let place = Place::new();
        // A debugger reads from the terminal as this does.
        let script = "[ -t 0 ] && [ -t 1 ] && printf 'name? '; read name; echo \"hello $name\"";
        let (mut terminal, mut launcher) = Terminal::start(&mut place.phalanx(&["sh", "-c", script]));
        terminal.expect("name? ");
        terminal.type_in("bob\n");
        terminal.expect("hello bob");
        assert!(launcher.wait().unwrap().success());
    });
}

#[test]
fn worker_at_the_terminal_has_its_log_files() {
    watched(|| {
        let place = Place::new();
        let logs = place.path("logs");
        let script = "[ -t 0 ] && [ -t 2 ] && echo to the file && echo to the terminal >&2";
        let options = ["-r", "1", "--log-dir", logs.to_str().unwrap(), "sh", "-c", script];
        let (mut terminal, mut launcher) = Terminal::start(&mut place.phalanx(&options));
        terminal.expect("to the terminal");
        assert!(launcher.wait().unwrap().success());
        let job = fs::read_dir(&logs).unwrap().next().unwrap().unwrap().path();
        assert_eq!(fs::read_to_string(job.join("attempt_0/0/stdout.log")).unwrap(), "to the file\n");
    });
}

#[test]
fn interrupt_at_the_terminal_ends_the_job() {
    watched(|| {
        for nproc in [1, 2] {
            let place = Place::new();
            let script = "echo ready; exec sleep 600";
            let (mut terminal, mut launcher) = Terminal::start(&mut place.shell(nproc, &[], script));
            terminal.expect("ready");
            // Ctrl-C.
            terminal.type_in("\x03");
            let status = launcher.wait().unwrap();
            assert!(status.signal() == Some(2) || status.code() == Some(130), "{nproc}: {status:?}");
        }
    });
}

#[test]
fn job_that_is_told_to_stop_ends_though_the_terminal_takes_nothing() {
    watched(|| {
        let place = Place::new();
        let (mut terminal, mut launcher) = Terminal::start(&mut place.shell(2, &[], "exec yes much"));
        // From here on nothing is read from the terminal, which keeps some thousand bytes.
        terminal.expect("much");
        let pid = nix::unistd::Pid::from_raw(launcher.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(launcher.wait().unwrap().signal(), Some(15));
    });
}

#[test]
fn stop_at_the_terminal_stops_the_job_and_fg_continues_it() {
    watched(|| {
        for nproc in [1, 2] {
            let place = Place::new();
            let script = "echo $$ ready; read line; echo again $line; exit 0";
            let phalanx = place.shell(nproc, &["--stdin", "0"], script);
            let words: Vec<_> = std::iter::once(phalanx.get_program()).chain(phalanx.get_args()).collect();
            let words: Vec<_> = words.iter().map(|word| format!("'{}'", word.to_str().unwrap())).collect();
            // An interactive shell has job control.
            let mut shell = Command::new("bash");
            shell.args(["--norc", "--noprofile", "-i"]).env("PS1", "$ ").env("TMPDIR", place.path("tmp"));
            let (mut terminal, mut shell) = Terminal::start(&mut shell);
            terminal.expect("$ ");
            terminal.type_in(&format!("{}\n", words.join(" ")));
            // Not the echo of the command.
            terminal.expect(" ready\r\n");
            // Ctrl-Z: the shell has the terminal again.
            terminal.type_in("\x1a");
            terminal.expect("Stopped");
            terminal.expect("$ ");
            terminal.type_in("fg\n");
            terminal.expect("exit 0");
            terminal.type_in("typed\n");
            terminal.expect("again typed\r\n");
            terminal.expect("$ ");
            terminal.type_in("exit\n");
            shell.wait().unwrap();
            place.assert_clean();
        }
    });
}
