//! Many children, one epoll.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::child::Child;
use crate::sys::clock::Moment;
use crate::sys::epoll::{Epoll, Timer};

/// The token of the timer; no rank comes so far.
const TIMER: u64 = u64::MAX;

/// Tells which children have ended, in the order of their ends. Asking costs the same for any number of them.
#[derive(Debug)]
pub(crate) struct WatchSet {
    epoll: Epoll,
    timer: Timer,
    alarm: Option<Moment>,
}

impl WatchSet {
    pub(crate) fn new() -> io::Result<Self> {
        let (epoll, timer) = (Epoll::new()?, Timer::new()?);
        // From the beginning: in a teardown there may be no descriptor left for it.
        epoll.add(timer.as_fd(), TIMER)?;
        Ok(Self { epoll, timer, alarm: None })
    }

    /// Watches a child under a number. It is forgotten when the child's pidfd is closed.
    pub(crate) fn add(&self, child: &Child, number: usize) -> io::Result<()> {
        self.epoll.add(child.as_fd(), number as u64)
    }

    /// Watches a child no more.
    pub(crate) fn remove(&self, child: &Child) -> io::Result<()> {
        self.epoll.remove(child.as_fd())
    }

    /// The numbers of some children that have ended; none when all of them run.
    pub(crate) fn ended(&self) -> io::Result<Vec<usize>> {
        let tokens = self.epoll.ready()?;
        Ok(tokens.into_iter().filter(|&token| token != TIMER).map(|token| token as usize).collect())
    }

    /// Sleeps until a child has ended, the alarm is due, or `deadline` has come.
    pub(crate) fn wait_until(&self, deadline: Option<Moment>) -> io::Result<()> {
        self.epoll.wait_until(deadline)
    }

    /// Makes the set readable at `at` too, for those who poll its descriptor; `None`: no longer.
    pub(crate) fn set_alarm(&mut self, at: Option<Moment>) -> io::Result<()> {
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
