//! Pure: which failure came first, which worker is only a victim of the teardown, and which worker waited for which.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Peer, Status};
use crate::sys::clock::Moment;
use crate::sys::signal::Signal;

/// How much a failure says about its cause. A failure of the first kind in this list is reported rather than one of a later kind,
/// whichever came first in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Weight {
    /// The failure is its own.
    Own,
    /// The worker waited for other workers, which did not come, were gone, or had failed.
    Consequence,
    /// It could not be ended by the teardown.
    LeftBehind,
}

/// When one worker failed, as far as that is known. A list of them is in the order of the workers' ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failing {
    pub(crate) rank: usize,
    pub(crate) weight: Weight,
    /// The moment of failure that the worker itself recorded.
    pub(crate) recorded: Option<Moment>,
    /// The last moment at which the launcher knows that the worker had not ended.
    pub(crate) alive: Moment,
    /// The most memory it had, in bytes, if the kernel killed its whole cgroup at once for want of memory.
    pub(crate) killed_with_cgroup: Option<u64>,
}

/// The rank whose failure came first in time among those of the greatest weight, of failures in the order of the workers' ends.
///
/// A recorded moment is exact. A worker that could not record one (SIGKILL, `_exit`) failed at its end, of which
/// only the order and a lower bound are known: it comes after whoever ended before it, and after whatever was
/// recorded before that bound. Where both leave it open, the order of ends decides.
///
/// Workers that the kernel killed with their whole cgroup failed at the same moment: the order of their ends says only which had less
/// memory to give back. Of these the one that had the most memory counts as the first.
pub(crate) fn first_failure(failures: &[Failing]) -> Option<Failing> {
    let first = first_in_time(failures)?;
    let killed = failures.iter().rev().filter(|failing| failing.killed_with_cgroup.is_some());
    let largest = killed.max_by_key(|failing| failing.killed_with_cgroup);
    Some(*largest.filter(|_| first.killed_with_cgroup.is_some()).unwrap_or(&first))
}

fn first_in_time(failures: &[Failing]) -> Option<Failing> {
    let greatest = failures.iter().map(|failing| failing.weight).min()?;
    let weighs = |failing: &&Failing| failing.weight == greatest;
    let earliest = failures.iter().filter(weighs).filter(|failing| failing.recorded.is_some());
    let earliest = earliest.min_by_key(|failing| (failing.recorded, failing.rank));
    let is_silent = |failing: &Failing| failing.weight == greatest && failing.recorded.is_none();
    let Some(silent_at) = failures.iter().position(is_silent) else { return earliest.copied() };
    let silent = failures[silent_at];
    let ended_before = failures[..silent_at].iter().filter_map(|failing| failing.recorded).max();
    let not_before = ended_before.map_or(silent.alive, |moment| moment.max(silent.alive));
    let earlier = earliest.filter(|failing| failing.recorded.is_some_and(|moment| moment <= not_before));
    Some(*earlier.unwrap_or(&silent))
}

/// By rank of a worker whose wait failed: the processes that it had waited for, as far as they are known.
pub(crate) type Waits = BTreeMap<usize, Vec<Peer>>;

/// The processes at the end of a rank's chain of waits: it had waited for them, or for ranks that had waited for them, and they
/// themselves had waited for no process that is known. Empty when all waited for one another.
pub(crate) fn roots(rank: usize, waits: &Waits) -> Vec<Peer> {
    let (mut seen, mut roots, mut left) = (BTreeSet::from([rank]), BTreeSet::new(), vec![rank]);
    while let Some(waiting) = left.pop() {
        for &peer in waits.get(&waiting).into_iter().flatten() {
            match peer.rank() {
                Some(next) if waits.get(&next).is_some_and(|peers| !peers.is_empty()) => {
                    left.extend(seen.insert(next).then_some(next));
                }
                Some(own) if own == rank => {}
                _ => _ = roots.insert(peer),
            }
        }
    }
    roots.into_iter().collect()
}

/// What the teardown sent to a worker before it ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) at: Moment,
    /// SIGTERM, or SIGKILL if that came after it.
    pub(crate) strongest: Signal,
}

