//! A worker under a plan: at each of its points it asks which rule it meets.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::act;
use super::aside;
use super::check::admits;
use super::matching::Reached;
use super::page::Page;
use super::plan::{Plan, Rule};
use crate::point::{self, Point, Reaction};
use crate::sys::clock::Moment;
use crate::sys::forks::Here;
use crate::sys::global::Global;

/// A plan in force.
#[derive(Debug)]
struct Armed {
    plan: Plan,
    page: Page,
    rank: usize,
    nprocs: usize,
    /// How often this process has reached a point of each name that the plan has. Counted here and not in the page: a process that follows begins anew.
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
    let begin = Moment::now();
    let plan: Plan = plan.parse().map_err(io::Error::other)?;
    let page = Page::open(page.as_fd())?;
    let named = point::all().iter().filter(|point| plan.rules().iter().any(|rule| rule.is_at(point.name())));
    let hits = named.map(|point| (point.name(), AtomicU64::new(0))).collect();
    let armed: &'static Armed =
        Box::leak(Box::new(Armed { plan, page, rank, nprocs, hits, owner: Here::now() }));
    armed.page.enter(rank);
    ARMED.set(armed);
    point::arm(reach, |point| armed.hits.contains_key(point.name()));
    aside::start(armed.plan.aside(rank, nprocs), begin, |number, rule, hit| {
        armed.happen_aside((number, rule), hit)
    })
}

/// A forked worker has the plan of its parent in memory, if that is a worker too: it is not its own.
pub(crate) fn disarm() {
    if ARMED.get().is_some() {
        point::disarm();
        ARMED.clear();
    }
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
        // Another thread may have found the byte before the plan was in force.
        let Some(hits) = self.hits.get(point.name()) else { return Reaction::GoOn };
        let hit = hits.fetch_add(1, Relaxed) + 1;
        let reached = Reached { point: point.name(), rank: self.rank, nprocs: self.nprocs, hit };
        for (number, rule) in self.plan.met(reached) {
            if !admits(point, rule.action()) || !self.page.claim(number, rule.most(self.nprocs)) {
                continue;
            }
            // Before it happens: a process that is killed tells nothing any more.
            self.page.note((number, rule), self.rank, Some(point), hit);
            match act::act(rule) {
                Reaction::GoOn => {}
                other => return other,
            }
        }
        Reaction::GoOn
    }

    /// A rule whose site is no point happens, unless others have taken all its times.
    fn happen_aside(&self, (number, rule): (usize, &Rule), hit: u64) {
        if self.page.claim(number, rule.most(self.nprocs)) {
            self.page.note((number, rule), self.rank, None, hit);
            act::act_from_aside(rule);
        }
    }
}
