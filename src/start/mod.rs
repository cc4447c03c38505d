//! How one child comes to be: a job in, a supervised child out. One file a start method.
//!
//! - `spawn`: run our own executable again
//! - `fork`: fork and run in place
//! - `forkserver`: ask the fork server for workers
//! - `server`: the fork server process itself
//! - `guardian`: a part of the fork server, which ends what is left of a killed launcher's other workers
//! - `surroundings`: what the fork server's workers have from their launcher
//! - `starter`: the thread that starts the workers of a caller which may end before them
//! - `plan`: N workers to be started, and why one was not
//! - `group`: start N of them, all or none

mod fork;
pub(crate) mod forkserver;
mod group;
mod guardian;
mod method;
mod plan;
pub(crate) mod server;
mod spawn;
mod starter;
mod surroundings;

pub(crate) use group::{Started, make_room, start_all};
pub use method::StartMethod;
pub(crate) use plan::Group;
pub(crate) use spawn::allow as allow_spawn;
pub(crate) use spawn::{check_executable, check_init};
