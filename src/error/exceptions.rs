//! The two ways in which a worker can fail, named as in torch.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Error;
use super::blame::{Culprit, FailureKind};
use super::outcome::{Cause, Outcome, Status};
use super::peer::{Peer, listed};
use super::raised::RaisedError;
use super::traceback::Traceback;

/// The end of what RFC 3339 can say, since 1970.
const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);

/// The outcomes of all ranks, which failure came first, and who had kept that one waiting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoryParts", into = "StoryParts")]
pub(crate) struct Story {
    first: usize,
    culprits: Vec<Culprit>,
    outcomes: Vec<Outcome>,
}

type StoryParts = (usize, Vec<Culprit>, Vec<Outcome>);

impl TryFrom<StoryParts> for Story {
    type Error = &'static str;

    fn try_from((first, culprits, outcomes): StoryParts) -> Result<Self, Self::Error> {
        if first < outcomes.len() {
            Ok(Self { first, culprits, outcomes })
        } else {
            Err("the failed rank is not among the outcomes")
        }
    }
}

impl From<Story> for StoryParts {
    fn from(story: Story) -> Self {
        (story.first, story.culprits, story.outcomes)
    }
}

impl Story {
    /// Of the rank `first` among `outcomes`, which must have it.
    pub(crate) fn new(first: usize, culprits: Vec<Culprit>, outcomes: Vec<Outcome>) -> Self {
        debug_assert!(first < outcomes.len(), "rank {first} of {}", outcomes.len());
        Self { first, culprits, outcomes }
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

    /// Who kept the first one waiting, a line for each.
    fn fmt_culprits(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Culprit { peer, standing } in &self.culprits {
            write!(f, "{peer} kept rank {} waiting", self.first)?;
            standing.map_or(Ok(()), |standing| write!(f, ": {standing}"))?;
            f.write_str("\n")?;
        }
        if self.culprits.is_empty() { Ok(()) } else { f.write_str("\n") }
    }

    /// The other ranks: each later failure of its own in a line, consequences by whom they waited for, the rest as counts.
    fn fmt_others(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        let mut tally = Tally::default();
        for outcome in self.outcomes.iter().filter(|outcome| outcome.rank() != self.first().rank()) {
            match (outcome.status(), outcome.failure_kind()) {
                (Status::Succeeded, _) => tally.succeeded += 1,
                (status, _) if status.is_alive() => tally.running += 1,
                (Status::Survived | Status::Abandoned, _) => write!(f, "\n  {outcome}")?,
                (_, Some(FailureKind::Teardown)) => tally.victims += 1,
                (_, Some(FailureKind::Consequence { of })) if !of.is_empty() => {
                    tally.consequences.entry(of).or_default().push(outcome.rank());
                }
                _ => {
                    tally.failed += 1;
                    if tally.failed <= SHOWN {
                        self.fmt_later(outcome, f)?;
                    }
                }
            }
        }
        write!(f, "{tally}")
    }

    fn fmt_later(&self, outcome: &Outcome, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\n  ")?;
        if let Some(distance) = outcome.later_than(self.first()) {
            write!(f, "{:.3} s ", distance.as_secs_f64())?;
        }
        f.write_str("later, ")?;
        outcome.fmt_what(f)
    }
}

#[derive(Default)]
struct Tally<'a> {
    /// The ranks, by whom they waited for.
    consequences: BTreeMap<&'a Vec<Peer>, Vec<usize>>,
    failed: usize,
    succeeded: usize,
    victims: usize,
    running: usize,
}

impl fmt::Display for Tally<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { consequences, failed, succeeded, victims, running } = self;
        for (peers, ranks) in consequences {
            write!(f, "\nconsequences: {} (waited for {})", Ranks(ranks), listed(peers))?;
        }
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

/// Ranks in their order; three and more that follow one another as a range.
struct Ranks<'a>(&'a [usize]);

impl fmt::Display for Ranks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.len() == 1 { "rank " } else { "ranks " })?;
        let runs = self.0.chunk_by(|one, next| one + 1 == *next).map(|run| match run {
            [first, .., last] if run.len() > 2 => format!("{first}-{last}"),
            few => few.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
        });
        f.write_str(&runs.collect::<Vec<_>>().join(", "))
    }
}

/// A worker's function returned `Err` or panicked.
///
/// Its text begins as torch's does: `-- Process 1 terminated with the following error:`. If that process failed because it
/// had waited for another one, a line about the other one comes before that: see [`culprits`](Self::culprits).
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

    /// Who kept the rank that failed first waiting until it did, if that is why it failed and no worker has failed on
    /// its own: such as a worker that was stopped, or that did not come to a barrier.
    #[must_use]
    pub fn culprits(&self) -> &[Culprit] {
        &self.0.culprits
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
        self.0.fmt_culprits(f)?;
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

#[cfg(test)]
mod tests {
    use super::super::outcome::{Ended, ResourceUsage};
    use super::*;

    #[test]
    fn ranks_that_follow_one_another_are_a_range() {
        let told = |ranks: &[usize]| Ranks(ranks).to_string();
        assert_eq!(told(&[3]), "rank 3");
        assert_eq!(told(&[0, 2, 3]), "ranks 0, 2, 3");
        assert_eq!(told(&[0, 1, 2, 4, 7, 8, 9, 10]), "ranks 0-2, 4, 7-10");
    }

    fn failed(rank: usize, millis: u64, kind: FailureKind) -> Outcome {
        let ended = Ended {
            status: Status::Exited { code: 3 },
            kind: Some(kind),
            cause: None,
            error: None,
            traceback: None,
            note: None,
            recorded: true,
            lifetime: Duration::from_millis(500),
            since_start: Duration::from_millis(millis),
            at: SystemTime::UNIX_EPOCH,
            usage: ResourceUsage::default(),
        };
        Outcome { rank, pid: 10 + rank as u32, exiting: false, ended: Some(ended) }
    }

    #[test]
    fn others_are_told_by_their_distance_to_the_first_and_consequences_by_whom_they_waited_for() {
        let consequence = |of| FailureKind::Consequence { of };
        let first = Peer::Rank { rank: 1, pid: 11 };
        let outcomes = vec![
            failed(0, 507, FailureKind::Own),
            failed(1, 500, FailureKind::Own),
            // Its moment is that at which it was seen dead.
            failed(2, 499, FailureKind::Own),
            failed(3, 100, consequence(vec![first])),
            failed(4, 900, consequence(vec![first])),
            failed(5, 600, consequence(vec![])),
            failed(6, 600, FailureKind::Teardown),
        ];
        let exception = ProcessExitedException(Story::new(1, Vec::new(), outcomes));
        let lines = [
            "",
            "  0.007 s later, rank 0 (pid 10) terminated with exit code 3",
            "  later, rank 2 (pid 12) terminated with exit code 3",
            "  0.100 s later, rank 5 (pid 15) terminated with exit code 3",
            "consequences: ranks 3, 4 (waited for rank 1 (pid 11))",
            "other ranks: 3 failed later, 1 ended by the teardown",
        ];
        assert!(exception.to_string().ends_with(&lines.join("\n")), "{exception}");
    }
}
