//! A group of plain programs, which know nothing of this library.

use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::child::Child;
use super::group::{EndedChild, Group, Step};
use super::reaper::ServerReaper;
use super::stop::Stop;
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::pidfd;
use crate::sys::signal::Signal;
use crate::sys::spawn::{Blocked, Program};
use crate::sys::wait::{self, ExitStatus, Reaped};
use crate::wire::ledger::Ledger;

/// A shell in a group, with the other ends of its stdin and stdout.
struct Shell {
    pid: u32,
    input: Option<File>,
    output: BufReader<File>,
}

impl Shell {
    /// Runs `script` as the next child of `group`.
    fn start(group: &mut Group, script: &str) -> Self {
        let started = Moment::now();
        let shell = Self::start_without_group(script);
        group.add(Child::adopt(shell.pid, started, None).unwrap()).unwrap();
        shell
    }

    fn start_without_group(script: &str) -> Self {
        let (stdin, input) = std::io::pipe().unwrap();
        let (output, stdout) = std::io::pipe().unwrap();
        let arguments = ["sh", "-c", script].map(|argument| CString::new(argument).unwrap());
        let program = Program {
            program: c"/bin/sh",
            arguments: &arguments,
            environment: &[c"PATH=/usr/bin:/bin"],
            directory: None,
            descriptors: &[(stdin.as_fd(), 0), (stdout.as_fd(), 1)],
            group: None,
            blocked: Blocked::Nothing,
        };
        let pid = program.start().unwrap();
        let file = |fd: OwnedFd| File::from(fd);
        Self { pid, input: Some(file(input.into())), output: BufReader::new(file(output.into())) }
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.input.as_ref().unwrap(), "{line}").unwrap();
    }

    fn await_end(&self) {
        let pidfd = pidfd::open(self.pid).unwrap();
        wait_readable(pidfd.as_fd(), None).unwrap();
    }
}

/// Reaps all that end until none runs, and carries a stop on meanwhile.
fn run_to_the_end(group: &mut Group) -> Vec<(usize, EndedChild)> {
    let mut ended = Vec::new();
    loop {
        loop {
            match group.next().unwrap() {
                Step::Ended(number) => ended.push((number, group.reap(number).unwrap().unwrap())),
                Step::Readable(token) => panic!("nothing was watched under {token}"),
                Step::Idle => break,
            }
        }
        if group.running() == 0 {
            return ended;
        }
        assert!(group.carry_on().is_empty());
        group.wait_until(None).unwrap();
    }
}

fn killed_by(signal: Signal) -> ExitStatus {
    ExitStatus::Signal { signal, core_dumped: false }
}

fn status(ended: &EndedChild) -> ExitStatus {
    ended.exit.unwrap().status
}

#[test]
fn ends_are_told_in_their_order_though_nobody_looked_meanwhile() {
    let mut group = Group::new().unwrap();
    let scripts = ["read x; exit 3", "read x; kill -9 $$", "read x; exit 5"];
    let mut shells = scripts.map(|script| Shell::start(&mut group, script));
    assert_eq!((group.running(), group.next().unwrap()), (3, Step::Idle));
    for number in [2, 0, 1] {
        shells[number].tell("end");
        shells[number].await_end();
    }
    let ended = run_to_the_end(&mut group);
    let ended: Vec<_> = ended.iter().map(|(number, ended)| (*number, status(ended))).collect();
    let (three, five) = (ExitStatus::Code(3), ExitStatus::Code(5));
    assert_eq!(ended, [(2, five), (0, three), (1, killed_by(Signal::KILL))]);
    assert_eq!((group.order(), group.running()), (&[2, 0, 1][..], 0));
}