/// Whether a failed worker was ended by the teardown, so that it is not to blame.
pub(crate) fn is_victim(status: Status, recorded: Option<Moment>, sent: Option<Sent>) -> bool {
    let Some(sent) = sent else { return false };
    if let Some(moment) = recorded {
        return moment >= sent.at;
    }
    match status {
        Status::Signaled { signal, .. } => signal == Signal::TERM || signal == sent.strongest,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn at(nanos: u64) -> Moment {
        Moment::from_nanos(nanos)
    }

    fn failing(rank: usize, recorded: Option<u64>, alive: u64) -> Failing {
        let (weight, killed_with_cgroup) = (Weight::Own, None);
        Failing { rank, weight, recorded: recorded.map(at), alive: at(alive), killed_with_cgroup }
    }

    fn consequence(rank: usize, recorded: u64) -> Failing {
        Failing { weight: Weight::Consequence, ..failing(rank, Some(recorded), 0) }
    }

    fn first_failure(failures: &[Failing]) -> Option<usize> {
        super::first_failure(failures).map(|failing| failing.rank)
    }

    #[test]
    fn nobody_failed_means_no_first() {
        assert_eq!(first_failure(&[]), None);
    }

    #[test]
    fn earlier_recorded_moment_wins_over_rank_and_order_of_ends() {
        let failures = [failing(0, Some(30), 0), failing(2, Some(10), 0), failing(1, Some(20), 0)];
        assert_eq!(first_failure(&failures), Some(2));
    }

    #[test]
    fn silent_ends_go_by_their_order() {
        assert_eq!(first_failure(&[failing(3, None, 0), failing(0, None, 0)]), Some(3));
    }

    #[test]
    fn recorded_before_a_silent_end_when_it_ended_before_it() {
        assert_eq!(first_failure(&[failing(1, Some(10), 0), failing(0, None, 0)]), Some(1));
    }

    #[test]
    fn recorded_while_the_silent_one_was_still_alive_comes_first() {
        // Rank 1 failed at 10 and took until after rank 0's end to write its report.
        assert_eq!(first_failure(&[failing(0, None, 15), failing(1, Some(10), 15)]), Some(1));
    }

    #[test]
    fn recorded_after_a_silent_end_comes_later() {
        // As when rank 1 failed because rank 0 had been killed.
        assert_eq!(first_failure(&[failing(0, None, 15), failing(1, Some(20), 15)]), Some(0));
    }

    #[test]
    fn earliest_of_all_ended_last_but_failed_before_one_that_ended_first() {
        let failures = [failing(2, Some(20), 0), failing(0, None, 0), failing(1, Some(5), 0)];
        assert_eq!(first_failure(&failures), Some(1));
    }

    #[test]
    fn of_those_killed_with_their_cgroup_it_is_the_one_with_the_most_memory() {
        let killed = |rank, bytes| Failing { killed_with_cgroup: Some(bytes), ..failing(rank, None, 0) };
        assert_eq!(first_failure(&[killed(1, 5), killed(0, 70), failing(2, Some(1), 0)]), Some(0));
        assert_eq!(first_failure(&[killed(1, 5), killed(0, 5)]), Some(1));
        // Rank 2 failed before that.
        assert_eq!(first_failure(&[failing(2, Some(1), 9), killed(1, 5), killed(0, 70)]), Some(2));
    }

    #[test]
    fn victims_are_those_whom_the_teardown_ended() {
        let term = Some(Sent { at: at(100), strongest: Signal::TERM });
        let kill = Some(Sent { at: at(100), strongest: Signal::KILL });
        let by = |signal| Status::Signaled { signal, core_dumped: false };
        assert!(is_victim(by(Signal::TERM), None, term));
        assert!(is_victim(by(Signal::KILL), None, kill));
        assert!(is_victim(by(Signal::TERM), None, kill));
        assert!(is_victim(Status::Exited { code: 3 }, None, term));
        assert!(is_victim(Status::Raised, Some(at(101)), term));
        assert!(!is_victim(by(Signal::KILL), None, term), "somebody else killed it");
        assert!(!is_victim(by(Signal::SEGV), Some(at(99)), term));
        assert!(!is_victim(Status::Raised, Some(at(99)), term));
        assert!(!is_victim(by(Signal::TERM), None, None));
    }

    #[test]
    fn own_failure_comes_before_a_consequence_that_was_earlier() {
        let consequences = [consequence(2, 10), consequence(0, 5)];
        assert_eq!(first_failure(&consequences), Some(0));
        assert_eq!(first_failure(&[&consequences[..], &[failing(1, Some(30), 0)]].concat()), Some(1));
        assert_eq!(first_failure(&[&consequences[..], &[failing(1, None, 0)]].concat()), Some(1));
        let left_behind = Failing { weight: Weight::LeftBehind, ..failing(3, Some(1), 0) };
        assert_eq!(first_failure(&[left_behind, consequences[0]]), Some(2));
        assert_eq!(first_failure(&[left_behind]), Some(3));
    }

    fn rank(rank: usize) -> Peer {
        Peer::Rank { rank, pid: rank as u32 + 100 }
    }

    #[test]
    fn waits_are_followed_to_those_who_did_not_wait() {
        let foreign = Peer::Process { pid: 7 };
        let waits = Waits::from([
            (0, vec![rank(3)]),
            (2, vec![rank(3), rank(4)]),
            (3, vec![rank(1), foreign]),
            (4, vec![]),
        ]);
        assert_eq!(roots(0, &waits), [rank(1), foreign]);
        assert_eq!(roots(2, &waits), [rank(1), rank(4), foreign]);
        assert_eq!((roots(4, &waits), roots(1, &waits)), (vec![], vec![]));
    }

    #[test]
    fn those_who_wait_for_one_another_wait_for_nobody_else() {
        let circle = Waits::from([(0, vec![rank(1)]), (1, vec![rank(2)]), (2, vec![rank(0)])]);
        assert!((0..3).all(|rank| roots(rank, &circle).is_empty()));
        let beside = Waits::from([(0, vec![rank(1)]), (1, vec![rank(0), rank(2)])]);
        assert_eq!((roots(0, &beside), roots(1, &beside)), (vec![rank(2)], vec![rank(2)]));
    }

    fn any_waits() -> impl Strategy<Value = Waits> {
        let peers = vec((0..8_usize).prop_map(rank), 0..4);
        btree_map(0..8_usize, peers, 0..8)
    }

    fn any_failures() -> impl Strategy<Value = Vec<Failing>> {
        let weight = prop_oneof![Just(Weight::Own), Just(Weight::Consequence), Just(Weight::LeftBehind)];
        let one = (weight, option::of(0..50_u64), 0..50_u64);
        vec(one, 0..8).prop_map(|all| {
            let numbered = all.into_iter().enumerate();
            numbered
                .map(|(rank, (weight, at, alive))| Failing { weight, ..failing(rank, at, alive) })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn nobody_who_waited_for_others_is_a_root(waits in any_waits(), of in 0..8_usize) {
            let roots = roots(of, &waits);
            let waited = |rank| waits.get(&rank).is_some_and(|peers: &Vec<Peer>| !peers.is_empty());
            let all: BTreeSet<_> = waits.values().flatten().copied().collect();
            for root in &roots {
                let rank = root.rank().unwrap();
                prop_assert!(!waited(rank) && rank != of && all.contains(root));
            }
            prop_assert!(waited(of) || roots.is_empty());
        }

        #[test]
        fn one_whose_all_peers_had_not_waited_has_them_as_roots(peers in vec(8..16_usize, 1..4), waits in any_waits()) {
            let peers: BTreeSet<_> = peers.into_iter().map(rank).collect();
            let waits = Waits::from_iter(waits.into_iter().chain([(0, peers.iter().copied().collect())]));
            prop_assert_eq!(roots(0, &waits), peers.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn first_has_the_greatest_weight_and_no_recorded_one_of_it_is_earlier(failures in any_failures()) {
            let first = super::first_failure(&failures);
            prop_assert_eq!(first.is_none(), failures.is_empty());
            let Some(first) = first else { return Ok(()) };
            prop_assert!(failures.iter().all(|failing| first.weight <= failing.weight));
            let of_weight = failures.iter().filter(|failing| failing.weight == first.weight);
            if let Some(moment) = first.recorded {
                let earlier = of_weight.filter(|failing| failing.recorded.is_some_and(|other| other < moment));
                prop_assert_eq!(earlier.count(), 0);
            }
        }
    }
}
