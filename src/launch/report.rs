//! The report of a failed job, for people. Programs read the [`Summary`] as JSON instead.
//!
//! What helps most comes first: the root cause, with what the worker itself has said of it. Failures that came later are told once
//! for all ranks that failed in the same way, so the report of a thousand workers fits on a screen.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter, Result};

use super::summary::{Attempt, Role, Summary, WorkerSummary};

/// How many lines of a worker's stderr the report shows.
const TAIL_LINES: usize = 20;

impl Display for Summary {
    /// The report: whose failure came first, with its evidence, and what became of the others.
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write(self, f)
    }
}

/// The whole report: the job, its last attempt, why there was no further one.
fn write(summary: &Summary, f: &mut Formatter<'_>) -> Result {
    let attempts = summary.attempts.len();
    let what = match (summary.succeeded(), summary.exit_code()) {
        (true, 0) => "succeeded",
        (true, _) => "succeeded, but not all faults of its plan have happened",
        _ => "failed",
    };
    write!(f, "job {} {what}", summary.run_id)?;
    if let Some(signal) = summary.stopped_by {
        write!(f, ": the launcher was told to stop by {signal}")?;
    }
    if attempts > 1 {
        write!(f, " after {attempts} attempts")?;
    }
    writeln!(f, ": {}", summary.command)?;
    if let Some(last) = summary.attempts.last() {
        write_attempt(summary, last, f)?;
    }
    if let Some(why) = &summary.no_restart {
        writeln!(f, "no further attempt: {why}")?;
    }
    summary.faults.iter().try_for_each(|fault| writeln!(f, "{fault}"))?;
    for lost in &summary.lost_output {
        writeln!(f, "output was lost: {lost}")?;
    }
    Ok(())
}

/// An attempt: its root cause, later failures, the others, where logs are.
fn write_attempt(summary: &Summary, attempt: &Attempt, f: &mut Formatter<'_>) -> Result {
    if let Some(root) = attempt.root_cause() {
        writeln!(f, "root cause: {}", headline(root))?;
        let at = humantime::format_rfc3339_millis(root.at);
        writeln!(
            f,
            "  at {at} on {}, {:.3} s after its start",
            summary.hostname,
            root.lifetime.as_secs_f64()
        )?;
        write_evidence(root, f)?;
    }
    write_later(attempt, f)?;
    write_stopped(attempt, f)?;
    if !attempt.stray.is_empty() {
        let pids: Vec<_> = attempt.stray.iter().map(ToString::to_string).collect();
        writeln!(f, "killed too, as they had left their worker's process group: pid {}", pids.join(", "))?;
    }
    if let Some(dir) = &attempt.log_dir {
        writeln!(f, "logs: {}", dir.display())?;
    }
    Ok(())
}

/// A worker's end in a line, with what was the launcher's part in it.
fn headline(worker: &WorkerSummary) -> String {
    let cause = worker.cause.map(|cause| format!("; probable cause: {cause}")).unwrap_or_default();
    let by = match &worker.expired_timer {
        Some(scope) => format!(", sent by the launcher as its timer {scope:?} had expired"),
        None if worker.ended_by_launcher => {
            ", sent by the launcher as it had failed and did not end".to_owned()
        }
        None => String::new(),
    };
    format!("rank {} (pid {}) {}{by}{cause}", worker.rank, worker.pid, worker.ending)
}

/// What the worker itself has said: its error file, else the end of its stderr.
fn write_evidence(worker: &WorkerSummary, f: &mut Formatter<'_>) -> Result {
    if let Some(problem) = &worker.error_file_problem {
        writeln!(f, "  {problem}")?;
    }
    if let Some(error) = &worker.error {
        writeln!(f, "  error: {}", indented(&error.message))?;
        if let Some(traceback) = &error.traceback {
            writeln!(f, "    {}", indented(traceback.trim_end()))?;
            // The traceback is the end of stderr too.
            return Ok(());
        }
    }
    if worker.stderr_tail.is_empty() {
        return Ok(());
    }
    writeln!(f, "  the end of its stderr:")?;
    let skipped = worker.stderr_tail.len().saturating_sub(TAIL_LINES);
    worker.stderr_tail[skipped..].iter().try_for_each(|line| writeln!(f, "    {line}"))
}

/// A text of several lines in the report's indentation.
fn indented(text: &str) -> String {
    text.replace('\n', "\n    ")
}

/// The ranks that failed by themselves, later: equal failures of many ranks as one line, with the distance of the first of them to the
/// root cause.
fn write_later(attempt: &Attempt, f: &mut Formatter<'_>) -> Result {
    let mut groups: BTreeMap<String, Vec<&WorkerSummary>> = BTreeMap::new();
    for worker in attempt.workers.iter().filter(|worker| worker.role == Some(Role::FailedLater)) {
        groups.entry(what_happened(worker)).or_default().push(worker);
    }
    let equal = attempt.root_cause().map(what_happened).unwrap_or_default();
    for (what, workers) in groups {
        let ranks = ranks(workers.iter().map(|worker| worker.rank));
        let first = workers.iter().map(|worker| worker.at).min();
        let root = attempt.root_cause().map(|root| root.at);
        let later = root.and_then(|root| first?.duration_since(root).ok());
        let later = later.map(|later| format!("{:.3} s later, ", later.as_secs_f64())).unwrap_or_default();
        let what = if what == equal { "failed in the same way".to_owned() } else { what };
        writeln!(f, "{later}{ranks} {}", indented(&what))?;
    }
    Ok(())
}

