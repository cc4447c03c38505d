//! Pure: the faults that a job's plan has, and what has come of them.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::injection::{Plan, Rule, Site};

/// A fault of a job's plan ([`Launch::faults`](super::Launch::faults)), and whether it has happened.
///
/// ```
/// use phalanx::launch::{Command, Launch};
///
/// let job = Launch::new(Command::new("sleep").args(["600"])).faults("kill@time=10ms".parse()?);
/// let summary = job.run()?;
/// assert_eq!(summary.exit_code(), 137);
/// assert_eq!(summary.faults[0].rule, "kill@time=10ms");
/// assert_eq!(summary.faults[0].happened[0].rank, Some(0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PlannedFault {
    /// The rule, as plans write it.
    pub rule: String,
    /// Each time that it has happened, in their order.
    pub happened: Vec<HappenedFault>,
}

/// A fault that a launcher has made happen: to whom, and when.
///
/// ```
/// use phalanx::launch::{Command, Launch, Nproc};
///
/// let job = Launch::new(Command::new("sleep").args(["600"])).nproc(Nproc::Count(3));
/// let summary = job.faults("kill@time=20ms:rank=last".parse()?).run()?;
/// let happened = &summary.faults[0].happened[0];
/// let root = summary.attempts[0].root_cause().unwrap();
/// assert_eq!((happened.attempt, happened.rank, happened.pid), (0, Some(2), root.pid));
/// assert!(happened.after.as_millis() >= 20 && happened.after <= root.lifetime);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HappenedFault {
    /// The attempt, from 0 on.
    pub attempt: usize,
    /// The rank of the worker; `None`: it was the launcher itself.
    pub rank: Option<usize>,
    /// The pid that the process had.
    pub pid: u32,
    /// When, by the wall clock, a moment before the signal was sent.
    pub at: SystemTime,
    /// How long after the start of the worker; of the attempt, where it was the launcher.
    pub after: Duration,
}

impl fmt::Display for PlannedFault {
    /// A line for each time that it has happened, or one that it has not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, happened } = self;
        if happened.is_empty() {
            return write!(f, "planned, but it has NOT happened: {rule}");
        }
        let lines = happened.iter().map(|happened| format!("happened on purpose: {rule}: {happened}"));
        f.write_str(&lines.collect::<Vec<_>>().join("\n"))
    }
}

impl fmt::Display for HappenedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attempt, rank, pid, after, .. } = self;
        let who = rank.map_or("the launcher".to_owned(), |rank| format!("rank {rank}"));
        write!(f, "{who} (pid {pid}) in attempt {attempt}, {:.3} s after its start", after.as_secs_f64())
    }
}

/// All faults of a job: what is planned, and what has come of it in all its attempts.
///
/// The attempt that runs asks which rules are in force, and whether one is due; it notes each that it has made happen.
#[derive(Debug)]
pub(super) struct Faults {
    /// `None`: none are planned.
    plan: Option<Plan>,
    nproc: usize,
    happened: Vec<Vec<HappenedFault>>,
}

impl Faults {
    pub(super) fn new(plan: Option<Plan>, nproc: usize) -> Self {
        let rules = plan.as_ref().map_or(0, |plan| plan.rules().len());
        Self { plan, nproc, happened: vec![Vec::new(); rules] }
    }

    /// The rules that are in force in an attempt, by number.
    pub(super) fn in_force(&self, attempt: usize) -> Vec<(usize, Rule)> {
        let rules = self.plan.iter().flat_map(|plan| plan.rules().iter().enumerate());
        rules
            .filter(|(_, rule)| rule.is_in_attempt(attempt))
            .map(|(number, rule)| (number, rule.clone()))
            .collect()
    }