#[test]
fn end_that_the_fork_server_records_late_keeps_its_place_in_the_order() {
    let (ledger, _descriptor) = Ledger::new(1).unwrap();
    let ledger = Arc::new(ledger);
    let mut group = Group::new().unwrap();
    // A child whose end another process is to record: this one, which as the server is alive.
    let mut first = Shell::start_without_group("read x; exit 3");
    let server = (Arc::new(pidfd::open(std::process::id()).unwrap()), std::process::id());
    let reaper = ServerReaper::new(Arc::clone(&ledger), 0, server);
    let descriptor = pidfd::open(first.pid).unwrap();
    group.add(Child::of_server((first.pid, descriptor), (Moment::now(), 0), reaper, None)).unwrap();
    let mut second = Shell::start(&mut group, "read x; exit 4");

    first.tell("end");
    first.await_end();
    assert_eq!(group.next().unwrap(), Step::Ended(0));
    assert!(group.reap(0).unwrap().is_none(), "nothing is recorded yet");
    second.tell("end");
    second.await_end();
    // Told in whichever order, the second can be reaped.
    while group.running() == 2 {
        if let Step::Ended(number) = group.next().unwrap() {
            group.reap(number).unwrap();
        }
    }
    let unreaped = pidfd::open(first.pid).unwrap();
    let Reaped::Exit(exit) = wait::reap(unreaped.as_fd(), |_| ()).unwrap() else { panic!("it has ended") };
    ledger.record(0, Some(exit));
    let ended = run_to_the_end(&mut group);
    assert_eq!((ended[0].0, status(&ended[0].1)), (0, ExitStatus::Code(3)));
    assert_eq!(group.order(), [0, 1]);
}

#[test]
fn end_is_told_again_until_the_child_is_reaped() {
    let mut group = Group::new().unwrap();
    let shell = Shell::start(&mut group, "exit 0");
    shell.await_end();
    for _ in 0..2 {
        assert_eq!((group.next().unwrap(), group.running()), (Step::Ended(0), 1));
    }
    assert!(group.reap(0).unwrap().is_some());
    assert_eq!((group.next().unwrap(), group.running()), (Step::Idle, 0));
}

#[test]
fn stop_sends_sigterm_and_after_the_grace_period_sigkill_to_a_child_that_ignores_it() {
    let mut group = Group::new().unwrap();
    let mut meek = Shell::start(&mut group, "echo ready; read x");
    let mut deaf = Shell::start(&mut group, "trap '' TERM; echo ready; read x; exit 0");
    assert_eq!((meek.hear(), deaf.hear()), ("ready".to_owned(), "ready".to_owned()));
    let before = Moment::now();
    group.stop(Some(Stop::terminate(Some(Duration::from_millis(200)), before)));
    let ended = run_to_the_end(&mut group);
    let told: Vec<_> = ended.iter().map(|(number, ended)| (*number, status(ended))).collect();
    assert_eq!(told, [(0, killed_by(Signal::TERM)), (1, killed_by(Signal::KILL))]);
    let sent: Vec<_> = ended.iter().map(|(_, ended)| ended.sent_by_teardown.unwrap()).collect();
    assert_eq!((sent[0].strongest, sent[1].strongest), (Signal::TERM, Signal::KILL));
    // The moment is the same for all: a failure after it may be the effect of another child's death.
    assert!(before <= sent[0].at && sent[0].at == sent[1].at);
    assert!(Moment::now().since(before) >= Duration::from_millis(200));
}

#[test]
fn stop_waits_for_children_that_end_by_themselves_in_the_first_grace() {
    let mut group = Group::new().unwrap();
    let mut shell = Shell::start(&mut group, "read x; exit 4");
    group.stop(Some(Stop::after_failure(Some(Duration::MAX), Moment::now())));
    assert!(group.carry_on().is_empty());
    shell.tell("end");
    let ended = run_to_the_end(&mut group);
    assert_eq!(status(&ended[0].1), ExitStatus::Code(4));
    assert!(ended[0].1.sent_by_teardown.is_none());
}

#[test]
fn one_child_is_stopped_and_the_other_goes_on() {
    let mut group = Group::new().unwrap();
    let mut other = Shell::start(&mut group, "read x; exit 6");
    let mut stopped = Shell::start(&mut group, "echo ready; read x");
    stopped.hear();
    group.stop_one(1, Stop::after_failure(None, Moment::now()));
    assert!(group.carry_on().is_empty());
    stopped.await_end();
    assert_eq!(group.next().unwrap(), Step::Ended(1));
    assert_eq!(status(&group.reap(1).unwrap().unwrap()), killed_by(Signal::TERM));
    assert_eq!(group.running(), 1);
    other.tell("end");
    let ended = run_to_the_end(&mut group);
    assert_eq!((ended[0].0, status(&ended[0].1)), (0, ExitStatus::Code(6)));
}

