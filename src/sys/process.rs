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
    fn this_process_runs() {
        let now = look(std::process::id()).unwrap();
        assert!(now.resident > 0 && now.state != 'Z');
        assert!(!is_stopped(std::process::id()) && look(u32::MAX).is_none());
    }
}
