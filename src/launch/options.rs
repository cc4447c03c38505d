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
use super::protocol::is_name;
use super::restart::RestartOn;
use super::stdio::{Logs, Stdin};
use super::work::Work;
use crate::injection::Plan;
use crate::sys::signal::Signal;

/// A job: one program, started many times on this machine, watched, and ended together.
///
/// The methods set options, [`run`](Self::run) runs the job. What each option corresponds to in torchrun stands with it.
///
/// ```
/// use phalanx::launch::{Command, Launch, Nproc};
///
/// // A program fails the first time. The second attempt succeeds.
/// let script = "[ $TORCHELASTIC_RESTART_COUNT = 1 ] || exit 4";
/// let flaky = Command::new("sh").args(["-c", script]);
/// let summary = Launch::new(flaky).nproc(Nproc::Count(2)).max_restarts(3).run()?;
/// assert!(summary.succeeded());
/// assert_eq!(summary.attempts.len(), 2);
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
///
/// # What a worker finds
///
/// Its environment is this process's, with what [`env`](Self::env) adds, and with torchrun's variables:
///
/// | variable | value |
/// |---|---|
/// | `RANK`, `ROLE_RANK` | the worker's rank, from 0 on |
/// | `LOCAL_RANK` | the same; 0 with [`virtual_local_rank`](Self::virtual_local_rank) |
/// | `WORLD_SIZE`, `LOCAL_WORLD_SIZE`, `ROLE_WORLD_SIZE` | the number of workers |
/// | `GROUP_RANK`, `GROUP_WORLD_SIZE` | 0 and 1: there is one node |
/// | `ROLE_NAME` | [`role`](Self::role) |
/// | `MASTER_ADDR`, `MASTER_PORT` | where rank 0 listens |
/// | `TORCHELASTIC_RESTART_COUNT`, `TORCHELASTIC_MAX_RESTARTS` | the attempt, from 0 on, and [`max_restarts`](Self::max_restarts) |
/// | `TORCHELASTIC_RUN_ID` | [`run_id`](Self::run_id) |
/// | `TORCHELASTIC_ERROR_FILE` | where the worker writes why it failed: see [`record`](super::record) |
/// | `TORCHELASTIC_TIMER_FILE` | a FIFO for torch's file timers, if `TORCHELASTIC_ENABLE_FILE_TIMER` is 1 |
/// | `TORCH_NCCL_ASYNC_ERROR_HANDLING` | 1, unless it is set |
/// | `OMP_NUM_THREADS` | cores ÷ workers and at least 1, if there are several workers and it is not set |
/// | `PHALANX_TENSORS` | what [`tensor`](Self::tensor) has handed over |
/// | `PHALANX_STOP_FD` | a descriptor that is at its end when the worker is being ended |
///
/// # How workers are ended
///
/// When a worker fails, all others are sent SIGTERM, and after [`shutdown_timeout`](Self::shutdown_timeout) SIGKILL. Whatever
/// they have started is ended with them, in their process groups or out of them. The kernel kills each worker when this process
/// dies. When none is left, all are started anew, as long as [`max_restarts`](Self::max_restarts) allows it.
#[must_use = "a launch does nothing until it is run"]
pub struct Launch {
    pub(super) work: Work,
    pub(super) nproc: Nproc,
    /// What was added to the workers' environment, in the order of the calls.
    pub(super) environment: Vec<(OsString, OsString)>,
    pub(super) directory: Option<PathBuf>,
    pub(super) role: String,
    pub(super) run_id: Option<String>,
    pub(super) master_addr: String,
    /// `None`: each attempt has a free port.
    pub(super) master_port: Option<u16>,
    pub(super) logs: Logs,
    pub(super) max_restarts: usize,
    /// `None`: after every failure.
    pub(super) restart_on: Option<RestartOn>,
    /// `None`: none happen on purpose.
    pub(super) faults: Option<Plan>,
    pub(super) shutdown_timeout: Duration,
    pub(super) stop_signals: Vec<Signal>,
    pub(super) handles_signals: bool,
    pub(super) stdin: Stdin,
    pub(super) virtual_local_rank: bool,
    /// `None`: no worker is bound.
    pub(super) numa: Option<NumaBinding>,
    pub(super) summary_file: Option<PathBuf>,
    /// By name, in the order of the calls.
    pub(super) tensors: Vec<(String, crate::tensor::dyn_tensor::DynTensor)>,
    pub(super) announces: bool,
    /// `None`: the run id, or four letters.
    pub(super) job_name: Option<String>,
    pub(super) is_reachable: bool,
    pub(super) has_status_line: bool,
    pub(super) on_event: Box<dyn FnMut(&Event)>,
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launch").field("work", &self.work).field("nproc", &self.nproc).finish_non_exhaustive()
    }
}

