//! What `Options::faults` carries: a plan of faults, the shared page in which each fault that happens is noted before it does, and what a
//! worker does at its points.
//!
//! - `plan`: a plan, its rules and their conditions, as text and as data
//! - `action`: what happens
//! - `set`: which ranks, which hits
//! - `text`: numbers, times and names in plans
//! - `check`: a plan against the points of this executable and the ranks of a context
//! - `matching`: pure: which rule a point meets
//! - `simpler`: pure: simpler plans than another one
//! - `page`: what has fired
//! - `faults`: a plan with its page
//! - `armed`: a worker under a plan
//! - `act`: it does what a rule says

mod act;
mod action;
mod armed;
mod check;
mod error;
mod faults;
mod matching;
mod page;
mod plan;
mod set;
mod simpler;
mod text;

pub use action::Action;
pub(crate) use armed::{arm, disarm};
pub(crate) use check::admits;
pub use error::PlanError;
pub use faults::Faults;
pub(crate) use matching::drawn;
pub use page::Fired;
pub(crate) use page::UnderPlan;
pub use plan::{Plan, Rule};
