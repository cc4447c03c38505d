//! Pure: a plan of faults, as data.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::action::Action;
use super::error::PlanError;
use super::set::{Attempts, Hits, Ranks};
use super::site::Site;

/// Faults that are to happen, and where: one or more rules, separated by commas.
///
/// ```text
/// kill@train.step:rank=1:hit=3            rank 1 is killed at the third step
/// stop@train.step:rank=last               the last rank stops at its first step
/// error=ENOSPC@ckpt.write:hit=2..         from the second one on each checkpoint fails
/// slow=200ms@loader.:one-in=10,seed=7     one in ten of all points below `loader.` takes 200 ms
/// exit=0@end:rank=2                       rank 2 exits when its function has returned
/// kill@time=1.5s:rank=0:attempt=0..1      rank 0 is killed 1.5 s after its start, and once more after a restart
/// ```
///
/// A rule is an [`Action`], `@`, a [`Site`], and conditions that must all hold:
///
/// | condition | holds for | without it |
/// |---|---|---|
/// | `rank=` | `2`, `0+4..6`, `3..`, `all`, `last`, `minority`, `majority`; `any`: whoever comes first; `one`: drawn by the seed | `any` |
/// | `hit=` | `3`, `2..`, `2..8`, `1..9/2` of the hits in each process, from 1 on | 1; with `one-in`, all |
/// | `one-in=` | `10`: one hit of ten on average, drawn by the seed | each hit |
/// | `attempt=` | `1`, `0..2`, `all`: of a job that is restarted, from 0 on | 0 |
/// | `role=` | `worker`; `launcher`: the launcher itself, which has no rank | `worker` |
/// | `max=` | the first ones, in all processes together | as many as `rank` and `hit` name |
/// | `for=` | how long `hang`, `deaf` and `spin` last, and `stop` where the launcher does it | for ever |
///
/// `seed=7` is an item of its own; without it the seed is 0. What is drawn depends on seed, rule, rank, point and hit alone: the same
/// plan meets the same hits again, whatever other threads do.
///
/// No character in a plan needs quotes in a shell, in YAML or in a batch script. Its text is what [`Display`](std::fmt::Display) writes and
/// [`FromStr`](std::str::FromStr) reads, and serde has it as that text.
///
/// ```
/// use phalanx::fault::{Action, Plan};
///
/// let plan: Plan = "stop@train.step:hit=2:rank=1".parse()?;
/// assert_eq!(plan.to_string(), "stop@train.step:rank=1:hit=2");
/// assert_eq!(plan.rules()[0].action(), Action::Stop);
/// assert_eq!(plan.rules()[0].site().to_string(), "train.step");
/// # Ok::<(), phalanx::fault::PlanError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub(super) seed: u64,
    pub(super) rules: Vec<Rule>,
}

/// One fault of a [`Plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub(super) action: Action,
    pub(super) site: Site,
    pub(super) ranks: Ranks,
    /// `None`: the first one.
    pub(super) attempts: Option<Attempts>,
    /// Whether it is for the launcher itself, and for no rank.
    pub(super) is_for_launcher: bool,
    /// `None`: the first one, or all if `one_in` is there.
    pub(super) hits: Option<Hits>,
    pub(super) one_in: Option<u64>,
    pub(super) max: Option<u64>,
    pub(super) time: Option<Duration>,
}

impl Plan {
    /// Its rules, in order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Its rule, for a sweep.
    ///
    /// # Errors
    /// When there are several, or its hits are drawn.
    pub(crate) fn one_rule(&self) -> Result<&Rule, PlanError> {
        let syntax =
            |reason: &str| Err(PlanError::Syntax { item: self.to_string(), reason: reason.to_owned() });
        match &self.rules[..] {
            [Rule { one_in: None, site: Site::Point(_), .. }] => Ok(&self.rules[0]),
            [Rule { one_in: None, .. }] => syntax("a sweep goes over points"),
            [_] => syntax("a sweep goes over the hits one by one, so its rule has no one-in="),
            _ => syntax("a sweep has one rule"),
        }
    }

    /// The same seed with another rule alone.
    pub(crate) fn with(&self, rule: Rule) -> Self {
        Self { seed: self.seed, rules: vec![rule] }
    }
}

impl Rule {
    /// What happens.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// Where it happens.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Whether a point of this name is one of its.
    pub(crate) fn is_at(&self, point: &str) -> bool {
        self.site.is_at(point)
    }

    /// The same fault at one point, and at one of its hits.
    pub(crate) fn at(&self, point: &str, hit: u64) -> Self {
        let hits = Some(Hits { first: hit, last: Some(hit), step: 1 });
        Self { site: Site::Point(point.to_owned()), hits, one_in: None, ..self.clone() }
    }

    /// The hits over which a sweep goes: without `hit=` all.
    pub(crate) fn swept_hits(&self) -> impl Iterator<Item = u64> {
        let hits = self.hits.unwrap_or(Hits::ALL);
        (hits.first..=hits.last.unwrap_or(u64::MAX)).step_by(usize::try_from(hits.step).unwrap_or(usize::MAX))
    }

    pub(super) fn hits(&self) -> Hits {
        self.hits.unwrap_or(if self.one_in.is_some() { Hits::ALL } else { Hits::FIRST })
    }

    /// How often it may happen among `nprocs` ranks, in one attempt.
    pub(crate) fn most(&self, nprocs: usize) -> u64 {
        let ranks = if self.is_for_launcher { 1 } else { self.ranks.count(nprocs) as u64 };
        let named = || Some(self.hits().count()?.saturating_mul(ranks));
        self.max.or_else(named).unwrap_or(u64::MAX)
    }

    /// How often it may happen in all, if the plan says so.
    pub(crate) fn max(&self) -> Option<u64> {
        self.max
    }

    /// Whether it is for the launcher itself.
    pub(crate) fn is_for_launcher(&self) -> bool {
        self.is_for_launcher
    }

    /// Whether a hit of this number is meant, if none are drawn.
    pub(crate) fn has_hit(&self, hit: u64) -> bool {
        self.hits().has(hit)
    }

    /// After what time what it does is over; `None`: it is not, or there is nothing that could be over.
    pub(crate) fn lasts(&self) -> Option<Duration> {
        self.time
    }

    /// Whether it is for an attempt of this number.
    pub(crate) fn is_in_attempt(&self, number: usize) -> bool {
        self.attempts.as_ref().map_or(number == 0, |attempts| attempts.has(number))
    }
}

impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Plan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
