//! How one child comes to be: a job in, a supervised child out. One file a start method.
//!
//! - `plan`: N workers to be started, and why one was not
//! - `group`: start N of them, all or none
//! - `spawn`: run our own executable again
//! - `spawner`: the thread that starts the workers of a caller which may end before them
//! - `fork`: fork and run in place
//! - `forkserver`: the public handle of the fork server, of which a process has one
//! - `server_link`: the launcher's end of it
//! - `fork_batch`: some workers that it is to fork
//! - `fork_request`: what arrives of that in the server
//! - `server`: the fork server process itself
//! - `spares`: processes that it has forked ahead of demand
//! - `guardian`: a part of the fork server, which ends what is left of a killed launcher's other workers
//! - `attributes`: what the fork server's workers have from the thread that asks for them

mod attributes;
mod fork;
mod fork_batch;
mod fork_request;
pub(crate) mod forkserver;
mod group;
mod guardian;
mod method;
mod plan;
pub(crate) mod server;
mod server_link;
mod spares;
mod spawn;
mod spawner;
#[cfg(test)]
mod tests;

pub(crate) use group::{Started, make_room, start_all, start_rank};
pub use method::StartMethod;
pub(crate) use plan::{Jobs, PipeEnds, Plan};
pub(crate) use spawn::allow as allow_spawn;
pub(crate) use spawn::{check_executable, check_init, own_arguments};
