//! One attempt: all workers are started, watched, and ended together.
//!
//! One thread waits in one epoll, that of the group, which has beside the workers' pidfds the signals of this process, the inotify of
//! error files, the FIFO of timers and the event of the pump. What has happened is dealt with in the order in which epoll tells it,
//! so the order of the failures is that of the moments at which they are noted. The attempt is over when all workers have ended, all
//! that they had written is carried, and no descendant is left.

mod injecting;
mod orders;
mod planned;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::error::{LaunchError, Result};
use super::event::Event;
use super::files::AttemptDir;
use super::job::Job;
use super::judge::{self, Ended};
use super::summary::{Attempt, Ending, Role, WorkerSummary};
use super::timers::Timers;
use super::workers::{Outputs, Start, Tail};
use super::{descendants, error_file, files};
use crate::supervise::group::{EndedChild, Group, LeftBehind, Step};
use crate::supervise::pump::last_lines;
use crate::supervise::stop::Stop;
use crate::sys::clock::Moment;
use crate::sys::inotify::FileWatch;
use crate::sys::port::ReservedPort;
use crate::sys::wait::ExitStatus;
use crate::wire::stop_pipe::StopPipe;
use planned::Planned;

/// The tokens of what is watched beside the workers.
const SIGNALS: u32 = 0;
const ERROR_FILES: u32 = 1;
const OUTPUT: u32 = 2;
const TIMERS: u32 = 3;
const PEOPLE: u32 = 4;
const FAULT_FILES: u32 = 5;

/// How much of a log file's end is read for the report, in bytes.
const TAIL: u64 = 64 * 1024;
/// How long a job that was told to stop waits for a console that takes nothing, once all workers have ended.
const LAST_OUTPUT: Duration = Duration::from_secs(5);
/// How many lines of a worker's stderr are kept in the summary.
const TAIL_LINES: usize = 100;

/// One worker, as far as it has come.
#[derive(Debug)]
struct Worker {
    /// Its streams in the pump, and where the end of its stderr is.
    outputs: Outputs,
    /// How it ended; `None`: it runs.
    ended: Option<Ended>,
    /// When its error file was seen, or a timer of its had expired.
    failed_at: Option<Moment>,
    /// The scope of that timer.
    expired_timer: Option<String>,
}

/// An attempt under way. Dropping it kills the workers that run.
struct Running<'a> {
    job: &'a mut Job,
    /// The workers as children: their pidfds, and the teardown.
    group: Group,
    /// By rank, as they are in the group.
    workers: Vec<Worker>,
    /// Where log files and error files lie.
    dir: AttemptDir,
    /// The inotify that tells of error files.
    error_files: FileWatch,
    /// The faults that are to happen in this attempt.
    planned: Planned,
    /// By it workers learn that they are being ended.
    stop_pipe: StopPipe,
    /// When the launcher was told to stop.
    stopped_at: Option<Moment>,
    /// Keeps `MASTER_PORT` for rank 0, unless the caller has chosen one.
    _port: Option<ReservedPort>,
    /// The same moment by the monotonic clock and by the wall clock.
    started: (Moment, SystemTime),
    /// How long it took until the last worker was its program.
    starting: Duration,
}

/// Runs an attempt to its end: until no process of it is left.
///
/// # Errors
/// When it cannot be started, or the system refuses what the watch needs. The workers that run are killed then. That workers fail is
/// no error.
pub(super) fn run(job: &mut Job, number: usize) -> Result<Attempt> {
    let mut running = Running::start(job, number)?;
    running.watch()?;
    running.finish(number)
}

