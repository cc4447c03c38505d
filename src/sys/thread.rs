//! gettid(2), proc_pid_task(5): which thread this is, and what others there are.

use std::io;
use std::os::unix::fs::MetadataExt;

/// Whether the calling thread is the one that the process started with.
pub(crate) fn is_main() -> bool {
    nix::unistd::gettid() == nix::unistd::getpid()
}

/// The number of the calling thread. Async-signal-safe.
pub(crate) fn id() -> u32 {
    nix::unistd::gettid().as_raw().unsigned_abs()
}

/// The comm name of the calling thread.
pub(crate) fn name() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/thread-self/comm")?.trim_end().to_owned())
}

/// How many threads this process has: each adds a link to the directory of threads, which has two by itself.
pub(super) fn count() -> io::Result<usize> {
    let links = std::fs::metadata("/proc/self/task")?.nlink();
    Ok(usize::try_from(links).map_err(io::Error::other)?.saturating_sub(2))
}

/// The comm names of this process's threads; none where there is only one.
pub(crate) fn names() -> io::Result<Vec<String>> {
    if count()? == 1 {
        // Cheaper, and nobody asks for the name of the only one.
        return Ok(Vec::new());
    }
    let names = std::fs::read_dir("/proc/self/task")?.filter_map(|task| {
        // One that has just ended has none.
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    });
    Ok(names.map(|name| name.trim_end().to_owned()).collect())
}
