//! Watching and ending children: those of a context, whatever program they run.
//!
//! - `group`: children that are watched, reaped and ended together
//! - `member`: one of them, and what it was sent
//! - `child`: one child, reaped exactly once
//! - `reaper`: the process that reaps it, this one or the fork server
//! - `parent`: the thread that has started children
//! - `watch`: many descriptors, one epoll
//! - `stop`: pure: how children are ended, as data
//! - `prefix`: what stands before a child's lines on the console
//! - `pump`: a thread that carries what children print to files and to the console
//! - `oom`: kills for want of memory, counted in each child's control group
//! - `diagnose`: pure: what one exit means
//! - `verdict`: pure: which failure came first

pub(crate) mod child;
pub(crate) mod diagnose;
pub(crate) mod group;
mod member;
mod oom;
pub(crate) mod parent;
pub(crate) mod prefix;
pub(crate) mod pump;
pub(crate) mod reaper;
pub(crate) mod stop;
#[cfg(test)]
mod tests;
pub(crate) mod verdict;
mod watch;