/// A failure in words without rank and pid, by which equal failures are found: the ending, the cause, the error's message.
fn what_happened(worker: &WorkerSummary) -> String {
    let cause = worker.cause.map(|cause| format!("; {cause}")).unwrap_or_default();
    let error = worker.error.as_ref().map(|error| format!(": {}", error.message)).unwrap_or_default();
    format!("{}{cause}{error}", worker.ending)
}

/// The ranks that did not fail: stopped ones, and in a failed attempt those that succeeded.
fn write_stopped(attempt: &Attempt, f: &mut Formatter<'_>) -> Result {
    let of_role = attempt.workers.iter().filter(|worker| worker.role == Some(Role::Stopped));
    let stopped: Vec<_> = of_role.map(|worker| worker.rank).collect();
    if !stopped.is_empty() {
        writeln!(f, "stopped by the launcher: {}", ranks(stopped.into_iter()))?;
    }
    let fine: Vec<_> =
        attempt.workers.iter().filter(|worker| worker.succeeded()).map(|worker| worker.rank).collect();
    if !fine.is_empty() && fine.len() < attempt.workers.len() {
        writeln!(f, "succeeded: {}", ranks(fine.into_iter()))?;
    }
    Ok(())
}

/// `rank 3`, `ranks 0-2, 5`.
fn ranks(of: impl Iterator<Item = usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for rank in of {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == rank => *last = rank,
            _ => runs.push((rank, rank)),
        }
    }
    let is_one = matches!(runs[..], [(first, last)] if first == last);
    let text = |&(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    format!(
        "{} {}",
        if is_one { "rank" } else { "ranks" },
        runs.iter().map(text).collect::<Vec<_>>().join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::error_file::ErrorReport;
    use super::super::summary::Ending;
    use super::*;
    use crate::error::ResourceUsage;
    use crate::sys::signal::Signal;

    fn worker(rank: usize, ending: Ending, role: Option<Role>, millis: u64) -> WorkerSummary {
        WorkerSummary {
            rank,
            pid: 100 + rank as u32,
            ending,
            ended_by_launcher: false,
            expired_timer: None,
            role,
            cause: None,
            lifetime: Duration::from_millis(millis),
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + millis),
            first_output: None,
            usage: ResourceUsage::default(),
            error: None,
            error_file_problem: None,
            stderr_tail: Vec::new(),
        }
    }

    fn summary(workers: Vec<WorkerSummary>) -> Summary {
        let started = SystemTime::UNIX_EPOCH;
        let (stray, log_dir) = (vec![7, 9], Some("/logs/x".into()));
        Summary {
            run_id: "ab12".into(),
            hostname: "node7".into(),
            command: "train.py".into(),
            attempts: vec![Attempt {
                number: 0,
                started,
                starting: Duration::ZERO,
                lasted: Duration::ZERO,
                log_dir,
                workers,
                stray,
            }],
            stopped_by: None,
            no_restart: None,
            is_pointless: false,
            lost_output: Vec::new(),
            faults: Vec::new(),
        }
    }

    #[test]
    fn report_names_the_root_cause_and_tells_equal_failures_once() {
        let code = |code| Ending::Exited { code };
        let error = |text: &str| ErrorReport { message: text.into(), traceback: None, error_code: None };
        let mut root = worker(3, code(1), Some(Role::RootCause), 250);
        root.error =
            Some(ErrorReport { traceback: Some("Traceback:\n  File x\n".into()), ..error("ValueError: no") });
        let mut workers = vec![worker(
            0,
            Ending::Signaled { signal: Signal::TERM, core_dumped: false },
            Some(Role::Stopped),
            300,
        )];
        workers.push(worker(1, Ending::Succeeded, None, 100));
        workers.push(worker(2, Ending::Succeeded, None, 100));
        workers.push(root);
        for rank in 4..300 {
            let mut later = worker(rank, code(1), Some(Role::FailedLater), 260);
            later.error = Some(error("ValueError: no"));
            workers.push(later);
        }
        workers.push(worker(300, code(5), Some(Role::FailedLater), 262));
        let text = summary(workers).to_string();
        assert_eq!(
            text,
            "job ab12 failed: train.py\n\
             root cause: rank 3 (pid 103) exited with code 1\n\
             \x20 at 2023-11-14T22:13:20.250Z on node7, 0.250 s after its start\n\
             \x20 error: ValueError: no\n\
             \x20   Traceback:\n      File x\n\
             0.010 s later, ranks 4-299 failed in the same way\n\
             0.012 s later, rank 300 exited with code 5\n\
             stopped by the launcher: rank 0\n\
             succeeded: ranks 1-2\n\
             killed too, as they had left their worker's process group: pid 7, 9\n\
             logs: /logs/x\n"
        );
    }

    #[test]
    fn exit_code_is_the_root_causes_or_the_stop_signals() {
        let killed = Ending::Signaled { signal: Signal::KILL, core_dumped: false };
        let mut job = summary(vec![worker(0, killed, Some(Role::RootCause), 9)]);
        assert_eq!(job.exit_code(), 137);
        job.is_pointless = true;
        assert_eq!(job.exit_code(), 93);
        job.stopped_by = Some(Signal::TERM);
        assert_eq!((job.exit_code(), job.succeeded()), (143, false));
        assert_eq!(summary(vec![worker(0, Ending::Succeeded, None, 9)]).exit_code(), 0);
    }

    #[test]
    fn summary_survives_json() {
        let job = summary(vec![worker(0, Ending::Exited { code: 3 }, Some(Role::RootCause), 9)]);
        let text = serde_json::to_string(&job).unwrap();
        assert_eq!(serde_json::from_str::<Summary>(&text).unwrap(), job);
    }
}
