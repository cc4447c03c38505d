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
use super::prefix::hostname;
use super::restart::{self, Failed, Next, RestartOn};
use super::summary::{Attempt, Summary};
use crate::sys::clock::Moment;

impl Launch {
    /// Runs the job to its end: until a last attempt has succeeded or failed, and none of its processes is left.
    ///
    /// # Errors
    /// When the job cannot be started, or the system refuses what it needs. That a worker fails is no error, but in the summary.
    pub fn run(self) -> Result<Summary> {
        run(self)
    }

    /// What would be started: for each worker its command and the variables that are not this process's own.
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
    restart_on: Option<RestartOn>,
    summary_file: Option<PathBuf>,
}

fn run(launch: Launch) -> Result<Summary> {
    let plan = Plan::of(&launch, Path::new("/"))?;
    let command = launch.command.to_string();
    let policy = Policy {
        max_restarts: launch.max_restarts,
        restart_on: launch.restart_on.clone(),
        summary_file: launch.summary_file.clone(),
    };
    let mut job = job::start(launch, plan)?;
    if let Some(threads) = job.plan.omp_threads {
        let text = format!(
            "OMP_NUM_THREADS is {threads} for each worker, as it was not set: the cores are shared out"
        );
        job.tell(&Event::Note(text));
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
    };
    attempts(&mut job, &policy, &mut summary)?;
    job::close(job);
    Ok(summary)
}

/// Attempts until one succeeds or there is no further one.
fn attempts(job: &mut Job, policy: &Policy, summary: &mut Summary) -> Result<()> {
    for number in 0.. {
        summary.attempts.push(attempt::run(job, number)?);
        summary.stopped_by = job.stopped_by;
        let pause = pause_before_next(policy, summary);
        summary.lost_output.clone_from(&job.lost_output);
        write(policy, summary)?;
        let Some(pause) = pause else { return Ok(()) };
        job.tell(&Event::Restarting { attempt: number + 1, pause });
        if let Some(signal) = job.control.pause(Moment::now().checked_add(pause))? {
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

fn failed(attempt: &Attempt) -> Option<Failed> {
    let root = attempt.root_cause()?;
    Some(Failed { rank: root.rank, ending: root.ending, lifetime: root.lifetime })
}

fn write(policy: &Policy, summary: &Summary) -> Result<()> {
    let Some(path) = &policy.summary_file else { return Ok(()) };
    let text = serde_json::to_string_pretty(summary).map_err(std::io::Error::other);
    let written =
        text.and_then(|text| crate::sys::replace::write(path, |mut file| file.write_all(text.as_bytes())));
    written.map_err(LaunchError::system(format!("writing the summary to {}", path.display())))
}
