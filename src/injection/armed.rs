//! A worker under a plan: at each of its points it asks which rule it meets.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::act;
use super::check::admits;
use super::matching::Reached;
use super::page::Page;
use super::plan::Plan;
use crate::point::{self, Point, Reaction};
use crate::sys::forks::Here;
use crate::sys::global::Global;

/// A plan in force.
#[derive(Debug)]
struct Armed {
    plan: Plan,
    page: Page,
    rank: usize,
    nprocs: usize,
    /// How often this process has reached a point of each name. Counted here and not in the page: a process that follows begins anew.
    hits: HashMap<&'static str, AtomicU64>,
    /// A process that the worker forks is no worker.
    owner: Here,
}

static ARMED: Global<Armed> = Global::new();

/// Puts a plan in force in this worker, for the rest of its life.
///
/// # Errors
/// When the text is no plan, or the page cannot be mapped.
pub(crate) fn arm(plan: &str, page: OwnedFd, (rank, nprocs): (usize, usize)) -> io::Result<()> {
    let plan = plan.parse().map_err(io::Error::other)?;
    let page = Page::open(page.as_fd())?;
    let hits = point::all().iter().map(|point| (point.name(), AtomicU64::new(0))).collect();
    let armed = Armed { plan, page, rank, nprocs, hits, owner: Here::now() };
    armed.page.enter(rank);
    ARMED.set(Box::leak(Box::new(armed)));
    point::arm(Some(reach));
    Ok(())
}

/// A forked worker has the plan of its parent in memory, if that is a worker too: it is not its own.
pub(crate) fn disarm() {
    point::arm(None);
    ARMED.clear();
}

/// What happens at a point.
fn reach(point: &Point) -> Reaction {
    match ARMED.get().filter(|armed| armed.owner.is_now()) {
        Some(armed) => armed.reach(point),
        None => Reaction::GoOn,
    }
}

impl Armed {
    fn reach(&self, point: &Point) -> Reaction {
        // A point of a shared object is in no list of this executable's.
        let Some(hits) = self.hits.get(point.name()) else { return Reaction::GoOn };
        let hit = hits.fetch_add(1, Relaxed) + 1;
        let reached = Reached { point: point.name(), rank: self.rank, nprocs: self.nprocs, hit };
        for (number, rule) in self.plan.met(reached) {
            if !admits(point, rule.action()) || !self.page.claim(number, rule.most(self.nprocs)) {
                continue;
            }
            // Before it happens: a process that is killed tells nothing any more.
            self.page.note(number, self.rank, point, hit);
            match act::act(rule) {
                Reaction::GoOn => {}
                other => return other,
            }
        }
        Reaction::GoOn
    }
}
