//! Workers that do not come to their first task: they end before it, or take too long to set themselves up.
//!
//! Each is replaced as any other. With too many in a row the next one is not likely to do better: the pool is broken, and says why.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::desk::Stage;
use super::keeper::Keeper;
use crate::error::{Cause, Outcome, Status};
use crate::sys::clock::Moment;
use crate::sys::signal::Signal;

/// A pool is broken when this number of workers in a row have ended before they began a task, within [`WITHIN`].
const EARLY: usize = 3;
const WITHIN: Duration = Duration::from_secs(5);

impl Keeper {
    /// Kills the workers that have not made their state in time.
    pub(super) fn look_at_set_ups(&mut self) {
        let now = Moment::now();
        for (worker, desk) in self.workers.iter_mut().zip(self.hub.ledger.desks()) {
            let Some(until) = worker.set_up_until else { continue };
            if worker.slot.is_none() || desk.stage() != Stage::Beginning {
                worker.set_up_until = None;
            } else if until <= now {
                (worker.set_up_until, worker.is_late) = (None, true);
                // Refused: a later teardown gives the worker up.
                worker.child.map(|number| self.children.signal(number, Signal::KILL));
            }
        }
    }

    /// Counts the workers that end before they have begun a task; with too many the pool is broken.
    pub(super) fn note_early_end(&mut self, seat: usize, outcome: &Outcome) {
        let begun = self.hub.ledger.desks()[seat].begun.load(Relaxed);
        let is_late = std::mem::take(&mut self.workers[seat].is_late);
        // A SIGKILL from outside does not show that the worker cannot begin. One of the kernel's for want of memory does.
        let is_killed = matches!(outcome.status(), Status::Signaled { signal: Signal::KILL, .. })
            && !matches!(outcome.cause(), Some(Cause::OutOfMemory { .. }))
            && !is_late;
        if is_killed {
            return;
        }
        let stage = self.hub.ledger.desks()[seat].stage();
        if begun != self.workers[seat].begun || outcome.status() == Status::Succeeded {
            self.early.clear();
        } else {
            let why = self.hub.init_limit.filter(|_| is_late);
            let why =
                why.map(|limit| format!(" (it had not made its state within {limit:?})")).unwrap_or_default();
            let reason = format!("its workers end before they begin a task; the last one: {outcome}{why}");
            self.note_failed_start(reason, stage == Stage::Beginning);
        }
        if stage == Stage::Retiring && outcome.status() != Status::Succeeded {
            self.hub.lock().unretired.get_or_insert(outcome.clone());
        }
    }

    /// Notes that there is a worker less. `in_set_up`: it could not set itself up, and the next one is not likely to: then it counts
    /// however long that takes, so that an initialiser that fails is not called for ever.
    pub(super) fn note_failed_start(&mut self, reason: String, in_set_up: bool) {
        // Workers that are being ended end before they begin anything.
        if self.children.stopping().is_some() {
            return;
        }
        let now = Moment::now();
        self.early.retain(|&(at, in_set_up)| in_set_up || now.since(at) < WITHIN);
        self.early.push((now, in_set_up));
        if self.early.len() >= EARLY {
            self.hub.break_off(reason);
        }
    }
}
