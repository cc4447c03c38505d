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
use crate::sys::{fork, wait};

/// How long a killed process may take to be gone; one that takes longer hangs in the kernel.
const DEATH_THROES: Duration = Duration::from_secs(10);

/// Kills all processes of a job that its workers have left behind, until there are none; returns their pids.
///
/// They are found by the job's token in their environment, and, where orphans become this process's children (`orphans`), as those. A
/// process of another user, and one that has emptied its environment before exec, is found in the second way only.
pub(super) fn kill_all(token: &str, orphans: Option<&Orphans>) -> Vec<u32> {
    let own = std::process::id();
    let is_left = |pid: u32| has_token(pid, token) || orphans.is_some_and(|orphans| orphans.has(pid));
    let deadline = Moment::now().checked_add(DEATH_THROES);
    let mut killed = BTreeSet::new();
    loop {
        let found: Vec<_> = pids().filter(|&pid| pid != own).filter_map(|pid| open(pid, is_left)).collect();
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
            // A zombie has no environment and is no orphan of ours, so the next scan does not find it, whoever reaps it.
            let _ = wait_readable(process.as_fd(), deadline);
        }
        if orphans.is_some() {
            reap_strangers(&[]);
        }
    }
}

/// Which children of this process, the parent of orphans, are the job's: it has adopted them.
#[derive(Debug)]
pub(super) struct Orphans {
    /// Its children from before the job, and the guardian.
    spared: BTreeSet<u32>,
}

impl Orphans {
    /// From now on.
    pub(super) fn begin() -> Self {
        let children = || pids().filter(|&pid| family(pid).is_some_and(|family| family.is_child()));
        // Most launchers have none, and need not look.
        Self { spared: if wait::has_children() { children().collect() } else { BTreeSet::new() } }
    }

    /// Leaves a child alone.
    pub(super) fn spare(&mut self, child: u32) {
        self.spared.insert(child);
    }

    /// Whether a process is one of them. Children of this process's own session are the program's: whatever it starts itself is in that,
    /// also by another job or as a worker, while what has left a worker's process group has mostly left the session too (setsid(2)).
    fn has(&self, pid: u32) -> bool {
        // The first process of a container adopts everybody's orphans, and all end with it anyway.
        std::process::id() != 1
            && !self.spared.contains(&pid)
            && family(pid).is_some_and(|family| family.is_child() && family.session != fork::session_id())
    }
}

/// The parent and the session of a process that has not ended.
struct Family {
    parent: u32,
    session: u32,
}

impl Family {
    fn is_child(&self) -> bool {
        self.parent == std::process::id()
    }
}

/// By /proc/PID/stat; the name in it may have anything.
fn family(pid: u32) -> Option<Family> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let has_ended = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    // The process group stands between.
    let session = fields.nth(1)?.parse().ok()?;
    (!has_ended).then_some(Family { parent, session })
}

/// All pids that this process may see.
fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A process, if it is one that is looked for.
fn open(pid: u32, is_it: impl Fn(u32) -> bool) -> Option<(u32, OwnedFd)> {
    if !is_it(pid) {
        return None;
    }
    // The number may have become another's since: what the pidfd means is looked at once more.
    let process = pidfd::open(pid).ok()?;
    is_it(pid).then_some((pid, process))
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
        let has = |pid| has_token(pid, &token);
        assert!(open(other.id(), has).is_none());
        let (pid, process) = open(with.id(), has).unwrap();
        pidfd::send_signal(process.as_fd(), pid, Signal::KILL).unwrap();
        with.wait().unwrap();
        assert!(open(pid, has).is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn orphans_are_children_that_came_later_and_have_left_our_session() {
        let leading = || {
            let child = Command::new("setsid").args(["sleep", "600"]).spawn().unwrap();
            while family(child.id()).unwrap().session != child.id() {
                std::thread::yield_now();
            }
            child
        };
        let before = leading();
        let mut orphans = Orphans::begin();
        let (spared, later) = (leading(), leading());
        let ours = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        orphans.spare(spared.id());
        let all = [&before, &spared, &later, &ours].map(std::process::Child::id);
        assert_eq!(all.map(|pid| orphans.has(pid)), [false, false, true, false]);
        assert!(!orphans.has(std::process::id()));
        for mut child in [before, spared, later, ours] {
            child.kill().unwrap();
            // A zombie is none.
            while family(child.id()).is_some() {
                std::thread::yield_now();
            }
            assert!(!orphans.has(child.id()));
            child.wait().unwrap();
        }
    }
}
