//! Faults on purpose: a program's workers are killed, stopped or made to fail at named points, and what it says of that is compared with
//! what has happened.
//!
//! A CI suite that kills workers wants four things: that the kill comes at a known place, that it has come at all, that the same run can be had
//! again, and that the message which a person would read at three in the morning is right. This is what the module gives:
//!
//! - [`point!`] is a place in the program at which a fault can happen. It stays in production code, and costs a load and a branch.
//! - A [`Plan`] is a line of text that says what is to happen where: `kill@train.step:rank=1:hit=3`.
//! - [`Options::faults`](crate::Options::faults) puts it in force in the workers of one context, or of a pool, and nowhere else.
//! - [`trial`] runs something under a plan: it fails if the fault did not happen, if the error names another rank or another cause than the
//!   fault's, if the run hangs, or if it leaves a process behind. Its last line is a command that repeats it.
//! - [`sweep`] does so for each point and each of its hits, until none is left.
//! - [`chaos`] does so with plans that are drawn at random, and makes one smaller that fails.
//! - A [`Cable`] is a TCP connection's way between a server and its clients, which can be pulled, slowed and cut.
//!
//! ```
//! # phalanx::auto_init!();
//! use phalanx::{Error, Options, Queue, fault, start_processes};
//!
//! fn train(_rank: usize, losses: Queue<f64>) -> anyhow::Result<()> {
//!     for step in 1..=3 {
//!         fault::point!("train.step");
//!         losses.put(1.0 / f64::from(step))?;
//!     }
//!     Ok(())
//! }
//!
//! fn job(faults: &fault::Faults) -> Result<(), Error> {
//!     let losses = Queue::bounded(64).expect("there is memory");
//!     start_processes(train, losses, Options::new(2).faults(faults))?.join().map(drop)
//! }
//!
//! # fn main() -> anyhow::Result<()> {
//! // At its first step, its second, its third; there is no fourth.
//! let sweep = fault::sweep("kill@train.:rank=1", job)?;
//! assert_eq!(sweep.trials(), 3);
//! # Ok(())
//! # }
//! ```
//!
//! The faults are noted in shared memory before they happen. What finds out how a worker has ended never reads it, so it cannot know the
//! answer.

// - `trial`: one run under a plan
// - `sweep`: one for each point and hit
// - `menu`: what plans are drawn from
// - `chaos`: plans that are drawn, and made smaller when one fails
// - `regressions`: plans that have failed, in files
// - `variable`: the variables of the environment
// - `verdict`: pure: what was told, against what has happened
// - `hang`: a run that does not end, and what it leaves behind
// - `cable`: a proxy for TCP connections, to which can be done what happens to networks

mod cable;
mod chaos;
mod hang;
mod menu;
mod regressions;
mod sweep;
mod trial;
mod variable;
mod verdict;

pub use cable::{Cable, End};
pub use chaos::{Chaos, ChaosError, ChaosFailure, chaos};
pub use menu::Menu;
pub use sweep::{Sweep, Swept, sweep};
pub use trial::{Trial, TrialError, Wrong, observe, trial};
pub use verdict::Misdiagnosed;

#[doc(inline)]
pub use crate::__fault_point as point;
pub use crate::injection::{Action, Faults, Fired, Plan, PlanError, Resource, Rule, Site};
#[doc(hidden)]
pub use crate::point::checked_name;
pub use crate::point::{Admits, Injected, Point};

/// All points of this executable, the library's own among them, in no order that means something.
///
/// ```
/// use phalanx::fault;
///
/// fn step() {
///     fault::point!("train.step");
/// }
///
/// # step();
/// assert!(fault::points().iter().any(|point| point.name() == "train.step"));
/// assert!(fault::points().iter().any(|point| point.name() == "queue.put.written"));
/// ```
#[must_use]
pub fn points() -> &'static [Point] {
    crate::point::all()
}
