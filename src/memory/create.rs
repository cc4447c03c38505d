//! Creation of segments: memfds, files of named memory, files of data.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use super::named::{self, ProcessDir};
use super::segment::{Backing, Segment};
use super::strategy::SharingStrategy;
use crate::error::{MemoryError, with_hint};
use crate::sys::limits::{Shortage, with_room};
use crate::sys::map::SharedMap;
use crate::sys::{fd, memfd, memory};

/// Segments of fewer bytes are made without asking for the available memory first, which takes longer than making them.
const ASK_FIRST: u64 = 1 << 20;
/// The name of storages' memfds in /proc/PID/maps and /proc/PID/fd.
const NAME: &str = "phalanx-storage";

/// What kind of segment to make.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Whether it is a memfd or a file of named memory.
    pub(super) strategy: SharingStrategy,
    /// The size of the segment.
    pub(super) bytes: usize,
    /// How many of the bytes are reserved at once; [`Segment::reserve`] reserves more.
    pub(super) reserved: usize,
    /// Whether it is made of huge pages; `bytes` is a multiple of their size then.
    pub(super) huge: bool,
}

impl Plan {
    /// Whether its bytes are memory: those of named memory are on a disk when its directory is.
    fn is_memory(&self) -> Result<bool, MemoryError> {
        Ok(self.strategy == SharingStrategy::FileDescriptor || named::process_dir()?.is_memory())
    }
}

/// Refuses `asked` bytes when the machine or the cgroup does not have as many. Less than [`ASK_FIRST`] is never refused here.
///
/// Asking the kernel by reserving is not enough: it overcommits, and kills a process (the OOM killer) where it should have
/// refused (proc(5), overcommit_memory).
pub(crate) fn ask_first(asked: u64) -> Result<(), MemoryError> {
    if asked < ASK_FIRST {
        return Ok(());
    }
    match memory::available() {
        Some(available) if available.bytes < asked => Err(MemoryError::not_enough(asked, Some(&available))),
        _ => Ok(()),
    }
}

/// Makes a segment of zeros. The reserved bytes have their memory when this returns, so that a later access to them does not
/// raise SIGBUS.
///
/// # Errors
/// [`MemoryError::NotEnough`], [`MemoryError::NoHugePages`], [`MemoryError::Directory`] for named memory, or
/// [`MemoryError::Os`] when the system refused for another reason.
pub(super) fn create(plan: Plan) -> Result<Arc<Segment>, MemoryError> {
    if !plan.huge && plan.is_memory()? {
        ask_first(plan.reserved as u64)?;
    }
    match plan.strategy {
        SharingStrategy::FileDescriptor => create_unnamed(plan),
        SharingStrategy::FileSystem => create_named(plan),
    }
}

/// Makes a memfd (memfd_create(2)), seals its size and maps it.
fn create_unnamed(plan: Plan) -> Result<Arc<Segment>, MemoryError> {
    let (size, reserved) = (plan.bytes as u64, plan.reserved as u64);
    let make = || match plan {
        Plan { huge: true, .. } => memfd::create_huge(NAME, size),
        Plan { bytes, reserved, .. } if bytes == reserved => memfd::create(NAME, size),
        _ => {
            let fd = memfd::create_empty(NAME, size)?;
            memfd::reserve(fd.as_fd(), 0, reserved)?;
            Ok(fd)
        }
    };
    let refused = if plan.huge { no_huge_pages } else { no_memory };
    let fd = with_room(make).map_err(|os| refused(os, reserved))?;
    // A receiver maps the memfd in full: a truncation behind the map would raise SIGBUS, so its size is sealed before it is sent.
    memfd::seal_size(fd.as_fd()).map_err(MemoryError::os("sealing a memfd", size))?;
    Segment::map_known(Backing::Descriptor(fd.into()), SharedMap::new)
        .map_err(MemoryError::os("mapping a memfd", size))
}

/// Makes a file in this process's directory of named memory and maps it.
fn create_named(plan: Plan) -> Result<Arc<Segment>, MemoryError> {
    let (size, reserved) = (plan.bytes as u64, plan.reserved as u64);
    let process_dir = named::process_dir()?;
    let make = || {
        let (name, fd) = process_dir.new_file()?;
        memfd::set_size(fd.as_fd(), size)?;
        memfd::reserve(fd.as_fd(), 0, reserved)?;
        Ok(name)
    };
    let name = with_room(make).map_err(|os| no_space(os, reserved, &process_dir))?;
    Segment::map_known(Backing::Name(name), SharedMap::new)
        .map_err(MemoryError::os("mapping a file of named memory", size))
}

