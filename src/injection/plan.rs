//! Pure: a plan of faults, as text and as data.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::action::Action;
use super::error::PlanError;
use super::set::{Hits, Ranks};
use super::text::{self, number};

/// How many rules a plan may have.
const MOST_RULES: usize = 64;

/// Faults that are to happen, and where: one or more rules, separated by commas.
///
/// ```text
/// kill@train.step:rank=1:hit=3            rank 1 is killed at the third step
/// stop@train.step:rank=last               the last rank stops at its first step
/// error=ENOSPC@ckpt.write:hit=2..         from the second one on each checkpoint fails
/// slow=200ms@loader.:one-in=10,seed=7     one in ten of all points below `loader.` takes 200 ms
/// exit=0@end:rank=2                       rank 2 exits when its function has returned
/// ```
///
/// A rule is an [`Action`], `@`, a point or a prefix of points that ends in `.`, and conditions that must all hold:
///
/// | condition | holds for | without it |
/// |---|---|---|
/// | `rank=` | `2`, `0+4..6`, `3..`, `all`, `last`, `minority`, `majority`; `any`: whoever comes first; `one`: drawn by the seed | `any` |
/// | `hit=` | `3`, `2..`, `2..8`, `1..9/2` of the hits in each process, from 1 on | 1; with `one-in`, all |
/// | `one-in=` | `10`: one hit of ten on average, drawn by the seed | each hit |
/// | `max=` | the first ones, in all processes together | as many as `rank` and `hit` name |
/// | `for=` | how long `hang`, `deaf` and `spin` last | for ever |
///
/// `seed=7` is an item of its own; without it the seed is 0. What is drawn depends on seed, rule, rank, point and hit alone: the same
/// plan meets the same hits again, whatever other threads do.
///
/// No character in a plan needs quotes in a shell, in YAML or in a batch script. Its text is what [`Display`](fmt::Display) writes and
/// [`FromStr`] reads, and serde has it as that text.
///
/// ```
/// use phalanx::fault::{Action, Plan};
///
/// let plan: Plan = "stop@train.step:hit=2:rank=1".parse()?;
/// assert_eq!(plan.to_string(), "stop@train.step:rank=1:hit=2");
/// assert_eq!(plan.rules()[0].action(), Action::Stop);
/// assert_eq!(plan.rules()[0].site(), "train.step");
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
    pub(super) site: String,
    pub(super) ranks: Ranks,
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
            [Rule { one_in: None, .. }] => Ok(&self.rules[0]),
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

    /// Where: the name of a point, or a prefix of names that ends in `.`.
    #[must_use]
    pub fn site(&self) -> &str {
        &self.site
    }

    /// Whether a point of this name is one of its.
    pub(crate) fn is_at(&self, point: &str) -> bool {
        if self.site.ends_with('.') { point.starts_with(&self.site) } else { point == self.site }
    }

    /// The same fault at one point, and at one of its hits.
    pub(crate) fn at(&self, point: &str, hit: u64) -> Self {
        let hits = Some(Hits { first: hit, last: Some(hit), step: 1 });
        Self { site: point.to_owned(), hits, one_in: None, ..self.clone() }
    }

    /// The hits over which a sweep goes: without `hit=` all.
    pub(crate) fn swept_hits(&self) -> impl Iterator<Item = u64> {
        let hits = self.hits.unwrap_or(Hits::ALL);
        (hits.first..=hits.last.unwrap_or(u64::MAX)).step_by(usize::try_from(hits.step).unwrap_or(usize::MAX))
    }

    pub(super) fn hits(&self) -> Hits {
        self.hits.unwrap_or(if self.one_in.is_some() { Hits::ALL } else { Hits::FIRST })
    }

    /// How often it may happen in a context of `nprocs` ranks.
    pub(super) fn most(&self, nprocs: usize) -> u64 {
        let named = || Some(self.hits().count()?.saturating_mul(self.ranks.count(nprocs) as u64));
        self.max.or_else(named).unwrap_or(u64::MAX)
    }

    fn parse(item: &str) -> Result<Self, String> {
        let (action, rest) =
            item.split_once('@').ok_or("it is no rule: a rule is action@point, as kill@train.step")?;
        let mut parts = rest.split(':');
        let site = parts.next().unwrap_or_default();
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if site.is_empty() || site == "." || !site.chars().all(is_name) {
            return Err(format!(
                "`{site}` is no name of a point: these have lower-case letters, digits, `-` and `.`"
            ));
        }
        let mut rule = Self {
            action: Action::parse(action)?,
            site: site.to_owned(),
            ranks: Ranks::Any,
            hits: None,
            one_in: None,
            max: None,
            time: None,
        };
        let mut known = Vec::new();
        for condition in parts {
            let (key, value) =
                condition.split_once('=').ok_or_else(|| format!("`{condition}` has no value"))?;
            if known.contains(&key) {
                return Err(format!("`{key}` is there twice"));
            }
            known.push(key);
            rule.add(key, value)?;
        }
        Ok(rule)
    }

    fn add(&mut self, key: &str, value: &str) -> Result<(), String> {
        const KEYS: [&str; 5] = ["rank", "hit", "one-in", "max", "for"];
        let positive = |what| match number::<u64>(value, what) {
            Ok(0) => Err(format!("`{key}=0` would never happen")),
            other => other,
        };
        match key {
            "rank" => self.ranks = Ranks::parse(value)?,
            "hit" => self.hits = Some(Hits::parse(value)?),
            "one-in" => self.one_in = Some(positive("number of hits")?),
            "max" => self.max = Some(positive("number of times")?),
            "for" if self.action.takes_time() => self.time = Some(text::duration(value)?),
            "for" => return Err("`for` is for hang, deaf and spin".to_owned()),
            other => {
                let nearest = text::nearest(other, KEYS).map(|key| format!(": did you mean `{key}`?"));
                let keys = || format!("; there are {}", KEYS.join(" "));
                return Err(format!("there is no condition `{other}`{}", nearest.unwrap_or_else(keys)));
            }
        }
        Ok(())
    }
}

