//! The two ways in which a worker can fail, named as in torch.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Error;
use super::outcome::{Cause, Outcome, Status};
use super::raised::RaisedError;
use super::traceback::Traceback;

/// The end of what RFC 3339 can say, since 1970.
const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);

/// The outcomes of all ranks, and which failure came first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(usize, Vec<Outcome>)", into = "(usize, Vec<Outcome>)")]
pub(crate) struct Story {
    first: usize,
    outcomes: Vec<Outcome>,
}

impl TryFrom<(usize, Vec<Outcome>)> for Story {
    type Error = &'static str;

    fn try_from((first, outcomes): (usize, Vec<Outcome>)) -> Result<Self, Self::Error> {
        if first < outcomes.len() {
            Ok(Self { first, outcomes })
        } else {
            Err("the failed rank is not among the outcomes")
        }
    }
}

impl From<Story> for (usize, Vec<Outcome>) {
    fn from(story: Story) -> Self {
        (story.first, story.outcomes)
    }
}

impl Story {
    /// Of the rank `first` among `outcomes`, which must have it.
    pub(crate) fn new(first: usize, outcomes: Vec<Outcome>) -> Self {
        debug_assert!(first < outcomes.len(), "rank {first} of {}", outcomes.len());
        Self { first, outcomes }
    }

    fn first(&self) -> &Outcome {
        &self.outcomes[self.first]
    }

    /// Who and when.
    fn fmt_when(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.first();
        let when = if first.ended.as_ref().is_some_and(|ended| ended.recorded) {
            "failed at"
        } else {
            "was seen dead at"
        };
        write!(f, "rank {} (pid {}) {when}", first.rank(), first.pid())?;
        if let (Some(at), Some(lifetime)) = (first.ended_at(), first.lifetime()) {
            // An exception from elsewhere may tell of a year that the format does not have.
            let known = at.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since| since < YEAR_10000);
            if known {
                write!(f, " {}", humantime::format_rfc3339_millis(at))?;
            } else {
                write!(f, " {at:?}")?;
            }
            write!(f, ", {:.3} s after its start", lifetime.as_secs_f64())?;
        }
        Ok(())
    }

    /// The other ranks: each later failure in a line, the rest as counts.
    fn fmt_others(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        let mut tally = Tally::default();
        for outcome in self.outcomes.iter().filter(|outcome| outcome.rank() != self.first().rank()) {
            match outcome.status() {
                Status::Succeeded => tally.succeeded += 1,
                status if status.is_alive() => tally.running += 1,
                Status::Survived | Status::Abandoned => write!(f, "\n  {outcome}")?,
                _ if outcome.is_victim() => tally.victims += 1,
                _ => {
                    tally.failed += 1;
                    if tally.failed <= SHOWN {
                        write!(f, "\n  later, {outcome}")?;
                    }
                }
            }
        }
        write!(f, "{tally}")
    }
}

#[derive(Default)]
struct Tally {
    failed: usize,
    succeeded: usize,
    victims: usize,
    running: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failed, succeeded, victims, running } = self;
        let parts: Vec<String> = [
            (failed, "failed later"),
            (succeeded, "succeeded"),
            (victims, "ended by the teardown"),
            (running, "still running"),
        ]
        .iter()
        .filter(|(count, _)| **count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
        if parts.is_empty() { Ok(()) } else { write!(f, "\nother ranks: {}", parts.join(", ")) }
    }
}

/// A worker's function returned `Err` or panicked.
///
/// Its text begins as torch's does: `-- Process 1 terminated with the following error:`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Story", into = "Story")]
pub struct ProcessRaisedException(Story);

impl ProcessRaisedException {
    /// The rank that failed first.
    #[must_use]
    pub fn error_index(&self) -> usize {
        self.0.first
    }

    /// Its process.
    #[must_use]
    pub fn error_pid(&self) -> u32 {
        self.0.first().pid()
    }

    /// What it raised.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "TryFrom<Story> lets no other story in")]
    pub fn error(&self) -> &RaisedError {
        self.0.first().error().expect("checked by TryFrom<Story>")
    }

    /// The error's text and those of its causes, outermost first.
    #[must_use]
    pub fn chain(&self) -> &[String] {
        self.error().chain()
    }

    /// `file:line:column` of a panic.
    #[must_use]
    pub fn panic_location(&self) -> Option<&str> {
        self.error().location()
    }

    /// Where it came from.
    #[must_use]
    pub fn traceback(&self) -> &Traceback {
        self.error().traceback()
    }

    /// How every rank ended, by rank.
    #[must_use]
    pub fn outcomes(&self) -> &[Outcome] {
        &self.0.outcomes
    }
}

impl TryFrom<Story> for ProcessRaisedException {
    type Error = &'static str;

    fn try_from(story: Story) -> Result<Self, Self::Error> {
        if story.first().error().is_some() { Ok(Self(story)) } else { Err("the failed rank raised nothing") }
    }
}

impl From<ProcessRaisedException> for Story {
    fn from(exception: ProcessRaisedException) -> Self {
        exception.0
    }
}

impl fmt::Display for ProcessRaisedException {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = self.error();
        write!(f, "-- Process {} terminated with the following error:\n{error}\n\n", self.error_index())?;
        self.0.fmt_when(f)?;
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
/// Its text begins as torch's does: `process 1 terminated with signal SIGKILL`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProcessExitedException(Story);

impl ProcessExitedException {
    /// The rank that failed first.
    #[must_use]
    pub fn error_index(&self) -> usize {
        self.0.first
    }

    /// Its process.
    #[must_use]
    pub fn error_pid(&self) -> u32 {
        self.0.first().pid()
    }

    /// The exit code, or the negative number of the signal; `None` when somebody else took the status, or the
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

    /// Whether it left a core file.
    #[must_use]
    pub fn core_dumped(&self) -> bool {
        matches!(self.0.first().status(), Status::Signaled { core_dumped: true, .. })
    }

    /// What probably ended it.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.0.first().cause()
    }

    /// Where a fatal signal met it.
    #[must_use]
    pub fn traceback(&self) -> Option<&Traceback> {
        self.0.first().traceback()
    }

    /// How every rank ended, by rank.
    #[must_use]
    pub fn outcomes(&self) -> &[Outcome] {
        &self.0.outcomes
    }
}

impl From<Story> for Error {
    fn from(story: Story) -> Self {
        if story.first().error().is_some() {
            Self::ProcessRaised(Box::new(ProcessRaisedException(story)))
        } else {
            Self::ProcessExited(Box::new(ProcessExitedException(story)))
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
