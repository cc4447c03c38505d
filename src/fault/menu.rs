//! What a plan may be drawn from, and how.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Action, Plan, PlanError};
use crate::injection::{admits, drawn};
use crate::point;

/// What [`chaos`](super::chaos()) draws its plans from.
///
/// ```
/// use std::time::Duration;
/// use phalanx::fault::Menu;
///
/// let menu = Menu::new(4).sites(["train.", "ckpt."]).actions(["kill", "segv", "slow=20ms"])?.time(Duration::from_secs(60));
/// # let _ = menu;
/// # Ok::<(), phalanx::fault::PlanError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Menu {
    nprocs: usize,
    actions: Vec<Action>,
    sites: Vec<String>,
    faults: RangeInclusive<u64>,
    hits: u64,
    pub(super) trials: u64,
    pub(super) time: Option<Duration>,
    pub(super) seed: Option<u64>,
    pub(super) regressions: PathBuf,
}

/// How long an action lasts that would have no end.
const LASTS: &str = ":for=20ms";

impl Menu {
    /// For a run with this number of ranks: deaths and short delays, at all points of the executable, one to three in a plan, at the
    /// first to the eighth hit; 20 plans.
    pub fn new(nprocs: usize) -> Self {
        Self {
            nprocs,
            actions: vec![
                Action::Kill,
                Action::Abort,
                Action::Segv,
                Action::Exit(0),
                Action::Exit(7),
                Action::Panic,
                Action::Hang,
                Action::Slow(Duration::from_millis(5)),
            ],
            sites: Vec::new(),
            faults: 1..=3,
            hits: 8,
            trials: 20,
            time: None,
            seed: None,
            regressions: "fault-regressions".into(),
        }
    }

    /// These actions, as in plans. What would have no end (`hang`, `deaf`, `spin`) lasts 20 ms.
    ///
    /// # Errors
    /// When one is no action.
    pub fn actions<'a>(mut self, actions: impl IntoIterator<Item = &'a str>) -> Result<Self, PlanError> {
        let parse = |text: &str| format!("{text}@a").parse::<Plan>().map(|plan| plan.rules()[0].action());
        self.actions = actions.into_iter().map(parse).collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// At these points, or prefixes of points that end in `.`; without it at all.
    pub fn sites<'a>(mut self, sites: impl IntoIterator<Item = &'a str>) -> Self {
        self.sites = sites.into_iter().map(str::to_owned).collect();
        self
    }

    /// How many faults a plan has.
    pub fn faults(mut self, number: RangeInclusive<u64>) -> Self {
        self.faults = number;
        self
    }

    /// Up to which hit of its point a fault is.
    pub fn hits(mut self, most: u64) -> Self {
        self.hits = most;
        self
    }

    /// How many plans are drawn.
    pub fn trials(mut self, number: u64) -> Self {
        self.trials = number;
        self
    }

    /// Draws plans for so long, however many these are.
    pub fn time(mut self, time: Duration) -> Self {
        (self.time, self.trials) = (Some(time), u64::MAX);
        self
    }

    /// The seed, by which the same plans are drawn again. Without it `PHALANX_FAULTS_SEED`, or else another one each time.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// The directory in which plans are kept that have failed; `fault-regressions` without it.
    pub fn regressions(mut self, directory: impl AsRef<Path>) -> Self {
        self.regressions = directory.as_ref().to_owned();
        self
    }

    /// The plan of a number.
    ///
    /// Each plan draws its own part of the actions and of the points first, and then its rules from these: what hides behind a frequent
    /// fault is so met in the plans that do not have it.
    ///
    /// # Errors
    /// When there is no point for any action.
    pub(super) fn draw(&self, seed: u64, trial: u64) -> Result<Plan, PlanError> {
        let mut dice = Dice { seed, trial, thrown: 0 };
        let choices = self.choices();
        if choices.is_empty() {
            let item = format!("{:?} at {:?}", self.actions, self.sites);
            return Err(PlanError::Syntax {
                item,
                reason: "no point admits any of these actions".to_owned(),
            });
        }
        let mut some: Vec<_> = choices.iter().filter(|_| dice.below(3) == 0).collect();
        if some.is_empty() {
            some.extend(&choices);
        }
        let (least, most) = (*self.faults.start().max(&1), *self.faults.end());
        let number = least + dice.below(most.saturating_sub(least) + 1);
        let rules: Vec<_> = (0..number)
            .map(|_| {
                let (action, point) = some[dice.below(some.len() as u64) as usize];
                let (rank, hit) = (dice.below(self.nprocs as u64), 1 + dice.below(self.hits));
                let lasts =
                    if matches!(action, Action::Hang | Action::Deaf | Action::Spin) { LASTS } else { "" };
                format!("{action}@{point}:rank={rank}:hit={hit}{lasts}")
            })
            .collect();
        rules.join(",").parse()
    }

    /// All actions with the points that admit them.
    fn choices(&self) -> Vec<(Action, &'static str)> {
        let is_meant = |name: &str| {
            self.sites.is_empty()
                || self
                    .sites
                    .iter()
                    .any(|site| name == site || site.ends_with('.') && name.starts_with(site.as_str()))
        };
        let points = point::all().iter().filter(|point| is_meant(point.name()));
        let mut choices: Vec<_> = points
            .flat_map(|point| {
                let admitted = self.actions.iter().filter(|action| admits(point, **action));
                admitted.map(|action| (*action, point.name()))
            })
            .collect();
        // The linker's order may differ from build to build; a seed is to mean the same plans.
        choices.sort_by_key(|(action, name)| (*name, action.to_string()));
        choices.dedup();
        choices
    }
}

/// Numbers that a seed and the number of a trial give.
struct Dice {
    seed: u64,
    trial: u64,
    thrown: u64,
}

impl Dice {
    /// A number below this one; 0 below 0 too.
    fn below(&mut self, end: u64) -> u64 {
        self.thrown += 1;
        drawn([self.seed, self.trial, self.thrown, 0], "") % end.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_gives_the_same_plans_and_another_seed_others() {
        let menu = Menu::new(4).sites(["queue.", "lock.", "start"]);
        let plans =
            |seed| (0..50).map(|trial| menu.draw(seed, trial).unwrap().to_string()).collect::<Vec<_>>();
        assert_eq!(plans(7), plans(7));
        assert_ne!(plans(7), plans(8));
        let different: std::collections::BTreeSet<_> = plans(7).into_iter().collect();
        assert!(different.len() > 45, "{different:?}");
    }

    #[test]
    fn plans_have_what_the_menu_has() {
        let menu = Menu::new(3).sites(["queue."]).actions(["kill", "hang"]).unwrap().faults(2..=3).hits(4);
        for trial in 0..200 {
            let plan = menu.draw(1, trial).unwrap();
            assert!((2..=3).contains(&plan.rules().len()), "{plan}");
            assert!(plan.check_for_functions().is_ok() && plan.check_ranks(3).is_ok(), "{plan}");
            for rule in plan.rules() {
                assert!(rule.site().to_string().starts_with("queue."), "{plan}");
                assert!(matches!(rule.action(), Action::Kill | Action::Hang), "{plan}");
                assert_eq!(rule.to_string().contains(":for=20ms"), rule.action() == Action::Hang, "{plan}");
            }
        }
        let error = Menu::new(3).sites(["nowhere."]).draw(1, 1).unwrap_err().to_string();
        assert!(error.contains("no point admits"), "{error}");
        assert!(Menu::new(3).actions(["kil"]).unwrap_err().to_string().contains("did you mean `kill`"));
    }
}
