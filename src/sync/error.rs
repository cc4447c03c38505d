//! What a call on a lock, an event, a barrier or the like can fail with.

use std::fmt;
use std::io;
use std::time::Duration;

use super::abort::AbortedBy;
use super::awaited::{Awaited, named};
use super::wait_policy::Interrupted;
use crate::error::{MemoryError, consequence, with_hint};
use crate::wire::roster;

/// What a call on a lock, an event, a barrier or the like can fail with.
///
/// The text of an error names workers of the same context by their ranks, other processes by their pids.
///
/// [`TimedOut`](Self::TimedOut), [`Poisoned`](Self::Poisoned), [`Aborted`](Self::Aborted) and [`Broken`](Self::Broken)
/// are consequences of what another process did. A worker may fail with one of them: the launcher reports the failure
/// of that process first if there is one.
///
/// Python has no error where a `timeout` is up, but returns `False`. Its `BrokenBarrierError` is
/// [`Broken`](Self::Broken).
///
/// Whether the call may be tried again depends on the kind: [`WouldBlock`](Self::WouldBlock) and
/// [`TimedOut`](Self::TimedOut) pass by themselves, [`Poisoned`](Self::Poisoned) and [`Broken`](Self::Broken) stay
/// until the state is put right, after [`Aborted`](Self::Aborted) a worker does best to end, and the others are
/// mistakes of the program or limits of the system.
///
/// ```
/// use std::time::Duration;
/// use phalanx::sync::{Lock, SyncError};
///
/// fn add(total: &Lock<u64>, more: u64) -> Result<(), SyncError> {
///     let mut total = match total.lock_timeout(Duration::from_secs(10)) {
///         Err(SyncError::Poisoned { pid }) => {
///             eprintln!("process {pid} has left the total in disorder");
///             let (mut total, _) = total.recover()?;
///             *total = 0;
///             total
///         }
///         taken => taken?, // a timeout names the processes that it waited for
///     };
///     *total += more;
///     Ok(())
/// }
///
/// let total = Lock::new(0)?;
/// add(&total, 3)?;
/// assert_eq!(*total.lock()?, 3);
/// # Ok::<(), SyncError>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// Other threads have it at the moment, and a `try_` call does not wait.
    #[error("others have it at the moment: try again later, or use the call that waits")]
    WouldBlock,

    /// The time that the call might take was up, and it has changed nothing. (A barrier is broken by it.)
    ///
    /// A `try_` call gives up with this error too, after a second, when a thread does not finish what it is in the
    /// middle of: its process is stopped, say by SIGSTOP or a debugger.
    #[error("timed out after {waited:?}{awaited}")]
    TimedOut {
        /// The time that the call was given, or one second of a `try_` call.
        waited: Duration,
        /// What it waited for, and which processes, as far as they are known.
        awaited: Awaited,
    },

    /// A process died, or panicked, while it held the lock: what the lock guards may be half changed. Every call fails
    /// with this, in all processes, until `recover` has taken the lock nevertheless (of a [`Once`](super::Once):
    /// [`call_once_force`](super::Once::call_once_force)).
    #[error(
        "{} died or panicked while it held the lock: what that guards may be half written; take it by recover() (a Once by \
         call_once_force()) and put it right",
        roster::peer(*.pid)
    )]
    Poisoned {
        /// The process that died or panicked.
        pid: u32,
    },

    /// This worker is to wait no more: another worker of its context has failed or the context is being ended, and
    /// [`Options::abort_on_failure`](crate::Options::abort_on_failure) says so; or the task of a
    /// [`Pool`](crate::pool::Pool) that it runs was asked to end.
    ///
    /// Each later wait of the worker, or of the task, ends in the same way. What a call can do without waiting it still
    /// does, so that it can clean up.
    #[error("the wait was aborted: {by}")]
    Aborted {
        /// Why.
        by: AbortedBy,
    },

    /// The barrier is broken, and stays so until [`Barrier::reset`](super::Barrier::reset).
    #[error("the barrier is broken: {}", Breach(*.by, *.pid, .missing))]
    Broken {
        /// The process that broke it; `None` when it was reset, or the process is not known.
        pid: Option<u32>,
        /// How it was broken.
        by: BrokenBy,
        /// The processes of the members that had not come when that process gave up.
        missing: Vec<u32>,
    },

    /// This thread holds it already, so it would wait for itself for ever. The call has changed nothing. A deadlock
    /// between several threads is not found: use a timeout, which names the processes.
    #[error("this thread holds it already and would wait for itself: release it first")]
    Deadlock,

    /// More permits would be given back than were taken from a [`BoundedSemaphore`](super::BoundedSemaphore), or than a
    /// `u32` can count. None was added.
    #[error(
        "cannot add permits: there are {value}, and there can be at most {limit}; release only what was taken"
    )]
    TooMany {
        /// How many permits there are, taken or free.
        value: u32,
        /// How many permits there can be.
        limit: u32,
    },

    /// There is no room to note one more holder of a permit, member of a barrier or guard of an
    /// [`RLock`](super::RLock).
    #[error("cannot note one more of {what}: all {capacity} entries are taken; release one first")]
    Full {
        /// What there is no room for.
        what: &'static str,
        /// How many can be noted.
        capacity: usize,
    },

    /// The shared memory of a new one could not be made.
    #[error(transparent)]
    Memory(#[from] MemoryError),

    /// The system refused the wait, or this thread holds 1000 locks, permits and the like already.
    #[error("cannot take it or wait for it: {}", with_hint(.0))]
    System(#[from] io::Error),
}

/// How a barrier was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BrokenBy {
    /// A member died: a process that has it, or a thread that had waited by it and ended before its handle was dropped.
    Death,
    /// A member waited no longer: its time was up, or its wait was aborted.
    GivingUp,
    /// A process called [`Barrier::abort`](super::Barrier::abort), or a panic dropped a handle.
    Abort,
    /// A process called [`Barrier::reset`](super::Barrier::reset) while others waited. The barrier is as good as new.
    Reset,
}

