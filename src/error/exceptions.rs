//! The two ways in which a worker can fail, named as in torch.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Error;
use super::failure_kind::Culprit;
use super::failure_report::FailureReport;
use super::outcome::{Cause, Outcome, Status};
use super::raised::RaisedError;
use super::traceback::Traceback;

/// A worker's function returned `Err` or panicked.
///
/// Its text begins as torch's does: `-- Process 1 terminated with the following error:`. If that process failed because it
/// had waited for another one, a line about the other one comes before that: see [`culprits`](Self::culprits).
///
/// It is the failure that came first in time of those that are a worker's own; [`outcomes`](Self::outcomes) has all. It is plain data:
/// it can be cloned, sent, and written as JSON. torch's name of the same: `torch.multiprocessing.ProcessRaisedException`.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::Error;
///
/// fn work(rank: usize, _: ()) -> anyhow::Result<()> {
///     assert!(rank != 1, "weights became NaN");
///     Ok(())
/// }
///
/// # fn main() {
/// let Err(Error::ProcessRaised(exception)) = phalanx::spawn(work, (), 2) else { panic!("rank 1 panics") };
/// assert_eq!(exception.error_index(), 1);
/// assert_eq!(exception.chain(), ["weights became NaN"]);
/// assert!(exception.panic_location().is_some());
/// assert!(exception.to_string().starts_with("-- Process 1 terminated with the following error:"));
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "FailureReport", into = "FailureReport")]
pub struct ProcessRaisedException(FailureReport);

impl ProcessRaisedException {
    /// The rank whose failure came first: torch's `error_index`.
    #[must_use]
    pub fn error_index(&self) -> usize {
        self.0.first
    }

    /// The pid of that rank's process.
    #[must_use]
    pub fn error_pid(&self) -> u32 {
        self.0.first().pid()
    }

    /// The error or the panic of that rank, with its causes and its traceback.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "TryFrom<FailureReport> lets no other report in")]
    pub fn error(&self) -> &RaisedError {
        self.0.first().error().expect("checked by TryFrom<FailureReport>")
    }

    /// The error's text and those of its causes, outermost first. A panic has one text.
    #[must_use]
    pub fn chain(&self) -> &[String] {
        self.error().chain()
    }

    /// `file:line:column` of a panic; `None` for an `Err`, and for a panic whose place is not known.
    #[must_use]
    pub fn panic_location(&self) -> Option<&str> {
        self.error().location()
    }

    /// The calls through which the error or the panic came, innermost first.
    #[must_use]
    pub fn traceback(&self) -> &Traceback {
        self.error().traceback()
    }

    /// The processes that kept the rank waiting until it failed, if that is why it failed and no worker has failed by itself: such as
    /// a worker that was stopped, or that did not come to a barrier.
    #[must_use]
    pub fn culprits(&self) -> &[Culprit] {
        &self.0.culprits
    }

    /// How every rank ended: the one of rank 0 first. A worker that had not ended yet is in it, too.
    #[must_use]
    pub fn outcomes(&self) -> &[Outcome] {
        &self.0.outcomes
    }
}

impl TryFrom<FailureReport> for ProcessRaisedException {
    type Error = &'static str;

    fn try_from(report: FailureReport) -> Result<Self, Self::Error> {
        if report.first().error().is_some() {
            Ok(Self(report))
        } else {
            Err("the failed rank raised nothing")
        }
    }
}

impl From<ProcessRaisedException> for FailureReport {
    fn from(exception: ProcessRaisedException) -> Self {
        exception.0
    }
}

impl fmt::Display for ProcessRaisedException {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = self.error();
        self.0.fmt_culprits(f)?;
        write!(f, "-- Process {} terminated with the following error:\n{error}\n\n", self.error_index())?;
        self.0.fmt_when(f)?;
        self.0.fmt_stderr(f)?;
        self.0.fmt_others(f)
    }
}

impl fmt::Debug for ProcessRaisedException {
    /// The same text: it is what `unwrap` and a main that returns the error show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for ProcessRaisedException {}

/// A worker ended without handing in a result or an error: it exited, or a signal ended it.
///
/// Its text begins as torch's does: `process 1 terminated with signal SIGKILL`. What probably ended the process follows, where there
/// is evidence for it.
///
/// torch's name of the same: `torch.multiprocessing.ProcessExitedException`.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Cause, Error};
///
/// fn work(_rank: usize, _: ()) -> anyhow::Result<()> {
///     std::process::exit(3)
/// }
///
/// # fn main() {
/// let Err(Error::ProcessExited(exception)) = phalanx::spawn(work, (), 1) else { panic!("it exits") };
/// assert_eq!((exception.exit_code(), exception.signal_name()), (Some(3), None));
/// assert_eq!(exception.cause(), Some(Cause::ExitedBeforeReturning));
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProcessExitedException(FailureReport);

impl ProcessExitedException {
    /// The rank whose failure came first: torch's `error_index`.
    #[must_use]
    pub fn error_index(&self) -> usize {
        self.0.first
    }

    /// The pid of that rank's process.
    #[must_use]
    pub fn error_pid(&self) -> u32 {
        self.0.first().pid()
    }

    /// The exit code, or the negative number of the signal; `None` when other code of the launcher took the status, or the
    /// process survived SIGKILL.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        self.0.first().status().exit_code()
    }

    /// The signal's name, or its number as text where it has none.
    #[must_use]
    pub fn signal_name(&self) -> Option<String> {
        match self.0.first().status() {
            Status::Signaled { signal, .. } => Some(signal.to_string()),
            _ => None,
        }
    }

    /// Whether the process left a core file (core(5)).
    #[must_use]
    pub fn core_dumped(&self) -> bool {
        matches!(self.0.first().status(), Status::Signaled { core_dumped: true, .. })
    }

    /// What probably ended the process, where there is evidence.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.0.first().cause()
    }

    /// The calls that a fatal signal interrupted, innermost first; `None` for other ends.
    #[must_use]
    pub fn traceback(&self) -> Option<&Traceback> {
        self.0.first().traceback()
    }

    /// How every rank ended: the one of rank 0 first. A worker that had not ended yet is in it, too.
    #[must_use]
    pub fn outcomes(&self) -> &[Outcome] {
        &self.0.outcomes
    }
}

impl From<FailureReport> for Error {
    fn from(report: FailureReport) -> Self {
        if report.first().error().is_some() {
            Self::ProcessRaised(Box::new(ProcessRaisedException(report)))
        } else {
            Self::ProcessExited(Box::new(ProcessExitedException(report)))
        }
    }
}

impl fmt::Display for ProcessExitedException {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.0.first();
        write!(f, "process {} {}", first.rank(), first.status())?;
        if let Some(cause) = first.cause() {
            write!(f, "\nprobable cause: {cause}")?;
        }
        if let Some(note) = first.note() {
            write!(f, "\nits last words: {note}")?;
        }
        if let Some(traceback) = first.traceback() {
            write!(f, "\n\n{traceback}")?;
        }
        let gap = if first.traceback().is_some() { "\n\n" } else { "\n" };
        f.write_str(gap)?;
        self.0.fmt_when(f)?;
        self.0.fmt_stderr(f)?;
        self.0.fmt_others(f)
    }
}

impl fmt::Debug for ProcessExitedException {
    /// The same text: it is what `unwrap` and a main that returns the error show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for ProcessExitedException {}
