//! getrlimit(2): how many descriptors and processes this process may have.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A soft and a hard limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// RLIMIT_NOFILE.
pub(crate) fn descriptors() -> io::Result<Limit> {
    read(Resource::RLIMIT_NOFILE)
}

/// RLIMIT_NPROC.
pub(crate) fn processes() -> io::Result<Limit> {
    read(Resource::RLIMIT_NPROC)
}

fn read(resource: Resource) -> io::Result<Limit> {
    let (soft, hard) = getrlimit(resource)?;
    Ok(Limit { soft, hard })
}

/// Raises the soft descriptor limit to the hard one if `more` descriptors do not fit under it.
pub(crate) fn make_room_for_descriptors(more: usize) -> io::Result<()> {
    let limit = descriptors()?;
    let needed = super::fd::open_descriptors()?.len() + more;
    if needed as u64 > limit.soft && limit.soft < limit.hard {
        setrlimit(Resource::RLIMIT_NOFILE, limit.hard, limit.hard)?;
    }
    Ok(())
}

/// What an error of starting a process says there was not enough of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    Descriptors,
    DescriptorsOfMachine,
    Processes,
    Memory,
}

impl Shortage {
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        match error.raw_os_error()? {
            libc::EMFILE => Some(Self::Descriptors),
            libc::ENFILE => Some(Self::DescriptorsOfMachine),
            libc::EAGAIN => Some(Self::Processes),
            libc::ENOMEM => Some(Self::Memory),
            _ => None,
        }
    }
}
