//! How a blocking call waits: until when, and whether it is to wait at all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering::{self, Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, compiler_fence, fence};
use std::time::Duration;

use super::abort::{self, AbortedBy};
use super::futex_lock::{AtomicWord, Futex};
use crate::sys::clock::Moment;
use crate::sys::epoll::{self, Readiness};
use crate::sys::{futex, robust};
use crate::wire::stop_word;

/// Why a wait is over without what was waited for.
#[derive(Debug)]
pub(crate) enum Interrupted {
    WouldBlock,
    TimedOut(Duration),
    Aborted(AbortedBy),
    /// This thread waits for itself.
    Deadlock,
    System(io::Error),
}

/// How long one waits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WaitPolicy {
    /// Not at all.
    Never,
    /// Not at all either: a future looks, which must not hold up its thread, and looks again soon.
    Poll,
    /// For `timeout`, which is over at the moment `end`. `None`: the time is never up.
    Until { timeout: Duration, end: Option<Moment> },
    /// However long it takes.
    Forever,
}

/// How long one sleeps at most where the kernel does not tell of everything that is waited for: it takes one word only
/// (before Linux 5.16) or fewer than there are, or some deaths wake no waiter (see [`robust::death_wakes`]).
//
// A sleeper that nobody wakes is late by as much at the most; twenty looks a second cost a waiting process next to
// nothing.
const LOOK_AROUND: Duration = Duration::from_millis(50);

impl WaitPolicy {
    pub(crate) fn of(timeout: Duration) -> Self {
        // A moment, not a duration: a wait that is woken for nothing goes on until the same end. Beyond what the clock
        // can say it is none.
        Self::Until { timeout, end: Moment::now().checked_add(timeout) }
    }

    /// Whether one waits at all.
    pub(crate) fn waits(&self) -> bool {
        !matches!(self, Self::Never | Self::Poll)
    }

    pub(crate) fn end(&self) -> Option<Moment> {
        match *self {
            Self::Never | Self::Poll | Self::Forever => None,
            Self::Until { end, .. } => end,
        }
    }

