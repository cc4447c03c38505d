//! Locks, events, barriers and values that several processes share, and that survive the death of any of them.

// - `error`: SyncError
// - `awaited`: whom a wait was for
// - `futex_lock`: the transitions of a robust word, apart from memory and kernel
// - `parker`: one sleeper, which is woken once, and only when it sleeps
// - `model`: a futex as loom has it, for the tests of these two
// - `wait_policy`: how a blocking call waits
// - `robust_mutex`: a robust word as a lock that tells who died inside
// - `event_count`: a count that many wait for
// - `owner_table`: robust words in a table
// - `record_with`: a record with a value behind it
// - `lock`, `rlock`, `condvar`, `event`, `once`: what is named so
// - `rwlock`, `readers`: the value and its guards, and who has it
// - `semaphore`, `permits`: the handles, and what is shared
// - `barrier`, `members`, `member`: the handle, the table, and one slot of it; `arrival`: one wait; `round`: what ends
// it
// - `value`: Value and Array

mod arrival;
pub(crate) mod awaited;
mod barrier;
mod condvar;
pub(crate) mod error;
mod event;
pub(crate) mod event_count;
pub(crate) mod futex_lock;
mod lock;
mod member;
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

pub use arrival::BarrierWaitResult;
pub use awaited::Awaited;
pub use barrier::Barrier;
pub use condvar::Condvar;
pub use error::{BrokenBy, SyncError};
pub use event::Event;
pub use lock::{Lock, LockGuard};
pub use once::Once;
pub use rlock::{RLock, RLockGuard};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use semaphore::{BoundedSemaphore, Permit, Semaphore};
pub use value::{Array, Value};
