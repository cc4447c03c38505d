//! Named jobs, and the commands that reach them.

use std::process::{Command, Stdio};

use super::{Place, Ran, Running};

/// A name that no other test has.
pub(crate) fn name(of: &str) -> String {
    format!("test-{of}-{}", std::process::id())
}

pub(crate) fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_phalanx"));
    command.args(words).stdin(Stdio::null());
    command
}

pub(crate) fn phalanx(words: &[&str]) -> Ran {
    Ran::of(command(words).output().unwrap())
}

/// Says that it runs, and sleeps in steps that let its traps run.
pub(crate) const SLEEPS: &str = "echo up; while :; do sleep 0.02; done";

/// A job of that name, whose workers have all said that they run.
pub(crate) fn start(place: &Place, nproc: usize, options: &[&str], script: &str) -> Running {
    let mut running = Running::start(&mut place.shell(nproc, options, script));
    for _ in 0..nproc {
        assert!(running.hear().ends_with("up"));
    }
    running
}
