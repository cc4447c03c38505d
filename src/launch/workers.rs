//! The workers of an attempt, from nothing to running programs: descriptors, environment, processors.
//!
//! All that can be made before the first start is made then, for all ranks, so that the starts follow one another quickly. Up to
//! [`AT_ONCE`] workers are on their way to execve(2) at a time; a refusal of the kernel comes back by [`Starting::finish`].

use std::collections::VecDeque;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::command::c_string;
use super::error::{LaunchError, Result};
use super::files::{self, AttemptDir};
use super::plan::Plan;
use super::ranks::Streams;
use super::stdio::Logs;
use crate::supervise::child::Child;
use crate::supervise::group::Group;
use crate::supervise::pump::{Filter, Pump, Route, SourceId, Stream};
use crate::sys::affinity::Affinity;
use crate::sys::clock::Moment;
use crate::sys::exec::{ForeignProgram, Starting, UNKNOWN_FORMAT, ignored_signals};
use crate::sys::fd;
use crate::sys::pipe::{is_terminal, pipe};
use crate::sys::signal::Signal;
use crate::wire::stop_pipe::StopPipe;

/// Where the end of a worker's stderr can be read.
#[derive(Clone, Debug)]
pub(super) enum Tail {
    /// The pump keeps it.
    Source(SourceId),
    /// The worker writes to a log file itself.
    File(PathBuf),
    /// The worker writes to the terminal.
    Nowhere,
}

/// What is left to do for a worker's output when it has ended.
#[derive(Debug)]
pub(super) struct Outputs {
    /// The pump's sources of its streams: none, one or two.
    pub(super) sources: Vec<SourceId>,
    /// Where the report finds the end of its stderr.
    pub(super) stderr: Tail,
}

/// How many workers are on their way to execve(2) at the same time: enough to keep all processors busy.
const AT_ONCE: usize = 16;

/// What one worker is started with, in the words of execve(2).
struct Prepared {
    file: CString,
    arguments: Vec<CString>,
    /// As `NAME=VALUE`.
    environment: Vec<CString>,
    /// `None`: this process's own.
    directory: Option<CString>,
    /// Its processors, and the NUMA nodes of its memory.
    binding: Option<(Affinity, Vec<u64>)>,
    /// Its descriptors 0, 1 and 2.
    stdio: [OwnedFd; 3],
    /// What the launcher keeps of it.
    outputs: Outputs,
}

impl Prepared {
    /// Borrows it for the start; `inherited` are descriptors that keep their numbers in the worker, `ignored` the signals that this
    /// process ignores.
    fn program<'a>(&'a self, inherited: &'a [BorrowedFd<'a>], ignored: u64) -> ForeignProgram<'a> {
        ForeignProgram {
            file: &self.file,
            arguments: &self.arguments,
            environment: &self.environment,
            directory: self.directory.as_deref(),
            stdio: self.stdio.each_ref().map(AsFd::as_fd),
            inherited,
            death_signal: Signal::KILL,
            affinity: self.binding.as_ref().map(|(affinity, _)| affinity),
            memory_nodes: self.binding.as_ref().map(|(_, nodes)| &**nodes),
            ignored,
        }
    }
}

/// What all workers of an attempt are started with.
pub(super) struct Start<'a> {
    pub(super) plan: &'a Plan,
    pub(super) logs: &'a Logs,
    pub(super) dir: &'a AttemptDir,
    pub(super) pump: &'a Pump,
    /// The attempt's number, and its `MASTER_PORT`.
    pub(super) attempt: (usize, u16),
    /// By it workers learn that they are being ended.
    pub(super) stop: &'a StopPipe,
    /// By stream: the filter that all ranks share, if there is one.
    filters: [Option<Arc<Filter>>; 2],
    /// The texts at whose lines faults are to happen; `None`: there are none.
    watched: Option<Arc<[String]>>,
    /// `/dev/null`.
    null: OwnedFd,
}

/// One stream of one worker: what the program is given, and the pump's source, if there is one.
struct Output {
    /// What becomes the program's descriptor 1 or 2.
    given: OwnedFd,
    source: Option<SourceId>,
    /// The log file to which the program writes itself.
    file: Option<PathBuf>,
}

