//! Descendants of workers that have left their process groups: they are found by the token in their environment, and killed.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::environment::TOKEN;
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::pidfd;
use crate::sys::signal::Signal;
use crate::sys::wait;

/// How long a killed process may take to be gone; one that takes longer hangs in the kernel.
const DEATH_THROES: Duration = Duration::from_secs(10);

/// Kills all processes with the job's token in their environment, until there are none; returns their pids. A process of another
/// user, and one that has emptied its environment before exec, is not found so.
///
/// `adopts`: whether orphans become this process's children, so that it has to reap them. Else its ended children are its program's own,
/// and are left alone.
pub(super) fn kill_all(token: &str, adopts: bool) -> Vec<u32> {
    let own = std::process::id();
    let deadline = Moment::now().checked_add(DEATH_THROES);
    let mut killed = BTreeSet::new();
    loop {
        let found: Vec<_> = pids().filter(|&pid| pid != own).filter_map(|pid| open(pid, token)).collect();
        if found.is_empty() || deadline.is_none_or(|deadline| Moment::now() >= deadline) {
            return killed.into_iter().collect();
        }
        // All are killed before the first is waited for: none of them can start more then than this scan and the next one find.
        for (pid, process) in &found {
            if pidfd::send_signal(process.as_fd(), *pid, Signal::KILL).is_ok() {
                killed.insert(*pid);
            }
        }
        for (_, process) in &found {
            // A zombie has no environment, so the next scan does not find it, whoever reaps it.
            let _ = wait_readable(process.as_fd(), deadline);
        }
        if adopts {
            reap_strangers(&[]);
        }
    }
}

/// All pids that this process may see.
fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A process, if it has the token.
fn open(pid: u32, token: &str) -> Option<(u32, OwnedFd)> {
    if !has_token(pid, token) {
        return None;
    }
    // The number may have become another's since: what the pidfd means is looked at once more.
    let process = pidfd::open(pid).ok()?;
    has_token(pid, token).then_some((pid, process))
}

/// Whether a process has the token in its environment, as it was at its last exec.
fn has_token(pid: u32, token: &str) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    let wanted = format!("{TOKEN}={token}");
    environment.split(|&byte| byte == 0).any(|variable| variable == wanted.as_bytes())
}

/// Reaps children that have ended and are not ours, as the first process of a container has them.
pub(super) fn reap_strangers(ours: &[u32]) {
    while let Ok(Some(pid)) = wait::next_ended() {
        // The group reaps its own; one that stands first hides those behind it until then.
        if ours.contains(&pid) || !wait::forget(pid) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn only_processes_with_the_token_are_found_and_killed() {
        let start = |token: &str| {
            Command::new("sleep").arg("600").env(TOKEN, token).process_group(0).spawn().unwrap()
        };
        let token = format!("test-{}", std::process::id());
        let (mut with, mut other) = (start(&token), start("another"));
        // Until its exec a child has this process's environment.
        while !has_token(with.id(), &token) || !has_token(other.id(), "another") {
            std::thread::yield_now();
        }
        assert!(open(other.id(), &token).is_none());
        let (pid, process) = open(with.id(), &token).unwrap();
        pidfd::send_signal(process.as_fd(), pid, Signal::KILL).unwrap();
        with.wait().unwrap();
        assert!(open(pid, &token).is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
