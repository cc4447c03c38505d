//! Control groups, cgroups(7): the limits of a process's own group and of all above it, as far as they can be seen.
//!
//! Everything is read below a root directory, so that tests can make one.

use std::fmt;
use std::fs::read_to_string;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where a controller's groups are mounted.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    root: PathBuf,
    controller: &'static str,
    version: Version,
    mounts: Vec<Mount>,
}

/// One mount of a hierarchy, which may show only a part of it, as in a container.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// The group that is seen at the mount point.
    top: PathBuf,
    point: PathBuf,
}

/// The group of a process, and all above it that can be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    version: Version,
    /// Its own directory first, the mount point last.
    levels: Vec<PathBuf>,
    /// Whether there may be groups above that cannot be seen.
    is_part: bool,
}

/// A limit of a group, and how much of it is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) left: u64,
    limit: u64,
    file: PathBuf,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, of which {} are left", self.file.display(), self.limit, self.left)
    }
}

impl Hierarchy {
    /// That of a controller; `None` when it is not mounted.
    pub(crate) fn find(root: &Path, controller: &'static str) -> Option<Self> {
        let mountinfo = read_to_string(root.join("proc/self/mountinfo")).ok()?;
        // A controller that version 1 has is not in version 2's hierarchy.
        let (version, mounts) = [Version::One, Version::Two]
            .map(|version| (version, mounts(&mountinfo, version, controller)))
            .into_iter()
            .find(|(_, mounts)| !mounts.is_empty())?;
        Some(Self { root: root.to_owned(), controller, version, mounts })
    }

    /// The group of a process that has ended and was not reaped, which only version 2 tells.
    pub(crate) fn group_of_ended(&self, process: &str) -> Option<Group> {
        if self.version == Version::Two { self.group_of(process) } else { None }
    }

    /// The group of a process, which /proc knows by that name.
    pub(crate) fn group_of(&self, process: &str) -> Option<Group> {
        let text = read_to_string(self.root.join("proc").join(process).join("cgroup")).ok()?;
        let key = if self.version == Version::One { self.controller } else { "" };
        let path = Path::new(path_in(&text, key)?);
        let shown = self.mounts.iter().find_map(|mount| {
            let (point, below) = (self.below_root(&mount.point), path.strip_prefix(&mount.top).ok()?);
            let dir = point.join(below);
            dir.is_dir().then(|| (dir, point, mount.top != Path::new("/")))
        });
        // In a container whose group is not below what is mounted, the mount shows the container's group as its top.
        let (dir, point, is_part) = shown.or_else(|| {
            let point = self.below_root(&self.mounts.first()?.point);
            Some((point.clone(), point, true))
        })?;
        let levels = dir.ancestors().take_while(|level| level.starts_with(&point)).map(Path::to_owned);
        Some(Group { version: self.version, levels: levels.collect(), is_part })
    }

    fn below_root(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// The path in a line `id:controllers:path` of /proc/PID/cgroup; version 2 has no controllers there.
fn path_in<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let named = fields.next()?.split(',').any(|name| name == controller);
        named.then(|| fields.next())?
    })
}

/// Reads lines `id parent device top point options… - type source options` (proc_pid_mountinfo(5)).
fn mounts(mountinfo: &str, version: Version, controller: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let (mut place, mut kind) = (place.split(' ').skip(3), kind.split(' '));
        let wanted = match (version, kind.next()?) {
            (Version::Two, "cgroup2") => true,
            (Version::One, "cgroup") => kind.nth(1)?.split(',').any(|option| option == controller),
            _ => false,
        };
        let mut path = || Some(PathBuf::from(unescaped(place.next()?)));
        wanted.then(|| Some(Mount { top: path()?, point: path()? }))?
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// Spaces and the like are written in octal there.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, meant)| text.replace(code, meant))
}

impl Group {
    /// What tells it from others.
    pub(crate) fn own(&self) -> &Path {
        self.levels.first().map_or(Path::new(""), PathBuf::as_path)
    }

    /// The least that is left of memory at any level. The page cache does not count as used: it can be had back.
    pub(crate) fn memory(&self) -> Option<Room> {
        let limits: &[&str] = match self.version {
            Version::One => &["memory.limit_in_bytes"],
            Version::Two => &["memory.max", "memory.high"],
        };
        let rooms = self.charged().flat_map(|level| limits.iter().filter_map(|file| room(level, file, used)));
        rooms.chain(self.unseen_limit()).min_by_key(|room| room.left)
    }

