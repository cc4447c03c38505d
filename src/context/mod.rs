//! N workers that run one function.
//!
//! - `options`: what can be chosen
//! - `rank`: what can be chosen for each rank
//! - `start`: check, build the jobs, start them
//! - `crew`: the workers of one context, watched, ended and reaped
//! - `blame`: what the ends of the workers tell of one another
//! - `postmortem`: what a worker left, read
//! - `returned`: a result, until the program takes it
//! - `diagnose`: pure: what one exit means
//! - `verdict`: pure: which failure came first
//! - `join`: `ProcessContext`, the user's handle

mod blame;
mod crew;
mod diagnose;
mod join;
mod member;
mod oom;
mod options;
mod postmortem;
mod rank;
mod returned;
mod start;
mod values;
mod verdict;

pub use join::ProcessContext;
pub use options::Options;
pub use rank::{OutputFile, RankOptions};
pub use start::{spawn, start_processes, start_processes_with};
