//! What ends waits from outside: a context that ends those of its workers, and a pool that asks a task to end.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU32;

use crate::sys::epoll::Epoll;
use crate::sys::limits::with_room;
use crate::wire::stop_word::FailedRank;
use crate::wire::{roster, running_task, stop_word};

/// Why a wait was aborted: [`SyncError::Aborted`](super::SyncError::Aborted) and [`QueueError::Aborted`](crate::QueueError::Aborted).
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::pool::Pool;
/// use phalanx::sync::{AbortedBy, Event, SyncError};
///
/// fn wait(never: Event) -> anyhow::Result<String> {
///     match never.wait() {
///         Err(SyncError::Aborted { by: AbortedBy::Pool }) => Ok("as you wish".to_owned()),
///         other => anyhow::bail!("nobody sets it: {other:?}"),
///     }
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let pool = Pool::new(1)?;
/// let task = pool.submit(wait, Event::new()?)?;
/// while !task.has_begun() {
///     std::thread::yield_now();
/// }
/// assert!(task.kill());
/// assert_eq!(task.join()?, "as you wish");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AbortedBy {
    /// The worker of this rank of the same context has failed, and
    /// [`Options::abort_on_failure`](crate::Options::abort_on_failure) says that the others are to wait no more.
    Rank(usize),
    /// The launcher ends its workers, and that option says so.
    Launcher,
    /// The task of a [`Pool`](crate::pool::Pool) that this process runs was asked to end: it was
    /// [killed](crate::pool::Task::kill), its time is up, or the map that wanted its result was dropped.
    Pool,
}

impl AbortedBy {
    /// Why this process is to wait no more; `None`: it may.
    pub(crate) fn now() -> Option<Self> {
        let by_context = |failed: FailedRank| failed.map_or(Self::Launcher, Self::Rank);
        stop_word::aborted_by().map(by_context).or_else(|| running_task::is_asked().then_some(Self::Pool))
    }

    /// The process to name when a wait is aborted, if it is known.
    pub(crate) fn pids(self) -> Vec<u32> {
        match self {
            Self::Rank(rank) => roster::pid_of(rank).into_iter().collect(),
            // Nobody has failed, and the launcher is the process to name.
            Self::Launcher => roster::launcher().into_iter().collect(),
            // The pool knows whom it has asked, and why.
            Self::Pool => Vec::new(),
        }
    }
}

impl fmt::Display for AbortedBy {
    /// As the end of a sentence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Rank(rank) => match roster::pid_of(rank) {
                Some(pid) => write!(f, "{} has failed", roster::peer(pid)),
                // This process has no roster, or that worker is not in it.
                None => write!(f, "rank {rank} has failed"),
            },
            Self::Launcher => f.write_str("the launcher ends its workers"),
            Self::Pool => f.write_str("the task was asked to end"),
        }
    }
}

/// The words that change when this process is to wait no more, and what they are until then. None in most processes.
pub(super) fn words() -> Vec<(&'static AtomicU32, u32)> {
    stop_word::abort_word().into_iter().chain(running_task::words().into_iter().flatten()).collect()
}

/// A descriptor that becomes readable when the running task is asked to end, for a wait that looks at [`AbortedBy::now`] after this call and
/// before it sleeps. It may become readable for another task, too. `None`: no task runs.
pub(super) fn task_rings() -> io::Result<Option<Epoll>> {
    let Some(event) = running_task::event() else { return Ok(None) };
    // An epoll of this wait's own: in one that several threads share, the thread that takes the edge out would take it from the others.
    let rings = with_room(Epoll::new)?;
    rings.add_edge(event, 0)?;
    // An event that was rung for earlier tasks is an edge as it is added.
    rings.ready()?;
    Ok(Some(rings))
}

/// The descriptors whose edges say that this process may be to wait no more.
pub(crate) fn events<'a>() -> impl Iterator<Item = BorrowedFd<'a>> {
    stop_word::abort_event().into_iter().chain(running_task::event())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_say_why_and_only_a_context_names_a_process() {
        assert_eq!(AbortedBy::Rank(2).to_string(), "rank 2 has failed");
        assert_eq!(AbortedBy::Launcher.to_string(), "the launcher ends its workers");
        assert_eq!(AbortedBy::Pool.to_string(), "the task was asked to end");
        assert!(AbortedBy::Pool.pids().is_empty());
        assert_eq!(AbortedBy::now(), None);
    }
}
