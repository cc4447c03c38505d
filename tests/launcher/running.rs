//! A launcher that runs while the test goes on, at pipes or at a terminal.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::Ran;
use crate::common;

/// A launcher that runs, and what it prints.
pub(crate) struct Running {
    pub(crate) launcher: Child,
    pub(crate) out: BufReader<ChildStdout>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut launcher = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(launcher.stdout.take().unwrap());
        Self { launcher, out }
    }

    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The number that a worker prints as its next line.
    pub(crate) fn hear_number(&mut self) -> u32 {
        let line = self.hear();
        line.rsplit(':')
            .next()
            .and_then(|number| number.trim().parse().ok())
            .unwrap_or_else(|| panic!("{line:?}"))
    }

    /// Waits until the launcher says that it was told to stop.
    pub(crate) fn await_note(&mut self) {
        let (mut byte, mut text) = ([0], String::new());
        while !text.contains("are told to stop") {
            self.launcher.stderr.as_mut().unwrap().read_exact(&mut byte).unwrap();
            text.push(char::from(byte[0]));
        }
    }

    /// Waits until the launcher has said this.
    pub(crate) fn await_note_of(&mut self, text: &str) {
        let (mut said, mut byte) = (Vec::new(), [0]);
        while !said.ends_with(text.as_bytes()) {
            self.launcher.stderr.as_mut().unwrap().read_exact(&mut byte).unwrap();
            said.push(byte[0]);
        }
    }

    pub(crate) fn send(&self, signal: Signal) {
        common::send(self.launcher.id(), signal);
    }

    pub(crate) fn end(mut self) -> Ran {
        let mut out = String::new();
        self.out.read_to_string(&mut out).unwrap();
        let mut ran = Ran::of(self.launcher.wait_with_output().unwrap());
        ran.out = out;
        ran
    }
}

/// The master of a pseudoterminal, and what has come from it and was not waited for.
pub(crate) struct Terminal {
    pub(crate) master: File,
    unread: Vec<u8>,
}

impl Terminal {
    /// A command that has the other side as its terminal.
    pub(crate) fn start(command: &mut Command) -> (Self, Child) {
        let pair = nix::pty::openpty(None, None).unwrap();
        let side = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        command.stdin(side(&pair.slave)).stdout(side(&pair.slave)).stderr(side(&pair.slave));
        // SAFETY: what it calls is async-signal-safe.
        #[expect(unsafe_code, reason = "the terminal must become the session's before exec")]
        unsafe {
            command.pre_exec(become_leader)
        };
        let child = command.spawn().unwrap();
        // The other sides that the command has kept: a read here is to fail when the child's are closed.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        drop(pair.slave);
        (Self { master: File::from(pair.master), unread: Vec::new() }, child)
    }

    /// Waits until a text has come, and takes all up to its end; what came before it.
    pub(crate) fn expect(&mut self, text: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let found = self.unread.windows(text.len()).position(|part| part == text.as_bytes());
            if let Some(at) = found {
                let taken: Vec<_> = self.unread.drain(..at + text.len()).collect();
                return String::from_utf8_lossy(&taken[..at]).into_owned();
            }
            let count = self.master.read(&mut buffer).unwrap_or_else(|error| {
                panic!("{error} after {:?}, before {text:?}", String::from_utf8_lossy(&self.unread))
            });
            self.unread.extend_from_slice(&buffer[..count]);
        }
    }

    /// Takes what is left, when nothing has the other side any more.
    pub(crate) fn rest(mut self) -> String {
        let mut buffer = [0; 4096];
        // EIO: no process has the terminal any more.
        while let Ok(count @ 1..) = self.master.read(&mut buffer) {
            self.unread.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8(self.unread).unwrap()
    }

    pub(crate) fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }
}

/// The leader of a new session, whose terminal is stdin, and which Ctrl-C reaches.
#[expect(unsafe_code, reason = "nix has no wrapper of TIOCSCTTY")]
fn become_leader() -> std::io::Result<()> {
    nix::unistd::setsid()?;
    take_default_signals()?;
    // SAFETY: takes an integer.
    match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// What nohup starts ignores SIGHUP, and what a shell without job control starts in the background SIGINT and SIGQUIT. All that it
/// starts inherits that (execve(2)), so that a launcher of a test under them would not hear of these signals.
#[expect(unsafe_code, reason = "nix::sys::signal::signal is unsafe")]
fn take_default_signals() -> std::io::Result<()> {
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: the default disposition runs no code of this process.
        unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) }?;
    }
    Ok(())
}

/// Has the command begin with all signals in effect, wherever the tests run, and end with the test that a watchdog ends.
#[expect(unsafe_code, reason = "a disposition is the process's, so it must be set between fork and exec")]
pub(super) fn with_default_signals(command: &mut Command) {
    // SAFETY: what it calls is async-signal-safe.
    unsafe { command.pre_exec(|| take_default_signals().and_then(|()| Ok(set_pdeathsig(Signal::SIGTERM)?))) };
}
