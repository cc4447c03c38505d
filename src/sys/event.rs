//! eventfd(2): a descriptor that is readable when something has happened.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd as NixEventFd};
use nix::unistd::{read, write};

use super::fd::above_stdio;
use crate::point::point;

/// A counter whose descriptor is readable as long as it is not zero.
#[derive(Debug)]
pub(crate) struct EventFd<F = OwnedFd>(F);

impl EventFd {
    /// One that is not readable yet.
    pub(crate) fn new() -> io::Result<Self> {
        point!("sys.eventfd", call);
        let event = NixEventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self(above_stdio(event.into())?))
    }

    pub(crate) fn into_descriptor(self) -> OwnedFd {
        self.0
    }
}

impl<F: AsFd> EventFd<F> {
    /// Takes over one that was made elsewhere.
    pub(crate) fn from_descriptor(fd: F) -> Self {
        Self(fd)
    }

    /// Makes it readable. It can only refuse when it is full, and then it is readable.
    pub(crate) fn ring(&self) {
        let _ = write(self.0.as_fd(), &1_u64.to_ne_bytes());
    }

    /// Makes it unreadable until it is rung again.
    pub(crate) fn clear(&self) {
        // It can only refuse when there is nothing to take.
        let _ = read(self.0.as_fd(), &mut [0; 8]);
    }

    pub(crate) fn descriptor(&self) -> &F {
        &self.0
    }
}

impl<F: AsFd> AsFd for EventFd<F> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock::Moment;
    use super::super::epoll::wait_readable;
    use super::*;

    #[test]
    fn event_is_readable_once_it_was_rung() {
        let event = EventFd::new().unwrap();
        let readable = || wait_readable(event.as_fd(), Some(Moment::now())).unwrap();
        assert!(!readable());
        event.ring();
        event.ring();
        assert!(readable() && readable());
        event.clear();
        assert!(!readable());
    }
}
