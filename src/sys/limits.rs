//! getrlimit(2) and other limits: how much this process may have.

use std::path::Path;
use std::{fmt, io, ptr};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use super::cgroup::Hierarchy;

/// A soft and a hard limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: u64| if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
        write!(f, "{} of at most {}", show(self.soft), show(self.hard))
    }
}

/// RLIMIT_NOFILE, for an error's text.
pub(crate) fn descriptors_text() -> Option<String> {
    Some(format!("RLIMIT_NOFILE is {}", descriptors().ok()?))
}

/// RLIMIT_NOFILE.
pub(crate) fn descriptors() -> io::Result<Limit> {
    read(Resource::RLIMIT_NOFILE)
}

/// The limits by their numbers, which are the same on all machines that this runs on.
const NAMES: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// Limits of a process, each with its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits(Vec<(u8, Limit)>);

impl Limits {
    /// All of this process, but what it cannot ask for.
    pub(crate) fn of_process() -> Self {
        let numbers = 0..NAMES.len() as u8;
        Self(numbers.filter_map(|number| Some((number, numbered(number).ok()?))).collect())
    }

    /// Those that are not the same in `other`.
    pub(crate) fn unlike(&self, other: &Self) -> Self {
        Self(self.0.iter().filter(|limit| !other.0.contains(limit)).copied().collect())
    }

    /// Gives them to this process.
    ///
    /// # Errors
    /// With the limit's name and numbers, when that is not allowed.
    pub(crate) fn apply(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|&(number, wanted)| {
            let new = libc::rlimit64 { rlim_cur: wanted.soft, rlim_max: wanted.hard };
            // SAFETY: the record is ours and outlives the call.
            let done = unsafe { libc::setrlimit64(number.into(), &raw const new) };
            if done == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            let name = NAMES[usize::from(number) % NAMES.len()];
            let own = numbered(number).map_or_else(|_| "unknown".to_owned(), |own| own.to_string());
            let text = format!("taking on RLIMIT_{name} of {wanted}, instead of {own} (setrlimit): {error}");
            Err(io::Error::other(text))
        })
    }
}

/// Limits the memory of this process's own to a number of bytes, and that of what it starts (RLIMIT_DATA of getrlimit(2)).
///
/// # Errors
/// As those of [`lower`].
pub(crate) fn limit_own_memory(bytes: u64) -> io::Result<()> {
    const DATA: u8 = 2;
    lower(None, DATA, bytes)
}

/// Lowers a limit of a process for good: the soft and the hard one. `pid`: a child that was not reaped; `None`: this process.
///
/// # Errors
/// With the limit's name and number, when this process may not, or a filter of system calls refuses it.
pub(crate) fn lower(pid: Option<u32>, number: u8, most: u64) -> io::Result<()> {
    let told = |error: io::Error| {
        let name = NAMES[usize::from(number) % NAMES.len()];
        io::Error::other(format!("lowering RLIMIT_{name} to {most} (prlimit): {error}"))
    };
    let limits = exchange(pid, number, None).map_err(told)?;
    let lowered = Limit { soft: limits.soft.min(most), hard: limits.hard.min(most) };
    exchange(pid, number, Some(lowered)).map(drop).map_err(told)
}

