//! What the ends of a context's workers tell of one another: which worker had waited for which, and which failure is to be reported.

use std::collections::HashMap;

use super::postmortem::End;
use crate::error::{Culprit, FailureKind, Outcome, Peer, Standing, Status};
use crate::supervise::verdict::{self, Failing, Waits, Weight};

/// The workers of a context by rank: their processes, and how they ended, if they have.
pub(super) struct Ends<'a> {
    workers: Vec<(u32, Option<&'a End>)>,
    ranks: HashMap<u32, usize>,
}

impl<'a> Ends<'a> {
    pub(super) fn new(workers: Vec<(u32, Option<&'a End>)>) -> Self {
        let ranks = workers.iter().enumerate().map(|(rank, &(pid, _))| (pid, rank)).collect();
        Self { workers, ranks }
    }

    /// A process by its part in the job.
    fn peer(&self, pid: u32) -> Peer {
        match self.ranks.get(&pid) {
            Some(&rank) => Peer::Rank { rank, pid },
            None if pid == std::process::id() => Peer::Launcher { pid },
            None => Peer::Process { pid },
        }
    }

    /// The processes that a rank had waited for, if its wait failed. `None`, too, if the rank itself is among them: it came too late, and
    /// its failure is its own.
    fn waited_for(&self, rank: usize) -> Option<&'a [u32]> {
        let (pid, end) = self.workers[rank];
        end?.waited_for.as_deref().filter(|pids| !pids.contains(&pid))
    }

    fn waits(&self) -> Waits {
        let peers = |pids: &[u32]| pids.iter().map(|&pid| self.peer(pid)).collect();
        let ranks = 0..self.workers.len();
        ranks.filter_map(|rank| Some((rank, peers(self.waited_for(rank)?)))).collect()
    }

    fn failing(&self, rank: usize) -> Option<Failing> {
        let end = self.workers[rank].1.filter(|end| end.has_failed())?;
        let weight = match end.ended.status {
            Status::Survived | Status::Abandoned => Weight::LeftBehind,
            _ if self.waited_for(rank).is_some() => Weight::Consequence,
            _ => Weight::Own,
        };
        let killed_with_cgroup = end.killed_with_cgroup;
        Some(Failing { rank, weight, recorded: end.recorded, alive: end.alive, killed_with_cgroup })
    }

    /// The failure to report, of those that have ended in this order.
    pub(super) fn first_failure(&self, order: &[usize]) -> Option<Failing> {
        let failures: Vec<_> = order.iter().filter_map(|&rank| self.failing(rank)).collect();
        verdict::first_failure(&failures)
    }

    /// Who kept a rank waiting until that failed, if it did of that. `standings`: how all were when it was seen, if that is known.
    pub(super) fn culprits(&self, failing: &Failing, standings: &[Standing]) -> Vec<Culprit> {
        if failing.weight != Weight::Consequence {
            return Vec::new();
        }
        let waits = self.waits();
        let returned = |rank: usize| {
            let end = self.workers[rank].1;
            end.is_some_and(|end| end.ended.status == Status::Succeeded).then_some(Standing::Returned)
        };
        let standing = |rank: usize| standings.get(rank).copied().or_else(|| returned(rank));
        let roots = verdict::roots(failing.rank, &waits);
        let roots = roots.into_iter().map(|peer| Culprit { peer, standing: peer.rank().and_then(standing) });
        // Without any root, those it waited for go round in a circle.
        let circle = waits.get(&failing.rank).into_iter().flatten();
        let circle = circle.map(|&peer| Culprit { peer, standing: Some(Standing::Waiting) });
        if roots.len() > 0 { roots.collect() } else { circle.collect() }
    }

    /// Says of each outcome that is the consequence of another's that it is.
    pub(super) fn mark_consequences(&self, mut outcomes: Vec<Outcome>) -> Vec<Outcome> {
        let waits = self.waits();
        for outcome in &mut outcomes {
            let own = outcome.ended.as_mut().filter(|ended| ended.kind == Some(FailureKind::Own));
            if let Some(ended) = own.filter(|_| waits.contains_key(&outcome.rank)) {
                ended.kind = Some(FailureKind::Consequence { of: verdict::roots(outcome.rank, &waits) });
            }
        }
        outcomes
    }
}
