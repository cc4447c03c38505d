//! Stdin, Logs: which worker reads stdin, and where what workers print goes.

use std::path::PathBuf;

use super::ranks::{RankList, RankStreams};
use crate::supervise::prefix::Prefix;

/// Which worker reads this process's standard input.
///
/// All other workers read `/dev/null`, so each read of theirs is at its end at once. torchrun hands its stdin to all workers, which
/// then take bytes from each other; `phalanx run` has `--stdin RANK`.
///
/// The only worker of a job whose three standard streams are a terminal has the terminal for itself, as a debugger or a
/// line editor needs it: what it prints has no prefix, unless an option sends it to a file as well.
///
/// ```
/// use phalanx::launch::{Command, Launch, Nproc, Stdin};
///
/// // `read` fails at the end of the file: no worker is given this process's stdin.
/// let launch = Launch::new(Command::new("sh").args(["-c", "! read line"]));
/// assert!(launch.nproc(Nproc::Count(2)).stdin(Stdin::Null).run()?.succeeded());
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stdin {
    /// The worker of a job that has one worker only; with several workers, none of them. The default.
    #[default]
    OnlyWorker,
    /// No worker.
    Null,
    /// The worker of this rank. [`Launch::run`](super::Launch::run) refuses a rank that the job does not have.
    Rank(usize),
}

/// Where what workers print goes.
#[derive(Debug, Default)]
pub(super) struct Logs {
    /// The directory below which the job's own one is made; `None`: the one for temporary files.
    pub(super) dir: Option<PathBuf>,
    /// What goes to files only.
    pub(super) redirects: RankStreams,
    /// What goes to files and to the console.
    pub(super) tee: RankStreams,
    /// The ranks that are seen on the console; `None`: all.
    pub(super) shown: Option<RankList>,
    pub(super) prefix: Prefix,
    /// Whether stdout that goes nowhere is kept for those who ask for it.
    pub(super) keeps_hidden: bool,
    /// A line of stdout with one of these texts goes to a file for all ranks; none: there is no such file.
    pub(super) stdout_needles: Vec<String>,
    /// The same texts for stderr.
    pub(super) stderr_needles: Vec<String>,
}