impl<'a> Running<'a> {
    /// Starts all workers. When one cannot be started, those that run are killed.
    fn start(job: &'a mut Job, number: usize) -> Result<Self> {
        let port = match job.master_port {
            Some(_) => None,
            None => {
                Some(ReservedPort::any().map_err(LaunchError::system("looking for a free port for rank 0"))?)
            }
        };
        let dir = job.dir.attempt(number, job.plan.nproc)?;
        let mut group = Group::new().map_err(LaunchError::system("making an epoll for the workers"))?;
        let mut error_files =
            FileWatch::new().map_err(LaunchError::system("making an inotify for error files"))?;
        let stop_pipe =
            StopPipe::new().map_err(LaunchError::system("making the pipe that tells workers of a stop"))?;
        let started = (Moment::now(), SystemTime::now());
        let number_and_port =
            (number, job.master_port.or(port.as_ref().map(ReservedPort::number)).unwrap_or(0));
        for dir in dir.all(job.plan.nproc) {
            error_files.add(&dir).map_err(LaunchError::system("watching for error files"))?;
        }
        let planned = Planned::new(job, number)?;
        // On an error the group is dropped, which ends those that run.
        let start = Start::new(
            &job.plan,
            (&job.logs, &job.faults.lines()),
            (&dir, &job.pump),
            number_and_port,
            &stop_pipe,
        )?;
        let outputs = start.all(&mut group)?;
        let starting = Moment::now().since(started.0);
        let workers = outputs
            .into_iter()
            .map(|outputs| Worker { outputs, ended: None, failed_at: None, expired_timer: None })
            .collect();
        let mut running = Self {
            job,
            group,
            workers,
            dir,
            error_files,
            planned,
            stop_pipe,
            stopped_at: None,
            _port: port,
            started,
            starting,
        };
        running.watch_too()?;
        running.arrange_faults();
        running.job.control.give_terminal(&running.group);
        let (pids, log_dir) = (running.group.pids().collect(), running.log_dir());
        running.job.tell(&Event::Started { attempt: number, pids, log_dir });
        Ok(running)
    }

    /// Adds to the group's epoll what is watched beside the workers.
    fn watch_too(&mut self) -> Result<()> {
        let watched = || {
            if let Some(signals) = self.job.control.signals() {
                self.group.watch_too(signals, SIGNALS)?;
            }
            if let Some(timers) = &self.job.timers {
                self.group.watch_too(timers.as_fd(), TIMERS)?;
            }
            self.group.watch_too(self.job.people.as_fd(), PEOPLE)?;
            if let Some(files) = self.planned.watch() {
                self.group.watch_too(files, FAULT_FILES)?;
            }
            self.group.watch_too(self.error_files.as_fd(), ERROR_FILES)?;
            self.group.watch_too(self.job.pump.as_fd(), OUTPUT)
        };
        watched().map_err(LaunchError::system("watching the workers"))
    }

    /// Where the logs are, if output goes to files.
    fn log_dir(&self) -> Option<PathBuf> {
        self.job.has_logs.then(|| self.dir.path().to_owned())
    }

    /// Deals with what happens, until all workers have ended and all that they had written is carried.
    ///
    /// # Errors
    /// When the system refuses the wait, or a worker cannot be reaped. The group is dropped then, which kills all.
    fn watch(&mut self) -> Result<()> {
        let failed = || LaunchError::system("watching the workers");
        loop {
            match self.group.next().map_err(failed())? {
                Step::Ended(rank) => self.reap(rank)?,
                Step::Readable(SIGNALS) => self.obey()?,
                Step::Readable(ERROR_FILES) => self.read_error_files()?,
                Step::Readable(TIMERS) => self.job.timers.as_mut().map_or(Ok(()), Timers::read)?,
                Step::Readable(PEOPLE) => self.attend()?,
                Step::Readable(FAULT_FILES) => self.inject_at_files()?,
                Step::Readable(_) => {
                    self.job.hear_pump();
                    self.inject_at_lines();
                }
                Step::Idle => {
                    for (rank, left) in self.group.carry_on() {
                        self.leave_behind(rank, &left);
                    }
                    if self.is_over() {
                        return Ok(());
                    }
                    self.end_expired();
                    self.inject_due();
                    let people = self.job.people.next();
                    if people.is_some_and(|at| at <= Moment::now()) {
                        self.attend()?;
                        continue;
                    }
                    let timer = self.job.timers.as_ref().and_then(Timers::next);
                    let next = [timer, people, self.planned.next(), self.output_deadline()];
                    let next = next.into_iter().flatten().min();
                    self.group.wait_until(next).map_err(failed())?;
                }
            }
        }
    }

