//! What programs find at their start, and those that cannot be started.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use super::*;
use crate::sys::pidfd;
use crate::sys::wait::{self, ExitStatus, Reaped};

fn strings(texts: &[&str]) -> Vec<CString> {
    texts.iter().map(|text| CString::new(*text).unwrap()).collect()
}

/// What differs from test to test.
#[derive(Default)]
struct Extra<'a> {
    directory: Option<&'a CStr>,
    inherited: &'a [BorrowedFd<'a>],
    affinity: Option<&'a Affinity>,
    memory_nodes: Option<&'a [u64]>,
}

/// Runs a shell script to its end; what it has printed, and how it ended.
fn shell(script: &str, extra: &Extra<'_>) -> (String, ExitStatus) {
    let (mut output, stdout) = std::io::pipe().unwrap();
    let null = File::open("/dev/null").unwrap();
    let arguments = strings(&["sh", "-c", script]);
    let environment = strings(&["PATH=/usr/bin:/bin", "KEY=value"]);
    let program = ForeignProgram {
        file: c"/bin/sh",
        arguments: &arguments,
        environment: &environment,
        directory: extra.directory,
        stdio: [null.as_fd(), stdout.as_fd(), stdout.as_fd()],
        inherited: extra.inherited,
        death_signal: Signal::KILL,
        affinity: extra.affinity,
        memory_nodes: extra.memory_nodes,
        ignored: ignored_signals(),
    };
    let pid = program.start().unwrap();
    drop(stdout);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    let pidfd = pidfd::open(pid).unwrap();
    crate::sys::epoll::wait_readable(pidfd.as_fd(), None).unwrap();
    match wait::reap(pidfd.as_fd(), |_| ()).unwrap() {
        Reaped::Exit(exit) => (text.trim().to_owned(), exit.status),
        other => panic!("{other:?}"),
    }
}

#[test]
fn program_has_its_environment_directory_group_and_no_descriptor_but_those_that_it_inherits() {
    let kept: OwnedFd = File::open("/dev/null").unwrap().into();
    let closed: OwnedFd = File::open("/dev/null").unwrap().into();
    let script = format!(
        "echo $KEY $(pwd) $(($(cut -d' ' -f5 /proc/$$/stat) == $$)); [ -e /proc/self/fd/{} ] && echo kept; [ -e \
         /proc/self/fd/{} ] || echo closed; exit 7",
        kept.as_raw_fd(),
        closed.as_raw_fd()
    );
    let inherited = [kept.as_fd()];
    let (text, status) =
        shell(&script, &Extra { directory: Some(c"/usr"), inherited: &inherited, ..Extra::default() });
    assert_eq!(text, "value /usr 1\nkept\nclosed");
    assert_eq!(status, ExitStatus::Code(7));
}

#[test]
fn program_has_no_ignored_and_no_blocked_signal_and_runs_on_its_processors() {
    let first = Affinity::of_caller().unwrap().processors().next().unwrap();
    let one = Affinity::of_processors(&[first]);
    let script = "grep -E 'SigBlk|SigIgn|Cpus_allowed_list' /proc/self/status | tr -d '\\t\\n'";
    let extra = Extra { affinity: Some(&one), memory_nodes: Some(&[1]), ..Extra::default() };
    let (text, _) = shell(script, &extra);
    assert_eq!(text, format!("SigBlk:{0}SigIgn:{0}Cpus_allowed_list:{first}", "0".repeat(16)));
}

#[test]
fn what_cannot_be_run_is_an_error_and_leaves_no_process() {
    let null = File::open("/dev/null").unwrap();
    let start = |file, directory| {
        let program = ForeignProgram {
            file,
            arguments: &strings(&["x"]),
            environment: &[],
            directory,
            stdio: [null.as_fd(); 3],
            inherited: &[],
            death_signal: Signal::KILL,
            affinity: None,
            memory_nodes: None,
            ignored: 0,
        };
        program.start().unwrap_err().raw_os_error()
    };
    assert_eq!(start(c"/nowhere/program", None), Some(libc::ENOENT));
    assert_eq!(start(c"/dev/null", None), Some(libc::EACCES));
    assert_eq!(start(c"/bin/sh", Some(c"/nowhere")), Some(libc::ENOENT));
}
