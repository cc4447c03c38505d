//! Plans that are drawn at random, and made smaller when one fails.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use super::menu::Menu;
use super::trial::{self, Trial, TrialError};
use super::{Faults, Plan};
use crate::error::Error;
use crate::sys::clock::Moment;

/// The variable that has the seed.
const SEED: &str = "PHALANX_FAULTS_SEED";
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
    happened: BTreeMap<(&'static str, String), u64>,
}

impl Chaos {
    /// How often each action, as plans write it, has happened at each point.
    pub fn happened(&self) -> impl Iterator<Item = (&'static str, &str, u64)> {
        self.happened.iter().map(|((point, action), times)| (*point, action.as_str(), *times))
    }

    fn count<T>(&mut self, trial: &Trial<T>) {
        self.trials += 1;
        for fired in trial.fired() {
            *self.happened.entry((fired.point, fired.action.to_string())).or_default() += 1;
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
#[error(
    "plan {number} of seed {seed} has failed: {drawn}\nrun again it failed {failed} times of {AGAIN}{}\n{error}",
    if *failed == AGAIN { ", and was made smaller" } else { ": it depends on the order of things too" }
)]
#[non_exhaustive]
pub struct ChaosError {
    /// The seed.
    pub seed: u64,
    /// The number of the plan, from 0; of one that was kept from an earlier failure, that in its file.
    pub number: u64,
    /// The plan as it was drawn.
    pub drawn: Box<Plan>,
    /// How often it has failed of three more runs.
    pub failed: u64,
    /// The failure of the smallest plan that fails in the same way; its text ends with a command that repeats it.
    #[source]
    pub error: Box<TrialError>,
}

/// Runs something under plans that are drawn at random, and checks each run as [`trial`](super::trial()) does, but for faults that do not happen:
/// a drawn hit need not be reached.
///
/// The seed is printed to stderr before the first run. A plan that fails is run again three times. If it fails each time it is made smaller,
/// as long as it fails in the same way, and kept in a file of [`Menu::regressions`], named after the test's thread, whose plans are run
/// first the next time.
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
/// [`ChaosError`], with the smallest plan that fails.
pub fn chaos<T>(menu: &Menu, mut run: impl FnMut(&Faults) -> Result<T, Error>) -> Result<Chaos, ChaosError> {
    let seed = menu.seed.or_else(seed_of_environment).unwrap_or_else(|| Moment::now().as_nanos());
    let _ = writeln!(std::io::stderr(), "phalanx: {SEED}={seed} draws the same plans again");
    let mut chaos = Chaos { seed, trials: 0, happened: BTreeMap::new() };
    let deadline = menu.time.and_then(|time| Moment::now().checked_add(time));
    let kept = kept(menu).into_iter().map(|plan| plan.parse().map_err(TrialError::from));
    let drawn = (0..menu.trials).map(|number| menu.draw(seed, number).map_err(TrialError::from));
    let kept: Vec<_> = kept.collect();
    let numbers = (0..kept.len() as u64).chain(0..);
    for (number, plan) in numbers.zip(kept.into_iter().chain(drawn)) {
        if deadline.is_some_and(|deadline| Moment::now() >= deadline) {
            break;
        }
        let failed = |drawn: &Plan, failed, error| ChaosError {
            seed,
            number,
            drawn: Box::new(drawn.clone()),
            failed,
            error: Box::new(error),
        };
        let plan: Plan = plan.map_err(|error| failed(&nothing(), 0, error))?;
        let trial = trial::of_plan(plan.clone(), &mut run).map_err(|error| failed(&plan, 0, error.into()))?;
        chaos.count(&trial);
        if let Err(error) = trial.check_what_has_happened() {
            let (times, error) = pursue(&plan, error, &mut run);
            if let TrialError::Wrong { plan, .. } = &error {
                keep(menu, plan);
            }
            return Err(failed(&plan, times, error));
        }
    }
    Ok(chaos)
}

fn seed_of_environment() -> Option<u64> {
    std::env::var(SEED).ok()?.parse().ok()
}

/// Stands for a plan that is none.
fn nothing() -> Plan {
    "kill@a".parse().expect("it is a plan")
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

/// Where the plans of this test are kept; `None`: its thread has no name.
fn file(menu: &Menu) -> Option<PathBuf> {
    let thread = std::thread::current();
    let name = thread.name().filter(|&name| name != "main")?.replace("::", "-");
    Some(menu.regressions.join(name + ".plan"))
}

/// The plans that were kept. A line that begins with # is a remark.
fn kept(menu: &Menu) -> Vec<String> {
    let text = file(menu).and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// Keeps a plan. Where that cannot be written it is in the failure's text alone.
fn keep(menu: &Menu, plan: &Plan) {
    let Some(file) = file(menu).filter(|_| !kept(menu).contains(&plan.to_string())) else { return };
    let _ = fs::create_dir_all(&menu.regressions);
    let open = fs::OpenOptions::new().append(true).create(true).open(file);
    let _ = open.and_then(|mut file| writeln!(file, "{plan}"));
}
