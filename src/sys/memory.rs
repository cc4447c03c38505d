//! What the kernel says of memory: proc(5), cgroups(7).

use std::fs::{File, read_to_string};
use std::io::Read;

/// Bytes that can still be had without driving the machine, or this process's cgroup, out of memory.
/// `None` when the kernel does not say.
pub(crate) fn available() -> Option<u64> {
    let machine = meminfo_bytes(&read_to_string("/proc/meminfo").ok()?);
    let group = Cgroup::own().and_then(|group| group.headroom());
    match (machine, group) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

fn meminfo_bytes(text: &str) -> Option<u64> {
    let kib = |key: &str| number_after(text, key);
    Some((kib("MemAvailable:")? + kib("SwapFree:").unwrap_or(0)) * 1024)
}

/// How often the kernel has killed for memory: in this process's cgroup where that is counted, else on the
/// whole machine. `None` when the kernel does not say.
pub(crate) fn oom_kills() -> Option<u64> {
    let own =
        Cgroup::own().and_then(|group| number_after(&read_to_string(group.events()).ok()?, "oom_kill "));
    own.or_else(|| number_after(&read_to_string("/proc/vmstat").ok()?, "oom_kill "))
}

/// The memory cgroup of this process.
enum Cgroup {
    V1(String),
    V2(String),
}

impl Cgroup {
    fn own() -> Option<Self> {
        Self::parse(&read_to_string("/proc/self/cgroup").ok()?)
    }

    /// Reads lines `id:controllers:path`; version 1 wins, since it has the memory controller if it is there.
    fn parse(text: &str) -> Option<Self> {
        let path_of = |controller: &str| {
            text.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let named = fields.next()?.split(',').any(|name| name == controller);
                named.then(|| fields.next())?.map(str::to_owned)
            })
        };
        let v1 = path_of("memory").map(|path| Self::V1(format!("/sys/fs/cgroup/memory{path}")));
        v1.or_else(|| path_of("").map(|path| Self::V2(format!("/sys/fs/cgroup{path}"))))
    }

    fn events(&self) -> String {
        match self {
            Self::V1(dir) => format!("{dir}/memory.oom_control"),
            Self::V2(dir) => format!("{dir}/memory.events"),
        }
    }

    /// Limit less use, of which the page cache does not count: it can be had back. A cgroup without a limit ("max", or no
    /// file in the root) gives `None`.
    fn headroom(&self) -> Option<u64> {
        let (dir, limit, used) = match self {
            Self::V1(dir) => (dir, "memory.limit_in_bytes", "memory.usage_in_bytes"),
            Self::V2(dir) => (dir, "memory.max", "memory.current"),
        };
        let number = |file| read_to_string(format!("{dir}/{file}")).ok()?.trim().parse::<u64>().ok();
        let stat = read_to_string(format!("{dir}/memory.stat")).unwrap_or_default();
        Some(number(limit)?.saturating_sub(number(used)?.saturating_sub(cached(&stat))))
    }
}

/// Bytes of files in memory, by memory.stat.
fn cached(stat: &str) -> u64 {
    ["inactive_file ", "active_file "].iter().filter_map(|key| number_after(stat, key)).sum()
}

/// The most memory this process has had resident so far, in KiB (VmHWM).
pub(crate) fn peak_resident_kib() -> Option<u64> {
    // The line stands in the first 1,000 bytes; each further read would be another call in every worker's end.
    let mut text = [0; 4096];
    let len = File::open("/proc/self/status").ok()?.read(&mut text).ok()?;
    number_after(&String::from_utf8_lossy(&text[..len]), "VmHWM:")
}

/// The number behind `key`, which begins a line.
pub(super) fn number_after(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// How many mappings this process has, and how many it may have (vm.max_map_count).
pub(crate) fn mappings() -> Option<(usize, usize)> {
    let count = read_to_string("/proc/self/maps").ok()?.lines().count();
    Some((count, read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_after_key_at_line_start_only() {
        let text = "oom_kill_disable 0\nunder_oom 1\noom_kill 42\n";
        assert_eq!(number_after(text, "oom_kill "), Some(42));
        assert_eq!(number_after(text, "oom "), None);
    }

    #[test]
    fn cgroup_parse_both_versions() {
        let events = |text| Cgroup::parse(text).map(|group| group.events());
        let mixed = "9:name=systemd:/\n4:cpu,memory:/a/b\n0::/";
        assert_eq!(events(mixed).unwrap(), "/sys/fs/cgroup/memory/a/b/memory.oom_control");
        assert_eq!(events("0::/x:y\n").unwrap(), "/sys/fs/cgroup/x:y/memory.events");
        assert_eq!(events("garbage"), None);
    }

    #[test]
    fn cached_counts_files_on_both_lists() {
        let stat = "anon 5\ninactive_anon 7\ninactive_file 100\nactive_file 20\ntotal_active_file 9\n";
        assert_eq!((cached(stat), cached("")), (120, 0));
    }

    #[test]
    fn meminfo_counts_swap() {
        let text = "MemTotal: 9 kB\nMemAvailable:     100 kB\nSwapFree: 20 kB\n";
        assert_eq!(meminfo_bytes(text), Some(120 * 1024));
        assert_eq!(meminfo_bytes("MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn this_machine_answers() {
        assert!(available().is_some_and(|bytes| bytes > 0));
        assert!(peak_resident_kib().is_some_and(|kib| kib > 0));
    }
}