    /// Whether all have ended and all that they had written is carried. A second signal to stop waits for no output.
    fn is_over(&mut self) -> bool {
        if self.group.running() > 0 {
            return false;
        }
        let closed = |worker: &Worker| worker.outputs.sources.iter().all(|&id| self.job.pump.is_closed(id));
        if self.job.control.is_hurried() || self.workers.iter().all(closed) {
            return true;
        }
        let is_late = self.output_deadline().is_some_and(|deadline| deadline <= Moment::now());
        if is_late {
            self.job.give_up_output();
        }
        is_late
    }

    /// Until when a job that was told to stop waits for its output, once all workers have ended. Without a stop there is no such
    /// moment: a terminal that takes nothing for a while, as after Ctrl-S, is to have everything.
    fn output_deadline(&self) -> Option<Moment> {
        let ends = self.workers.iter().map(|worker| worker.ended.map(|ended| ended.at));
        let last = ends.collect::<Option<Vec<_>>>()?.into_iter().max()?;
        self.stopped_at.and_then(|stopped_at| stopped_at.max(last).checked_add(LAST_OUTPUT))
    }

    /// Takes the exit status of a worker that has ended.
    fn reap(&mut self, rank: usize) -> Result<()> {
        let reaped = self.group.reap(rank).map_err(LaunchError::system(format!("reaping rank {rank}")))?;
        let Some(child) = reaped else { return Ok(()) };
        let ending = child.exit.map_or(Ending::Lost, |exit| match exit.status {
            ExitStatus::Code(0) if self.has_begun(rank) => Ending::Succeeded,
            ExitStatus::Code(code) => Ending::Exited { code },
            ExitStatus::Signal { signal, core_dumped } => Ending::Signaled { signal, core_dumped },
        });
        self.end(rank, ending, Some(child));
        Ok(())
    }

    /// Whether a worker has come as far as to run what it is to run.
    fn has_begun(&self, rank: usize) -> bool {
        let pid = self.group.pids().nth(rank).expect("each worker is in the group");
        self.job.plan.has_begun(rank, pid)
    }

    /// Gives up a worker that no signal has ended, or that takes none.
    fn leave_behind(&mut self, rank: usize, left: &LeftBehind) {
        let why = match left {
            LeftBehind::Survived => "SIGKILL did not end it: it hangs in the kernel".to_owned(),
            LeftBehind::Refused { signal, os } => format!("it cannot be sent {signal}: {os}"),
        };
        self.job.tell(&Event::Note(format!("rank {rank} was left behind; {why}")));
        self.end(rank, Ending::LeftBehind, None);
    }

    /// Notes how a worker ended. The first that did not succeed begins the teardown of all others.
    fn end(&mut self, rank: usize, ending: Ending, child: Option<EndedChild>) {
        self.job.control.take_terminal_of(rank);
        let has_begun = self.has_begun(rank);
        // Its group has been killed: what is in its pipes is all that comes.
        let worker = &mut self.workers[rank];
        worker.outputs.sources.iter().for_each(|&id| self.job.pump.finish(id));
        worker.ended = Some(Ended { ending, has_begun, at: Moment::now(), failed_at: None, child });
        self.job.tell(&Event::Ended { rank, ending });
        if ending != Ending::Succeeded && self.group.stopping().is_none() {
            self.end_all(Stop::terminate(Some(self.job.shutdown_timeout), Moment::now()));
        }
    }

