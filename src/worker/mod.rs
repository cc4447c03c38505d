//! Everything that runs inside a child of the launcher or of its fork server.
//!
//! - `run`: what a worker does from its first instruction to its last
//! - `entry`: how the user's function is found and called
//! - `function`: what a worker of `launch` does that runs a function
//! - `late_init`: a worker whose main has started a runtime before `init`
//! - `info`: what a worker can ask about itself
//! - `setup`: the options of its rank
//! - `stopping`: by which it asks whether it is being ended
//! - `report`: from `Err` or panic to a report
//! - `crash`: from a fatal signal to a record of it

pub(crate) mod crash;
pub(crate) mod entry;
pub(crate) mod function;
pub(crate) mod hooks;
mod info;
mod late_init;
pub(crate) mod report;
mod run;
mod setup;
mod stopping;

pub use hooks::{after_fork, seed};
pub use info::{WorkerInfo, worker_info};
pub(crate) use run::{Changes, Origin, Served, run};
pub use stopping::{stop_fd, stopping};
