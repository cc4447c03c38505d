//! Pure: which rule a point meets that a worker has reached.

use super::plan::{Plan, Rule};
use super::site::Site;

/// A point that a worker has reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached<'a> {
    pub(super) point: &'a str,
    pub(super) rank: usize,
    pub(super) nprocs: usize,
    /// The how-manieth time in this process, from 1.
    pub(super) hit: u64,
}

impl Plan {
    /// The rules that it meets, by number, in order. How often they may still happen is not asked.
    pub(super) fn met<'a>(&'a self, reached: Reached<'a>) -> impl Iterator<Item = (usize, &'a Rule)> {
        self.rules.iter().enumerate().filter(move |(number, rule)| self.is_met(*number, rule, reached))
    }

    /// The rules of a rank whose sites are no points, by number.
    pub(super) fn aside(&self, rank: usize, nprocs: usize) -> Vec<(usize, &Rule)> {
        let is_meant = |(number, rule): &(usize, &Rule)| {
            !matches!(rule.site, Site::Point(_)) && self.is_for(*number, rule, rank, nprocs)
        };
        self.rules.iter().enumerate().filter(is_meant).collect()
    }

    /// Whether a rule, which has this number, is for a rank.
    pub(crate) fn is_for(&self, number: usize, rule: &Rule, rank: usize, nprocs: usize) -> bool {
        // The rank is drawn for the rule, so that all processes draw the same.
        rule.ranks.has(rank, nprocs, drawn([self.seed, number as u64, 0, 0], ""))
    }

    fn is_met(&self, number: usize, rule: &Rule, reached: Reached<'_>) -> bool {
        let Reached { point, rank, nprocs, hit } = reached;
        rule.is_at(point)
            && rule.hits().has(hit)
            && self.is_for(number, rule, rank, nprocs)
            && rule.one_in.is_none_or(|one_in| {
                drawn([self.seed, number as u64, rank as u64 + 1, hit], point).is_multiple_of(one_in)
            })
    }
}

/// A number that depends on these alone: FNV-1a, and splitmix64's last steps, which spread what is alike.
pub(crate) fn drawn(numbers: [u64; 4], name: &str) -> u64 {
    let bytes = numbers.into_iter().flat_map(u64::to_le_bytes).chain(name.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(plan: &str, point: &str, rank: usize, hit: u64) -> Vec<usize> {
        let plan: Plan = plan.parse().unwrap();
        plan.met(Reached { point, rank, nprocs: 4, hit }).map(|(number, _)| number).collect()
    }

    #[test]
    fn all_conditions_must_hold() {
        let plan = "kill@train.step:rank=1:hit=3,stop@train.:rank=1,kill@train";
        assert_eq!(met(plan, "train.step", 1, 3), [0]);
        assert_eq!(met(plan, "train.step", 1, 1), [1]);
        assert_eq!(met(plan, "train.begin", 1, 1), [1]);
        assert_eq!(met(plan, "train", 0, 1), [2]);
        for (point, rank, hit) in [("train.step", 0, 3), ("train.step", 1, 2), ("trained", 1, 1)] {
            assert!(met(plan, point, rank, hit).is_empty(), "{point} {rank} {hit}");
        }
    }

    #[test]
    fn what_is_drawn_is_the_same_each_time_and_another_for_another_seed() {
        let hits = |seed: u64, rank| {
            let plan = format!("slow=1ms@a:one-in=10,seed={seed}");
            (1..=10_000).filter(|&hit| !met(&plan, "a", rank, hit).is_empty()).collect::<Vec<u64>>()
        };
        assert_eq!(hits(7, 0), hits(7, 0));
        assert!(hits(7, 0) != hits(8, 0) && hits(7, 0) != hits(7, 1));
        assert!((800..1200).contains(&hits(7, 0).len()), "{}", hits(7, 0).len());
    }

    #[test]
    fn rules_of_other_sites_are_the_ranks_that_they_name() {
        let plan: Plan = "kill@time=1s:rank=last,kill@a,stop@file=b:rank=0+3,int@time=0s".parse().unwrap();
        let aside = |rank| plan.aside(rank, 4).into_iter().map(|(number, _)| number).collect::<Vec<_>>();
        assert_eq!([aside(0), aside(1), aside(3)], [vec![2, 3], vec![3], vec![0, 2, 3]]);
    }

    #[test]
    fn rank_is_drawn_once_for_all_processes() {
        let ranks = |seed: u64| {
            let plan = format!("kill@a:rank=one,seed={seed}");
            (0..4).filter(|&rank| !met(&plan, "a", rank, 1).is_empty()).collect::<Vec<usize>>()
        };
        let drawn: std::collections::BTreeSet<_> = (0..64).map(ranks).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [[0], [1], [2], [3]]);
    }
}
