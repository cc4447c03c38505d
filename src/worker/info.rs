//! What a worker can ask about itself.

use crate::sys::global::Global;

/// What a worker knows of itself: its rank, the number of workers, the job's name and the launcher. [`worker_info`] returns it, and
/// [`Options::on_start`](crate::Options::on_start) is given it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// The worker's number, from 0 on.
    pub rank: usize,
    /// The number of workers of its context, this one included.
    pub nprocs: usize,
    /// The job's name: that of [`Options::name`](crate::Options::name), or the executable's; of a worker of
    /// [`Launch::function`](crate::launch::Launch::function) its role.
    pub name: String,
    /// The pid of the launcher.
    pub launcher: u32,
}

struct Known {
    process: u32,
    info: WorkerInfo,
}

static KNOWN: Global<Known> = Global::new();

/// Which worker this process is; `None` in every process that is no worker: the launcher, the fork server, a child of a worker.
/// torch's name of the same, for the workers of a data loader: `torch.utils.data.get_worker_info`.
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

/// Sets what [`worker_info`] returns. In a fork of a worker, which is a worker of another context, it replaces the parent's.
pub(super) fn set(info: WorkerInfo) {
    KNOWN.set(Box::leak(Box::new(Known { process: std::process::id(), info })));
}
