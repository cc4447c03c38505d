//! Many children, one epoll.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::child::Child;
use crate::sys::clock::Moment;
use crate::sys::epoll::{Epoll, Timer};
use crate::wire::result_channel::ResultChannel;

/// The tokens of the timer and of what workers return; no rank comes so far.
const TIMER: u64 = u64::MAX;
const RETURNS: u64 = u64::MAX - 1;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The child of that number has ended.
    Ended(usize),
    /// A child has sent something that goes with its result.
    Returned,
}

/// Tells which children have ended, in the order of their ends. Asking costs the same for any number of them.
#[derive(Debug)]
pub(crate) struct WatchSet {
    epoll: Epoll,
    timer: Timer,
    alarm: Option<Moment>,
}

impl WatchSet {
    /// A set that watches what the children return, and no child yet.
    pub(crate) fn new(result_channel: &ResultChannel) -> io::Result<Self> {
        let (epoll, timer) = (Epoll::new()?, Timer::new()?);
        // From the beginning: in a teardown there may be no descriptor left for it.
        epoll.add(timer.as_fd(), TIMER)?;
        epoll.add(result_channel.as_fd(), RETURNS)?;
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

    /// Some of what has happened; nothing when all children run and none has sent anything.
    pub(crate) fn events(&self) -> io::Result<Vec<Event>> {
        let event = |token| match token {
            TIMER => None,
            RETURNS => Some(Event::Returned),
            number => Some(Event::Ended(number as usize)),
        };
        Ok(self.epoll.ready()?.into_iter().filter_map(event).collect())
    }

    /// Sleeps until something happens, the alarm is due, or `deadline` has come.
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
