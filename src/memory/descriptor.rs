//! Open files that travel beside values.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::sys::fd::{self, Owner};
use crate::sys::limits::with_room;

/// An open file, socket or any other descriptor that can be sent: it may stand anywhere in arguments, results and
/// messages.
///
/// The receiver gets a duplicate (dup(2)): the same open file, whose position and flags both sides share. The sender
/// keeps its own. Clones in a process share one descriptor, which the last of them closes.
///
/// ```
/// # phalanx::auto_init!();
/// use std::fs::File;
/// use std::io::{Read, Seek};
/// use phalanx::Descriptor;
///
/// fn count(_rank: usize, file: Descriptor) -> anyhow::Result<usize> {
///     let mut text = String::new();
///     File::from(file.into_owned()?).read_to_string(&mut text)?;
///     Ok(text.lines().count())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// # let mut file = tempfile::tempfile()?;
/// # std::io::Write::write_all(&mut file, b"one\ntwo\n")?;
/// # file.rewind()?;
/// assert_eq!(phalanx::spawn(count, Descriptor::from(file), 1)?, [2]);
/// # Ok(())
/// # }
/// ```
///
/// A worker that was forked ([`StartMethod::Fork`](crate::StartMethod::Fork)) closes the descriptors of its launcher. A
/// `Descriptor` that it has from there, as in a static, can neither be sent nor taken out, and [`as_fd`](AsFd::as_fd) returns a
/// number that is closed or belongs to another file.
#[derive(Clone)]
pub struct Descriptor(Arc<Owner>);

const CUT_OFF: &str = "this descriptor came into the worker by its fork, which closed it; give it to the worker in its arguments";

impl Descriptor {
    /// The descriptor itself when this is its only handle, else a duplicate of it.
    ///
    /// ```
    /// use std::fs::File;
    /// use phalanx::Descriptor;
    /// let descriptor = Descriptor::from(File::open("/dev/null")?);
    /// let file = File::from(descriptor.into_owned()?);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    /// When this process may open no more descriptors (RLIMIT_NOFILE), or a fork has closed this one.
    pub fn into_owned(self) -> io::Result<OwnedFd> {
        match Arc::try_unwrap(self.0) {
            Ok(alone) => alone.into_fd().map_err(|_| cut_off()),
            Err(shared) if shared.is_cut_off() => Err(cut_off()),
            Err(shared) => with_room(|| shared.as_fd().try_clone_to_owned()),
        }
    }

    /// Whether the fork that made this process has closed it.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.0.is_cut_off()
    }

    /// The same file at a number above 2, which a worker does not take for its stdin, stdout or stderr.
    pub(crate) fn beyond_stdio(&self) -> io::Result<Self> {
        if !fd::is_stdio(self.as_fd()) {
            return Ok(self.clone());
        }
        with_room(|| self.as_fd().try_clone_to_owned()).map(Self::from)
    }

    /// An identity that clones share.
    pub(crate) fn address(&self) -> *const Owner {
        Arc::as_ptr(&self.0)
    }
}

fn cut_off() -> io::Error {
    io::Error::other(CUT_OFF)
}

impl From<OwnedFd> for Descriptor {
    fn from(fd: OwnedFd) -> Self {
        Self(Arc::new(Owner::new(fd)))
    }
}

impl From<File> for Descriptor {
    fn from(file: File) -> Self {
        OwnedFd::from(file).into()
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let closed = if self.is_cut_off() { ", closed by a fork" } else { "" };
        write!(f, "Descriptor({}{closed})", self.as_fd().as_raw_fd())
    }
}
