//! A job from its first attempt to its last.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::attempt;
use super::error::{LaunchError, Result};
use super::event::Event;
use super::job::{self, Job};
use super::options::Launch;
use super::plan::Plan;
use super::restart::{self, Failed, Next, RestartOn};
use super::summary::{Attempt, Summary};
use crate::supervise::prefix::hostname;
use crate::sys::clock::Moment;

impl Launch {
    /// Runs the job to its end: until a last attempt has succeeded or failed, and none of its processes is left.
    ///
    /// This process's threads, signals and children are left alone, unless [`handle_signals`](Self::handle_signals) gives them to the
    /// job. A thread of the job's own carries the workers' output. If 8 descriptors for each worker do not fit under the soft limit
    /// (RLIMIT_NOFILE), it is raised to the hard one, and stays there.
    ///
    /// # Errors
    /// A worker that fails is no error: the [`Summary`] tells of it.
    ///
    /// - [`LaunchError::Invalid`] when an option means nothing here
    /// - [`LaunchError::Program`] when the program is not there or cannot be executed
    /// - [`LaunchError::System`] when the system refuses what the job needs, or the summary file cannot be written
    ///
    /// The workers that had been started are killed then.
    ///
    /// # Panics
    /// When the function of [`on_event`](Self::on_event) panics, with its payload. The workers are killed then.
    pub fn run(self) -> Result<Summary> {
        run(self)
    }

    /// What would be started, for people: for each worker its command line, the variables that are not this process's own, and the
    /// processors that it would be bound to. `phalanx run` has `--dry-run`.
    ///
    /// ```
    /// use phalanx::launch::{Command, Launch, Nproc};
    ///
    /// let launch = Launch::new(Command::new("true").args(["--part", "${rank}"])).nproc(Nproc::Count(2));
    /// let text = launch.describe()?;
    /// assert!(text.contains("rank 1: true --part 1\n"), "{text}");
    /// # Ok::<(), phalanx::launch::LaunchError>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`run`](Self::run) that are found before anything is started.
    pub fn describe(&self) -> Result<String> {
        Plan::of(self, Path::new("/"))?.describe()
    }
}

/// What is decided between attempts.
struct Policy {
    max_restarts: usize,
    /// `None`: after every failure.
    restart_on: Option<RestartOn>,
    /// Written after each attempt.
    summary_file: Option<PathBuf>,
}

/// [`Launch::run`].
fn run(launch: Launch) -> Result<Summary> {
    let plan = Plan::of(&launch, Path::new("/"))?;
    let command = launch.work.to_string();
    let policy = Policy {
        max_restarts: launch.max_restarts,
        restart_on: launch.restart_on.clone(),
        summary_file: launch.summary_file.clone(),
    };
    let mut job = job::start(launch, plan)?;
    if let Some(name) = job.people.name() {
        let text =
            format!("job {name}: `phalanx logs {name}` shows its output, `phalanx stop {name}` ends it");
        job.tell(&Event::Note(text));
    }
    if let Some(threads) = job.plan.omp_threads {
        let text = format!(
            "OMP_NUM_THREADS is {threads} for each worker, as it was not set: the cores are shared out"
        );
        job.tell(&Event::Note(text));
    }
    if let Some(plan) = job.faults.text() {
        job.tell(&Event::Note(format!("faults are to happen on purpose: {plan}")));
    }
    let mut summary = Summary {
        run_id: job.plan.run_id.clone(),
        hostname: hostname(),
        command,
        attempts: Vec::new(),
        stopped_by: None,
        no_restart: None,
        is_pointless: false,
        lost_output: Vec::new(),
        faults: Vec::new(),
    };
    attempts(&mut job, &policy, &mut summary)?;
    job::close(job, &summary);
    Ok(summary)
}

/// Attempts until one succeeds or there is no further one.
fn attempts(job: &mut Job, policy: &Policy, summary: &mut Summary) -> Result<()> {
    for number in 0.. {
        summary.attempts.push(attempt::run(job, number)?);
        summary.stopped_by = job.stopped_by;
        let pause = pause_before_next(policy, summary);
        summary.lost_output.clone_from(&job.lost_output);
        summary.faults = job.faults.summary();
        write(policy, summary)?;
        let Some(pause) = pause else { return Ok(()) };
        job.tell(&Event::Restarting { attempt: number + 1, pause });
        if let Some(signal) = job.pause(Moment::now().checked_add(pause))? {
            summary.stopped_by = Some(signal);
            job.tell(&Event::Stopping { signal });
            return write(policy, summary);
        }
    }
    Ok(())
}

/// How long to wait before the next attempt; `None`: there is none, and the summary says why.
fn pause_before_next(policy: &Policy, summary: &mut Summary) -> Option<Duration> {
    if summary.stopped_by.is_some() || summary.succeeded() {
        return None;
    }
    let failed: Vec<_> = summary.attempts.iter().filter_map(failed).collect();
    match restart::next(&failed, policy.max_restarts, policy.restart_on.as_ref()) {
        Next::Attempt(pause) => Some(pause),
        Next::Exhausted => None,
        Next::Refused { why, pointless } => {
            (summary.no_restart, summary.is_pointless) = (Some(why), pointless);
            None
        }
    }
}

/// The root cause of an attempt, if it has one.
fn failed(attempt: &Attempt) -> Option<Failed> {
    let root = attempt.root_cause()?;
    Some(Failed { rank: root.rank, ending: root.ending, lifetime: root.lifetime })
}

/// Writes the summary file in one step, if there is to be one.
fn write(policy: &Policy, summary: &Summary) -> Result<()> {
    let Some(path) = &policy.summary_file else { return Ok(()) };
    let text = serde_json::to_string_pretty(summary).map_err(std::io::Error::other);
    let written =
        text.and_then(|text| crate::sys::replace::write(path, |mut file| file.write_all(text.as_bytes())));
    written.map_err(LaunchError::system(format!("writing the summary to {}", path.display())))
}