    /// The least that is left of processes and threads at any level.
    pub(crate) fn processes(&self) -> Option<Room> {
        let used = |level: &Path| number_in(level, "pids.current");
        self.levels.iter().filter_map(|level| room(level, "pids.max", used)).min_by_key(|room| room.left)
    }

    /// As many processors as the smallest quota of any level pays for, rounded up; `None`: there is no quota.
    pub(crate) fn processors(&self) -> Option<usize> {
        let quota = |level: &PathBuf| {
            let (quota, period) = match self.version {
                Version::One => {
                    (number_in(level, "cpu.cfs_quota_us")?, number_in(level, "cpu.cfs_period_us")?)
                }
                Version::Two => {
                    let text = read_to_string(level.join("cpu.max")).ok()?;
                    // `max` is no number: no quota.
                    let (quota, period) = text.trim().split_once(' ')?;
                    (quota.parse().ok()?, period.parse().ok()?)
                }
            };
            usize::try_from(quota.div_ceil(period.max(1))).ok()
        };
        self.levels.iter().filter_map(quota).min()
    }

    /// The levels that its memory is charged to: in version 1 not those above one that has no hierarchy.
    fn charged(&self) -> impl Iterator<Item = &Path> {
        let flat = |level: &Path| number_in(level, "memory.use_hierarchy") == Some(0);
        let above = self.levels.iter().skip(1).map(PathBuf::as_path);
        self.levels
            .first()
            .map(PathBuf::as_path)
            .into_iter()
            .chain(above.take_while(move |level| !flat(level)))
    }

    /// In version 1 the uppermost level that can be seen knows the least limit of those that cannot.
    fn unseen_limit(&self) -> Option<Room> {
        let top = self.charged().last().filter(|_| self.version == Version::One && self.is_part)?;
        let file = "memory.stat";
        let limit = number_after(&read_to_string(top.join(file)).ok()?, "hierarchical_memory_limit ")?;
        Some(Room { left: limit.saturating_sub(used(top)?), limit, file: top.join(file) })
    }

    /// How often the kernel has killed a process of this very group for want of memory.
    pub(crate) fn oom_kills(&self) -> Option<u64> {
        let files: &[&str] = match self.version {
            Version::One => &["memory.oom_control"],
            // The other one counts the groups below too.
            Version::Two => &["memory.events.local", "memory.events"],
        };
        let text = files.iter().find_map(|file| read_to_string(self.own().join(file)).ok())?;
        number_after(&text, "oom_kill ")
    }

    /// How often the kernel has killed it as a whole for want of memory, or a group above with it (memory.oom.group; counted
    /// since Linux 5.17).
    pub(crate) fn kills_as_a_whole(&self) -> u64 {
        let kills = |level: &PathBuf| {
            let events = read_to_string(level.join("memory.events.local")).ok()?;
            number_after(&events, "oom_group_kill ")
        };
        self.levels.iter().filter_map(kills).sum()
    }
}

/// A level that has no such limit ("max", a number beyond all memory, or no file) gives `None`.
fn room(level: &Path, file: &str, used: impl Fn(&Path) -> Option<u64>) -> Option<Room> {
    const NO_LIMIT: u64 = 1 << 62;
    let limit = number_in(level, file).filter(|&limit| limit < NO_LIMIT)?;
    Some(Room { left: limit.saturating_sub(used(level)?), limit, file: level.join(file) })
}

fn number_in(level: &Path, file: &str) -> Option<u64> {
    read_to_string(level.join(file)).ok()?.trim().parse().ok()
}

/// Bytes of memory in use by a level and those below, without the page cache.
fn used(level: &Path) -> Option<u64> {
    let used = number_in(level, "memory.usage_in_bytes").or_else(|| number_in(level, "memory.current"))?;
    let stat = read_to_string(level.join("memory.stat")).unwrap_or_default();
    Some(used.saturating_sub(cached(&stat)))
}

/// Bytes of files in memory: version 1 counts those of the groups below apart.
fn cached(stat: &str) -> u64 {
    let of =
        |keys: [&str; 2]| keys.iter().filter_map(|key| number_after(stat, key)).reduce(u64::saturating_add);
    of(["total_inactive_file ", "total_active_file "])
        .or_else(|| of(["inactive_file ", "active_file "]))
        .unwrap_or(0)
}

/// The number behind `key`, which begins a line.
pub(super) fn number_after(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests;