    /// Notes the ranks whose error files have appeared. A rank that does not end by itself after that is ended after a time.
    fn read_error_files(&mut self) -> Result<()> {
        let written =
            self.error_files.written().map_err(LaunchError::system("reading the inotify of error files"))?;
        for path in written {
            let rank = (0..self.workers.len()).find(|&rank| self.dir.error_file(rank) == path);
            let Some(rank) = rank.filter(|&rank| self.workers[rank].failed_at.is_none()) else { continue };
            let now = Moment::now();
            self.workers[rank].failed_at = Some(now);
            let end_it = Stop::after_failure(Some(self.job.shutdown_timeout), now);
            self.group.stop_one(rank, end_it);
            self.job.tell(&Event::Failed { rank });
        }
        Ok(())
    }

    /// Ends the workers whose timers have expired: that is their failure.
    fn end_expired(&mut self) {
        let expired = self.job.timers.as_mut().map(Timers::expired).unwrap_or_default();
        for (pid, scope) in expired {
            // A process that a worker has started, or one of another attempt.
            let Some(rank) = self.group.pids().position(|worker| worker == pid) else { continue };
            let (worker, now) = (&mut self.workers[rank], Moment::now());
            worker.failed_at.get_or_insert(now);
            worker.expired_timer.get_or_insert(scope);
            self.group.stop_one(rank, Stop::at_once(now));
            self.job.tell(&Event::Failed { rank });
        }
    }

    /// Ends what is left of the attempt's descendants, and says what became of the workers.
    fn finish(mut self, number: usize) -> Result<Attempt> {
        // A worker may have written its error file in its last moment.
        self.read_error_files()?;
        let stray = if self.job.control.may_have_descendants() {
            descendants::kill_all(&self.job.plan.token, self.job.control.orphans())
        } else {
            Vec::new()
        };
        let ended =
            |worker: &Worker| Ended { failed_at: worker.failed_at, ..worker.ended.expect("all have ended") };
        let ended: Vec<_> = self.workers.iter().map(ended).collect();
        let roles = judge::roles(&ended, self.stopped_at);
        let workers = (0..ended.len()).map(|rank| self.summarize(rank, &ended[rank], roles[rank])).collect();
        self.job.hear_pump();
        Ok(Attempt {
            number,
            started: self.started.1,
            starting: self.starting,
            lasted: Moment::now().since(self.started.0),
            log_dir: self.log_dir(),
            workers,
            stray,
        })
    }

    /// One worker of the summary: its end, its error file, the end of its stderr. An error file that cannot be read is told as such, and
    /// changes nothing else.
    fn summarize(&self, rank: usize, ended: &Ended, role: Option<Role>) -> WorkerSummary {
        let at = ended.moment();
        let outputs = &self.workers[rank].outputs;
        let first_output = outputs.sources.iter().filter_map(|&id| self.job.pump.first(id)).min();
        let (error, error_file_problem) = match error_file::read(&self.dir.error_file(rank)) {
            Ok(error) => (error, None),
            Err(problem) => (None, Some(problem)),
        };
        WorkerSummary {
            rank,
            pid: self.group.pids().nth(rank).expect("each worker is in the group"),
            ending: ended.ending,
            ended_by_launcher: judge::is_ended_by_launcher(ended),
            expired_timer: self.workers[rank].expired_timer.clone(),
            role,
            cause: judge::cause(ended),
            lifetime: at.since(self.group.started(rank)),
            first_output: first_output.map(|first| first.since(self.group.started(rank))),
            at: self.started.1 + at.since(self.started.0),
            usage: judge::usage(ended),
            error,
            error_file_problem,
            stderr_tail: if role.is_some() { self.stderr_tail(&outputs.stderr) } else { Vec::new() },
        }
    }

    /// The last lines of a worker's stderr, at most [`TAIL_LINES`].
    fn stderr_tail(&self, tail: &Tail) -> Vec<String> {
        let bytes = match tail {
            Tail::Source(id) => self.job.pump.tail(*id),
            Tail::File(path) => files::tail(path, TAIL).unwrap_or_default(),
            Tail::Nowhere => Vec::new(),
        };
        last_lines(&bytes, TAIL_LINES)
    }
}