#[test]
fn sigterm_to_all_after_the_sigkill_of_one_does_not_hide_that_one() {
    let mut group = Group::new().unwrap();
    let shell = Shell::start(&mut group, "read x");
    group.stop_one(0, Stop::at_once(Moment::now()));
    assert!(group.carry_on().is_empty());
    shell.await_end();
    // It has ended, but nobody has looked: the next stop of all sends its signal to it too.
    group.stop(Some(Stop::terminate(None, Moment::now())));
    assert!(group.carry_on().is_empty());
    let ended = run_to_the_end(&mut group);
    assert_eq!(status(&ended[0].1), killed_by(Signal::KILL));
    assert_eq!(ended[0].1.sent_by_teardown.unwrap().strongest, Signal::KILL);
}

#[test]
fn what_a_child_has_started_is_killed_when_it_is_reaped() {
    let mut group = Group::new().unwrap();
    let mut shell = Shell::start(&mut group, "sleep 1000 & echo $!; read x");
    let sleeper = pidfd::open(shell.hear().parse().unwrap()).unwrap();
    assert!(!wait_readable(sleeper.as_fd(), Some(Moment::now())).unwrap());
    shell.tell("end");
    run_to_the_end(&mut group);
    wait_readable(sleeper.as_fd(), None).unwrap();
}

#[test]
fn status_that_somebody_else_took_is_missing_and_signals_of_the_program_are_noted() {
    let mut group = Group::new().unwrap();
    let (first, _second) = (Shell::start(&mut group, "read x"), Shell::start(&mut group, "read x"));
    wait::kill_unwatched(first.pid);
    group.signal(1, Signal::KILL).unwrap();
    let mut ended = run_to_the_end(&mut group);
    ended.sort_by_key(|(number, _)| *number);
    assert!(ended[0].1.exit.is_none() && !ended[0].1.sent_by_program.contains(Signal::KILL));
    assert_eq!(status(&ended[1].1), killed_by(Signal::KILL));
    assert!(ended[1].1.sent_by_program.contains(Signal::KILL));
    // Both have ended: this must not reach whoever has their numbers now.
    group.signal(1, Signal::KILL).unwrap();
}

#[test]
fn descriptor_of_the_caller_is_told_by_its_token_until_it_is_read() {
    let mut group = Group::new().unwrap();
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    group.watch_too(reader.as_fd(), 7).unwrap();
    assert_eq!(group.next().unwrap(), Step::Idle);
    writer.write_all(b"x").unwrap();
    group.wait_until(None).unwrap();
    assert_eq!([group.next().unwrap(), group.next().unwrap()], [Step::Readable(7); 2]);
    std::io::Read::read_exact(&mut reader, &mut [0]).unwrap();
    assert_eq!(group.next().unwrap(), Step::Idle);
}

#[test]
fn alarm_makes_the_descriptor_readable_and_is_no_step() {
    let mut group = Group::new().unwrap();
    let ready = |group: &Group| wait_readable(group.as_fd(), Some(Moment::now())).unwrap();
    assert!(!ready(&group));
    group.set_alarm(Some(Moment::now())).unwrap();
    assert!(wait_readable(group.as_fd(), None).unwrap());
    assert_eq!(group.next().unwrap(), Step::Idle);
    group.set_alarm(None).unwrap();
    assert!(!ready(&group));
}

#[test]
fn dropped_group_leaves_no_child_and_no_zombie() {
    let mut group = Group::new().unwrap();
    let shells = ["trap '' TERM; read x", "exit 0"].map(|script| Shell::start(&mut group, script));
    let pidfds = shells.each_ref().map(|shell| pidfd::open(shell.pid).unwrap());
    drop(group);
    for (pidfd, shell) in pidfds.iter().zip(shells) {
        let error = pidfd::send_signal(pidfd.as_fd(), shell.pid, Signal::CONT).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(pidfd::NO_SUCH_PROCESS));
    }
}
