//! Plans that are drawn at random, and made smaller when one fails.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::time::Duration;

use super::menu::Menu;
use super::regressions::Regressions;
use super::trial::{self, Trial, TrialError};
use super::variable::{self, SEED};
use super::{Faults, Plan, PlanError};
use crate::error::Error;
use crate::sys::clock::Moment;

/// How often a plan that has failed is run again, to see whether it fails each time.
const AGAIN: u64 = 3;
/// How many runs, and how much time, a plan may be made smaller for.
const RUNS: usize = 200;
const TIME: Duration = Duration::from_secs(60);

/// What [`chaos`] has done. As text a table: how often each action has happened at each point.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chaos {
    /// The seed of the plans.
    pub seed: u64,
    /// How many plans were run, those that were kept from earlier failures among them.
    pub trials: u64,
    happened: BTreeMap<(String, String), u64>,
}

impl Chaos {
    /// How often each action, as plans write it, has happened at each point.
    pub fn happened(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        self.happened.iter().map(|((point, action), times)| (point.as_str(), action.as_str(), *times))
    }

    fn count<T>(&mut self, trial: &Trial<T>) {
        self.trials += 1;
        for fired in trial.fired() {
            *self.happened.entry((fired.site.to_string(), fired.action.to_string())).or_default() += 1;
        }
    }
}

impl fmt::Display for Chaos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} plans of seed {}", self.trials, self.seed)?;
        let width = self.happened.keys().map(|(point, _)| point.len()).max().unwrap_or(0);
        self.happened()
            .try_for_each(|(point, action, times)| writeln!(f, "{point:width$}  {action:10} {times:>6}"))
    }
}

/// Why [`chaos`] has failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChaosError {
    /// A plan is none, or does not fit the program: that of the menu, of `PHALANX_FAULTS`, or one that was kept.
    #[error("{origin}: {error}")]
    #[non_exhaustive]
    Plan {
        /// Where the plan is from, in words.
        origin: String,
        /// What is wrong with it.
        #[source]
        error: PlanError,
    },
    /// The plan of `PHALANX_FAULTS` has failed.
    #[error(transparent)]
    Asked(Box<TrialError>),
    /// A plan that was drawn, or kept from an earlier failure, has failed.
    #[error(transparent)]
    Failed(Box<ChaosFailure>),
}

/// A plan that has failed, and what was made of it.
#[derive(Debug, thiserror::Error)]
#[error(
    "{origin} has failed: {drawn}\nrun again it failed {failed} times of {AGAIN}{}; {kept}\n{error}",
    if *failed == AGAIN { ", and was made smaller" } else { ": it depends on the order of things too" }
)]
#[non_exhaustive]
pub struct ChaosFailure {
    /// Where the plan is from, in words: its number and the seed, or the file in which it was kept.
    pub origin: String,
    /// The plan as it was drawn.
    pub drawn: Plan,
    /// How often it has failed of three more runs.
    pub failed: u64,
    /// Where the smallest plan is kept, in words, or why it is not.
    pub kept: String,
    /// The failure of the smallest plan that fails in the same way; its text ends with a command that repeats it.
    #[source]
    pub error: TrialError,
}

/// Runs something under plans that are drawn at random, and checks each run as [`trial`](super::trial()) does, but for faults that do not happen:
/// a drawn hit need not be reached.
///
/// The seed is printed to stderr before the first run. A plan that fails is run again three times. If it fails each time it is made smaller,
/// as long as it fails in the same way. What is left is kept in a file of [`Menu::regressions`], named after the test's thread, whose plans
/// are run first the next time. Where the variable `PHALANX_FAULTS` is set, its plan is run once instead.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Options, fault, start_processes};
///
/// fn work(_rank: usize, items: u64) -> anyhow::Result<()> {
///     (0..items).for_each(|_| fault::point!("work.item"));
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// # let directory = tempfile::tempdir()?;
/// let menu = fault::Menu::new(2).sites(["work."]).trials(10).regressions(directory.path());
/// let chaos = fault::chaos(&menu, |faults| start_processes(work, 4, Options::new(2).faults(faults))?.join())?;
/// assert_eq!(chaos.trials, 10);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`ChaosError`], with the smallest plan that fails. A value of `PHALANX_FAULTS_SEED` that is no number is one, too.
pub fn chaos<T>(menu: &Menu, mut run: impl FnMut(&Faults) -> Result<T, Error>) -> Result<Chaos, ChaosError> {
    let of_environment = |error| ChaosError::Plan { origin: "the environment".to_owned(), error };
    let seed = menu.seed.map_or_else(|| variable::number(SEED), |seed| Ok(Some(seed)));
    let seed = seed.map_err(of_environment)?.unwrap_or_else(|| Moment::now().as_nanos());
    let mut chaos = Chaos { seed, trials: 0, happened: BTreeMap::new() };
    if let Some(plan) = variable::plan().map_err(of_environment)? {
        let trial = trial::of_plan(plan, &mut run).map_err(of_environment)?;
        chaos.count(&trial);
        return trial.check().map(|()| chaos).map_err(|error| ChaosError::Asked(Box::new(error)));
    }
    let _ = writeln!(std::io::stderr(), "phalanx: {SEED}={seed} draws the same plans again");
    let deadline = menu.time.and_then(|time| Moment::now().checked_add(time));
    let regressions = Regressions::of(menu);
    let drawn =
        (0..menu.trials).map(|number| (format!("plan {number} of seed {seed}"), menu.draw(seed, number)));
    for (origin, plan) in regressions.plans().into_iter().chain(drawn) {
        if deadline.is_some_and(|deadline| Moment::now() >= deadline) {
            break;
        }
        let trial = plan.and_then(|plan| trial::of_plan(plan, &mut run));
        let trial = match trial {
            Ok(trial) => trial,
            Err(error) => return Err(ChaosError::Plan { origin, error }),
        };
        chaos.count(&trial);
        if let Err(error) = trial.check_what_has_happened() {
            let (failed, error) = pursue(trial.plan(), error, &mut run);
            let kept = regressions.keep(&error);
            let drawn = trial.plan().clone();
            return Err(ChaosError::Failed(Box::new(ChaosFailure { origin, drawn, failed, kept, error })));
        }
    }
    Ok(chaos)
}

/// Runs a plan that has failed again; makes it smaller, if it fails each time. Returns how often it has failed, and how the smallest fails.
fn pursue<T>(
    plan: &Plan,
    mut error: TrialError,
    run: &mut impl FnMut(&Faults) -> Result<T, Error>,
) -> (u64, TrialError) {
    let mut failure =
        |plan: &Plan| trial::of_plan(plan.clone(), &mut *run).ok()?.check_what_has_happened().err();
    let failed = (0..AGAIN).filter(|_| failure(plan).is_some()).count() as u64;
    if failed < AGAIN {
        return (failed, error);
    }
    let deadline = Moment::now().checked_add(TIME);
    let (mut smallest, mut runs) = (plan.clone(), 0);
    'smaller: loop {
        for candidate in smallest.simpler() {
            if runs == RUNS || deadline.is_some_and(|deadline| Moment::now() >= deadline) {
                break 'smaller;
            }
            runs += 1;
            // In another way it would be another fault of the program.
            if let Some(same) = failure(&candidate).filter(|other| other.is_like(&error)) {
                (smallest, error) = (candidate, same);
                continue 'smaller;
            }
        }
        break;
    }
    (failed, error)
}
