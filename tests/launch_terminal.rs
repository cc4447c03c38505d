//! The line at the bottom of the terminal, and Enter.

use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::sys::termios::{Termios, tcgetattr};

mod common;
mod launcher;

use common::{await_that, send, state_of, watched};
use launcher::people::{SLEEPS, name};
use launcher::{Place, Terminal};

/// What a terminal shows: of its control sequences those that the launcher uses.
#[derive(Default)]
struct Screen {
    lines: Vec<Vec<char>>,
    at: (usize, usize),
    saved: (usize, usize),
}

impl Screen {
    fn of(text: &str) -> Vec<String> {
        let mut screen = Self::default();
        let mut chars = text.chars();
        while let Some(next) = chars.next() {
            match next {
                '\r' => screen.at.1 = 0,
                '\n' => screen.at.0 += 1,
                '\x1b' => match chars.next().unwrap() {
                    '7' => screen.saved = screen.at,
                    '8' => screen.at = screen.saved,
                    'D' => screen.at.0 += 1,
                    '[' => screen.control(chars.next().unwrap()),
                    other => panic!("{other:?} in {text:?}"),
                },
                other => screen.put(other),
            }
        }
        screen.lines.iter().map(|line| line.iter().collect()).collect()
    }

    fn control(&mut self, kind: char) {
        let (line, column) = self.at;
        match kind {
            'A' => self.at.0 -= 1,
            'B' => self.at.0 += 1,
            'J' => {
                self.lines.truncate(line + 1);
                self.lines.get_mut(line).into_iter().for_each(|line| line.truncate(column));
            }
            'K' => self.lines[line].truncate(column),
            other => panic!("{other:?}"),
        }
    }

    fn put(&mut self, next: char) {
        let (line, column) = self.at;
        self.lines.resize(self.lines.len().max(line + 1), Vec::new());
        let line = &mut self.lines[line];
        line.resize(line.len().max(column + 1), ' ');
        line[column] = next;
        self.at.1 += 1;
    }
}

/// A job whose first worker prints when files appear.
fn start(place: &Place, options: &[&str], script: &str) -> (Terminal, std::process::Child) {
    let mut command = place.shell(2, options, script);
    Terminal::start(command.env("TERM", "xterm"))
}

/// What Enter prints of a job of two workers that has just begun: a head and a line for each.
fn table(terminal: &mut Terminal, job: &str) -> String {
    terminal.type_in("\n");
    terminal.expect(&format!("job {job}, attempt 0: 2/2 up after 0:"));
    let lines: String = (0..4).map(|_| terminal.expect("\n")).collect();
    assert!(lines.contains("rank") && lines.matches(" MiB ").count() == 2, "{lines:?}");
    lines
}

fn settings(terminal: &Terminal) -> Termios {
    tcgetattr(terminal.master.as_fd()).unwrap()
}

#[test]
fn line_stays_below_what_is_printed_and_is_gone_at_the_end() {
    watched(|| {
        let place = Place::new();
        let script = "echo begin $RANK; while [ ! -e go ]; do sleep 0.02; done; printf part$RANK; \
                      while [ ! -e end ]; do sleep 0.02; done; echo end";
        let (mut terminal, mut launcher) = start(&place, &["--job-name", &name("shown")], script);
        let mut seen = String::new();
        let mut wait = |terminal: &mut Terminal, text: &str| seen.push_str(&(terminal.expect(text) + text));
        wait(&mut terminal, &format!("{}: 2/2 up, 0 restarts, 0:00:0", name("shown")));
        wait(&mut terminal, "most memory: rank ");
        // A second has passed, and it is drawn anew.
        wait(&mut terminal, &format!("\x1b[J{}: 2/2 up, 0 restarts, 0:00:0", name("shown")));
        std::fs::write(place.path("go"), "").unwrap();
        // It goes below a line that has not ended.
        wait(&mut terminal, &format!("\x1bD\x1b[A\x1b7\r\x1b[B{}: 2/2 up", name("shown")));
        std::fs::write(place.path("end"), "").unwrap();
        assert!(launcher.wait().unwrap().success());
        seen.push_str(&terminal.rest());
        let mut lines = Screen::of(&seen);
        // Where the line was, below what was printed, the shell goes on.
        lines.pop_if(|line| line.is_empty());
        lines.retain(|line| !line.starts_with("phalanx: "));
        lines.sort();
        let count = |text: &str| lines.iter().filter(|line| *line == text).count();
        assert_eq!([count("[default0]:begin 0"), count("[default1]:begin 1")], [1, 1], "{lines:?}");
        assert!(lines.iter().all(|line| line.starts_with("[default")), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("part0")), "{lines:?}");
    });
}

