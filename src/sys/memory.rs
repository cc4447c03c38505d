//! What the kernel says of memory: proc(5).

use std::fmt;
use std::fs::{File, read_to_string};
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

use super::bytes::Bytes;
use super::cgroup::{Hierarchy, Room, number_after};
use super::limits::{self, AddressSpace, page_size};

/// Memory that can still be had, by the scarcest of what it can be short of.
#[derive(Debug)]
pub(crate) struct Available {
    pub(crate) bytes: u64,
    bound: Bound,
}

#[derive(Debug)]
enum Bound {
    Machine,
    Cgroup(Room),
    AddressSpace(AddressSpace),
}

impl Available {
    /// The limit that leaves no more; `None`: it is the machine.
    pub(crate) fn limit(&self) -> Option<String> {
        match &self.bound {
            Bound::Machine => None,
            Bound::Cgroup(room) => Some(room.to_string()),
            Bound::AddressSpace(space) => Some(space.to_string()),
        }
    }
}

impl fmt::Display for Available {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of memory are available", Bytes(self.bytes))?;
        self.limit().map_or(Ok(()), |limit| write!(f, ": {limit}"))
    }
}

/// How much can be had and mapped without driving the machine, this process's cgroup or one above it out of memory, nor
/// beyond its address space. `None` when the kernel does not say.
pub(crate) fn available() -> Option<Available> {
    // Mounts hardly change while a process runs.
    static HIERARCHY: OnceLock<Option<Hierarchy>> = OnceLock::new();
    let hierarchy = HIERARCHY.get_or_init(|| Hierarchy::find(Path::new("/"), "memory"));
    let group = hierarchy.as_ref().and_then(|hierarchy| hierarchy.group_of("self")?.memory());
    let machine = read_to_string("/proc/meminfo").ok().and_then(|text| meminfo_bytes(&text));
    let machine = machine.map(|bytes| Available { bytes, bound: Bound::Machine });
    let group = group.map(|room| Available { bytes: room.left, bound: Bound::Cgroup(room) });
    let space = limits::address_space();
    let space = space.map(|space| Available { bytes: space.left(), bound: Bound::AddressSpace(space) });
    [machine, group, space].into_iter().flatten().min_by_key(|available| available.bytes)
}

fn meminfo_bytes(text: &str) -> Option<u64> {
    let kib = |key: &str| number_after(text, key);
    Some((kib("MemAvailable:")? + kib("SwapFree:").unwrap_or(0)) * 1024)
}

/// How often the kernel of this machine has killed for memory, below a root directory. `None` when it does not say.
pub(crate) fn oom_kills(root: &Path) -> Option<u64> {
    number_after(&read_to_string(root.join("proc/vmstat")).ok()?, "oom_kill ")
}

/// The most memory this process has had resident so far, in KiB (VmHWM).
pub(crate) fn peak_resident_kib() -> Option<u64> {
    // The line stands in the first 1,000 bytes; each further read would be another call in every worker's end.
    let mut text = [0; 4096];
    let len = File::open("/proc/self/status").ok()?.read(&mut text).ok()?;
    number_after(&String::from_utf8_lossy(&text[..len]), "VmHWM:")
}

/// The memory that this process has resident and shares with no other, in bytes: RssAnon of proc_pid_status(5), by the shorter
/// proc_pid_statm(5).
pub(crate) fn own_bytes() -> Option<u64> {
    let text = read_to_string("/proc/self/statm").ok()?;
    // Size, resident, and what of that is of files and shared memory; in pages.
    let mut pages = text.split(' ').skip(1).map(str::parse::<u64>);
    let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
    Some(resident.saturating_sub(shared) * page_size() as u64)
}

/// How many mappings this process has, and how many it may have (vm.max_map_count).
pub(crate) fn mappings() -> Option<(usize, usize)> {
    // Piece by piece: a process without a mapping left has no room for megabytes of text.
    let (mut maps, mut piece, mut count) = (File::open("/proc/self/maps").ok()?, [0; 4096], 0);
    while let len @ 1.. = maps.read(&mut piece).ok()? {
        count += piece[..len].iter().filter(|&&byte| byte == b'\n').count();
    }
    Some((count, read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_counts_swap() {
        let text = "MemTotal: 9 kB\nMemAvailable:     100 kB\nSwapFree: 20 kB\n";
        assert_eq!(meminfo_bytes(text), Some(120 * 1024));
        assert_eq!(meminfo_bytes("MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn this_machine_answers() {
        assert!(available().is_some_and(|available| available.bytes > 0));
        assert!(peak_resident_kib().is_some_and(|kib| kib > 0));
    }
}