impl Launch {
    /// A job of one worker, without restarts. The worker reads this process's stdin, and what it prints goes, behind a prefix, to
    /// this process's stdout and stderr.
    ///
    /// Nothing is started before [`run`](Self::run), and nothing is looked up: a program that does not exist is an error there.
    pub fn new(command: Command) -> Self {
        Self::of(Work::Program(command))
    }

    pub(super) fn of(work: Work) -> Self {
        Self {
            work,
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
            faults: None,
            shutdown_timeout: Duration::from_secs(30),
            stop_signals: vec![Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT],
            handles_signals: false,
            stdin: Stdin::default(),
            virtual_local_rank: false,
            numa: None,
            summary_file: None,
            tensors: Vec::new(),
            announces: false,
            job_name: None,
            is_reachable: false,
            has_status_line: false,
            on_event: Box::new(|_| ()),
        }
    }

    /// Sets how many workers there are; without this call, one. torchrun's `--nproc-per-node`.
    ///
    /// What [`Nproc::Auto`] and its kin stand for is counted when the job is run, and once: a restart has as many workers.
    pub fn nproc(self, nproc: Nproc) -> Self {
        Self { nproc, ..self }
    }

    /// Adds a variable to the workers' environment, which is otherwise this process's. The last value of a key counts.
    ///
    /// The variables that the launcher sets itself (`RANK`, `MASTER_PORT` …) cannot be changed so; `OMP_NUM_THREADS`, `PATH` and
    /// `PYTHON_EXEC` can, and the latter two decide which program is found.
    ///
    /// [`run`](Self::run) refuses a key that is empty or contains `=`, and a zero byte in either.
    ///
    /// ```
    /// use phalanx::launch::{Command, Launch};
    ///
    /// let launch = Launch::new(Command::new("sh").args(["-c", "exit $CODE"])).env("CODE", "3");
    /// assert_eq!(launch.run()?.exit_code(), 3);
    /// # Ok::<(), phalanx::launch::LaunchError>(())
    /// ```
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((key.into(), value.into()));
        self
    }

    /// Sets the workers' working directory; without this call, it is this process's.
    ///
    /// A program that is given as a relative path is looked for in it.
    pub fn directory(self, directory: impl Into<PathBuf>) -> Self {
        Self { directory: Some(directory.into()), ..self }
    }

    /// Names what the workers do: in `ROLE_NAME`, and as `${role_name}` in their [`Prefix`](super::Prefix). `default` without this
    /// call. torchrun's `--role`.
    ///
    /// [`run`](Self::run) refuses a role that is empty or has a control character.
    pub fn role(self, role: impl Into<String>) -> Self {
        Self { role: role.into(), ..self }
    }

    /// Sets the job's id, in `TORCHELASTIC_RUN_ID`, in the report and in the name of the log directory. Without this call it is four
    /// random letters. torchrun's `--rdzv-id`.
    ///
    /// [`run`](Self::run) refuses an id that is empty or has a control character. A `/` becomes `_` in the directory's name.
    pub fn run_id(self, run_id: impl Into<String>) -> Self {
        Self { run_id: Some(run_id.into()), ..self }
    }

    /// Sets the address at which workers find rank 0 (`MASTER_ADDR`); 127.0.0.1 without this call. torchrun's `--master-addr`.
    ///
    /// It is told to the workers and used for nothing else.
    pub fn master_addr(self, address: impl Into<String>) -> Self {
        Self { master_addr: address.into(), ..self }
    }

    /// Sets the port on which rank 0 listens (`MASTER_PORT`). torchrun's `--master-port`, where it is 29500 by default.
    ///
    /// Without this call each attempt has another free port. It stays reserved until the attempt is over, in a way that lets only
    /// a socket with `SO_REUSEADDR` bind it, as servers have it.
    pub fn master_port(self, port: u16) -> Self {
        Self { master_port: Some(port), ..self }
    }

    /// Shows each worker one GPU only, as number 0; its `LOCAL_RANK` is 0. Off without this call. torchrun's `--virtual-local-rank`.
    ///
    /// The worker of rank N has the N-th entry of `CUDA_VISIBLE_DEVICES` (or of `HIP_VISIBLE_DEVICES`, `ROCR_VISIBLE_DEVICES`, if one
    /// of these is set), else the GPU of number N. [`run`](Self::run) refuses more workers than there are GPUs.
    pub fn virtual_local_rank(self, is_virtual: bool) -> Self {
        Self { virtual_local_rank: is_virtual, ..self }
    }

    /// Binds each worker to processors near its GPU; its memory comes from there too, where the system allows that. Off without this
    /// call. torchrun's `--numa-binding`, without the program `numactl`.
    pub fn numa_binding(self, binding: NumaBinding) -> Self {
        Self { numa: Some(binding), ..self }
    }

    /// Writes the [`Summary`](super::Summary) as JSON to a file, after each attempt anew. `phalanx run` has `--summary`.
    ///
    /// The file is replaced in one step, so its reader always sees a whole summary. A file that cannot be written is an error of
    /// [`run`](Self::run).
    ///
    /// ```
    /// use phalanx::launch::{Command, Launch, Summary};
    ///
    /// let dir = tempfile::tempdir()?;
    /// let file = dir.path().join("summary.json");
    /// let summary = Launch::new(Command::new("true")).summary_file(&file).run()?;
    /// let read: Summary = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    /// assert_eq!(read, summary);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn summary_file(self, path: impl Into<PathBuf>) -> Self {
        Self { summary_file: Some(path.into()), ..self }
    }

    /// Hands the workers a tensor's memory, as an open file that they inherit. A worker in any language maps the file, shared, and
    /// has the tensor without a copy: what it writes, this process and the other workers see.
    ///
    /// `PHALANX_TENSORS` describes all tensors in JSON: a list of objects with `name`, `fd`, `offset` (in bytes from the file's
    /// begin), `dtype` (as `f32`), `shape` and `strides` (both in elements). [`run`](Self::run) refuses a tensor without elements.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// use phalanx::launch::{Command, Launch};
    ///
    /// let batch = Tensor::from_slice(&[0_u8, 0, 0], &[3])?;
    /// // A shell writes the letter A over the first element: `fd` and `offset` are in the description.
    /// let script = r#"
    ///     field() { echo "$PHALANX_TENSORS" | sed "s/.*\"$1\":\([0-9]*\).*/\1/"; }
    ///     printf A | dd of=/proc/self/fd/$(field fd) bs=1 seek=$(field offset) conv=notrunc status=none
    /// "#;
    /// let launch = Launch::new(Command::new("sh").args(["-c", script]));
    /// assert!(launch.tensor("batch", &batch.clone().into()).run()?.succeeded());
    /// assert_eq!(batch.to_vec(), [b'A', 0, 0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn tensor(mut self, name: impl Into<String>, tensor: &crate::DynTensor) -> Self {
        self.tensors.push((name.into(), tensor.clone()));
        self
    }

    /// Writes what a person should know at once to stderr, between the lines of the workers: where logs go, a stop, a restart, an
    /// output that is lost. Each line begins with `phalanx: `. Off without this call; `phalanx run` does so unless it has `--quiet`.
    ///
    /// How workers ended is not among it: [`Summary`](super::Summary) tells it, as text too.
    pub fn announce(self, announces: bool) -> Self {
        Self { announces, ..self }
    }

    /// Calls a function with each [`Event`] of the job, in their order. A second call replaces the first function.
    ///
    /// It is called on the thread that is in [`run`](Self::run), which watches the workers meanwhile no further. If it panics, the
    /// panic goes on through `run`, and the workers are killed.
    ///
    /// ```
    /// use std::{cell::RefCell, rc::Rc};
    /// use phalanx::launch::{Command, Event, Launch};
    ///
    /// let endings = Rc::new(RefCell::new(Vec::new()));
    /// let heard = endings.clone();
    /// let launch = Launch::new(Command::new("sh").args(["-c", "exit 3"])).on_event(move |event| {
    ///     if let Event::Ended { rank, ending } = event { heard.borrow_mut().push((*rank, ending.exit_code())) }
    /// });
    /// launch.run()?;
    /// assert_eq!(*endings.borrow(), [(0, 3)]);
    /// # Ok::<(), phalanx::launch::LaunchError>(())
    /// ```
    pub fn on_event(self, tell: impl FnMut(&Event) + 'static) -> Self {
        Self { on_event: Box::new(tell), ..self }
    }

    /// The environment that workers have from this process, with what was added.
    pub(super) fn base_environment(&self) -> Environment {
        let mut variables = environment::inherited(std::env::vars_os());
        variables.extend(self.environment.iter().cloned());
        variables
    }

    /// Refuses what no job can have, before anything is started.
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
        if let Some(name) = self.job_name.as_ref().filter(|name| !is_name(name)) {
            let hint = "give 1 to 64 letters, digits, and characters of ._-";
            return refuse(format!("{name:?} is no name of a job"), hint);
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
