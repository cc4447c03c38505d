//! get_robust_list(2): words in shared memory that a thread owns, and that the kernel marks when the thread ends, however it ends
//! (EOWNERDEAD of a robust mutex).
//!
//! - `word`: the word, and what the kernel reads and writes in it
//! - `pending`: list_op_pending, the word that a thread is about to take or to free
//! - `list`: the words that a thread owns
//! - `exiting`: what threads have left that ended as owners
//! - `owner_thread`: takes over the words of leaked guards
//! - `thread`: taking and freeing as the calling thread
//! - `kernel`: whether this kernel wakes a waiter when a thread ends that has the word pending

mod exiting;
mod kernel;
mod list;
mod owner_thread;
mod pending;
mod thread;
mod word;

pub(crate) use kernel::death_wakes;
pub(crate) use list::{MapPin, Me};
#[cfg(test)]
pub(crate) use thread::testing;
pub(crate) use thread::{free, me, owns, take, with_pending, with_pending_to_own};
pub(crate) use word::{OWNER, OWNER_DIED, RobustWord, WAITERS};
