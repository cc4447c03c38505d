//! StartMethod: how workers come to be.

use serde::{Deserialize, Serialize};

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
    /// Ask a small server process, which has one thread, to fork: a fraction of the cost of `Spawn`, in programs with
    /// threads too. The server is this executable once more; see [`ForkServer`](crate::ForkServer). A worker has the
    /// server's memory as its preload function left it; what else a process inherits it has from the thread that asks for
    /// it. A thread is refused that differs from the server in what a process cannot take on: credentials, capabilities,
    /// filters of system calls, namespaces, root directory.
    ForkServer,
}
