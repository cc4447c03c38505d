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
/// One that came into a worker by its fork, as in a static of the launcher, was closed there
/// ([`StartMethod::Fork`](crate::StartMethod::Fork)). It can neither be sent nor taken out, and its number is nobody's or
/// another's: do not use it by [`as_fd`](AsFd::as_fd).
#[derive(Clone)]
pub struct Descriptor(Arc<Owner>);

const CUT_OFF: &str = "this descriptor came into the worker by its fork, which closed it; give it to the worker in its arguments";

impl Descriptor {
    /// Takes it out, or makes a duplicate of it when it has clones.
    ///
    /// # Errors
    /// When there is no room for a duplicate, or it was closed by a fork.
    pub fn into_owned(self) -> io::Result<OwnedFd> {
        match Arc::try_unwrap(self.0) {
            Ok(alone) => alone.into_fd().map_err(|_| cut_off()),
            Err(shared) if shared.is_cut_off() => Err(cut_off()),
            Err(shared) => with_room(|| shared.as_fd().try_clone_to_owned()),
        }
    }

    /// Whether it came by a fork that closed it.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.0.is_cut_off()
    }

    /// The same, but at a number that no process takes for its stdin, stdout or stderr.
    pub(crate) fn beyond_stdio(&self) -> io::Result<Self> {
        if !fd::is_stdio(self.as_fd()) {
            return Ok(self.clone());
        }
        with_room(|| self.as_fd().try_clone_to_owned()).map(Self::from)
    }

    /// What is the same for clones only, as long as they live.
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