    /// Whether there is nothing left of it.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        // First: a worker that is to end is told so, not that its time was up.
        if let Some(by) = AbortedBy::now() {
            return Err(Interrupted::Aborted(by));
        }
        match *self {
            Self::Never | Self::Poll => Err(Interrupted::WouldBlock),
            Self::Until { timeout, end: Some(end) } if end <= Moment::now() => {
                Err(Interrupted::TimedOut(timeout))
            }
            Self::Until { .. } | Self::Forever => Ok(()),
        }
    }

    /// What there is of it now, but no more than a moment: for a sleep from which not all that matters wakes.
    pub(crate) fn for_a_moment(&self) -> Self {
        // The caller's own duration, which the error text names; it is the caller that finds out whether its time is
        // up.
        let timeout = match *self {
            Self::Until { timeout, .. } => timeout,
            Self::Never | Self::Poll | Self::Forever => LOOK_AROUND,
        };
        Self::Until {
            timeout,
            end: self.end().into_iter().chain(Moment::now().checked_add(LOOK_AROUND)).min(),
        }
    }

    /// Until when to sleep, unless one is woken. `told`: the kernel knows of all words that matter.
    fn next_look(&self, told: bool) -> Option<Moment> {
        // Else a waiter that the kernel leaves asleep, after a death that wakes nobody, looks for itself.
        if told && robust::death_wakes() { self.end() } else { self.for_a_moment().end() }
    }

    /// Sleeps while all words are what is expected of them. It may wake for nothing.
    pub(crate) fn sleep(&self, words: &[(&AtomicU32, u32)]) -> Result<(), Interrupted> {
        self.sleep_any(words).map(drop)
    }

    /// As [`sleep`](Self::sleep); says by which of several words it was woken, the last one if by more; `None`: by
    /// none, or it is not known.
    pub(super) fn sleep_any(&self, words: &[(&AtomicU32, u32)]) -> Result<Option<usize>, Interrupted> {
        // Before each sleep: an abort's word has changed already, so that a sleep on it would end at once, again and
        // again.
        self.check()?;
        // Outside of a worker nobody aborts, and one word is the old futex call, which every kernel has.
        let slept = match (words, abort::words()) {
            (&[(word, expected)], aborts) if aborts.is_empty() => {
                futex::wait(word, expected, self.next_look(true)).map(|()| None)
            }
            (_, aborts) => self.sleep_on_many(words, &aborts),
        };
        slept.map_err(Interrupted::System)
    }

    /// Sleeps until a descriptor is ready. It may wake for nothing.
    pub(crate) fn await_descriptor(
        &self,
        fd: BorrowedFd<'_>,
        readiness: Readiness,
    ) -> Result<(), Interrupted> {
        self.await_any(&[(fd, readiness)], None)
    }

    /// Sleeps for a moment, where the kernel has no event for what is waited for.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), Interrupted> {
        self.await_any(&[], Some(time))
    }

    /// As [`await_descriptor`](Self::await_descriptor), of several, and no longer than `most` at a time.
    pub(crate) fn await_any(
        &self,
        fds: &[(BorrowedFd<'_>, Readiness)],
        most: Option<Duration>,
    ) -> Result<(), Interrupted> {
        // A word cannot be polled, so each abort has an event beside it. That of a context stays readable.
        let task = abort::task_rings().map_err(Interrupted::System)?;
        self.check()?;
        let aborts = stop_word::abort_event().into_iter().chain(task.as_ref().map(AsFd::as_fd));
        let fds: Vec<_> = fds.iter().copied().chain(aborts.map(|fd| (fd, Readiness::Readable))).collect();
        // Both ends are moments of one clock, so the earlier one is the end of this sleep, and the caller looks which
        // it was.
        let soon = most.and_then(|most| Moment::now().checked_add(most));
        let end = self.end().into_iter().chain(soon).min();
        epoll::wait_any(&fds, end).map(drop).map_err(Interrupted::System)
    }

    fn sleep_on_many(
        &self,
        words: &[(&AtomicU32, u32)],
        aborts: &[(&AtomicU32, u32)],
    ) -> io::Result<Option<usize>> {
        // Those of aborts are always among them. Of too many words the last are left out, and looked at again every
        // `LOOK_AROUND`.
        let room = futex::MOST_WORDS - aborts.len();
        let told: Vec<_> = words.iter().take(room).chain(aborts).copied().collect();
        match futex::wait_any(&told, self.next_look(words.len() <= room)) {
            // No futex_waitv (before Linux 5.16, or a filter): the first word is that of the usual wake, and the others
            // are looked at every `LOOK_AROUND`.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => match words {
                &[(word, expected), ..] => futex::wait(word, expected, self.next_look(false)).map(|()| None),
                // Nothing to sleep on but the abort: `check` sees that in the caller's next turn.
                [] => Ok(None),
            },
            other => other,
        }
    }
}

impl AtomicWord for AtomicU32 {
    #[inline]
    fn load(&self, ordering: Ordering) -> u32 {
        Self::load(self, ordering)
    }

    #[inline]
    fn store(&self, new: u32, ordering: Ordering) {
        Self::store(self, new, ordering);
    }

    #[inline]
    fn swap(&self, new: u32, ordering: Ordering) -> u32 {
        Self::swap(self, new, ordering)
    }

    #[inline]
    fn replace(&self, old: u32, new: u32, ordering: Ordering) -> Result<u32, u32> {
        self.compare_exchange(old, new, ordering, Relaxed)
    }

    #[inline]
    fn add(&self, by: u32, ordering: Ordering) -> u32 {
        self.fetch_add(by, ordering)
    }

    #[inline]
    fn barrier_after_change() {
        // On x86-64 the locked instruction was one, so that it is enough if the compiler keeps the order.
        if cfg!(target_arch = "x86_64") {
            compiler_fence(SeqCst);
        } else {
            fence(SeqCst);
        }
    }
}

impl Futex<AtomicU32> for WaitPolicy {
    type Interrupted = Interrupted;

    fn wait(&self, words: &[(&AtomicU32, u32)]) -> Result<(), Interrupted> {
        self.sleep(words)
    }

    fn wake(&self, word: &AtomicU32, count: i32) -> usize {
        futex::wake(word, count)
    }

    fn check(&self) -> Result<(), Interrupted> {
        Self::check(self)
    }

    fn spins(&self) -> bool {
        // A call that does not wait has looked once, and says so.
        self.waits()
    }

    fn nanos(&self) -> u64 {
        Moment::now().as_nanos()
    }
}

impl From<io::Error> for Interrupted {
    fn from(os: io::Error) -> Self {
        Self::System(os)
    }
}
