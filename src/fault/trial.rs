//! One run under a plan, and what is asked of it afterwards.

use std::fmt;
use std::thread;
use std::time::Duration;

use super::hang::Watch;
use super::variable::{self, PLAN, SECONDS};
use super::verdict::{self, Misdiagnosed, Told};
use super::{Fired, Plan, PlanError};
use crate::error::Error;
use crate::injection::Faults;
use crate::sys::clock::Moment;

/// How long a run may take, in seconds, unless a variable says it.
const PATIENCE: u64 = 60;

/// A run under a plan that has ended: [`observe`], [`trial`].
#[derive(Debug)]
pub struct Trial<T> {
    faults: Faults,
    result: Result<T, Error>,
    /// When it returned.
    ended: Moment,
    hung: Option<String>,
    left: Vec<String>,
}

impl<T> Trial<T> {
    /// What the run has returned.
    ///
    /// # Errors
    /// The run's own.
    pub fn result(&self) -> Result<&T, &Error> {
        self.result.as_ref()
    }

    /// The faults that have happened, in the order of time.
    #[must_use]
    pub fn fired(&self) -> Vec<Fired> {
        self.faults.fired()
    }

    /// The plan that was in force.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        self.faults.plan()
    }

    /// How long after the first fault that ends or fails a process the run has returned. Detection is part of it, and so is the teardown of
    /// the others where the run waits for it. `None`: no such fault has happened.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::time::Duration;
    /// use phalanx::{Options, fault, start_processes};
    ///
    /// fn work(rank: usize, _: ()) -> anyhow::Result<()> {
    ///     fault::point!("work");
    ///     if rank == 0 {
    ///         loop {
    ///             std::thread::park(); // until the teardown
    ///         }
    ///     }
    ///     Ok(())
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let trial = fault::trial("kill@work:rank=1", |faults| {
    ///     start_processes(work, (), Options::new(2).faults(faults))?.join()
    /// })?;
    /// assert!(trial.told_after().unwrap() < Duration::from_secs(60));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn told_after(&self) -> Option<Duration> {
        let first = self.fired().into_iter().find(verdict::must_fail)?;
        Some(self.ended.since(first.at))
    }

    /// Whether the run has told what has happened: for each rank, and which came first.
    ///
    /// # Errors
    /// What was told, and what was true.
    pub fn verdict(&self) -> Result<(), Misdiagnosed> {
        verdict::judge(&self.fired(), Told::by(&self.result))
    }

    /// Whether each rule has happened, the run has ended by itself, the verdict is right, and nothing is left.
    ///
    /// # Errors
    /// The first of these that does not hold.
    pub fn check(&self) -> Result<(), TrialError> {
        let mut rules = self.plan().rules().iter().enumerate();
        match rules.find(|(number, _)| self.faults.times(*number) == 0) {
            // A hang says more than that what comes behind it has not happened.
            Some((_, rule)) if self.hung.is_none() => {
                let told = Told::by(&self.result).to_string();
                Err(self.wrong(Wrong::Unfired { rule: rule.to_string(), told }))
            }
            _ => self.check_what_has_happened(),
        }
    }

    /// As [`check`](Self::check), of a run in which not all faults may have happened. One without any must have succeeded.
    pub(super) fn check_what_has_happened(&self) -> Result<(), TrialError> {
        let wrong = |what| Err(self.wrong(what));
        let is_without_faults = self.faults.count() == 0;
        match (&self.hung, self.verdict(), &self.result) {
            (Some(stood), ..) => wrong(Wrong::Hung(stood.clone())),
            (None, Err(misdiagnosed), _) => wrong(Wrong::Misdiagnosed(misdiagnosed)),
            (None, Ok(()), Err(error)) if is_without_faults => {
                wrong(Wrong::FailedWithoutFaults(error.to_string()))
            }
            (None, Ok(()), _) if !self.left.is_empty() => wrong(Wrong::Left(self.left.clone())),
            (None, Ok(()), _) => Ok(()),
        }
    }

    fn wrong(&self, what: Wrong) -> TrialError {
        TrialError::Wrong { what, plan: Box::new(self.plan().clone()), fired: self.fired() }
    }
}

/// Why a trial has failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrialError {
    /// The plan is none, or does not fit the program.
    #[error(transparent)]
    Plan(#[from] PlanError),

    /// The run did not go as it must.
    #[error("{what}\n{}", Again(.plan, .fired))]
    #[non_exhaustive]
    Wrong {
        /// What was wrong.
        what: Wrong,
        /// The plan that was in force.
        plan: Box<Plan>,
        /// The faults that have happened.
        fired: Vec<Fired>,
    },
}

