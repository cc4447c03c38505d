//! Kills for want of memory: how many the kernel has counted in a worker's cgroup.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::diagnose::OomKills;
use crate::error::OomScope;
use crate::sys::cgroup::{Group, Hierarchy};
use crate::sys::memory;

/// The kernel's counts before the start, or at the moment when a worker was first found in its group.
#[derive(Debug)]
pub(super) struct OomCounts {
    root: PathBuf,
    hierarchy: Option<Hierarchy>,
    on_machine: Option<u64>,
    /// The launcher's group, in which workers begin.
    own: Option<Group>,
    /// By group: kills in it, and kills of it as a whole.
    before: HashMap<PathBuf, (u64, u64)>,
    /// The group in which each worker was seen alive.
    seen: Vec<Option<Group>>,
}

impl OomCounts {
    /// Reads the counts before the start.
    pub(super) fn take() -> Self {
        Self::below(Path::new("/"))
    }

    fn below(root: &Path) -> Self {
        let hierarchy = Hierarchy::find(root, "memory");
        let own = hierarchy.as_ref().and_then(|hierarchy| hierarchy.group_of("self"));
        let (on_machine, before) = (memory::oom_kills(root), own.iter().filter_map(counted).collect());
        Self { root: root.to_owned(), hierarchy, on_machine, own, before, seen: Vec::new() }
    }

    /// Notes once in which groups the workers are. Later it may be too late: version 1 does not tell the group of a process that has
    /// ended, and of one that the fork server has reaped neither version does.
    pub(super) fn note(&mut self, pids: impl Iterator<Item = u32>) {
        let Some(hierarchy) = self.hierarchy.as_ref().filter(|_| self.seen.is_empty()) else { return };
        self.seen = pids.map(|pid| hierarchy.group_of(&pid.to_string())).collect();
        for group in self.seen.iter().flatten() {
            if !self.before.contains_key(group.own()) {
                self.before.extend(counted(group));
            }
        }
    }

    /// The group of a worker that has ended and was not reaped; `None` when the kernel does not tell.
    pub(super) fn group_of_ended(&self, pid: u32) -> Option<Group> {
        self.hierarchy.as_ref()?.group_of_ended(&pid.to_string())
    }

    /// The kills since the start of which a worker's end may be one. They are counted in the worker's own group, with those for the
    /// limit of a group above; or on the whole machine if the worker has no group that counts.
    pub(super) fn since(&self, rank: usize, ended_in: Option<&Group>) -> Option<OomKills> {
        let on_machine = memory::oom_kills(&self.root)?.saturating_sub(self.on_machine?);
        let seen_in = self.seen.get(rank).and_then(Option::as_ref);
        let (count, scope) = match ended_in.or(seen_in).or(self.own.as_ref()).and_then(counted) {
            Some((group, (kills, as_a_whole))) => {
                // A group that was not seen before the start was made later, so all its kills are new; or else it is older, and which
                // of its kills are new is not known, except that they are no more than the machine has counted since the start.
                let (kills_before, whole_before) = self.before.get(&group).copied().unwrap_or_default();
                let whole = as_a_whole > whole_before;
                let scope = if whole { OomScope::WholeCgroup } else { OomScope::Cgroup };
                (kills.saturating_sub(kills_before).min(on_machine), scope)
            }
            None => (on_machine, OomScope::Machine),
        };
        (count > 0).then_some(OomKills { count, scope })
    }
}

fn counted(group: &Group) -> Option<(PathBuf, (u64, u64))> {
    Some((group.own().to_owned(), (group.oom_kills()?, group.kills_as_a_whole())))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MOUNT: &str = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            let machine = Self(tempfile::Builder::new().prefix("oom-test").tempdir().unwrap());
            machine.write("proc/self/mountinfo", MOUNT);
            machine.process("self", "/launcher");
            machine.count(0);
            machine
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn process(&self, name: &str, group: &str) {
            self.write(&format!("proc/{name}/cgroup"), &format!("0::{group}\n"));
        }

        fn count(&self, on_machine: u64) {
            self.write("proc/vmstat", &format!("oom_kill {on_machine}\n"));
        }

        fn kills(&self, group: &str, kills: u64, as_a_whole: u64) {
            let text = format!("oom_kill {kills}\noom_group_kill {as_a_whole}\n");
            self.write(&format!("sys/fs/cgroup/{group}/memory.events.local"), &text);
        }

        fn counts(&self) -> OomCounts {
            OomCounts::below(self.0.path())
        }
    }

    fn told(count: u64, scope: OomScope) -> Option<OomKills> {
        Some(OomKills { count, scope })
    }

    #[test]
    fn kill_in_the_workers_own_group_is_told_and_one_elsewhere_is_not() {
        let machine = Machine::new();
        machine.kills("launcher", 4, 0);
        machine.process("7", "/launcher");
        let mut counts = machine.counts();
        counts.note([7].into_iter());
        // Of another container.
        machine.count(1);
        assert_eq!(counts.since(0, None), None);
        machine.kills("launcher", 5, 0);
        assert_eq!(counts.since(0, None), told(1, OomScope::Cgroup));
        // It has gone to a group of its own meanwhile.
        machine.kills("own", 1, 0);
        machine.process("7", "/own");
        let own = counts.group_of_ended(7);
        assert_eq!(counts.since(0, own.as_ref()), told(1, OomScope::Cgroup));
    }

    #[test]
    fn kills_before_the_start_do_not_count() {
        let machine = Machine::new();
        machine.count(30);
        machine.kills("launcher", 2, 0);
        machine.kills("leaf", 9, 1);
        machine.process("7", "/leaf");
        let mut counts = machine.counts();
        counts.note([7].into_iter());
        assert_eq!((counts.since(0, None), counts.since(1, None)), (None, None));
        machine.count(32);
        machine.kills("leaf", 11, 2);
        assert_eq!(counts.since(0, None), told(2, OomScope::WholeCgroup));
    }

    #[test]
    fn machine_is_asked_where_no_group_counts() {
        let machine = Machine::new();
        let counts = machine.counts();
        assert_eq!(counts.since(0, None), None);
        machine.count(3);
        assert_eq!(counts.since(0, None), told(3, OomScope::Machine));
        assert_eq!(OomCounts::below(Path::new("/nowhere")).since(0, None), None);
    }
}