/// prlimit(2): what the limit was before.
fn exchange(pid: Option<u32>, number: u8, new: Option<Limit>) -> io::Result<Limit> {
    let (pid, number) = (pid.unwrap_or(0), libc::c_uint::from(number));
    let new = new.map(|limit| [limit.soft, limit.hard]);
    let new = new.as_ref().map_or(ptr::null(), |new| new.as_ptr());
    let mut old = [0_u64; 2];
    // SAFETY: the kernel reads two 64-bit numbers, unless the pointer is null, and writes two: both are ours and outlive the call.
    match unsafe { libc::syscall(libc::SYS_prlimit64, pid, number, new, &raw mut old) } {
        0 => Ok(Limit { soft: old[0], hard: old[1] }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// By the system call, which takes half the time of prlimit(2), by which the C library does it: a start asks for all.
fn numbered(number: u8) -> io::Result<Limit> {
    let mut limit = [0_u64; 2];
    // SAFETY: the kernel writes two unsigned longs, which are ours and outlive the call.
    match unsafe { libc::syscall(libc::SYS_getrlimit, libc::c_ulong::from(number), &raw mut limit) } {
        0 => Ok(Limit { soft: limit[0], hard: limit[1] }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the whole machine has of descriptors, for an error's text.
pub(crate) fn machine_descriptors_text() -> Option<String> {
    // Allocated, free, the most (proc_sys_fs(5)).
    let text = std::fs::read_to_string("/proc/sys/fs/file-nr").ok()?;
    let mut numbers = text.split_whitespace();
    let (open, most) = (numbers.next()?, numbers.nth(1)?);
    Some(format!("the whole machine has {open} open files of at most {most}: fs.file-max"))
}

/// What limits the number of processes and threads, for an error's text: that of a cgroup where it is met, else all.
pub(crate) fn processes_text() -> Option<String> {
    let group = Hierarchy::find(Path::new("/"), "pids").and_then(|pids| pids.group_of("self")?.processes());
    let user = read(Resource::RLIMIT_NPROC).ok()?;
    let kernel = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
        format!("kernel.{name} is {}", text.trim())
    };
    Some(match group {
        Some(room) if room.left == 0 => room.to_string(),
        room => {
            let room = room.map(|room| format!("; {room}")).unwrap_or_default();
            format!("RLIMIT_NPROC is {user}{room}; {}; {}", kernel("threads-max"), kernel("pid_max"))
        }
    })
}

/// Refuses more processes than this machine can have.
pub(crate) fn check_processes(number: usize) -> Result<(), String> {
    // PID_MAX_LIMIT of 64-bit Linux (proc_sys_kernel(5)), for where the kernel does not say.
    const MOST: usize = 1 << 22;
    let text = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok();
    let most = text.and_then(|text| text.trim().parse().ok()).unwrap_or(MOST);
    if number < most {
        return Ok(());
    }
    Err(format!("{number} workers are more than this machine can have processes: kernel.pid_max is {most}"))
}

fn read(resource: Resource) -> io::Result<Limit> {
    let (soft, hard) = getrlimit(resource)?;
    Ok(Limit { soft, hard })
}

/// RLIMIT_AS, and how much of it is in use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AddressSpace {
    limit: u64,
    used: u64,
}

impl AddressSpace {
    pub(crate) fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

impl fmt::Display for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, used } = self;
        write!(f, "RLIMIT_AS is {limit} bytes of address space (ulimit -v), of which {used} are in use")
    }
}

/// RLIMIT_AS; `None` when there is none.
pub(crate) fn address_space() -> Option<AddressSpace> {
    let limit = read(Resource::RLIMIT_AS).ok()?.soft;
    if limit == u64::MAX {
        return None;
    }
    // Its first field is the size of the address space in pages (proc_pid_statm(5)).
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').next()?.parse().ok()?;
    Some(AddressSpace { limit, used: pages * page_size() as u64 })
}

/// The limit that a program's arguments and environment have met, if the error says that they are too large.
pub(crate) fn of_program(error: &io::Error, strings: &[&[u8]]) -> Option<String> {
    (error.raw_os_error() == Some(libc::E2BIG)).then(|| too_large(strings, read(Resource::RLIMIT_STACK).ok()))
}

/// Which limit of execve(2) that is.
fn too_large(strings: &[&[u8]], stack: Option<Limit>) -> String {
    /// MAX_ARG_STRLEN: of one string with its NUL, in pages of the machine.
    const STRING_PAGES: usize = 32;
    let most = STRING_PAGES * page_size();
    let longest = strings.iter().max_by_key(|text| text.len()).copied().unwrap_or_default();
    if longest.len() >= most {
        let name = String::from_utf8_lossy(longest.split(|&byte| byte == b'=').next().unwrap_or_default());
        let name: String = name.chars().take(80).collect();
        return format!(
            "{name} has {} bytes, but a string of the environment or an argument may have {most} at most; workers of \
             ForkServer are not run by exec, and pass larger ones",
            longest.len() + 1
        );
    }
    // Each has a pointer besides.
    let total: usize = strings.iter().map(|text| text.len() + 1 + size_of::<usize>()).sum();
    let stack = stack.map(|limit| limit.to_string()).unwrap_or_default();
    format!(
        "the environment and the arguments have {total} bytes; they may have a quarter of RLIMIT_STACK, which is {stack}, \
         and 6 MiB at most"
    )
}

/// RLIMIT_FSIZE: how large a file, a memfd too, may become.
pub(crate) fn file_size() -> io::Result<u64> {
    Ok(read(Resource::RLIMIT_FSIZE)?.soft)
}

/// Raises the soft descriptor limit to the hard one if `more` descriptors do not fit under it.
///
/// Whatever goes wrong here shows when the descriptors are made, with its numbers.
pub(crate) fn make_room_for_descriptors(more: usize) {
    let Ok(limit) = descriptors() else { return };
    // Counting takes longer than all the rest.
    if limit.soft >= limit.hard {
        return;
    }
    // Without a descriptor left the open ones cannot even be counted.
    let open = super::fd::count_open().map_or(limit.soft, |open| open as u64);
    if open.saturating_add(more as u64) > limit.soft {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, limit.hard, limit.hard);
    }
}

/// Runs `make`, and once more with more room for descriptors when it had none.
pub(crate) fn with_room<T>(make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    const MORE: usize = 64;
    match make() {
        Err(error) if Shortage::of(&error) == Some(Shortage::Descriptors) => {
            make_room_for_descriptors(MORE);
            make()
        }
        done => done,
    }
}

/// The error of a process that has no descriptor left.
pub(crate) const NO_DESCRIPTORS: i32 = libc::EMFILE;

/// Whether `more` descriptors fit under the soft limit, which is raised if it must be.
pub(crate) fn has_room_for(more: usize) -> bool {
    make_room_for_descriptors(more);
    let open = super::fd::count_open().unwrap_or(usize::MAX);
    descriptors().is_ok_and(|limit| open.saturating_add(more) as u64 <= limit.soft)
}

/// What an error of the system says there was not enough of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    Descriptors,
    DescriptorsOfMachine,
    Processes,
    Memory,
    /// Of a file system: a full /dev/shm.
    Space,
    /// The largest file that this process may make.
    FileSize,
}

