//! A plan with its page.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use super::error::PlanError;
use super::page::{Fired, Page, UnderPlan};
use super::plan::Plan;
use crate::memory::descriptor::Descriptor;
use crate::sys::limits::with_room;

/// A plan that can be put in force in the workers of a context ([`Options::faults`](crate::Options::faults)), and what has come of it.
///
/// The faults are noted in shared memory before they happen, so a worker that one has killed has told it. Clones are the same, and count
/// together how often a rule has happened.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Options, fault, start_processes};
///
/// fn train(_rank: usize, _: ()) -> anyhow::Result<()> {
///     (0..10).for_each(|_| fault::point!("train.step"));
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let faults = fault::Faults::new("exit=0@train.step:rank=0:hit=2,slow=1ms@train.step:rank=1:hit=5..")?;
/// let failed = start_processes(train, (), Options::new(2).faults(&faults))?.join().unwrap_err();
/// assert!(failed.to_string().contains("exit code 0"), "{failed}");
/// let first = &faults.fired()[0];
/// assert!(faults.fired().iter().any(|fired| (fired.rank, fired.hit, fired.rule) == (0, 2, 0)), "{first}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Faults(Arc<Planned>);

struct Planned {
    plan: Plan,
    page: Page,
    memory: Descriptor,
}

impl Faults {
    /// Reads a plan, and checks it against the points of this executable.
    ///
    /// # Errors
    /// [`PlanError`]: the text is no plan, a rule is at no point of this executable, or at one that does not admit it; or the page cannot be
    /// made. Ranks are checked when the workers are started.
    pub fn new(plan: &str) -> Result<Self, PlanError> {
        Self::of(plan.parse()?)
    }

    /// As [`new`](Self::new), of a plan that was read already.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of(plan: Plan) -> Result<Self, PlanError> {
        plan.check_for_functions()?;
        let page = with_room(Page::memory).and_then(|memory| Ok((Page::open(memory.as_fd())?, memory)));
        let doing = "make the page in which faults are noted (memfd_create)";
        let (page, memory) = page.map_err(|error| PlanError::System { doing, reason: error.to_string() })?;
        Ok(Self(Arc::new(Planned { plan, page, memory: memory.into() })))
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.0.plan
    }

    /// What has happened so far, in the order of time. Of more than 1,024 faults the first ones, and of delays the first 512.
    #[must_use]
    pub fn fired(&self) -> Vec<Fired> {
        self.0.page.fired(self.plan())
    }

    /// How many faults have happened so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        (0..self.plan().rules().len()).map(|rule| self.times(rule)).sum()
    }

    /// How often a rule has happened, by its number in the plan.
    #[must_use]
    pub fn times(&self, rule: usize) -> u64 {
        self.0.page.times(rule)
    }

    /// The workers that were put under the plan, those that have ended among them; of more than 1,024 the first ones.
    pub(crate) fn workers(&self) -> Vec<UnderPlan> {
        self.0.page.workers()
    }

    /// What a worker needs to put the plan in force: the number of the page's descriptor in this process, and the plan's text.
    pub(crate) fn orders(&self) -> (RawFd, String) {
        (self.0.memory.as_fd().as_raw_fd(), self.plan().to_string())
    }

    /// The descriptor that a worker inherits.
    pub(crate) fn descriptor(&self) -> &Descriptor {
        &self.0.memory
    }
}

impl PartialEq for Faults {
    /// Whether both are clones of one.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Faults {}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults")
            .field("plan", &self.plan().to_string())
            .field("fired", &self.count())
            .finish()
    }
}