    /// Which texts of lines are to be told, each once; none: no output needs to be read for faults.
    pub(super) fn lines(&self) -> Vec<String> {
        let rules = self.plan.iter().flat_map(Plan::rules);
        let line = |rule: &Rule| if let Site::Line(line) = rule.site() { Some(line.clone()) } else { None };
        rules.filter_map(line).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The files that may appear in an attempt, by rule. A relative path lies in the workers' directory.
    /// Their directories must be there when the attempt begins.
    pub(super) fn files(&self, attempt: usize) -> Vec<(usize, PathBuf)> {
        let file = |(number, rule): (usize, Rule)| match rule.site() {
            Site::File(path) => Some((number, path.clone())),
            _ => None,
        };
        self.in_force(attempt).into_iter().filter_map(file).collect()
    }

    /// Whether a rule that has come as far is still to happen to a rank (`None`: the launcher): its hit, and how often it may.
    pub(super) fn is_due(
        &self,
        (number, rule): (usize, &Rule),
        attempt: usize,
        rank: Option<usize>,
        hit: u64,
    ) -> bool {
        let Some(plan) = &self.plan else { return false };
        let happened = &self.happened[number];
        let in_attempt = happened.iter().filter(|fault| fault.attempt == attempt).count() as u64;
        rule.is_for_launcher() == rank.is_none()
            && rule.has_hit(hit)
            && rank.is_none_or(|rank| plan.is_for(number, rule, rank, self.nproc))
            && in_attempt < rule.most(self.nproc)
            && rule.max().is_none_or(|max| (happened.len() as u64) < max)
    }

    /// Notes that a rule of this number has happened. What finds out how workers end never reads it (tests/rooms.rs).
    pub(super) fn note(&mut self, number: usize, fault: HappenedFault) {
        self.happened[number].push(fault);
    }

    /// What is told of them in the job's summary: each rule with each time that it has happened, in the plan's order. A job in which one of
    /// them is empty has tried less than it was to try, and [`Summary::exit_code`](super::Summary::exit_code) says so.
    pub(super) fn summary(&self) -> Vec<PlannedFault> {
        let rules = self.plan.iter().flat_map(Plan::rules);
        let planned = rules.zip(&self.happened);
        planned
            .map(|(rule, happened)| PlannedFault { rule: rule.to_string(), happened: happened.clone() })
            .collect()
    }

    /// The plan as text, for the note at the start of the job; `None`: there is no plan.
    pub(super) fn text(&self) -> Option<String> {
        self.plan.as_ref().map(Plan::to_string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(attempt: usize, rank: usize) -> HappenedFault {
        HappenedFault { attempt, rank: Some(rank), pid: 7, at: SystemTime::UNIX_EPOCH, after: Duration::ZERO }
    }

    #[test]
    fn rules_are_due_as_often_as_they_say() {
        let plan = "kill@time=1s,term@line=step:rank=1:hit=2..:attempt=all:max=3,kill@file=a:role=launcher";
        let mut faults = Faults::new(Some(plan.parse().unwrap()), 4);
        let numbers =
            |attempt| faults.in_force(attempt).iter().map(|(number, _)| *number).collect::<Vec<_>>();
        assert_eq!([numbers(0), numbers(1)], [vec![0, 1, 2], vec![1]]);
        assert_eq!((faults.lines(), faults.files(0)), (vec!["step".to_owned()], vec![(2, "a".into())]));
        let rules = faults.in_force(0);
        let is_due = |faults: &Faults, number: usize, attempt, rank, hit| {
            faults.is_due((number, &rules[number].1), attempt, rank, hit)
        };
        // Whichever rank comes first, and no other.
        assert!(is_due(&faults, 0, 0, Some(3), 1) && !is_due(&faults, 0, 0, None, 1));
        faults.note(0, fault(0, 3));
        assert!(!is_due(&faults, 0, 0, Some(2), 1));
        // The third time in the next attempt.
        assert!(!is_due(&faults, 1, 0, Some(1), 1) && !is_due(&faults, 1, 0, Some(0), 2));
        [0, 0, 1].into_iter().for_each(|attempt| {
            assert!(is_due(&faults, 1, attempt, Some(1), 2));
            faults.note(1, fault(attempt, 1));
        });
        assert!(!is_due(&faults, 1, 2, Some(1), 2));
        assert!(is_due(&faults, 2, 0, None, 1) && !is_due(&faults, 2, 0, Some(0), 1));
        assert_eq!(faults.summary()[1].happened.len(), 3);
    }
}