impl<'a> Start<'a> {
    /// Opens what all workers share.
    ///
    /// # Errors
    /// When a filter's file cannot be made, or there is no descriptor left.
    pub(super) fn new(
        plan: &'a Plan,
        (logs, watched): (&'a Logs, &[String]),
        (dir, pump): (&'a AttemptDir, &'a Pump),
        attempt: (usize, u16),
        stop: &'a StopPipe,
    ) -> Result<Self> {
        let filters =
            [filter(dir, "stdout", &logs.stdout_needles)?, filter(dir, "stderr", &logs.stderr_needles)?];
        let null = fd::null().map_err(LaunchError::system("opening /dev/null"))?;
        let watched = Some(watched.into()).filter(|watched: &Arc<[String]>| !watched.is_empty());
        Ok(Self { plan, logs, dir, pump, attempt, stop, filters, watched, null })
    }

    /// Starts all workers, and adds them to the group.
    ///
    /// # Errors
    /// When one cannot be started. Those that have been end with the group.
    pub(super) fn all(&self, group: &mut Group) -> Result<Vec<Outputs>> {
        let prepared = (0..self.plan.nproc).map(|rank| self.prepare(rank)).collect::<Result<Vec<_>>>()?;
        let mut inherited = self.plan.inherited();
        inherited.push(self.stop.as_fd());
        let ignored = ignored_signals();
        let programs: Vec<_> =
            prepared.iter().map(|prepared| prepared.program(&inherited, ignored)).collect();
        let mut under_way = VecDeque::new();
        for (rank, program) in programs.iter().enumerate() {
            if under_way.len() == AT_ONCE {
                self.finish(under_way.pop_front())?;
            }
            let started = Moment::now();
            let mut starting = program.begin().map_err(|os| refused(&self.plan.program.file, os))?;
            let watched = starting.take_pidfd().and_then(|pidfd| {
                // Before the next one is started: so ends come in their order.
                group.add(Child::of_program(starting.pid(), pidfd, started))
            });
            watched.map_err(LaunchError::system(format!("watching the worker of rank {rank}")))?;
            under_way.push_back(starting);
        }
        under_way.into_iter().try_for_each(|starting| self.finish(Some(starting)))?;
        Ok(prepared.into_iter().map(|prepared| prepared.outputs).collect())
    }

    /// Waits until a worker runs its program.
    fn finish(&self, starting: Option<Starting<'_>>) -> Result<()> {
        let finished = starting.map_or(Ok(()), Starting::finish);
        finished.map_err(|os| refused(&self.plan.program.file, os))
    }

    /// Makes what a worker is started with.
    ///
    /// # Errors
    /// When there is no descriptor left, a log file cannot be made, or a word or variable has a zero byte.
    fn prepare(&self, rank: usize) -> Result<Prepared> {
        let reads_stdin = self.plan.stdin_rank == Some(rank);
        let stdin = if reads_stdin {
            copy_of(0)?
        } else {
            self.null.as_fd().try_clone_to_owned().map_err(no_room)?
        };
        let stdout = self.output(rank, Stream::Stdout)?;
        let stderr = self.output(rank, Stream::Stderr)?;
        let tail = match (stderr.source, stderr.file) {
            (Some(source), _) => Tail::Source(source),
            (None, Some(file)) => Tail::File(file),
            (None, None) => Tail::Nowhere,
        };
        let (mut variables, words) = self.plan.worker(rank, self.attempt, &self.dir.error_file(rank));
        let stop = self.stop.variables().map_err(LaunchError::system("asking for the stop pipe's number"))?;
        variables.extend(stop.map(|(key, value)| (key.into(), value.into())));
        let variable = |(key, value): (&OsString, &OsString)| {
            let mut variable = key.clone();
            variable.push("=");
            variable.push(value);
            c_string(&variable)
        };
        let bound = self.plan.bound.get(rank);
        Ok(Prepared {
            file: c_string(self.plan.program.file.as_os_str())?,
            arguments: words.iter().map(|word| c_string(word)).collect::<Result<_>>()?,
            environment: variables.iter().map(variable).collect::<Result<_>>()?,
            directory: self.plan.directory.as_deref().map(|dir| c_string(dir.as_os_str())).transpose()?,
            binding: bound.map(|bound| (bound.affinity(), bound.nodes())),
            outputs: Outputs {
                sources: [stdout.source, stderr.source].into_iter().flatten().collect(),
                stderr: tail,
            },
            stdio: [stdin, stdout.given, stderr.given],
        })
    }

    /// Decides where a stream of a rank goes, and opens that.
    ///
    /// | shown | file | filter | the program writes to |
    /// |---|---|---|---|
    /// | no | yes | no | the file itself |
    /// | no | no | no | `/dev/null`; stderr to a pipe, whose end is kept for the report |
    /// | yes | no | no | the terminal, if the worker has it for itself |
    /// | else, and where faults are to happen at lines | | | a pipe, from which the pump carries it |
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
        // The report has the end of stderr, and whoever asks for the logs reads those that are in no file.
        let is_kept = stream == Stream::Stderr || (file.is_none() && self.logs.keeps_hidden);
        let channel = is_kept.then(|| channel(rank, stream));
        let watched = self.watched.clone();
        match (console, file, filter) {
            // Each line is to be looked at.
            (console, file, filter) if watched.is_some() => {
                self.piped(Route { file, console, filter, watched, channel })
            }
            // The program writes to the file itself: nothing is faster.
            (None, Some((file, path)), None) => {
                Ok(Output { given: file.into(), source: None, file: Some(path) })
            }
            // Debuggers and editors of lines want the terminal itself.
            (Some(_), None, None) if self.plan.stdin_rank == Some(rank) && has_terminal(self.plan) => {
                let given = copy_of(if stream == Stream::Stdout { 1 } else { 2 })?;
                Ok(Output { given, source: None, file: None })
            }
            // The stream goes nowhere.
            (None, None, None) if channel.is_none() => {
                let given = self.null.as_fd().try_clone_to_owned().map_err(no_room)?;
                Ok(Output { given, source: None, file: None })
            }
            (console, file, filter) => self.piped(Route { file, console, filter, channel, watched: None }),
        }
    }

