//! N workers that run one function.
//!
//! - `options`: what can be chosen
//! - `rank`: what can be chosen for each rank
//! - `output`: what the workers print
//! - `start`: check, build the jobs, start them
//! - `group`: the workers of one context, and what their ends mean
//! - `worker`: one of them: its report slot, and how it ended
//! - `blame`: what the ends of the workers tell of one another
//! - `postmortem`: what a worker left, read
//! - `returned`: a result, until the program takes it
//! - `join`: `ProcessContext`, the user's handle
//! - `asynchronous`: waiting for it in asynchronous programs

mod asynchronous;
mod blame;
mod group;
mod join;
mod options;
pub(crate) mod output;
pub(crate) mod postmortem;
mod rank;
mod returned;
mod start;
mod values;
mod worker;

pub(crate) use group::GroupConfig;
pub use join::ProcessContext;
pub use options::Options;
pub use rank::{OutputFile, RankOptions};
pub(crate) use start::{Planned, plan_for_all};
pub use start::{spawn, start_processes, start_processes_with};
