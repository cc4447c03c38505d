//! Launch: what a job is to be, and its checks.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::command::Command;
use super::devices::{Environment, Nproc};
use super::environment;
use super::error::{LaunchError, Result};
use super::event::Event;
use super::numa::NumaBinding;
use super::prefix::Prefix;
use super::ranks::{RankList, RankStreams};
use super::restart::RestartOn;
use crate::sys::signal::Signal;

/// Who reads the launcher's stdin; the others have /dev/null.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stdin {
    /// The only worker, or nobody where there are several.
    #[default]
    OnlyWorker,
    /// Nobody.
    Null,
    /// The worker of this rank.
    Rank(usize),
}

/// A job: one program, started many times on this machine, watched, and ended together.
///
/// ```no_run
/// use phalanx::launch::{Command, Launch, Nproc};
///
/// let train = Command::new("train.py").args(["--epochs", "3"]);
/// let summary = Launch::new(train).nproc(Nproc::Auto).max_restarts(3).run()?;
/// if !summary.succeeded() {
///     eprintln!("{summary}");
/// }
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
///
/// A worker is told its rank, the number of workers and a free port for rank 0 by the variables of torchrun (`RANK`, `WORLD_SIZE`,
/// `MASTER_PORT` …). When one of them fails the others are sent SIGTERM, and after [`shutdown_timeout`](Self::shutdown_timeout)
/// SIGKILL; then, as long as [`max_restarts`](Self::max_restarts) allows, all are started anew.
#[must_use = "a launch does nothing until it is run"]
pub struct Launch {
    pub(super) command: Command,
    pub(super) nproc: Nproc,
    pub(super) environment: Vec<(OsString, OsString)>,
    pub(super) directory: Option<PathBuf>,
    pub(super) role: String,
    pub(super) run_id: Option<String>,
    pub(super) master_addr: String,
    pub(super) master_port: Option<u16>,
    pub(super) logs: Logs,
    pub(super) max_restarts: usize,
    pub(super) restart_on: Option<RestartOn>,
    pub(super) shutdown_timeout: Duration,
    pub(super) stop_signals: Vec<Signal>,
    pub(super) handles_signals: bool,
    pub(super) stdin: Stdin,
    pub(super) virtual_local_rank: bool,
    pub(super) numa: Option<NumaBinding>,
    pub(super) summary_file: Option<PathBuf>,
    pub(super) tensors: Vec<(String, crate::tensor::dyn_tensor::DynTensor)>,
    pub(super) announces: bool,
    pub(super) on_event: Box<dyn FnMut(&Event)>,
}

/// Where what workers print goes.
#[derive(Debug, Default)]
pub(super) struct Logs {
    pub(super) dir: Option<PathBuf>,
    pub(super) redirects: RankStreams,
    pub(super) tee: RankStreams,
    pub(super) shown: Option<RankList>,
    pub(super) prefix: Prefix,
    pub(super) stdout_needles: Vec<String>,
    pub(super) stderr_needles: Vec<String>,
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launch")
            .field("command", &self.command)
            .field("nproc", &self.nproc)
            .finish_non_exhaustive()
    }
}

impl Launch {
    /// A job of one worker. Its stdin is this process's, and what it prints goes, prefixed, to this process's stdout and stderr.
    pub fn new(command: Command) -> Self {
        Self {
            command,
            nproc: Nproc::Count(1),
            environment: Vec::new(),
            directory: None,
            role: "default".to_owned(),
            run_id: None,
            master_addr: "127.0.0.1".to_owned(),
            master_port: None,
            logs: Logs::default(),
            max_restarts: 0,
            restart_on: None,
            shutdown_timeout: Duration::from_secs(30),
            stop_signals: vec![Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT],
            handles_signals: false,
            stdin: Stdin::default(),
            virtual_local_rank: false,
            numa: None,
            summary_file: None,
            tensors: Vec::new(),
            announces: false,
            on_event: Box::new(|_| ()),
        }
    }

    /// How many workers there are.
    pub fn nproc(self, nproc: Nproc) -> Self {
        Self { nproc, ..self }
    }

