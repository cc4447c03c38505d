//! Functions that the tests of the pool call.

#![allow(dead_code, clippy::allow_attributes, reason = "every test binary uses its own part of this")]

use phalanx::pool::{self, TaskFailed};
use phalanx::{Queue, Status};

use crate::common;

pub(crate) fn double(x: u64) -> anyhow::Result<u64> {
    Ok(2 * x)
}

pub(crate) fn own_pid(_: ()) -> anyhow::Result<u32> {
    Ok(std::process::id())
}

/// Ends its process in one of many ways.
#[expect(clippy::exit, clippy::disallowed_methods, reason = "that is one of the ways")]
pub(crate) fn end_by(how: String) -> anyhow::Result<()> {
    match how.as_str() {
        "SIGKILL" => common::kill_self(),
        "SIGSEGV" => common::write_to(0),
        "exit" => std::process::exit(0),
        "abort" => std::process::abort(),
        "panic" => panic!("out of luck"),
        "error" => anyhow::bail!("not today"),
        _ => {}
    }
    Ok(())
}

/// Tells its pid, and waits for ever.
pub(crate) fn tell_and_wait(told: Queue<u32>) -> anyhow::Result<()> {
    told.put(std::process::id())?;
    common::wait_for_ever()
}

/// Tells its pid, and waits until it is asked to end.
pub(crate) fn tell_and_wait_politely(told: Queue<u32>) -> anyhow::Result<String> {
    told.put(std::process::id())?;
    while !pool::cancelled() {
        std::thread::yield_now();
    }
    Ok("as you wish".to_owned())
}

pub(crate) fn ended(failed: &TaskFailed) -> Status {
    failed.outcome().unwrap_or_else(|| panic!("{failed}")).status()
}
