//! The second way in which a worker dies with its launcher: a socket whose other end only the launcher has.
//!
//! The parent-death signal alone is not enough. The kernel sends it only if the dying thread may still send signals to
//! the worker, which a launcher that has given up root may not; and it forgets it when the worker changes its user or
//! group (prctl(2), PR_SET_PDEATHSIG). The signal of a descriptor (fcntl(2), F_SETSIG) is sent with the rights that the
//! worker had when it asked for it.
//!
//! This way alone is not enough either: a fork of the launcher has a copy of the launcher's end, and a worker that runs
//! another program or closes all its descriptors loses its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::fd;
use crate::sys::signal::Signal;
use crate::sys::socket::Socket;

/// The launcher's end: when it is closed, the worker is killed.
#[derive(Debug)]
pub(crate) struct Lifeline {
    _ours: Socket,
}

/// The end that a worker inherits.
#[derive(Debug)]
pub(crate) struct WorkersEnd(OwnedFd);

impl Lifeline {
    /// A lifeline for one worker, and the end which that worker inherits.
    pub(crate) fn new() -> io::Result<(Self, WorkersEnd)> {
        let (ours, theirs) = Socket::pair()?;
        Ok((Self { _ours: ours }, WorkersEnd(theirs.into_descriptor())))
    }
}

impl AsFd for WorkersEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Has the kernel kill this process by SIGKILL when the other end of `end` is closed (fcntl(2), F_SETSIG).
///
/// # Errors
/// When the system refuses, or when the launcher was gone before the signal was armed.
pub(crate) fn hold(end: OwnedFd) -> io::Result<()> {
    fd::signal_on_hangup(end.as_fd(), Signal::KILL)?;
    // The signal is armed first, then the state is read: a launcher that dies before that is seen by the read, one that dies
    // later by the signal.
    let gone = wait_readable(end.as_fd(), Some(Moment::now()))?;
    // Leaked on purpose: the end must stay open until the process ends.
    std::mem::forget(end);
    if gone { Err(io::Error::other("the launcher was gone before the start")) } else { Ok(()) }
}
