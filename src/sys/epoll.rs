//! epoll(7), ppoll(2) and timerfd_create(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll as NixEpoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::clock::Moment;
use super::fd::above_stdio;

const BATCH: usize = 64;

/// A set of descriptors to wait for, each with a number of the caller's choice.
#[derive(Debug)]
pub(crate) struct Epoll(NixEpoll);

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = NixEpoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self(NixEpoll(above_stdio(epoll.0)?)))
    }

    /// Adds `fd`, level-triggered: it is reported until it is removed.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }

    /// Adds `fd`, edge-triggered: it is reported when it is readable now, and each time it becomes so again.
    pub(crate) fn add_edge(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, token))?)
    }

    /// Adds `fd`, edge-triggered: it is reported each time it has room to write again, and when nobody reads it any more.
    pub(crate) fn add_writable_edge(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLOUT | EpollFlags::EPOLLET, token))?)
    }

    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(self.0.delete(fd)?)
    }

    /// As [`remove`](Self::remove), by its number: it may be closed already, by which it has left.
    pub(crate) fn forget(&self, fd: RawFd) {
        // SAFETY: takes numbers; an event is not needed (epoll_ctl(2), BUGS).
        unsafe { libc::epoll_ctl(self.0.0.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) };
    }

    /// The tokens that are ready now, at most a batch of them, in the order in which they became ready.
    pub(crate) fn ready(&self) -> io::Result<Vec<u64>> {
        let mut events = [EpollEvent::empty(); BATCH];
        let count = retry(|| self.0.wait(&mut events, EpollTimeout::ZERO))?;
        Ok(events[..count].iter().map(EpollEvent::data).collect())
    }

    /// Sleeps until something is ready or `deadline` has come (`None`: no deadline).
    pub(crate) fn wait_until(&self, deadline: Option<Moment>) -> io::Result<()> {
        wait_readable(self.0.0.as_fd(), deadline).map(drop)
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

/// For what a descriptor is waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Readable,
    Writable,
}

/// Sleeps until `fd` is readable or `deadline` has come; says whether it is readable.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, deadline: Option<Moment>) -> io::Result<bool> {
    wait_any(&[(fd, Readiness::Readable)], deadline)
}

/// As [`wait_readable`], until there is room to write.
pub(crate) fn wait_writable(fd: BorrowedFd<'_>, deadline: Option<Moment>) -> io::Result<bool> {
    wait_any(&[(fd, Readiness::Writable)], deadline)
}

/// Sleeps until one of the descriptors is ready or `deadline` has come; says whether one is.
///
/// ppoll rather than the timeout of epoll_wait: that one counts in milliseconds.
pub(crate) fn wait_any(fds: &[(BorrowedFd<'_>, Readiness)], deadline: Option<Moment>) -> io::Result<bool> {
    poll(fds, deadline).map(|ready| ready.contains(&true))
}

/// Which of the descriptors are ready now.
pub(crate) fn poll_now(fds: &[(BorrowedFd<'_>, Readiness)]) -> io::Result<Vec<bool>> {
    poll(fds, Some(Moment::now()))
}

fn poll(fds: &[(BorrowedFd<'_>, Readiness)], deadline: Option<Moment>) -> io::Result<Vec<bool>> {
    let event = |&(fd, readiness): &(_, _)| match readiness {
        Readiness::Readable => PollFd::new(fd, PollFlags::POLLIN),
        Readiness::Writable => PollFd::new(fd, PollFlags::POLLOUT),
    };
    let mut fds: Vec<_> = fds.iter().map(event).collect();
    retry(|| {
        let left = deadline.map(|at| TimeSpec::from_duration(at.since(Moment::now())));
        ppoll(&mut fds, left, None)
    })?;
    // An error or a hang-up that nobody has asked for is something to be told, too.
    Ok(fds.iter().map(|fd| fd.revents().is_none_or(|events| !events.is_empty())).collect())
}

/// Waits for a time, where the kernel has no event for what is waited for: ppoll(2) of nothing.
pub(crate) fn pause(time: Duration) -> io::Result<()> {
    match ppoll(&mut [], Some(TimeSpec::from_duration(time)), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

/// A descriptor that becomes readable at a moment.
#[derive(Debug)]
pub(crate) struct Timer(TimerFd);

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let timer = above_stdio(timer.into())?;
        // SAFETY: the descriptor is a timerfd, and given up by its only owner.
        Ok(Self(unsafe { TimerFd::from_raw_fd(timer.into_raw_fd()) }))
    }

    /// Arms it for `at`, or disarms it; either makes it unreadable until then.
    pub(crate) fn set(&self, at: Option<Moment>) -> io::Result<()> {
        match at {
            // A timer value of zero would disarm.
            Some(at) => {
                let at = TimeSpec::from_duration(Duration::from_nanos(at.as_nanos().max(1)));
                Ok(self.0.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?)
            }
            None => Ok(self.0.unset()?),
        }
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