    /// Adds a variable to the workers' environment, which is otherwise this process's.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((key.into(), value.into()));
        self
    }

    /// The workers' working directory; without it, this process's.
    pub fn directory(self, directory: impl Into<PathBuf>) -> Self {
        Self { directory: Some(directory.into()), ..self }
    }

    /// What the workers do, as their prefix and `ROLE_NAME` say it; `default` without it.
    pub fn role(self, role: impl Into<String>) -> Self {
        Self { role: role.into(), ..self }
    }

    /// The job's id, in `TORCHELASTIC_RUN_ID` and in the name of the log directory; without it, four letters by chance.
    pub fn run_id(self, run_id: impl Into<String>) -> Self {
        Self { run_id: Some(run_id.into()), ..self }
    }

    /// Where workers find rank 0 (`MASTER_ADDR`); 127.0.0.1 without it.
    pub fn master_addr(self, address: impl Into<String>) -> Self {
        Self { master_addr: address.into(), ..self }
    }

    /// The port on which rank 0 listens (`MASTER_PORT`); without it, each attempt has a free port, which is kept for rank 0.
    pub fn master_port(self, port: u16) -> Self {
        Self { master_port: Some(port), ..self }
    }

    /// Where log files go: in a directory of the job's own below this one. Without it, that is in the directory for temporary
    /// files, and it stays there if it has logs.
    pub fn log_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.logs.dir = Some(dir.into());
        self
    }

    /// Which streams go to files instead of the console.
    pub fn redirects(mut self, streams: impl Into<RankStreams>) -> Self {
        self.logs.redirects = streams.into();
        self
    }

    /// Which streams go to files and to the console.
    pub fn tee(mut self, streams: impl Into<RankStreams>) -> Self {
        self.logs.tee = streams.into();
        self
    }

    /// Only these ranks are seen on the console. Their files are written all the same.
    pub fn show_ranks(mut self, ranks: RankList) -> Self {
        self.logs.shown = Some(ranks);
        self
    }

    /// What stands before each line on the console.
    pub fn prefix(mut self, prefix: Prefix) -> Self {
        self.logs.prefix = prefix;
        self
    }

    /// Lines of stdout that contain one of these texts are written to one file for all ranks too, `filtered_stdout.log`.
    pub fn filter_stdout<T: Into<String>>(mut self, texts: impl IntoIterator<Item = T>) -> Self {
        self.logs.stdout_needles = texts.into_iter().map(Into::into).collect();
        self
    }

    /// The same for stderr, `filtered_stderr.log`.
    pub fn filter_stderr<T: Into<String>>(mut self, texts: impl IntoIterator<Item = T>) -> Self {
        self.logs.stderr_needles = texts.into_iter().map(Into::into).collect();
        self
    }

    /// How often all workers are started anew after a failure; 0 without it. Failures within 5 s are slowed down (0.5 s, 1 s, 2 s …
    /// at most 30 s), and after three equal ones in a row there is no further attempt.
    pub fn max_restarts(self, most: usize) -> Self {
        Self { max_restarts: most, ..self }
    }

    /// Only after these failures.
    pub fn restart_on(self, failures: RestartOn) -> Self {
        Self { restart_on: Some(failures), ..self }
    }

    /// How long workers have to end after SIGTERM, or after the signal that was passed on to them, before SIGKILL; 30 s without it.
    pub fn shutdown_timeout(self, timeout: Duration) -> Self {
        Self { shutdown_timeout: timeout, ..self }
    }

    /// The signals that end the job, where signals are handled; without it, SIGTERM, SIGINT, SIGHUP and SIGQUIT.
    pub fn stop_signals(self, signals: impl IntoIterator<Item = Signal>) -> Self {
        Self { stop_signals: signals.into_iter().collect(), ..self }
    }

    /// Gives this process to the job while it runs, as the program `phalanx run` does: signals that this process is sent are
    /// passed on to the workers, Ctrl-Z stops all of them, orphans among their descendants become this process's children and are
    /// reaped, and a small process of its own ends them if this one is killed. After the run all dispositions are what they were.
    ///
    /// This process must have one thread when the job is run, and no other children.
    pub fn handle_signals(self, handles: bool) -> Self {
        Self { handles_signals: handles, ..self }
    }

    /// Who reads this process's stdin.
    pub fn stdin(self, stdin: Stdin) -> Self {
        Self { stdin, ..self }
    }

    /// Each worker sees one GPU only, as number 0, and its `LOCAL_RANK` is 0.
    pub fn virtual_local_rank(self, is_virtual: bool) -> Self {
        Self { virtual_local_rank: is_virtual, ..self }
    }

    /// Binds each worker to processors near its GPU. Its memory comes from there too, where the system allows that.
    pub fn numa_binding(self, binding: NumaBinding) -> Self {
        Self { numa: Some(binding), ..self }
    }

    /// Writes the [`Summary`](super::Summary) as JSON to a file, after each attempt anew and in one step.
    pub fn summary_file(self, path: impl Into<PathBuf>) -> Self {
        Self { summary_file: Some(path.into()), ..self }
    }

    /// Hands the workers a tensor's memory, as an open file that they inherit. `PHALANX_TENSORS` describes it, in JSON: a list of
    /// objects with `name`, `fd`, `offset` (bytes from the file's begin), `dtype`, `shape` and `strides` (in elements). A worker in
    /// any language maps the file, shared, and has the tensor without a copy.
    pub fn tensor(mut self, name: impl Into<String>, tensor: &crate::DynTensor) -> Self {
        self.tensors.push((name.into(), tensor.clone()));
        self
    }

    /// Writes what a person should know at once to stderr, between the lines of the workers: where logs go, a stop, a restart, an
    /// output that is lost. Each line begins with `phalanx: `.
    pub fn announce(self, announces: bool) -> Self {
        Self { announces, ..self }
    }

    /// Tells what happens while the job runs.
    pub fn on_event(self, tell: impl FnMut(&Event) + 'static) -> Self {
        Self { on_event: Box::new(tell), ..self }
    }

    /// The environment that workers have from this process, with what was added.
    pub(super) fn base_environment(&self) -> Environment {
        let mut variables = environment::inherited(std::env::vars_os());
        variables.extend(self.environment.iter().cloned());
        variables
    }

    pub(super) fn check(&self) -> Result<()> {
        let refuse = |what: String, hint: &str| Err(LaunchError::invalid(what, hint));
        let names = [("role", &self.role), ("master address", &self.master_addr)];
        for (name, text) in names.into_iter().chain(self.run_id.iter().map(|id| ("run id", id))) {
            if text.is_empty() || text.contains(|c: char| c.is_control()) {
                return refuse(
                    format!("the {name} {text:?} is empty or has a control character"),
                    "give a name",
                );
            }
        }
        if let Some((key, _)) =
            self.environment.iter().find(|(key, _)| key.is_empty() || key.to_string_lossy().contains('='))
        {
            return refuse(
                format!("{key:?} is no name of a variable"),
                "it must not be empty, nor contain a =",
            );
        }
        let unstoppable = |signal: &&Signal| [Signal::KILL, Signal::STOP].contains(signal);
        if let Some(signal) = self.stop_signals.iter().find(unstoppable) {
            return refuse(
                format!("{signal} cannot be handled"),
                "choose among SIGTERM, SIGINT, SIGHUP, SIGQUIT …",
            );
        }
        Ok(())
    }
}
