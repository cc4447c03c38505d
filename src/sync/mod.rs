//! Locks, events, barriers and values that several processes share, and that survive the death of any of them.

// - `error`: SyncError
// - `awaited`: for whom a wait was
// - `word`: the algorithm of a word that a thread can own, apart from memory and kernel
// - `nap`: how a sleeper is woken once, and only when there is one
// - `model`: a futex as loom has it, for the tests of these two
// - `policy`: how a blocking call waits
// - `mutex`: a robust word as a lock that tells who died inside
// - `changed`: a count that is waited for
// - `places`: robust words in a table
// - `record_with`: a record with a value behind it
// - `lock`, `rlock`, `condvar`, `event`, `once`: what is named so
// - `rwlock`, `readers`: the value and its guards, and who has it
// - `semaphore`, `permits`: the handles, and what is shared
// - `barrier`, `members`: likewise; `round`: the state of a barrier
// - `value`: Value and Array

pub(crate) mod awaited;
mod barrier;
mod condvar;
pub(crate) mod error;
mod event;
pub(crate) mod event_count;
pub(crate) mod futex_lock;
mod lock;
mod members;
#[cfg(all(test, loom))]
mod model;
mod once;
pub(crate) mod owner_table;
pub(crate) mod parker;
mod permits;
mod readers;
mod record_with;
mod rlock;
pub(crate) mod robust_mutex;
mod round;
mod rwlock;
mod semaphore;
mod value;
pub(crate) mod wait_policy;

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
