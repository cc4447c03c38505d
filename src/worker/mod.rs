//! Everything that runs inside a child.
//!
//! - `run`: what a worker does from its first instruction to its last
//! - `entry`: how the user's function is found and called
//! - `report`: from `Err` or panic to a report
//! - `crash`: from a fatal signal to a record of it

mod crash;
pub(crate) mod entry;
mod report;
mod run;

pub(crate) use run::{Origin, run};
