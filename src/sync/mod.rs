//! Locks, events, barriers and values that several processes share, and that survive the death of any of them.
//!
//! | | what it is | when a process dies that has it |
//! |---|---|---|
//! | [`Lock`] | a value that one thread at a time can reach | the next holder gets [`Poisoned`](SyncError::Poisoned) |
//! | [`RLock`] | a lock that its holder can take again | likewise |
//! | [`RwLock`] | a value that many read, or one writes | a reader: nothing; a writer: `Poisoned` |
//! | [`Once`] | something that one process does for all | while it runs: `Poisoned` |
//! | [`Semaphore`], [`BoundedSemaphore`] | a number of permits | its permits are free again |
//! | [`Barrier`] | a point at which all wait for all | the others get [`Broken`](SyncError::Broken) |
//! | [`Event`] | a flag that can be waited for | nothing: the flag stays as it is |
//! | [`Condvar`] | waiting for what a lock guards to change | nothing: no other waiter misses a notification |
//! | [`Value`], [`Array`] | numbers, changed in one step each | nothing: no step is left half done |
//!
//! # Handles
//!
//! Each is a handle to a record in shared memory, which the last handle in any process frees. A clone is the same lock,
//! and so is what arrives in another process: in a worker's arguments or its result, or through a
//! [`Queue`](crate::Queue) or a [`Connection`](crate::Connection). A record cannot be resized, and needs no name in a
//! file system.
//!
//! ```
//! use phalanx::sync::Lock;
//!
//! let lock = Lock::new([0_u32; 4])?;
//! let same = lock.clone();
//! lock.lock()?[2] = 7;
//! assert_eq!(*same.lock()?, [0, 0, 7, 0]);
//! # Ok::<(), phalanx::sync::SyncError>(())
//! ```
//!
//! # Threads and forks
//!
//! All handles are `Send` and `Sync`: threads may share one, or have a clone each (of a [`Barrier`] each thread should
//! have its own). What a call returns that holds something, a guard or a [`Permit`], belongs to the thread that made
//! the call: the kernel keeps for each thread the list of what it holds. So guards and permits are `Sync`, but not
//! `Send`. A child that a holder forks holds nothing, and its copy of a guard gives nothing back.
//!
//! ```
//! use phalanx::sync::{Barrier, Event, Lock, Once, RwLock, Semaphore, Value};
//!
//! fn is_shared<T: Send + Sync>() {}
//! is_shared::<(Lock<u64>, RwLock<u64>, Once, Semaphore, Barrier, Event, Value<u64>)>();
//! ```
//!
//! ```compile_fail
//! fn is_sent<T: Send>() {}
//! is_sent::<phalanx::sync::LockGuard<'static, u64>>();
//! ```
//!
//! One thread can hold 1000 locks, read guards, permits and memberships at a time, since the kernel follows no longer
//! list when the thread ends. The next one is [`SyncError::System`].
//!
//! # Time
//!
//! A call named `try_…` does not wait: it is [`SyncError::WouldBlock`] when it would have to. A call named `…_timeout`
//! waits for the [`Duration`](std::time::Duration) that it is given, and is [`SyncError::TimedOut`] then, which names
//! the processes that it waited for. The time is that of CLOCK_MONOTONIC, with a resolution of nanoseconds: setting the
//! clock does not change it, and it stands still while the machine is suspended. `Duration::ZERO` is a wait of no time,
//! and `Duration::MAX` one without an end. A wait may end a little late, as long as the thread is not given a
//! processor, but not early.
//!
//! Waiters sleep in the kernel, after a short spin, and use no processor. Nothing is said of the order in which they go
//! on.
//!
//! # When a context ends its waits
//!
//! In a worker of a context with [`Options::abort_on_failure`](crate::Options::abort_on_failure) all these waits end
//! with [`SyncError::Aborted`] when another worker has failed. In a task of a [`Pool`](crate::pool::Pool) they end so when the task
//! is asked to end.

// - `error`: SyncError
// - `abort`: what ends waits from outside
// - `awaited`: the processes that were to end a wait
// - `futex_lock`: the transitions of a robust word, apart from memory and kernel
// - `parker`: one sleeper, which is woken once, and only when it sleeps
// - `model`: a futex as loom has it, for the tests of these two
// - `wait_policy`: how a blocking call waits
// - `robust_mutex`: a robust word as a lock that tells which process died inside
// - `event_count`: a count that many wait for
// - `owner_table`: robust words in a table
// - `record_with`: a record with a value behind it
// - `lock`, `rlock`, `condvar`, `event`, `once`: what is named so
// - `rwlock`, `readers`: the value and its guards, and its owners
// - `semaphore`, `permits`: the handles, and what is shared
// - `barrier`, `members`, `member`: the handle, the table, and one slot of it; `arrival`: one wait; `round`: what ends
// it
// - `value`: Value and Array

pub(crate) mod abort;
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

pub use abort::AbortedBy;
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