    /// A pipe, from which the pump carries what comes.
    fn piped(&self, route: Route) -> Result<Output> {
        let (reader, given) = pipe().map_err(no_room)?;
        let source = self.pump.add(reader, route);
        Ok(Output { given, source: Some(source), file: None })
    }
}

/// Under which number the pump keeps the last bytes of a rank's stream, whatever the attempt.
pub(super) fn channel(rank: usize, stream: Stream) -> u64 {
    rank as u64 * 2 + stream as u64
}

/// Whether the worker that reads stdin has the terminal for itself.
pub(super) fn has_terminal(plan: &Plan) -> bool {
    plan.nproc == 1 && [0, 1, 2].iter().all(|&number| copy_of(number).is_ok_and(|fd| is_terminal(&fd)))
}

/// The filter of one stream, if there are texts to look for.
fn filter(dir: &AttemptDir, stream: &str, needles: &[String]) -> Result<Option<Arc<Filter>>> {
    if needles.is_empty() {
        return Ok(None);
    }
    let (file, path): (File, _) = files::create(dir.path().join(format!("filtered_{stream}.log")))?;
    let needles = needles.iter().map(|needle| needle.clone().into_bytes()).collect();
    Ok(Some(Arc::new(Filter { needles, file: Arc::new(file), path })))
}

/// A copy of one of this process's standard streams.
fn copy_of(number: i32) -> Result<OwnedFd> {
    fd::copy_of_stdio(number).map_err(no_room)
}

/// The error of a descriptor that could not be made, with the limit on them.
fn no_room(os: std::io::Error) -> LaunchError {
    let limit = crate::sys::limits::descriptors_text().unwrap_or_default();
    LaunchError::System { what: format!("making a worker's pipes ({limit})"), os }
}

/// Why a program could not be run, though its file is there: the error of execve(2) or clone(2), and what to do about it.
fn refused(file: &Path, os: std::io::Error) -> LaunchError {
    let hint = match os.kind() {
        _ if os.raw_os_error() == Some(UNKNOWN_FORMAT) => {
            Some("it is neither a binary of this machine nor a script that begins with #!".to_owned())
        }
        // The file was there a moment ago.
        std::io::ErrorKind::NotFound => Some(
            "is the interpreter there that its first line or its ELF header names, and the directory?"
                .to_owned(),
        ),
        // E2BIG, EAGAIN: the limits say which.
        _ => crate::sys::limits::of_program(&os, &[]).or_else(crate::sys::limits::processes_text),
    };
    LaunchError::Program { program: file.display().to_string(), hint, os }
}