/// Maps a file of data, to be read only, through the page cache.
///
/// # Errors
/// [`MemoryError::File`] when the file cannot be opened or mapped, or is the shared memory of some process.
pub(super) fn of_file(path: &Path) -> Result<Arc<Segment>, MemoryError> {
    let failed = |error: io::Error| MemoryError::File {
        doing: "reading",
        path: path.to_owned(),
        reason: with_hint(&error),
    };
    let file = with_room(|| fd::open_to_read(path)).map_err(failed)?;
    // By a name in /proc/PID/fd or /dev/shm a process could map memory of which another has an exclusive shard as `&mut`.
    if fd::target(file.as_fd()).is_some_and(|target| is_shared_memory(&target)) {
        return Err(failed(io::Error::other("it is shared memory of some process, not a file of data")));
    }
    let segment =
        Segment::map_known(Backing::Descriptor(file.into()), SharedMap::read_only).map_err(failed)?;
    Ok(segment)
}

impl Segment {
    /// Reserves the memory of the bytes from `from` to `to` (fallocate(2)).
    ///
    /// # Errors
    /// [`MemoryError::NotEnough`] when the machine or the file system has no more, or else [`MemoryError::Os`].
    pub(super) fn reserve(&self, from: usize, to: usize) -> Result<(), MemoryError> {
        let asked = (to - from) as u64;
        let reserve = |fd: BorrowedFd<'_>| memfd::reserve(fd, from as u64, to as u64);
        self.backing.with_descriptor(reserve).map_err(|os| match &self.backing {
            Backing::Descriptor(_) | Backing::Closed => no_memory(os, asked),
            Backing::Name(name) => no_space(os, asked, name.process_dir()),
        })
    }
}

/// Whether that path leads to a storage's memfd, or into a directory of named memory.
fn is_shared_memory(target: &Path) -> bool {
    let is_tree = |name: &OsStr| named::is_tree(&name.to_string_lossy());
    target.to_string_lossy().starts_with(&format!("/memfd:{NAME}")) || target.iter().any(is_tree)
}

/// The error of a memfd whose bytes could not be reserved.
fn no_memory(os: io::Error, asked: u64) -> MemoryError {
    match Shortage::of(&os) {
        Some(Shortage::Space | Shortage::Memory) => {
            MemoryError::not_enough(asked, memory::available().as_ref())
        }
        _ => MemoryError::os("reserving a memfd", asked)(os),
    }
}

/// The error of a memfd of huge pages: hugetlbfs answers ENOSPC or ENOMEM when it has too few free pages.
fn no_huge_pages(os: io::Error, asked: u64) -> MemoryError {
    match Shortage::of(&os) {
        Some(Shortage::Space | Shortage::Memory) => {
            let (page, free) = memfd::huge_pages().unwrap_or_default();
            MemoryError::NoHugePages { asked, page, free }
        }
        _ => MemoryError::os("reserving a memfd of huge pages", asked)(os),
    }
}

/// The error of a file of named memory whose bytes could not be reserved.
fn no_space(os: io::Error, asked: u64, process_dir: &ProcessDir) -> MemoryError {
    let (available, directory) = (process_dir.space().unwrap_or(0), Some(process_dir.base().to_owned()));
    match Shortage::of(&os) {
        Some(Shortage::Space | Shortage::Memory) if available < asked => {
            MemoryError::NotEnough { asked, available, limit: None, tensor: None, directory }
        }
        // There are bytes left: the file system has no more inodes.
        Some(Shortage::Space) => {
            let (doing, hint) = ("reserving a file of named memory", Some(process_dir.room_text()));
            MemoryError::Os { doing, bytes: asked, os, hint }
        }
        _ => MemoryError::os("reserving a file of named memory", asked)(os),
    }
}

#[cfg(test)]
mod tests {
    use super::super::segment;
    use super::super::worker_dir::WorkerDir;
    use super::*;

    fn plan(strategy: SharingStrategy) -> Plan {
        Plan { strategy, bytes: 4096, reserved: 4096, huge: false }
    }

    #[test]
    fn segment_that_arrives_again_is_the_same_and_is_forgotten_with_its_last_holder() {
        for strategy in [SharingStrategy::FileDescriptor, SharingStrategy::FileSystem] {
            let segment = create(plan(strategy)).unwrap();
            let again = Segment::receive(segment.open().unwrap()).unwrap();
            assert!(Arc::ptr_eq(&segment, &again));
            let identity = segment.identity();
            drop((segment, again));
            assert!(segment::registry().find(identity, 4096).is_none());
        }
    }

    #[test]
    fn unnamed_segment_cannot_be_resized() {
        let segment = create(plan(SharingStrategy::FileDescriptor)).unwrap();
        let file = std::fs::File::from(segment.open().unwrap());
        assert!(file.set_len(10).is_err());
        assert!(file.set_len(10_000).is_err());
    }

    #[test]
    fn named_segment_has_as_many_names_as_holders() {
        let segment = create(plan(SharingStrategy::FileSystem)).unwrap();
        assert!(!segment.has_other_names());
        let process_dir = named::process_dir().unwrap();
        let worker_dir = WorkerDir::make(&process_dir).unwrap();
        segment.link(&worker_dir.argument(0)).unwrap();
        assert!(segment.has_other_names());
        drop(worker_dir);
        assert!(!segment.has_other_names());
    }
}
