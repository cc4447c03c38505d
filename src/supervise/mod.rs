//! Watching and ending children.
//!
//! - `child`: one child, reaped exactly once
//! - `watch`: many children, one epoll
//! - `stop`: how children are ended, as data

pub(crate) mod child;
pub(crate) mod stop;
pub(crate) mod watch;
