//! The workers of an attempt, from nothing to running programs: descriptors, environment, processors.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::command::c_string;
use super::error::{LaunchError, Result};
use super::files::{self, AttemptDir};
use super::options::Logs;
use super::plan::Plan;
use super::ranks::Streams;
use crate::supervise::child::Child;
use crate::supervise::group::Group;
use crate::supervise::pump::{Filter, Pump, Route, SourceId, Stream};
use crate::sys::clock::Moment;
use crate::sys::exec::ForeignProgram;
use crate::sys::fd;
use crate::sys::pipe::{is_terminal, pipe};
use crate::sys::signal::Signal;

/// Where the end of a worker's stderr can be read.
#[derive(Clone, Debug)]
pub(super) enum Tail {
    Source(SourceId),
    File(PathBuf),
    Nowhere,
}

/// What is left to do for a worker's output when it has ended.
#[derive(Debug)]
pub(super) struct Outputs {
    pub(super) sources: Vec<SourceId>,
    pub(super) stderr: Tail,
}

/// What all workers of an attempt are started with.
pub(super) struct Start<'a> {
    pub(super) plan: &'a Plan,
    pub(super) logs: &'a Logs,
    pub(super) dir: &'a AttemptDir,
    pub(super) pump: &'a Pump,
    pub(super) attempt: (usize, u16),
    filters: [Option<Arc<Filter>>; 2],
    null: OwnedFd,
}

/// One stream of one worker: what the program is given, and the pump's source, if there is one.
struct Output {
    given: OwnedFd,
    source: Option<SourceId>,
    file: Option<PathBuf>,
}

impl<'a> Start<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        logs: &'a Logs,
        (dir, pump): (&'a AttemptDir, &'a Pump),
        attempt: (usize, u16),
    ) -> Result<Self> {
        let filters =
            [filter(dir, "stdout", &logs.stdout_needles)?, filter(dir, "stderr", &logs.stderr_needles)?];
        let null = fd::null().map_err(LaunchError::system("opening /dev/null"))?;
        Ok(Self { plan, logs, dir, pump, attempt, filters, null })
    }

    /// Starts a worker, and adds it to the group.
    ///
    /// # Errors
    /// When it cannot be started. Those before it run, and end with the group.
    pub(super) fn worker(&self, rank: usize, group: &mut Group) -> Result<Outputs> {
        let reads_stdin = self.plan.stdin_rank == Some(rank);
        let stdin = if reads_stdin {
            copy_of(0)?
        } else {
            self.null.as_fd().try_clone_to_owned().map_err(no_room)?
        };
        let [stdout, stderr] = if reads_stdin && has_terminal(self.plan) {
            // Debuggers and editors of lines want the terminal itself.
            [1, 2].map(|number| copy_of(number).map(|given| Output { given, source: None, file: None }))
        } else {
            [self.output(rank, Stream::Stdout), self.output(rank, Stream::Stderr)]
        };
        let (stdout, stderr) = (stdout?, stderr?);
        let started = Moment::now();
        let pid = self.exec(rank, [stdin.as_fd(), stdout.given.as_fd(), stderr.given.as_fd()])?;
        let failed = |os| LaunchError::system(format!("watching the worker of rank {rank}"))(os);
        group.add(Child::adopt(pid, started, None).map_err(failed)?.with_group()).map_err(failed)?;
        let tail = match (stderr.source, stderr.file) {
            (Some(source), _) => Tail::Source(source),
            (None, Some(file)) => Tail::File(file),
            (None, None) => Tail::Nowhere,
        };
        Ok(Outputs { sources: [stdout.source, stderr.source].into_iter().flatten().collect(), stderr: tail })
    }

    fn exec(&self, rank: usize, stdio: [BorrowedFd<'_>; 3]) -> Result<u32> {
        let (variables, words) = self.plan.worker(rank, self.attempt, &self.dir.error_file(rank));
        let arguments = words.iter().map(|word| c_string(word)).collect::<Result<Vec<_>>>()?;
        let mut environment = Vec::with_capacity(variables.len());
        for (key, value) in &variables {
            let mut variable = key.clone();
            variable.push("=");
            variable.push(value);
            environment.push(c_string(&variable)?);
        }
        let directory = self.plan.directory.as_deref().map(|dir| c_string(dir.as_os_str())).transpose()?;
        let bound = self.plan.bound.get(rank);
        let (affinity, nodes) = (bound.map(|bound| bound.affinity()), bound.map(|bound| bound.nodes()));
        let program = ForeignProgram {
            file: &c_string(self.plan.program.file.as_os_str())?,
            arguments: &arguments,
            environment: &environment,
            directory: directory.as_deref(),
            stdio,
            inherited: &self.plan.inherited(),
            death_signal: Signal::KILL,
            affinity: affinity.as_ref(),
            memory_nodes: nodes.as_deref(),
        };
        program.start().map_err(|os| refused(&self.plan.program.file, os))
    }

    /// Decides where a stream of a rank goes.
    fn output(&self, rank: usize, stream: Stream) -> Result<Output> {
        let of = |streams: Streams| match stream {
            Stream::Stdout => streams.stdout,
            Stream::Stderr => streams.stderr,
        };
        let (redirect, tee) = (of(self.logs.redirects.of(rank)), of(self.logs.tee.of(rank)));
        let is_shown = self.logs.shown.as_ref().is_none_or(|shown| shown.contains(rank));
        let console =
            (is_shown && (tee || !redirect)).then(|| (stream, self.logs.prefix.of(&self.plan.role, rank)));
        let name = if stream == Stream::Stdout { "stdout.log" } else { "stderr.log" };
        let file = if redirect || tee { Some(self.dir.create(rank, name)?) } else { None };
        let filter = self.filters[stream as usize].clone();
        match (console, file, filter) {
            // The program writes to the file itself: nothing is faster.
            (None, Some((file, path)), None) => {
                Ok(Output { given: file.into(), source: None, file: Some(path) })
            }
            // Nobody sees stdout; of stderr the end is kept for the report.
            (None, None, None) if stream == Stream::Stdout => {
                let given = self.null.as_fd().try_clone_to_owned().map_err(no_room)?;
                Ok(Output { given, source: None, file: None })
            }
            (console, file, filter) => {
                let (reader, given) = pipe().map_err(no_room)?;
                let source = self.pump.add(reader, Route { file, console, filter });
                Ok(Output { given, source: Some(source), file: None })
            }
        }
    }
}

