//! What can be chosen when workers are started.

use std::time::Duration;

use super::output::Wanted;
use super::rank::{RankOptions, check_environment};
use crate::error::{Error, WorkerError};
use crate::injection::Faults;
use crate::start::StartMethod;
use crate::supervise::prefix::Prefix;
use crate::sys::limits;
use crate::sys::signal::Signal;
use crate::worker::WorkerInfo;
use crate::worker::entry::{self, Entry};

/// How many workers to start, and how.
///
/// ```
/// use std::time::Duration;
/// use phalanx::{Options, StartMethod};
///
/// let options = Options::new(4)
///     .start_method(StartMethod::Spawn)
///     .name("train")
///     .env("OMP_NUM_THREADS", "1")
///     .grace_period(Duration::from_secs(5));
/// # let _ = options;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Options {
    pub(super) nprocs: usize,
    pub(super) method: StartMethod,
    pub(super) daemon: bool,
    pub(super) grace: Option<Duration>,
    pub(super) death_signal: Option<Signal>,
    pub(super) environment: Vec<(String, String)>,
    pub(super) name: Option<String>,
    pub(super) guardian: bool,
    pub(super) abort: bool,
    pub(super) hook: Option<Hook>,
    /// By rank; empty: no rank has anything of its own.
    pub(super) ranks: Vec<RankOptions>,
    pub(super) output: Wanted,
    pub(super) faults: Option<Faults>,
}

/// What runs in each worker before its function.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook(pub(super) &'static Entry);

impl PartialEq for Hook {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Hook {}

impl Options {
    /// `nprocs` workers, started by [`StartMethod::Spawn`], which die with their launcher. None at all is fine.
    pub fn new(nprocs: usize) -> Self {
        Self {
            nprocs,
            method: StartMethod::default(),
            daemon: false,
            grace: None,
            death_signal: Some(Signal::KILL),
            environment: Vec::new(),
            name: None,
            guardian: false,
            abort: false,
            hook: None,
            ranks: Vec::new(),
            output: Wanted::default(),
            faults: None,
        }
    }

    /// How the workers come to be.
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.method = method;
        self
    }

    /// Whether dropping the context kills its workers at once, instead of asking by SIGTERM first.
    pub fn daemon(mut self, daemon: bool) -> Self {
        self.daemon = daemon;
        self
    }

    /// How long the others have after a failure: so long to end by themselves, then SIGTERM, then as long again,
    /// then SIGKILL. Without it SIGTERM comes at once, and SIGKILL after 30 s. From its begin on
    /// [`stopping`](crate::stopping) is true in the workers.
    ///
    /// In the same way a worker is ended that has left its function and handed in its report, but whose process does not
    /// exit (an exit handler that hangs): a call that joins looks each time this period has passed (at least 5 s; 30 s
    /// without it), gives a worker that has not exited by then as long again, and then sends SIGTERM. What it returned stands, and its
    /// [`Cause`](crate::Cause) is `EndedWhileExiting`.
    pub fn grace_period(mut self, grace: Duration) -> Self {
        self.grace = Some(grace);
        self
    }

    /// The signal that the kernel sends the workers when the launcher dies; SIGKILL unless this says otherwise.
    /// With `None` they outlive it.
    pub fn death_signal(mut self, signal: Option<Signal>) -> Self {
        self.death_signal = signal;
        self
    }

