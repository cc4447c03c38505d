//! Pure: the text of a plan.

use std::fmt;
use std::str::FromStr;

use super::action::Action;
use super::error::PlanError;
use super::plan::{Plan, Rule};
use super::set::{Attempts, Hits, Ranks};
use super::site::Site;
use super::text::{self, number};

/// How many rules a plan may have.
const MOST_RULES: usize = 64;

impl Rule {
    fn parse(item: &str) -> Result<Self, String> {
        let (action, rest) =
            item.split_once('@').ok_or("it is no rule: a rule is action@point, as kill@train.step")?;
        let mut parts = rest.split(':');
        let site = parts.next().unwrap_or_default();
        let mut rule = Self {
            action: Action::parse(action)?,
            site: Site::parse(site)?,
            ranks: Ranks::Any,
            attempts: None,
            is_for_launcher: false,
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

    /// Whether it may be over after a time. A process that has stopped itself cannot continue itself.
    fn may_end(&self) -> bool {
        self.action.takes_time() || self.action == Action::Stop && !matches!(self.site, Site::Point(_))
    }

    fn add(&mut self, key: &str, value: &str) -> Result<(), String> {
        const KEYS: [&str; 7] = ["rank", "attempt", "role", "hit", "one-in", "max", "for"];
        let positive = |what| match number::<u64>(value, what) {
            Ok(0) => Err(format!("`{key}=0` would never happen")),
            other => other,
        };
        match key {
            "rank" => self.ranks = Ranks::parse(value)?,
            "attempt" => self.attempts = Some(Attempts::parse(value)?),
            "role" => match value {
                "worker" => self.is_for_launcher = false,
                "launcher" => self.is_for_launcher = true,
                other => return Err(text::unknown("role", other, ["worker", "launcher"])),
            },
            "hit" => self.hits = Some(Hits::parse(value)?),
            "one-in" => self.one_in = Some(positive("number of hits")?),
            "max" => self.max = Some(positive("number of times")?),
            "for" if self.may_end() => self.time = Some(text::duration(value)?),
            "for" => {
                return Err(
                    "`for` is for hang, deaf and spin, and for stop at time=, line= or file=".to_owned()
                );
            }
            other => return Err(text::unknown("condition", other, KEYS)),
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
        let Self { action, site, ranks, attempts, is_for_launcher, hits, one_in, max, time } = self;
        write!(f, "{action}@{site}")?;
        if *ranks != Ranks::Any {
            write!(f, ":rank={ranks}")?;
        }
        attempts.as_ref().map_or(Ok(()), |attempts| write!(f, ":attempt={attempts}"))?;
        f.write_str(if *is_for_launcher { ":role=launcher" } else { "" })?;
        hits.map_or(Ok(()), |hits| write!(f, ":hit={hits}"))?;
        one_in.map_or(Ok(()), |number| write!(f, ":one-in={number}"))?;
        max.map_or(Ok(()), |max| write!(f, ":max={max}"))?;
        time.map_or(Ok(()), |time| write!(f, ":for={}", text::of_duration(time)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn action() -> impl Strategy<Value = Action> {
        let plain = ["kill", "term", "int", "segv", "bus", "abort", "overflow", "panic", "error", "stop"];
        prop_oneof![
            prop::sample::select(plain.to_vec()).prop_map(|name| Action::parse(name).unwrap()),
            any::<u8>().prop_map(|code| Action::Exit(code.into())),
            ("(nofile|nproc|fsize|data|as|stack|memlock|cpu)", any::<u64>())
                .prop_map(|(name, most)| Action::parse(&format!("limit={name}/{most}")).unwrap()),
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

    fn site() -> impl Strategy<Value = Site> {
        prop_oneof![
            "[a-z][a-z0-9-]{0,5}(\\.[a-z0-9-]{1,4}){0,2}\\.?".prop_map(Site::Point),
            any::<u64>().prop_map(|nanos| Site::Time(Duration::from_nanos(nanos))),
            "[^\\x00\n]{1,9}".prop_map(Site::Line),
            "[^\\x00\n]{1,9}".prop_map(|path| Site::File(format!("a{path}b").into())),
        ]
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let attempts = prop::option::of("(all|[0-9]|[0-9]\\.\\.|0\\.\\.[0-9]|1\\+3)");
        let numbers = prop::option::of(1..u64::MAX);
        (
            action(),
            site(),
            (ranks(), attempts, any::<bool>()),
            prop::option::of(hits()),
            numbers.clone(),
            numbers,
        )
            .prop_map(|(action, site, (ranks, attempts, is_for_launcher), hits, one_in, max)| Rule {
                action,
                site,
                ranks,
                attempts: attempts.map(|text| Attempts::parse(&text).unwrap()),
                is_for_launcher,
                hits,
                one_in,
                max,
                time: None,
            })
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
        for text in
            ["hang@a:for=2s", "spin@a:rank=1:for=1ms", "deaf@a:hit=2:for=1500us", "stop@time=1s:for=2s"]
        {
            assert_eq!(text.parse::<Plan>().unwrap().to_string(), text);
        }
        for text in ["kill@a:for=2s", "stop@a:for=2s", "kill@time=1s:for=2s"] {
            assert!(text.parse::<Plan>().unwrap_err().to_string().contains("hang, deaf and spin"), "{text}");
        }
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
            ("limit=nofiles/3@a", "did you mean `nofile`"),
            ("limit=nofile@a", "limit=nofile/64"),
            ("exit=256@a", "exit code"),
            ("error=ENOSPACE@a", "did you mean `ENOSPC`"),
            ("kill@a,stop@b:rank=1..0", "no ranks"),
            ("kill@time=1s:role=luncher", "did you mean `launcher`"),
            ("kill@time=1s:attempt=last", "no attempts"),
            ("kill@tiem=1s", "did you mean `time=`"),
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
        assert_eq!(["kill@time=1s:rank=all:attempt=0..2", "kill@time=1s:role=launcher"].map(most), [4, 1]);
    }
}
