//! What both exceptions are made of, and the parts of their texts that they share.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::failure_kind::{Culprit, FailureKind};
use super::outcome::{Outcome, Status};
use super::peer::{Peer, listed};

/// The end of what RFC 3339 can say, since 1970.
const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);

/// What both exceptions are made of: the outcomes of all ranks, which failure came first, and which processes had kept that rank
/// waiting. It travels as a tuple of the three, and is checked when it arrives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ReportParts", into = "ReportParts")]
pub(crate) struct FailureReport {
    /// The rank that failed first.
    pub(super) first: usize,
    /// The processes that kept it waiting, if that is why it failed.
    pub(super) culprits: Vec<Culprit>,
    /// By rank.
    pub(super) outcomes: Vec<Outcome>,
}

/// What travels: the rank that failed first, what kept it waiting, and all outcomes.
type ReportParts = (usize, Vec<Culprit>, Vec<Outcome>);

impl TryFrom<ReportParts> for FailureReport {
    type Error = &'static str;

    fn try_from((first, culprits, outcomes): ReportParts) -> Result<Self, Self::Error> {
        if first < outcomes.len() {
            Ok(Self { first, culprits, outcomes })
        } else {
            Err("the failed rank is not among the outcomes")
        }
    }
}

impl From<FailureReport> for ReportParts {
    fn from(report: FailureReport) -> Self {
        (report.first, report.culprits, report.outcomes)
    }
}

impl FailureReport {
    /// A report of the failure of the rank `first`, which must be among `outcomes`.
    pub(crate) fn new(first: usize, culprits: Vec<Culprit>, outcomes: Vec<Outcome>) -> Self {
        debug_assert!(first < outcomes.len(), "rank {first} of {}", outcomes.len());
        Self { first, culprits, outcomes }
    }

    /// The outcome of the rank that failed first.
    pub(super) fn first(&self) -> &Outcome {
        &self.outcomes[self.first]
    }

    /// Writes which rank failed first, and when: `rank 1 (pid 4335) failed at …, 0.008 s after its start`.
    pub(super) fn fmt_when(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

    /// Writes the end of the first one's stderr, as far as it was kept.
    pub(super) fn fmt_stderr(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first().fmt_stderr(f)
    }

    /// Writes which processes kept the first one waiting, a line for each.
    pub(super) fn fmt_culprits(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Culprit { peer, standing } in &self.culprits {
            write!(f, "{peer} kept rank {} waiting", self.first)?;
            standing.map_or(Ok(()), |standing| write!(f, ": {standing}"))?;
            f.write_str("\n")?;
        }
        if self.culprits.is_empty() { Ok(()) } else { f.write_str("\n") }
    }

    /// Writes what became of the other ranks: a line for each later failure of a rank's own, one for all consequences of the same
    /// processes, and counts of the rest.
    pub(super) fn fmt_others(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

    /// Writes a later failure, with its distance to the first one.
    fn fmt_later(&self, outcome: &Outcome, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\n  ")?;
        if let Some(distance) = outcome.later_than(self.first()) {
            write!(f, "{:.3} s ", distance.as_secs_f64())?;
        }
        f.write_str("later, ")?;
        outcome.fmt_what(f)
    }
}

/// How many of the other ranks ended in which way.
#[derive(Default)]
struct Tally<'a> {
    /// The ranks whose failure was a consequence, by the processes that they had waited for.
    consequences: BTreeMap<&'a Vec<Peer>, Vec<usize>>,
    /// Those that failed by themselves, later.
    failed: usize,
    succeeded: usize,
    /// Those that the teardown ended.
    victims: usize,
    /// Those that have not ended.
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

impl Outcome {
    /// Writes the end of its stderr, as far as it was kept, for a failure's text.
    pub(crate) fn fmt_stderr(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.stderr_tail().is_empty() {
            f.write_str("\nthe end of its stderr:")?;
        }
        self.stderr_tail().iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Error;
    use super::super::outcome::Ended;
    use super::super::usage::ResourceUsage;
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
        Outcome { rank, pid: 10 + rank as u32, exiting: false, stderr_tail: Vec::new(), ended: Some(ended) }
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
        let exception = Error::from(FailureReport::new(1, Vec::new(), outcomes));
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