impl SyncError {
    fn timed_out(waited: Duration, awaited: Awaited) -> Self {
        // For the verdict: a worker that fails with this error was waiting for those, and may be only their victim.
        let pids = awaited.pids();
        Self::TimedOut { waited, awaited }.noted(&pids)
    }

    pub(super) fn poisoned(pid: u32) -> Self {
        Self::Poisoned { pid }.noted(&[pid])
    }

    fn aborted(by: AbortedBy) -> Self {
        Self::Aborted { by }.noted(&by.pids())
    }

    /// Broken by a process, 0 when it is not known which, that had waited for others.
    pub(super) fn broken(pid: u32, by: BrokenBy, missing: Vec<u32>) -> Self {
        // A member that gave up was itself waiting: what kept it are the members that it waited for.
        let waited_for = if missing.is_empty() { vec![pid] } else { missing.clone() };
        Self::Broken { pid: Some(pid).filter(|&pid| pid != 0), by, missing }.noted(&waited_for)
    }

    fn noted(self, pids: &[u32]) -> Self {
        // Kept until the report. The error itself may be turned into a text on its way, which no longer tells of
        // processes.
        consequence::note(&self, pids);
        self
    }
}

impl Interrupted {
    /// The error of a wait for these.
    pub(super) fn awaiting(self, awaited: impl FnOnce() -> Awaited) -> SyncError {
        match self {
            Self::WouldBlock => SyncError::WouldBlock,
            Self::TimedOut(waited) => SyncError::timed_out(waited, awaited()),
            Self::Aborted(by) => SyncError::aborted(by),
            // Neither names processes: the thread has only itself to blame.
            Self::Deadlock => SyncError::Deadlock,
            Self::System(os) => SyncError::System(os),
        }
    }
}

impl From<Interrupted> for SyncError {
    fn from(stop: Interrupted) -> Self {
        // For waits that name nobody: those that have no end, and so do not time out, and the steps inside a mutex.
        stop.awaiting(|| Awaited::holders("", []))
    }
}

struct Breach<'a>(BrokenBy, Option<u32>, &'a [u32]);

impl fmt::Display for Breach<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(by, pid, missing) = self;

        let who = pid.map_or_else(|| "a member".to_owned(), |pid| named(&[pid]));
        match by {
            BrokenBy::Death => write!(f, "{who} died, or its thread ended with the handle alive"),
            BrokenBy::GivingUp if missing.is_empty() => write!(f, "{who} waited no longer"),
            BrokenBy::GivingUp => write!(f, "{who} waited no longer for {}", named(missing)),
            BrokenBy::Abort => write!(f, "{who} called abort() or panicked"),
            BrokenBy::Reset => f.write_str("it was reset while this thread waited"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_name_processes_and_say_what_to_do() {
        let told = |error: SyncError| error.to_string();
        let broken = |by, missing: &[u32]| told(SyncError::broken(7, by, missing.to_vec()));
        let whole = "the barrier is broken: process 7";
        assert_eq!(
            broken(BrokenBy::GivingUp, &[8, 9]),
            format!("{whole} waited no longer for process 8 and process 9")
        );
        assert_eq!(broken(BrokenBy::GivingUp, &[]), format!("{whole} waited no longer"));
        assert_eq!(broken(BrokenBy::Abort, &[]), format!("{whole} called abort() or panicked"));
        assert!(broken(BrokenBy::Death, &[]).starts_with(&format!("{whole} died")));
        let poisoned = told(SyncError::poisoned(7));
        assert!(poisoned.starts_with("process 7 died or panicked while it held the lock"), "{poisoned}");
        assert!(poisoned.contains("recover()"), "{poisoned}");
        let (waited, holder) = (Duration::from_secs(3), Awaited::holders("the lock is", [7]));
        assert_eq!(
            told(SyncError::timed_out(waited, holder)),
            "timed out after 3s: the lock is held by process 7"
        );
        let aborted = told(Interrupted::Aborted(AbortedBy::Pool).into());
        assert_eq!(aborted, "the wait was aborted: the task was asked to end");
    }
}