/// Whether the worker that reads stdin has the terminal for itself.
fn has_terminal(plan: &Plan) -> bool {
    plan.nproc == 1 && [0, 1, 2].iter().all(|&number| copy_of(number).is_ok_and(|fd| is_terminal(&fd)))
}

fn filter(dir: &AttemptDir, stream: &str, needles: &[String]) -> Result<Option<Arc<Filter>>> {
    if needles.is_empty() {
        return Ok(None);
    }
    let (file, path): (File, _) = files::create(dir.path().join(format!("filtered_{stream}.log")))?;
    let needles = needles.iter().map(|needle| needle.clone().into_bytes()).collect();
    Ok(Some(Arc::new(Filter { needles, file: Arc::new(file), path })))
}

fn copy_of(number: i32) -> Result<OwnedFd> {
    fd::copy_of_stdio(number).map_err(no_room)
}

fn no_room(os: std::io::Error) -> LaunchError {
    let limit = crate::sys::limits::descriptors_text().unwrap_or_default();
    LaunchError::System { what: format!("making a worker's pipes ({limit})"), os }
}

/// Why a program could not be run, though its file is there.
fn refused(file: &Path, os: std::io::Error) -> LaunchError {
    let hint = match os.raw_os_error() {
        // execve(2): ENOEXEC.
        Some(8) => Some("it is neither a binary of this machine nor a script that begins with #!".to_owned()),
        // ENOENT: the file was there a moment ago.
        Some(2) => Some(
            "is the interpreter there that its first line or its ELF header names, and the directory?"
                .to_owned(),
        ),
        // E2BIG, EAGAIN: the limits say which.
        _ => crate::sys::limits::of_program(&os, &[]).or_else(crate::sys::limits::processes_text),
    };
    LaunchError::Program { program: file.display().to_string(), hint, os }
}