impl Shortage {
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        match error.raw_os_error()? {
            libc::EMFILE => Some(Self::Descriptors),
            libc::ENFILE => Some(Self::DescriptorsOfMachine),
            libc::EAGAIN => Some(Self::Processes),
            libc::ENOMEM => Some(Self::Memory),
            libc::ENOSPC => Some(Self::Space),
            libc::EFBIG => Some(Self::FileSize),
            _ => None,
        }
    }
}

/// Bytes of a page.
pub(super) fn page_size() -> usize {
    // SAFETY: takes an integer.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_large_names_the_variable_or_the_total() {
        let long = [b"BIG=".to_vec(), vec![b'x'; 200_000]].concat();
        let told = too_large(&[b"A=1", &long], None);
        assert!(told.starts_with("BIG has 200005 bytes, but"), "{told}");
        let many = vec![&long[..60_000]; 40];
        let told = too_large(&many, Some(Limit { soft: 8 << 20, hard: u64::MAX }));
        assert!(
            told.contains("have 2400360 bytes") && told.contains("8388608 of at most unlimited"),
            "{told}"
        );
    }

    #[test]
    fn limits_are_those_that_the_c_library_tells_and_can_be_set() {
        let all = Limits::of_process();
        assert_eq!(all.0.len(), NAMES.len());
        assert!(all.0.contains(&(libc::RLIMIT_NOFILE as u8, descriptors().unwrap())), "{all:?}");
        assert!(
            all.0.contains(&(libc::RLIMIT_NPROC as u8, read(Resource::RLIMIT_NPROC).unwrap())),
            "{all:?}"
        );
        assert_eq!(NAMES[libc::RLIMIT_NPROC as usize], "NPROC");
        all.apply().unwrap();
        assert_eq!(all.unlike(&Limits::of_process()), Limits(vec![]));
        let backwards = Limits(vec![(libc::RLIMIT_CORE as u8, Limit { soft: 2, hard: 1 })]);
        let error = backwards.apply().unwrap_err().to_string();
        assert!(error.starts_with("taking on RLIMIT_CORE of 2 of at most 1, instead of "), "{error}");
    }
}