impl FromStr for Plan {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let (mut seed, mut rules) = (None, Vec::new());
        for item in text.split(',') {
            let syntax = |reason: String| PlanError::Syntax { item: item.to_owned(), reason };
            match item.strip_prefix("seed=") {
                Some(_) if seed.is_some() => return Err(syntax("a plan has one seed".to_owned())),
                Some(value) => seed = Some(number(value, "seed").map_err(syntax)?),
                None if rules.len() == MOST_RULES => {
                    return Err(syntax(format!("a plan has at most {MOST_RULES} rules")));
                }
                None => rules.push(Rule::parse(item).map_err(syntax)?),
            }
        }
        if rules.is_empty() {
            let reason = "the plan has no rule".to_owned();
            return Err(PlanError::Syntax { item: text.to_owned(), reason });
        }
        Ok(Self { seed: seed.unwrap_or(0), rules })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules: Vec<_> = self.rules.iter().map(Rule::to_string).collect();
        f.write_str(&rules.join(","))?;
        if self.seed == 0 { Ok(()) } else { write!(f, ",seed={}", self.seed) }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { action, site, ranks, hits, one_in, max, time } = self;
        write!(f, "{action}@{site}")?;
        if *ranks != Ranks::Any {
            write!(f, ":rank={ranks}")?;
        }
        hits.map_or(Ok(()), |hits| write!(f, ":hit={hits}"))?;
        one_in.map_or(Ok(()), |number| write!(f, ":one-in={number}"))?;
        max.map_or(Ok(()), |max| write!(f, ":max={max}"))?;
        time.map_or(Ok(()), |time| write!(f, ":for={}", text::of_duration(time)))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn action() -> impl Strategy<Value = Action> {
        let plain = ["kill", "term", "int", "segv", "bus", "abort", "overflow", "panic", "error", "stop"];
        prop_oneof![
            prop::sample::select(plain.to_vec()).prop_map(|name| Action::parse(name).unwrap()),
            any::<u8>().prop_map(|code| Action::Exit(code.into())),
            prop::sample::select(vec![libc::ENOSPC, libc::EMFILE]).prop_map(Action::Error),
            any::<u64>().prop_map(|nanos| Action::Slow(Duration::from_nanos(nanos))),
        ]
    }

