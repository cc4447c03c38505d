//! Many descriptors, one epoll.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys::clock::Moment;
use crate::sys::epoll::{Epoll, Timer};

/// The token of the timer, which no descriptor of the caller's may have.
const TIMER: u64 = u64::MAX;

/// Tells which descriptors are readable, in the order in which they became so. Asking costs the same for any number of them.
#[derive(Debug)]
pub(super) struct WatchSet {
    epoll: Epoll,
    timer: Timer,
    alarm: Option<Moment>,
}

impl WatchSet {
    pub(super) fn new() -> io::Result<Self> {
        let (epoll, timer) = (Epoll::new()?, Timer::new()?);
        // The timer is made now: in a teardown there may be no descriptor left for it.
        epoll.add(timer.as_fd(), TIMER)?;
        Ok(Self { epoll, timer, alarm: None })
    }

    /// Watches a descriptor under a token of the caller's.
    pub(super) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.epoll.add(fd, token)
    }

    /// Ends the watch of a descriptor. Closing the descriptor is not enough while another process has a copy (epoll(7)).
    pub(super) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.epoll.remove(fd)
    }

    /// The tokens of some descriptors that are readable; empty: none is.
    pub(super) fn ready(&self) -> io::Result<Vec<u64>> {
        // A timer that is due comes in one batch with what else is ready, so an empty answer is never the timer hiding others.
        Ok(self.epoll.ready()?.into_iter().filter(|&token| token != TIMER).collect())
    }

    /// Sleeps until a descriptor is readable, the alarm is due, or `deadline` has come.
    pub(super) fn wait_until(&self, deadline: Option<Moment>) -> io::Result<()> {
        self.epoll.wait_until(deadline)
    }

    /// Makes the set's own descriptor readable at `at` too, for a caller that polls it; `None`: no longer.
    pub(super) fn set_alarm(&mut self, at: Option<Moment>) -> io::Result<()> {
        if self.alarm != at {
            self.timer.set(at)?;
            self.alarm = at;
        }
        Ok(())
    }
}

impl AsFd for WatchSet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
