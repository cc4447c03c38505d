//! proc_pid_stat(5): what a process does and uses.

use std::time::Duration;

/// What the kernel says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessNow {
    /// R runs, S sleeps, D sleeps and takes no signal, T is stopped, Z has ended.
    pub(crate) state: char,
    /// The processor time of all its threads.
    pub(crate) cpu: Duration,
    /// What it has resident, in bytes.
    pub(crate) resident: u64,
}

/// Looks at a process; `None`: it is gone.
pub(crate) fn look(pid: u32) -> Option<ProcessNow> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, ticks_per_second(), page())
}

/// When a process was started, in ticks since the boot: with its pid it names one process for ever. `None`: it is gone.
pub(crate) fn born(pid: u32) -> Option<u64> {
    field(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, 22)?.parse().ok()
}

/// All processes that have not ended, with their process groups.
pub(crate) fn groups() -> Vec<(u32, u32)> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, group(pid)?))).collect()
}

/// The process group of a process; `None`: it has ended.
pub(crate) fn group(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    field(&stat, 5).filter(|_| field(&stat, 3) != Some("Z"))?.parse().ok()
}

/// A field of /proc/pid/stat, by its number in the manual, from the state (3) on. The name before it may have any characters.
fn field(stat: &str, number: usize) -> Option<&str> {
    stat[stat.rfind(')')? + 1..].split_ascii_whitespace().nth(number.checked_sub(3)?)
}

/// Where the threads of a process stand: state, name, system call, and what the kernel waits for there. What this process may not read is
/// left out.
pub(crate) fn threads(pid: u32) -> Vec<String> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut told: Vec<_> = threads.filter_map(|thread| Some(stands(&thread.ok()?.path()))).collect();
    told.sort();
    told
}

fn stands(thread: &std::path::Path) -> String {
    let read = |name| std::fs::read_to_string(thread.join(name)).unwrap_or_default();
    let (stat, call, wchan, stack) = (read("stat"), read("syscall"), read("wchan"), read("stack"));
    let state = field(&stat, 3).unwrap_or("?");
    let call = call
        .split_ascii_whitespace()
        .next()
        .map_or(String::new(), |number| format!(", system call {number}"));
    let wchan =
        if matches!(wchan.trim(), "" | "0") { String::new() } else { format!(", in {}", wchan.trim()) };
    let kernel: Vec<_> =
        stack.lines().filter_map(|line| line.split_ascii_whitespace().nth(1)).take(4).collect();
    let kernel = if kernel.is_empty() { String::new() } else { format!(" ({})", kernel.join(" < ")) };
    format!("{} {state}{call}{wchan}{kernel}", read("comm").trim())
}

/// What a process has resident of its own, without what it shares or has from files, in bytes; `None`: it is gone.
pub(crate) fn anonymous_memory(pid: u32) -> Option<u64> {
    rss_anon(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// RssAnon, of proc_pid_status(5).
fn rss_anon(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Whether a process is stopped, as by Ctrl-Z or a debugger.
pub(crate) fn is_stopped(pid: u32) -> bool {
    look(pid).is_some_and(|now| matches!(now.state, 'T' | 't'))
}

fn parse(stat: &str, ticks: u64, page: u64) -> Option<ProcessNow> {
    // The name before it may have any characters.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let mut number = |skipped| fields.nth(skipped)?.parse::<u64>().ok();
    // The state is field 3, utime 14, stime 15, rss 24.
    let (user, system, resident) = (number(10)?, number(0)?, number(8)?);
    let cpu = Duration::from_nanos((user + system).saturating_mul(1_000_000_000 / ticks.max(1)));
    Some(ProcessNow { state, cpu, resident: resident * page })
}

fn ticks_per_second() -> u64 {
    // SAFETY: takes an integer.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).unwrap_or(100)
}

fn page() -> u64 {
    // SAFETY: takes an integer.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(page).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_the_name() {
        let stat = "7 (a) S 1 2) T 1 7 7 0 -1 4194304 99 0 0 0 150 50 0 0 20 0 1 0 12345 22000000 300 18446744073709551615 1";
        let now = ProcessNow { state: 'T', cpu: Duration::from_secs(2), resident: 300 * 4096 };
        assert_eq!(parse(stat, 100, 4096), Some(now));
        assert_eq!(parse("7 (a) S 1", 100, 4096), None);
    }

    #[test]
    fn memory_of_its_own_is_told_in_bytes() {
        let status = "VmRSS:\t   900 kB\nRssAnon:\t     300 kB\nRssFile:\t   600 kB\n";
        assert_eq!(rss_anon(status), Some(300 << 10));
        assert_eq!(rss_anon("Name:\tkthreadd\n"), None, "a thread of the kernel has none");
        assert!(anonymous_memory(std::process::id()).unwrap() > 0);
    }

    #[test]
    fn process_is_known_by_its_birth_and_its_group() {
        let stat = "7 (a) S 1 2) T 1 77 7 0 -1 4194304 99 0 0 0 150 50 0 0 20 0 1 0 12345 22000000 300 18446744073709551615 1";
        assert_eq!([3, 5, 22].map(|number| field(stat, number)), [Some("T"), Some("77"), Some("12345")]);
        let own = std::process::id();
        assert!(born(own).unwrap() > 0 && born(u32::MAX).is_none());
        assert!(groups().contains(&(own, super::super::fork::group_id())));
        assert_eq!((group(own), group(u32::MAX)), (Some(super::super::fork::group_id()), None));
        assert!(threads(own).iter().any(|thread| thread.contains(" R")), "{:?}", threads(own));
    }

    #[test]
    fn this_process_runs() {
        let now = look(std::process::id()).unwrap();
        assert!(now.resident > 0 && now.state != 'Z');
        assert!(!is_stopped(std::process::id()) && look(u32::MAX).is_none());
    }
}
