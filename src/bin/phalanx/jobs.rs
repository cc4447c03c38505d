//! `phalanx ps`, `phalanx stop` and `phalanx logs`: jobs that run, seen from another terminal.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use phalanx::launch::{JobStatus, LaunchError, LogPiece, RankList, RunningJob, Stopped};

/// What is longer than this is no line, in bytes.
const LONGEST_LINE: usize = 64 * 1024;

#[derive(Args, Debug)]
pub(crate) struct PsOptions {
    /// Print a list of objects instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Exit code: 0 the job has ended; 1 some workers had to be killed, as they had not ended in time, or the \
                        launcher does not answer; 2 there is no such job."
)]
pub(crate) struct StopOptions {
    /// Kill the workers at once, as by a second Ctrl-C
    #[arg(long)]
    kill: bool,
    /// The job's name: `phalanx ps` lists them
    job: String,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Output that goes to files is read from them, and is whole without -f. Of other output the launcher keeps the last \
                        64 KiB of each stream. Lines have the prefix of the console, unless RANKS is one rank. What workers print to \
                        stderr is printed to stderr."
)]
pub(crate) struct LogsOptions {
    /// Go on with what the workers print, until the job has ended
    #[arg(short, long)]
    follow: bool,
    /// The job's name: `phalanx ps` lists them
    job: String,
    /// Only these ranks, as 0-3,12
    ranks: Option<String>,
}

/// What became of a command.
type Done = Result<ExitCode, Failure>;

pub(crate) enum Failure {
    Launch(LaunchError),
    /// Our own output.
    Output(io::Error),
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        Self::Launch(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// The exit code of a command, whose failure is told.
pub(crate) fn end(done: Done) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(Failure::Launch(error)) => {
            eprintln!("phalanx: {error}");
            ExitCode::from(if matches!(error, LaunchError::Invalid { .. }) { 2 } else { 1 })
        }
        // `phalanx logs x | head` has seen enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Failure::Output(error)) => {
            eprintln!("phalanx: stdout takes no more output: {error}");
            ExitCode::FAILURE
        }
    }
}

pub(crate) fn ps(options: &PsOptions) -> Done {
    let asked: Vec<_> = RunningJob::all()?.into_iter().map(|job| (job.status(), job)).collect();
    let mut out = io::stdout().lock();
    if options.json {
        let jobs: Vec<_> = asked.iter().map(|(status, job)| as_json(status, job)).collect();
        writeln!(out, "{}", serde_json::Value::from(jobs))?;
        return Ok(ExitCode::SUCCESS);
    }
    let head = ["JOB", "PID", "WORKERS", "ATTEMPT", "AGE", "PROGRAM"].map(str::to_owned);
    let rows = asked.iter().map(|(status, job)| as_row(status, job));
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..5).map(width).collect();
    for row in &rows {
        row.iter().zip(&widths).try_for_each(|(text, width)| write!(out, "{text:width$}  "))?;
        writeln!(out, "{}", row[5])?;
    }
    Ok(ExitCode::SUCCESS)
}

fn as_json(status: &Result<JobStatus, LaunchError>, job: &RunningJob) -> serde_json::Value {
    match status {
        Ok(status) => serde_json::json!({
            "job": status.job,
            "pid": status.launcher,
            "program": status.program,
            "workers_up": status.running,
            "workers": status.workers,
            "attempt": status.attempt,
            "max_restarts": status.max_restarts,
            "age_seconds": status.age.as_secs_f64(),
        }),
        Err(error) => {
            serde_json::json!({ "job": job.name(), "pid": job.launcher(), "error": error.to_string() })
        }
    }
}

fn as_row(status: &Result<JobStatus, LaunchError>, job: &RunningJob) -> [String; 6] {
    match status {
        Ok(status) => [
            status.job.clone(),
            status.launcher.to_string(),
            format!("{}/{}", status.running, status.workers),
            status.attempt.to_string(),
            clock(status.age),
            status.program.replace(char::is_control, " "),
        ],
        Err(error) => {
            let [name, pid] = [job.name().to_owned(), job.launcher().to_string()];
            let unknown = || "-".to_owned();
            [name, pid, unknown(), unknown(), unknown(), format!("({error})")]
        }
    }
}

/// Hours, minutes and seconds.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

pub(crate) fn stop(options: &StopOptions) -> Done {
    let Stopped { exit_code, killed, .. } = RunningJob::find(&options.job)?.stop(options.kill)?;
    writeln!(io::stdout(), "job {} has ended: exit code {exit_code}", options.job)?;
    if killed.is_empty() || options.kill {
        return Ok(ExitCode::SUCCESS);
    }
    let ranks: Vec<_> = killed.iter().map(ToString::to_string).collect();
    eprintln!("phalanx: killed, as they had not ended in time: rank {}", ranks.join(", "));
    Ok(ExitCode::FAILURE)
}

pub(crate) fn logs(options: &LogsOptions) -> Done {
    let ranks = options.ranks.as_deref().map(str::parse::<RankList>).transpose()?;
    let is_one = ranks.as_ref().is_some_and(|ranks| ranks.iter().count() == 1);
    let mut printer = Printer { is_raw: is_one, held: BTreeMap::new() };
    let mut printed = Ok(());
    RunningJob::find(&options.job)?.logs(ranks.as_ref(), options.follow, |piece| {
        printed = printer.print(&piece);
        if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    printed.and_then(|()| printer.finish())?;
    Ok(ExitCode::SUCCESS)
}

/// Prints lines whole, each behind its prefix.
struct Printer {
    /// Bytes are printed as they come.
    is_raw: bool,
    /// What has come of a line that has not ended, behind its prefix, by rank and stream.
    held: BTreeMap<(usize, bool), Vec<u8>>,
}

impl Printer {
    fn print(&mut self, piece: &LogPiece<'_>) -> io::Result<()> {
        if piece.skipped > 0 {
            let LogPiece { rank, skipped, .. } = piece;
            eprintln!(
                "phalanx: {skipped} bytes of rank {rank} are missing: they came faster than they were fetched"
            );
        }
        if self.is_raw {
            return write(piece.is_stderr, piece.bytes);
        }
        let held = self.held.entry((piece.rank, piece.is_stderr)).or_default();
        let mut whole = Vec::new();
        for part in piece.bytes.split_inclusive(|&byte| byte == b'\n') {
            if held.is_empty() {
                held.extend_from_slice(piece.prefix);
            }
            held.extend_from_slice(part);
            if part.ends_with(b"\n") {
                whole.append(held);
            } else if held.len() > LONGEST_LINE {
                whole.append(held);
                whole.push(b'\n');
            }
        }
        write(piece.is_stderr, &whole)
    }

    fn finish(self) -> io::Result<()> {
        for ((_, is_stderr), mut line) in self.held.into_iter().filter(|(_, line)| !line.is_empty()) {
            line.push(b'\n');
            write(is_stderr, &line)?;
        }
        Ok(())
    }
}

fn write(is_stderr: bool, bytes: &[u8]) -> io::Result<()> {
    if is_stderr {
        return io::stderr().write_all(bytes);
    }
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush())
}