    /// Sets a variable in the workers' environment. The last value of a key counts.
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let key = key.into();
        self.environment.retain(|(known, _)| *known != key);
        self.environment.push((key, value.into()));
        self
    }

    /// The job's name: a worker's comm name is the name and its rank, such as `train:3`, of which the kernel
    /// keeps 15 bytes. Without it, the executable's.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Whether the fork server is started to watch over these workers, so that when this process is killed, what they
    /// have started themselves is ended too: without it only the workers are. Workers of
    /// [`StartMethod::ForkServer`] have this guard anyway. Workers with another [`death_signal`](Self::death_signal) than
    /// SIGKILL, which may outlive this process, are not guarded.
    pub fn guardian(mut self, guardian: bool) -> Self {
        self.guardian = guardian;
        self
    }

    /// Whether the workers stop waiting for one another when one of them has failed, or the context is being ended: what waits
    /// in them for a queue, pipe, lock, barrier or the like, or begins to, returns `Aborted` with the failed rank. So they can
    /// use the [`grace_period`](Self::grace_period) to clean up, rather than wait for the dead.
    ///
    /// They are told when the launcher joins ([`join`](crate::ProcessContext::join),
    /// [`join_timeout`](crate::ProcessContext::join_timeout)), or drops the context. Without a grace period SIGTERM comes in the
    /// same moment.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::time::Duration;
    /// use phalanx::sync::{AbortedBy, Event, SyncError};
    /// use phalanx::{Error, Options, start_processes};
    ///
    /// fn work(rank: usize, never: Event) -> anyhow::Result<()> {
    ///     anyhow::ensure!(rank != 1, "out of luck");
    ///     let Err(SyncError::Aborted { by: AbortedBy::Rank(1) }) = never.wait() else { panic!("nobody sets it") };
    ///     Ok(()) // after cleaning up
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let options = Options::new(2).abort_on_failure(true).grace_period(Duration::from_secs(10));
    /// let error = start_processes(work, Event::new()?, options)?.join().unwrap_err();
    /// let Error::ProcessRaised(exception) = error else { panic!("{error}") };
    /// assert_eq!(exception.error_index(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn abort_on_failure(mut self, abort: bool) -> Self {
        self.abort = abort;
        self
    }

    /// A function that each worker runs before its own, with what [`worker_info`](crate::worker_info) tells: to set up
    /// logging, a runtime or a device. In a forked worker it comes after the hooks of [`after_fork`](crate::after_fork).
    ///
    /// It is a plain function or a closure that captures nothing. If it fails, that is the worker's failure, with a
    /// traceback, and the worker's function does not run. The last one given counts.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::sync::OnceLock;
    /// use phalanx::{Options, WorkerInfo, start_processes};
    ///
    /// static PREFIX: OnceLock<String> = OnceLock::new();
    ///
    /// fn set_up(worker: &WorkerInfo) -> anyhow::Result<()> {
    ///     PREFIX.get_or_init(|| format!("[{}:{}]", worker.name, worker.rank));
    ///     Ok(())
    /// }
    ///
    /// fn work(_: usize, _: ()) -> anyhow::Result<String> {
    ///     Ok(format!("{} works", PREFIX.get().expect("set_up has run")))
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let options = Options::new(2).name("train").on_start(set_up);
    /// let told = start_processes(work, (), options)?.join()?;
    /// assert_eq!(told, ["[train:0] works", "[train:1] works"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_start<F, E>(mut self, hook: F) -> Self
    where
        F: Fn(&WorkerInfo) -> Result<(), E> + Copy + Send + 'static,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        let _ = hook;
        self.hook = Some(Hook(entry::of_hook::<F, E>()));
        self
    }

    /// What each rank has of its own: environment, working directory, processors, and files for its standard output and
    /// standard error. `of_rank` is called here, once for each rank.
    ///
    /// A worker's output goes to its files from [`init`](crate::init) on; what fails before that is told on the launcher's
    /// standard error. Two ranks cannot have the same file.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::{Options, OutputFile, RankOptions, start_processes};
    ///
    /// fn work(rank: usize, _: ()) -> anyhow::Result<()> {
    ///     println!("rank {rank} sees device {}", std::env::var("DEVICE")?);
    ///     Ok(())
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// # let dir = tempfile::tempdir()?;
    /// # let logs = dir.path();
    /// let options = Options::new(2).rank_options(|rank| {
    ///     RankOptions::new()
    ///         .env("DEVICE", rank.to_string())
    ///         .stdout(OutputFile::truncate(logs.join(format!("{rank}.log"))))
    /// });
    /// start_processes(work, (), options)?.join()?;
    /// assert_eq!(std::fs::read_to_string(logs.join("1.log"))?, "rank 1 sees device 1\n");
    /// # Ok(())
    /// # }
    /// ```
    pub fn rank_options(mut self, of_rank: impl FnMut(usize) -> RankOptions) -> Self {
        // More than there can be are refused at the start.
        let possible = self.nprocs < MANY || limits::check_processes(self.nprocs).is_ok();
        self.ranks = if possible { (0..self.nprocs).map(of_rank).collect() } else { Vec::new() };
        self
    }

    /// Has this process carry what the workers print, to its own stdout and stderr: lines are whole, whatever the others print, and each
    /// stands behind the prefix of its rank.
    ///
    /// A part of a line, such as a prompt, is shown after 0.1 s; of a progress bar that is overwritten by carriage returns the newest
    /// state. All that a worker has printed is written before a call tells of its end, also if it was killed; what a process prints that
    /// the worker has left behind in another process group is not waited for. A call that joins waits, as `println!` does, while
    /// the stream takes nothing.
    ///
    /// The workers' stdout and stderr are pipes then, not a terminal: workers that outlive this process
    /// ([`death_signal`](Self::death_signal)) cannot print. A stream that goes to a file ([`RankOptions`]) is not shown.
    ///
    /// A thread of this process carries it from the start until all workers have ended. Meanwhile this process
    /// cannot start others by [`StartMethod::Fork`].
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::{Options, Prefix, start_processes};
    ///
    /// fn work(rank: usize, _: ()) -> anyhow::Result<()> {
    ///     println!("rank {rank} begins");
    ///     Ok(())
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// // Prints "[train0]:rank 0 begins" and "[train1]:rank 1 begins", in any order.
    /// start_processes(work, (), Options::new(2).name("train").prefix(Prefix::default()))?.join()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn prefix(mut self, prefix: Prefix) -> Self {
        self.output.prefix = Some(prefix);
        self
    }

    /// How many of the last lines of each rank's stderr are kept, of its last 64 KiB: they stand in the text of the exception, and
    /// [`Outcome::stderr_tail`](crate::Outcome::stderr_tail) has them. Without it, none.
    ///
    /// Stderr reaches this process's all the same, or the rank's own file ([`RankOptions::stderr`]), carried as
    /// [`prefix`](Self::prefix) says; without a prefix in lines that are whole and have nothing before them. Stdout is not touched.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::{Error, Options, start_processes};
    ///
    /// fn work(rank: usize, _: ()) -> anyhow::Result<()> {
    ///     eprintln!("rank {rank} has no device");
    ///     std::process::abort()
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let context = start_processes(work, (), Options::new(1).stderr_tail(20))?;
    /// let Err(Error::ProcessExited(exception)) = context.join() else { panic!("it aborts") };
    /// assert_eq!(exception.outcomes()[0].stderr_tail(), ["rank 0 has no device"]);
    /// assert!(exception.to_string().contains("the end of its stderr:\n  rank 0 has no device"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn stderr_tail(mut self, lines: usize) -> Self {
        self.output.tail = lines;
        self
    }

    /// Puts a plan of faults in force in the workers: at the points that it names they are killed, stopped, delayed, panic or fail
    /// ([`fault`](crate::fault)). For tests; no environment variable and nothing else puts one in force.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::fault::Faults;
    /// use phalanx::{Options, start_processes};
    ///
    /// fn work(_rank: usize, _: ()) -> anyhow::Result<()> {
    ///     Ok(())
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let faults = Faults::new("kill@end:rank=1")?;
    /// let failed = start_processes(work, (), Options::new(2).faults(&faults))?.join().unwrap_err();
    /// assert!(failed.to_string().contains("SIGKILL"), "{failed}");
    /// # Ok(())
    /// # }
    /// ```
    pub fn faults(mut self, faults: &Faults) -> Self {
        self.faults = Some(faults.clone());
        self
    }

    pub(crate) fn nprocs(&self) -> usize {
        self.nprocs
    }

    pub(crate) fn method(&self) -> StartMethod {
        self.method
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        check_environment(&self.environment).map_err(Error::InvalidOption)?;
        self.ranks.iter().enumerate().try_for_each(|(rank, options)| options.check(rank))?;
        let faults = self.faults.iter().try_for_each(|faults| faults.plan().check_ranks(self.nprocs));
        faults.map_err(|error| Error::InvalidOption(format!("faults: {error}")))?;
        match &self.name {
            Some(name) if name.contains('\0') => {
                Err(Error::InvalidOption(format!("name({name:?}): a name must not have NUL in it")))
            }
            // Looked at before a thousand things are made for them.
            _ if self.nprocs >= MANY => limits::check_processes(self.nprocs).map_err(Error::InvalidOption),
            _ => Ok(()),
        }
    }

    pub(super) fn job_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| {
            let own = std::env::current_exe().ok();
            let name = own.as_deref().and_then(std::path::Path::file_name);
            name.map_or_else(|| "worker".to_owned(), |name| name.to_string_lossy().into_owned())
        })
    }
}

/// With fewer workers the limits of this machine are not read, which would take time.
const MANY: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::names::{SERVER, WORKER};

    #[test]
    fn check_refuses_what_cannot_be_passed_on() {
        for bad in [
            Options::new(1).env("", "x"),
            Options::new(1).env("A=B", "x"),
            Options::new(1).env("A", "x\0"),
            Options::new(1).env(WORKER, "x"),
            Options::new(1).env(SERVER, "x"),
            Options::new(1).name("a\0b"),
            Options::new(usize::MAX),
        ] {
            assert!(matches!(bad.check(), Err(Error::InvalidOption(_))), "{bad:?}");
        }
        assert!(Options::new(0).env("A", "").name("ä").check().is_ok());
    }

    #[test]
    fn env_last_value_counts() {
        let options = Options::new(1).env("A", "1").env("B", "2").env("A", "3");
        assert_eq!(options.environment, [("B".into(), "2".into()), ("A".into(), "3".into())]);
    }
}