#[test]
fn enter_prints_what_runs_and_the_terminals_settings_are_left_alone() {
    watched(|| {
        let place = Place::new();
        let (mut terminal, mut launcher) = start(&place, &["--job-name", &name("typed")], "exec sleep 600");
        let before = settings(&terminal);
        terminal.expect("2/2 up");
        // A worker that has just been started may still run.
        while table(&mut terminal, &name("typed")).matches(" sleeps").count() < 2 {}
        assert_eq!(settings(&terminal), before);
        // Ctrl-C.
        terminal.type_in("\x03");
        launcher.wait().unwrap();
        let rest = terminal.rest();
        assert!(rest.contains("told to stop by SIGINT"), "{rest:?}");
    });
}

#[test]
fn worker_that_reads_the_terminal_is_typed_to() {
    watched(|| {
        let place = Place::new();
        let script = "[ $RANK = 1 ] || exec sleep 600; echo ready; read line; echo got $line; exec sleep 600";
        let (mut terminal, mut launcher) = start(&place, &["--stdin", "1"], script);
        terminal.expect("ready");
        terminal.type_in("word\n");
        terminal.expect("got word");
        send(launcher.id(), Signal::SIGTERM);
        launcher.wait().unwrap();
        let rest = terminal.rest();
        assert!(!rest.contains("attempt 0:") && !rest.contains("2/2 up"), "{rest:?}");
    });
}

#[test]
fn line_is_off_where_nobody_wants_it() {
    watched(|| {
        let script = "sleep 0.2; echo printed";
        for (options, variable) in [(&["--quiet"][..], ("TERM", "xterm")), (&[], ("TERM", "dumb"))] {
            let place = Place::new();
            let mut command = place.shell(2, options, script);
            let (terminal, mut launcher) = Terminal::start(command.env(variable.0, variable.1));
            launcher.wait().unwrap();
            let text = terminal.rest();
            assert!(
                text.contains("printed") && !text.contains("2/2 up") && !text.contains('\x1b'),
                "{text:?}"
            );
        }
        // stdout is a pipe, whose reader may write to the terminal too.
        let place = Place::new();
        let phalanx = place.shell(2, &[], script);
        let words = std::iter::once(phalanx.get_program()).chain(phalanx.get_args());
        let words: Vec<_> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{} | cat", words.join(" "))]).env("TERM", "xterm");
        shell.env("TMPDIR", place.path("tmp")).stdin(Stdio::null());
        let (terminal, mut launcher) = Terminal::start(&mut shell);
        launcher.wait().unwrap();
        let text = terminal.rest();
        assert!(text.contains("printed") && !text.contains("2/2 up"), "{text:?}");
    });
}

#[test]
fn job_in_the_background_draws_and_reads_nothing() {
    watched(|| {
        let place = Place::new();
        let phalanx = place.shell(2, &["--job-name", &name("behind")], SLEEPS);
        let words = std::iter::once(phalanx.get_program()).chain(phalanx.get_args());
        let words: Vec<_> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
        let mut shell = Command::new("bash");
        shell.args(["--norc", "--noprofile", "-i"]).env("PS1", "$ ").env("TERM", "xterm");
        let (mut terminal, mut shell) = Terminal::start(shell.env("TMPDIR", place.path("tmp")));
        terminal.expect("$ ");
        terminal.type_in(&format!("{} &\n", words.join(" ")));
        terminal.expect("]:up\r\n");
        terminal.expect("]:up\r\n");
        // The shell has the terminal: what is typed is for it.
        terminal.type_in("echo pid=$!\n");
        terminal.expect("pid=$!");
        let seen = terminal.expect("\n") + &terminal.expect("\n");
        let pid: u32 = seen.split("pid=").nth(1).unwrap().trim().parse().unwrap();
        assert_ne!(state_of(pid), Some('T'));
        terminal.type_in("fg\n");
        terminal.expect(&format!("{}: 2/2 up", name("behind")));
        terminal.type_in("\x03");
        terminal.expect("$ ");
        terminal.type_in("exit\n");
        shell.wait().unwrap();
        await_that(|| state_of(pid).is_none());
        let rest = seen + &terminal.rest();
        assert!(!rest.contains("up, 0 restarts"), "{rest:?}");
    });
}
