//! What a worker can ask about itself.

use crate::sys::global::Global;

/// Which worker this is, and of how many: see [`worker_info`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// Its rank, counted from zero.
    pub rank: usize,
    /// How many workers its launcher has started with it.
    pub nprocs: usize,
    /// The job's name: that of [`Options::name`](crate::Options::name), or the executable's.
    pub name: String,
    /// The launcher's process.
    pub launcher: u32,
}

struct Known {
    process: u32,
    info: WorkerInfo,
}

static KNOWN: Global<Known> = Global::new();

/// Which worker this process is; `None` in a process that is none, such as the launcher, the fork server, or a child of a
/// worker.
///
/// ```
/// # phalanx::auto_init!();
/// fn work(_: usize, _: ()) -> anyhow::Result<String> {
///     let info = phalanx::worker_info().expect("this is a worker");
///     Ok(format!("{} {} of {}", info.name, info.rank, info.nprocs))
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let options = phalanx::Options::new(2).name("train");
/// let told = phalanx::start_processes(work, (), options)?.join()?;
/// assert_eq!(told, ["train 0 of 2", "train 1 of 2"]);
/// assert_eq!(phalanx::worker_info(), None);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn worker_info() -> Option<WorkerInfo> {
    let own = std::process::id();
    KNOWN.get().filter(|known| known.process == own).map(|known| known.info.clone())
}

/// Says which worker this process is. In a fork of a worker it replaces what that was.
pub(super) fn set(info: WorkerInfo) {
    KNOWN.set(Box::leak(Box::new(Known { process: std::process::id(), info })));
}