    fn ranks() -> impl Strategy<Value = Ranks> {
        let words =
            prop::sample::select(vec![Ranks::Any, Ranks::All, Ranks::One, Ranks::Last, Ranks::Minority]);
        let range = (0..9_usize, 0..9_usize).prop_map(|(first, more)| first..=first + more);
        let list = (prop::collection::vec(range, 1..4), prop::option::of(0..99_usize));
        prop_oneof![words, list.prop_map(|(ranges, open)| Ranks::List { ranges, open })]
    }

    fn hits() -> impl Strategy<Value = Hits> {
        (1..u64::MAX / 2, prop::option::of(0..u64::MAX / 4), 1..9_u64).prop_map(|(first, more, step)| Hits {
            first,
            last: more.map(|more| first + more),
            step,
        })
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let site = "[a-z][a-z0-9-]{0,5}(\\.[a-z0-9-]{1,4}){0,2}\\.?";
        let numbers = prop::option::of(1..u64::MAX);
        (action(), site, ranks(), prop::option::of(hits()), numbers.clone(), numbers).prop_map(
            |(action, site, ranks, hits, one_in, max)| Rule {
                action,
                site,
                ranks,
                hits,
                one_in,
                max,
                time: None,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_as_the_same_plan(seed: u64, rules in prop::collection::vec(rule(), 1..5)) {
            let plan = Plan { seed, rules };
            prop_assert_eq!(plan.to_string().parse::<Plan>(), Ok(plan.clone()));
            let needs_quotes = |c: char| c.is_whitespace() || ";$!()<>|&*'\"\\`#~?[]{}".contains(c);
            prop_assert!(!plan.to_string().contains(needs_quotes));
        }

        #[test]
        fn any_text_is_a_plan_or_an_error(text: String) {
            let _ = text.parse::<Plan>();
        }

        #[test]
        fn text_that_is_nearly_a_plan_is_a_plan_or_an_error(text in "[a-z=@:.,0-9+/-]{0,40}") {
            if let Ok(plan) = text.parse::<Plan>() {
                prop_assert_eq!(plan.to_string().parse::<Plan>(), Ok(plan));
            }
        }
    }

    #[test]
    fn time_is_for_what_may_take_one() {
        for text in ["hang@a:for=2s", "spin@a:rank=1:for=1ms", "deaf@a:hit=2:for=1500us"] {
            assert_eq!(text.parse::<Plan>().unwrap().to_string(), text);
        }
        assert!("kill@a:for=2s".parse::<Plan>().unwrap_err().to_string().contains("hang, deaf and spin"));
    }

    #[test]
    fn error_names_the_item_and_what_was_meant() {
        for (text, expected) in [
            ("", "no rule"),
            ("seed=1", "no rule"),
            ("kill", "action@point"),
            ("kil@a", "did you mean `kill`"),
            ("kill@", "no name of a point"),
            ("kill@A", "no name of a point"),
            ("kill@a:rnak=1", "did you mean `rank`"),
            ("kill@a:hit", "has no value"),
            ("kill@a:hit=1:hit=2", "twice"),
            ("kill@a:max=0", "never happen"),
            ("kill@a,seed=1,seed=2", "one seed"),
            ("kill=3@a", "takes no value"),
            ("exit@a", "needs a value"),
            ("exit=256@a", "exit code"),
            ("error=ENOSPACE@a", "did you mean `ENOSPC`"),
            ("kill@a,stop@b:rank=1..0", "no ranks"),
        ] {
            let error = text.parse::<Plan>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let many = vec!["kill@a"; MOST_RULES + 1].join(",");
        assert!(many.parse::<Plan>().unwrap_err().to_string().contains("at most 64 rules"));
    }

    #[test]
    fn fault_happens_as_often_as_ranks_and_hits_are_named() {
        let most = |text: &str| text.parse::<Plan>().unwrap().rules[0].most(4);
        assert_eq!(["kill@a", "kill@a:rank=all", "kill@a:rank=1+3:hit=2..4"].map(most), [1, 4, 6]);
        assert_eq!(["slow=1s@a:one-in=5", "error@a:hit=2.."].map(most), [u64::MAX; 2]);
        assert_eq!(["kill@a:rank=all:max=2", "kill@a:rank=one"].map(most), [2, 1]);
    }
}
