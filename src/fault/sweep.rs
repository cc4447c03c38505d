//! A fault at each point, and at each of its hits, until none is left.

use std::collections::BTreeSet;
use std::fmt;

use super::trial::{self, TrialError};
use super::variable;
use super::{Faults, Plan, Rule};
use crate::error::Error;
use crate::injection::admits;
use crate::point;

/// What a sweep has done: how often each point was met.
///
/// As text it is a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep(Vec<Swept>);

/// One point of a [`Sweep`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swept {
    /// The name of the point.
    pub point: &'static str,
    /// At how many of its hits the fault has happened, one a run; 0: the run does not come there, or not in a rank that the rule names.
    pub hits: u64,
}

impl Sweep {
    /// The points that the plan names and that admit its fault, by name.
    #[must_use]
    pub fn points(&self) -> &[Swept] {
        &self.0
    }

    /// In how many runs a fault has happened.
    #[must_use]
    pub fn trials(&self) -> u64 {
        self.0.iter().map(|swept| swept.hits).sum()
    }

    /// The points at which none has, for a test that wants all.
    #[must_use]
    pub fn unreached(&self) -> Vec<&'static str> {
        self.0.iter().filter(|swept| swept.hits == 0).map(|swept| swept.point).collect()
    }
}

impl fmt::Display for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|swept| swept.point.len()).max().unwrap_or(0);
        self.0.iter().try_for_each(|Swept { point, hits }| writeln!(f, "{point:width$}  {hits:>6}"))
    }
}

/// Runs something again and again, with one fault each time: at the first hit of each point that the plan names, at the second, and so on,
/// until a run comes to its end without it. Each run is checked as by [`trial`](super::trial()); the one that ends a point has no fault, and must
/// succeed.
///
/// The plan is one rule; a prefix (`kill@train.:rank=1`) stands for all points below it that admit the fault. `hit=1..3` has it stop after
/// the third hit of each point, for points that are reached very often. Where `PHALANX_FAULTS` is set its plan is run once instead.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Options, fault, start_processes};
///
/// fn work(_rank: usize, items: u64) -> anyhow::Result<()> {
///     fault::point!("work.begin");
///     (0..items).for_each(|_| fault::point!("work.item"));
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let sweep = fault::sweep("exit=0@work.:rank=1", |faults| {
///     start_processes(work, 2, Options::new(2).faults(faults))?.join()
/// })?;
/// assert_eq!(sweep.to_string(), "work.begin       1\nwork.item        2\n");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// The first run that goes wrong ([`TrialError`]).
pub fn sweep<T>(plan: &str, mut run: impl FnMut(&Faults) -> Result<T, Error>) -> Result<Sweep, TrialError> {
    if let Some(plan) = variable::plan()? {
        trial::of_plan(plan, &mut run)?.check()?;
        return Ok(Sweep(Vec::new()));
    }
    let plan: Plan = plan.parse()?;
    plan.check_for_functions()?;
    let rule = plan.one_rule()?;
    let points = point::all().iter().filter(|point| rule.is_at(point.name()) && admits(point, rule.action()));
    let names: BTreeSet<_> = points.map(point::Point::name).collect();
    let swept = names.into_iter().map(|point| {
        let hits = sweep_point(&plan, (rule, point), &mut run)?;
        Ok(Swept { point, hits })
    });
    swept.collect::<Result<_, TrialError>>().map(Sweep)
}

/// At how many hits of a point the fault has happened.
fn sweep_point<T>(
    plan: &Plan,
    (rule, point): (&Rule, &str),
    run: &mut impl FnMut(&Faults) -> Result<T, Error>,
) -> Result<u64, TrialError> {
    let mut met = 0;
    for hit in rule.swept_hits() {
        let trial = trial::of_plan(plan.with(rule.at(point, hit)), &mut *run)?;
        if trial.fired().is_empty() {
            trial.check_what_has_happened()?;
            break;
        }
        trial.check()?;
        met += 1;
    }
    Ok(met)
}
