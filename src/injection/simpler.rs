//! Pure: plans that are simpler than another one, for what makes a plan that has failed smaller.

use super::action::Action;
use super::plan::{Plan, Rule};
use super::set::{Hits, Ranks};

impl Plan {
    /// Plans that are simpler in one respect, the simplest first: a rule less, an earlier hit, a lower rank, a plainer death.
    pub(crate) fn simpler(&self) -> Vec<Self> {
        let without = |number: usize| {
            let mut plan = self.clone();
            plan.rules.remove(number);
            plan
        };
        let fewer = (0..self.rules.len()).filter(|_| self.rules.len() > 1).map(without);
        let smaller = self.rules.iter().enumerate().flat_map(|(number, rule)| {
            simpler_rules(rule).into_iter().map(move |rule| {
                let mut plan = self.clone();
                plan.rules[number] = rule;
                plan
            })
        });
        fewer.chain(smaller).collect()
    }
}

fn simpler_rules(rule: &Rule) -> Vec<Rule> {
    let hit = |hit: u64| Rule { hits: Some(Hits { first: hit, last: Some(hit), step: 1 }), ..rule.clone() };
    let first = rule.hits().first;
    let mut simpler: Vec<_> = [1, first / 2, first.saturating_sub(1)]
        .into_iter()
        .filter(|&earlier| earlier > 0 && earlier < first)
        .map(hit)
        .collect();
    simpler.dedup();
    if let Some(rank) = rule.ranks.highest() {
        let to = |rank: usize| Rule {
            ranks: Ranks::List { ranges: vec![rank..=rank], open: None },
            ..rule.clone()
        };
        simpler.extend((0..rank.min(2)).map(to));
    }
    if rule.action.is_death() && rule.action != Action::Kill {
        simpler.push(Rule { action: Action::Kill, ..rule.clone() });
    }
    simpler
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simpler(plan: &str) -> Vec<String> {
        plan.parse::<Plan>().unwrap().simpler().iter().map(Plan::to_string).collect()
    }

    #[test]
    fn plans_become_simpler_in_one_respect_at_a_time() {
        assert_eq!(simpler("kill@a:rank=0:hit=1"), [""; 0]);
        assert_eq!(
            simpler("segv@a:rank=1:hit=8"),
            [
                "segv@a:rank=1:hit=1",
                "segv@a:rank=1:hit=4",
                "segv@a:rank=1:hit=7",
                "segv@a:rank=0:hit=8",
                "kill@a:rank=1:hit=8"
            ]
        );
        assert_eq!(simpler("kill@a:rank=0,slow=1s@b:rank=0"), ["slow=1s@b:rank=0", "kill@a:rank=0"]);
        assert_eq!(simpler("kill@a:rank=3:hit=2")[1..], ["kill@a:rank=0:hit=2", "kill@a:rank=1:hit=2"]);
    }

    #[test]
    fn simplifying_comes_to_an_end() {
        let mut plan: Plan = "abort@a:rank=7:hit=900,kill@b:rank=3:hit=40,exit=3@c:rank=2".parse().unwrap();
        let mut steps = 0;
        while let Some(next) = plan.simpler().pop() {
            (plan, steps) = (next, steps + 1);
            assert!(steps < 2000, "{plan}");
        }
    }
}
