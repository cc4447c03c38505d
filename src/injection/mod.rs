//! What `Options::faults` carries: a plan of faults, the shared page in which each fault that happens is noted before it does, and what a
//! worker does at its points.
//!
//! - `plan`: a plan, its rules and their conditions
//! - `grammar`: the same as text
//! - `action`: what happens
//! - `site`: where it happens
//! - `resource`: which limits
//! - `set`: which ranks, which attempts, which hits
//! - `text`: numbers, times and names in plans
//! - `check`: a plan against the points of this executable and the ranks of a context
//! - `matching`: pure: which rule a point meets
//! - `simpler`: pure: simpler plans than another one
//! - `page`: what has fired
//! - `faults`: a plan with its page
//! - `armed`: a worker under a plan
//! - `aside`: its thread for what is to happen at a time, or when a file appears
//! - `act`: it does what a rule says

mod act;
mod action;
mod armed;
mod aside;
mod check;
mod error;
mod faults;
mod grammar;
mod matching;
mod page;
mod plan;
mod resource;
mod set;
mod simpler;
mod site;
mod text;

pub use action::Action;
pub(crate) use armed::{arm, disarm};
pub(crate) use aside::watch as watch_for;
pub(crate) use check::admits;
pub use error::PlanError;
pub use faults::Faults;
pub(crate) use matching::drawn;
pub use page::Fired;
pub(crate) use page::UnderPlan;
pub use plan::{Plan, Rule};
pub use resource::Resource;
pub use site::Site;
