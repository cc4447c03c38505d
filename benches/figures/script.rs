//! Running a script of Python's.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SIGKILL, kill};
use nix::unistd::Pid;

use crate::common;

/// How long Python may take for one figure.
const PATIENCE: Duration = Duration::from_secs(300);

/// What it printed; `None` when it is not here, failed, or had to be ended.
pub(crate) fn run_python(arguments: &[&str]) -> anyhow::Result<Option<String>> {
    let mut command = Command::new("python3");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // Its workers end with it.
    let Ok(mut process) = command.process_group(0).spawn() else { return Ok(None) };
    let pidfd = common::pidfd(process.id()).ok_or_else(|| anyhow::anyhow!("pidfd_open"))?;
    let mut patience = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    if poll(&mut patience, PollTimeout::try_from(PATIENCE)?)? == 0 {
        kill(Pid::from_raw(-(process.id() as i32)), SIGKILL)?;
    }
    let succeeded = process.wait()?.success();
    let mut printed = String::new();
    if let Some(mut output) = process.stdout.take().filter(|_| succeeded) {
        output.read_to_string(&mut printed)?;
    }
    Ok(succeeded.then_some(printed))
}
