//! Locks, events, barriers and values that several processes share, and that survive the death of any of them.

// - `error`: SyncError
// - `awaited`: for whom a wait was
// - `word`: the algorithm of a word that a thread can own, apart from memory and kernel
// - `nap`: how a sleeper is woken once, and only when there is one
// - `model`: a futex as loom has it, for the tests of these two
// - `patience`: how a blocking call waits
// - `gate`: a robust word as a lock that tells who died inside
// - `bell`: a count that is waited for
// - `places`: robust words in a table
// - `record_with`: a record with a value behind it
// - `lock`, `rlock`, `condvar`, `event`, `once`: what is named so
// - `rwlock`, `readers`: the value and its guards, and who has it
// - `semaphore`, `permits`: the handles, and what is shared
// - `barrier`, `members`: likewise; `round`: the state of a barrier
// - `value`: Value and Array

pub(crate) mod awaited;
mod barrier;
pub(crate) mod bell;
mod condvar;
pub(crate) mod error;
mod event;
pub(crate) mod gate;
mod lock;
mod members;
#[cfg(all(test, loom))]
mod model;
pub(crate) mod nap;
mod once;
pub(crate) mod patience;
mod permits;
pub(crate) mod places;
mod readers;
mod record_with;
mod rlock;
mod round;
mod rwlock;
mod semaphore;
mod value;
pub(crate) mod word;

pub use awaited::Awaited;
pub use barrier::{Barrier, BarrierWaitResult};
pub use condvar::Condvar;
pub use error::{BrokenBy, SyncError};
pub use event::Event;
pub use lock::{Lock, LockGuard};
pub use once::Once;
pub use rlock::{RLock, RLockGuard};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use semaphore::{BoundedSemaphore, Permit, Semaphore};
pub use value::{Array, Value};
