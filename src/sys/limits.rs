//! getrlimit(2): how many descriptors and processes this process may have.

use std::{fmt, io};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// A soft and a hard limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: u64| if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
        write!(f, "{} of at most {}", show(self.soft), show(self.hard))
    }
}

/// RLIMIT_NOFILE, for an error's text.
pub(crate) fn descriptors_text() -> Option<String> {
    Some(format!("RLIMIT_NOFILE is {}", descriptors().ok()?))
}

/// RLIMIT_NOFILE.
pub(crate) fn descriptors() -> io::Result<Limit> {
    read(Resource::RLIMIT_NOFILE)
}

/// Sets RLIMIT_NOFILE.
pub(crate) fn set_descriptors(limit: Limit) -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_NOFILE, limit.soft, limit.hard)?)
}

/// RLIMIT_NPROC.
pub(crate) fn processes() -> io::Result<Limit> {
    read(Resource::RLIMIT_NPROC)
}

fn read(resource: Resource) -> io::Result<Limit> {
    let (soft, hard) = getrlimit(resource)?;
    Ok(Limit { soft, hard })
}

/// RLIMIT_FSIZE: how large a file, a memfd too, may become.
pub(crate) fn file_size() -> io::Result<u64> {
    Ok(read(Resource::RLIMIT_FSIZE)?.soft)
}

/// Raises the soft descriptor limit to the hard one if `more` descriptors do not fit under it.
///
/// Whatever goes wrong here shows when the descriptors are made, with its numbers.
pub(crate) fn make_room_for_descriptors(more: usize) {
    let Ok(limit) = descriptors() else { return };
    // Without a descriptor left the open ones cannot even be counted.
    let open = super::fd::open_descriptors().map_or(limit.soft, |open| open.len() as u64);
    if open.saturating_add(more as u64) > limit.soft && limit.soft < limit.hard {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, limit.hard, limit.hard);
    }
}

/// Runs `make`, and once more with more room for descriptors when it had none.
pub(crate) fn with_room<T>(make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    const MORE: usize = 64;
    match make() {
        Err(error) if Shortage::of(&error) == Some(Shortage::Descriptors) => {
            make_room_for_descriptors(MORE);
            make()
        }
        done => done,
    }
}

/// The error of who has no descriptor left.
pub(crate) const NO_DESCRIPTORS: i32 = libc::EMFILE;

/// Whether `more` descriptors fit under the soft limit, which is raised if it must be.
pub(crate) fn has_room_for(more: usize) -> bool {
    make_room_for_descriptors(more);
    let open = super::fd::open_descriptors().map_or(usize::MAX, |open| open.len());
    descriptors().is_ok_and(|limit| open.saturating_add(more) as u64 <= limit.soft)
}

/// What an error of the system says there was not enough of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    Descriptors,
    DescriptorsOfMachine,
    Processes,
    Memory,
    /// Of a file system: a full /dev/shm.
    Space,
    /// The largest file that this process may make.
    FileSize,
}

impl Shortage {
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        match error.raw_os_error()? {
            libc::EMFILE => Some(Self::Descriptors),
            libc::ENFILE => Some(Self::DescriptorsOfMachine),
            libc::EAGAIN => Some(Self::Processes),
            libc::ENOMEM => Some(Self::Memory),
            libc::ENOSPC => Some(Self::Space),
            libc::EFBIG => Some(Self::FileSize),
            _ => None,
        }
    }
}
