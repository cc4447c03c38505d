//! How one child comes to be: a job in, a supervised child out. One file a start method.
//!
//! - `spawn`: run our own executable again
//! - `fork`: fork and run in place
//! - `immortal`: the thread from which workers are started when the caller may end before them
//! - `plan`: N workers to be started, and why one was not
//! - `group`: start N of them, all or none

mod fork;
mod group;
mod immortal;
mod plan;
mod spawn;

use serde::{Deserialize, Serialize};

pub(crate) use group::{Started, make_room, start_all};
pub(crate) use plan::{Group, limit_met};
pub(crate) use spawn::allow as allow_spawn;
pub(crate) use spawn::check_init;

/// How workers come to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StartMethod {
    /// Run our own executable again, by posix_spawn of `/proc/self/exe`. Works in every program that calls
    /// [`init`](crate::init), whatever threads it has and however much memory.
    #[default]
    Spawn,
    /// Fork, and run in place. Only in a process that has a single thread, since a fork copies one thread and
    /// every lock. The worker sees the launcher's memory as it was, but none of its descriptors above 2: those
    /// are closed, also where statics still hold their numbers. Tensors in statics can be used, but not sent; a slice of
    /// a [`Shard`](crate::Shard) that was leaked into a static must not be used in both.
    Fork,
    /// Ask a small server process to fork. Not there yet.
    ForkServer,
}