impl TrialError {
    /// Whether another one is of the same kind.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Wrong { what, .. }, Self::Wrong { what: other, .. }) => {
                std::mem::discriminant(what) == std::mem::discriminant(other)
            }
            _ => false,
        }
    }
}

/// What was wrong with a run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Wrong {
    /// A rule never happened: its point was not reached so often, its time or file did not come, or in no rank that it names.
    #[error(
        "`{rule}` has not happened: what it waits for did not come so often in a rank that it names\nthe run was told: {told}"
    )]
    #[non_exhaustive]
    Unfired {
        /// The rule.
        rule: String,
        /// What the run has said, in words.
        told: String,
    },
    /// No fault has happened, and the run has failed with this text.
    #[error("the run has failed though no fault has happened: {0}")]
    FailedWithoutFaults(String),
    /// The run told something else than what has happened.
    #[error(transparent)]
    Misdiagnosed(Misdiagnosed),
    /// The run had not ended after 60 s, or after `PHALANX_FAULTS_SECONDS`, and its workers were killed. The text tells where all stood.
    #[error("the run hung, and its workers were killed; before that:\n{0}")]
    Hung(String),
    /// These processes were left when the run had ended.
    #[error("the run has left behind: {}", .0.join("; "))]
    Left(Vec<String>),
}

/// What has happened, and as the last line a command that repeats it.
struct Again<'a>(&'a Plan, &'a [Fired]);

impl fmt::Display for Again<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            [] => writeln!(f, "no fault has happened")?,
            fired => fired.iter().try_for_each(|fired| writeln!(f, "happened: {fired}"))?,
        }
        let thread = thread::current();
        // The harness of tests names its threads after them.
        match thread.name().filter(|&name| name != "main") {
            Some(test) => write!(f, "again: {PLAN}={} cargo test {test} -- --exact", self.0),
            None => write!(f, "again, with this in the environment: {PLAN}={}", self.0),
        }
    }
}

/// Runs something under a plan, and checks all that [`Trial::check`] does: each fault of the plan has happened, the run has ended, has told
/// of each rank what has happened to it and which came first, and has left no process behind.
///
/// `run` starts workers with [`Options::faults`](crate::Options::faults), and returns what it is told of them. Where the variable
/// `PHALANX_FAULTS` is set, its plan is run instead: the last line of a failure is a command that does so.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Options, fault, start_processes};
///
/// fn train(_rank: usize, steps: u64) -> anyhow::Result<()> {
///     for _ in 0..steps {
///         fault::point!("train.step");
///     }
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let trial = fault::trial("segv@train.step:rank=2:hit=5", |faults| {
///     start_processes(train, 9, Options::new(4).faults(faults))?.join()
/// })?;
/// assert_eq!(trial.fired()[0].rank, 2);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`TrialError`]. Its text tells what has happened beside what was told.
pub fn trial<T>(plan: &str, run: impl FnOnce(&Faults) -> Result<T, Error>) -> Result<Trial<T>, TrialError> {
    let trial = observe(plan, run)?;
    trial.check()?;
    Ok(trial)
}

/// Runs something under a plan as [`trial`] does, and checks nothing: for expectations of the program's own.
///
/// ```
/// # phalanx::auto_init!();
/// use std::time::Duration;
/// use phalanx::{Options, fault, start_processes};
///
/// fn work(_rank: usize, _: ()) -> anyhow::Result<()> {
///     fault::point!("work");
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let trial = fault::observe("hang@work:rank=0", |faults| {
///     let mut context = start_processes(work, (), Options::new(2).faults(faults))?;
///     let ended = context.join_timeout(Duration::from_millis(200))?;
///     context.kill()?;
///     Ok(ended)
/// })?;
/// assert!(!*trial.result().unwrap(), "a hang is no failure");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`PlanError`]: the plan is none, or does not fit the program.
pub fn observe<T>(plan: &str, run: impl FnOnce(&Faults) -> Result<T, Error>) -> Result<Trial<T>, PlanError> {
    of_plan(variable::plan()?.map_or_else(|| plan.parse(), Ok)?, run)
}

pub(super) fn of_plan<T>(
    plan: Plan,
    run: impl FnOnce(&Faults) -> Result<T, Error>,
) -> Result<Trial<T>, PlanError> {
    let faults = Faults::of(plan)?;
    let patience = variable::number(SECONDS)?.unwrap_or(PATIENCE);
    let watch = Watch::begin(&faults, Duration::from_secs(patience))?;
    let result = run(&faults);
    let ended = Moment::now();
    let (hung, left) = watch.end();
    Ok(Trial { faults, result, ended, hung, left })
}
