//! A piece of memory that this process has mapped: what storages lie in, and what travels.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use super::descriptor::Descriptor;
use super::known::{self, Identity};
use super::strategy::SharingStrategy;
use super::tree::{self, FileName, Place};
use crate::error::{MemoryError, with_hint};
use crate::sys::fd::Generation;
use crate::sys::limits::{Shortage, with_room};
use crate::sys::map::SharedMap;
use crate::sys::{fd, memfd, memory};

/// Below this size nobody asks the kernel first whether there is so much: it takes longer than it is worth.
const ASK_FIRST: u64 = 1 << 20;
/// What the memfds of storages are called in /proc.
const NAME: &str = "phalanx-storage";

/// Memory in a memfd or a file, mapped here once.
#[derive(Debug)]
pub(crate) struct Segment {
    /// `None` when it has no bytes.
    map: Option<SharedMap>,
    len: usize,
    backing: Backing,
    identity: Identity,
    /// Whether a fork has closed its descriptor: see [`close_all`].
    generation: Generation,
}

#[derive(Debug)]
enum Backing {
    Descriptor(Descriptor),
    Name(FileName),
    /// Its descriptor was closed, behind its back.
    Closed,
}

/// How it travels to a process of the same tree.
#[derive(Debug)]
pub(crate) enum Vehicle<'a> {
    Descriptor(&'a Descriptor),
    /// By a name that is put where the other process looks for it.
    Name,
}

/// Says that all descriptors were closed that the process had of which this one is a fork. The segments stay mapped, but
/// their descriptors' numbers are nobody's, or will be another's.
pub(crate) fn close_all() {
    known::table().clear();
    Generation::end();
}

/// What is to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) strategy: SharingStrategy,
    pub(super) bytes: usize,
    /// How many of them get their memory at once; [`Segment::reserve`] gets it for more.
    pub(super) reserved: usize,
    /// In huge pages, of which `bytes` is a multiple.
    pub(super) huge: bool,
}

impl Plan {
    /// Whether it comes out of the machine's memory: a directory for named memory may be on a disk.
    fn is_memory(&self) -> Result<bool, MemoryError> {
        Ok(self.strategy == SharingStrategy::FileDescriptor || tree::place()?.is_memory())
    }
}

/// Asks before, since the kernel would rather kill somebody than refuse (malloc(3), overcommit).
pub(super) fn ask_first(asked: u64) -> Result<(), MemoryError> {
    if asked < ASK_FIRST {
        return Ok(());
    }
    match memory::available() {
        Some(available) if available.bytes < asked => Err(MemoryError::not_enough(asked, Some(&available))),
        _ => Ok(()),
    }
}

impl Segment {
    /// Makes one of zeros, whose reserved memory is there for certain.
    pub(super) fn create(plan: Plan) -> Result<Arc<Self>, MemoryError> {
        if !plan.huge && plan.is_memory()? {
            ask_first(plan.reserved as u64)?;
        }
        match plan.strategy {
            SharingStrategy::FileDescriptor => Self::create_unnamed(plan),
            SharingStrategy::FileSystem => Self::create_named(plan),
        }
    }

    fn create_unnamed(plan: Plan) -> Result<Arc<Self>, MemoryError> {
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
        memfd::seal_size(fd.as_fd()).map_err(MemoryError::os("sealing a memfd", size))?;
        Self::map_known(Backing::Descriptor(fd.into()), SharedMap::new)
            .map_err(MemoryError::os("mapping a memfd", size))
    }

    fn create_named(plan: Plan) -> Result<Arc<Self>, MemoryError> {
        let (size, reserved) = (plan.bytes as u64, plan.reserved as u64);
        let place = tree::place()?;
        let make = || {
            let (name, fd) = place.new_file()?;
            memfd::set_size(fd.as_fd(), size)?;
            memfd::reserve(fd.as_fd(), 0, reserved)?;
            Ok(name)
        };
        let name = with_room(make).map_err(|os| no_space(os, reserved, &place))?;
        Self::map_known(Backing::Name(name), SharedMap::new)
            .map_err(MemoryError::os("mapping a file of named memory", size))
    }

    /// A file's bytes, to be read only, through the page cache.
    pub(super) fn of_file(path: &Path) -> Result<Arc<Self>, MemoryError> {
        let failed = |error: io::Error| MemoryError::File {
            doing: "reading",
            path: path.to_owned(),
            reason: with_hint(&error),
        };
        let file = with_room(|| fd::open_to_read(path)).map_err(failed)?;
        // Under a name in /proc or /dev/shm, of which somebody may have an exclusive part.
        if fd::target(file.as_fd()).is_some_and(|target| is_shared_memory(&target)) {
            return Err(failed(io::Error::other("it is shared memory of some process, not a file of data")));
        }
        let segment =
            Self::map_known(Backing::Descriptor(file.into()), SharedMap::read_only).map_err(failed)?;
        Ok(segment)
    }

    /// Takes over one that another process has sent by its descriptor.
    ///
    /// # Errors
    /// When it is a memfd that somebody could still cut short; when it is no file, or cannot be mapped.
    pub(super) fn receive(fd: OwnedFd) -> io::Result<Arc<Self>> {
        // The descriptor is asked, not its sender. Files have no seals: those of `Storage::from_file` and named memory.
        if memfd::is_memfd(fd.as_fd()) && !memfd::is_size_sealed(fd.as_fd()) {
            return Err(io::Error::other("the descriptor is no storage: its size is not sealed"));
        }
        let map = if memfd::is_read_only(fd.as_fd())? {
            SharedMap::read_only
        } else if memfd::is_content_sealed(fd.as_fd()) {
            SharedMap::sealed
        } else {
            SharedMap::new
        };
        Self::map_known(Backing::Descriptor(fd.into()), map)
    }

    /// Takes over one that another process has put under a name.
    pub(super) fn receive_named(path: &str) -> io::Result<Arc<Self>> {
        let place =
            tree::place_in_use().ok_or_else(|| io::Error::other("this process has no named memory"))?;
        Self::map_known(Backing::Name(place.take_over(path)?), SharedMap::new)
    }

    /// The one that is mapped already, or a new map.
    fn map_known(
        backing: Backing,
        map: impl FnOnce(BorrowedFd<'_>, usize) -> io::Result<SharedMap>,
    ) -> io::Result<Arc<Self>> {
        // Held until it is mapped: two threads that receive the same one must not both map it.
        let mut known = known::table();
        let found = backing.with_descriptor(|fd| {
            let (identity, size) = memfd::identity(fd)?;
            // A file may have another size by now than when it was mapped.
            if let Some(segment) = known.find(identity, size) {
                return Ok(Err(segment));
            }
            let len = usize::try_from(size).map_err(io::Error::other)?;
            let map = if len == 0 { None } else { Some(map(fd, len)?) };
            Ok(Ok((map, len, identity)))
        })?;
        let (map, len, identity) = match found {
            Ok(new) => new,
            Err(segment) => return Ok(segment),
        };
        let generation = Generation::current();
        let segment = Arc::new(Self { map, len, identity, backing, generation });
        known.insert(&segment);
        Ok(segment)
    }

    #[inline]
    pub(super) fn map(&self) -> Option<&SharedMap> {
        self.map.as_ref()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn has_descriptor(&self) -> bool {
        matches!(self.backing, Backing::Descriptor(_))
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Gets the memory of the bytes from `from` to `to`.
    pub(super) fn reserve(&self, from: usize, to: usize) -> Result<(), MemoryError> {
        let asked = (to - from) as u64;
        let reserve = |fd: BorrowedFd<'_>| memfd::reserve(fd, from as u64, to as u64);
        self.backing.with_descriptor(reserve).map_err(|os| match &self.backing {
            Backing::Descriptor(_) | Backing::Closed => no_memory(os, asked),
            Backing::Name(name) => no_space(os, asked, name.place()),
        })
    }

    /// Whether it came by a fork that closed its descriptor: it can be used here, but not be sent on.
    pub(super) fn is_cut_off(&self) -> bool {
        self.generation.is_past()
    }

    /// How it travels to a process of the same tree.
    pub(crate) fn vehicle(&self) -> Vehicle<'_> {
        match &self.backing {
            Backing::Descriptor(fd) => Vehicle::Descriptor(fd),
            Backing::Name(_) | Backing::Closed => Vehicle::Name,
        }
    }

    /// Puts it under a name for another process of the tree.
    pub(crate) fn link(&self, path: &str) -> io::Result<()> {
        match &self.backing {
            Backing::Name(name) => name.link(path),
            Backing::Descriptor(_) | Backing::Closed => Err(io::Error::other("it has no name")),
        }
    }

    /// A descriptor of its own, for a process of another tree.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        match &self.backing {
            Backing::Name(name) => with_room(|| name.open()),
            Backing::Descriptor(fd) => with_room(|| fd.as_fd().try_clone_to_owned()),
            Backing::Closed => Err(closed()),
        }
    }

    /// Whether another process has a name for it, or one is on its way to somebody. Each holder has its own.
    pub(super) fn has_other_names(&self) -> bool {
        let links = |fd: BorrowedFd<'_>| memfd::link_count(fd);
        matches!(&self.backing, Backing::Name(_))
            && self.backing.with_descriptor(links).is_ok_and(|links| links > 1)
    }

    /// Whether a storage of its first `len` bytes is all that can be in it: huge pages are never cut.
    pub(super) fn is_filled_by(&self, len: usize) -> bool {
        let unit = self.backing.with_descriptor(memfd::allocation_unit).unwrap_or(1);
        len.checked_next_multiple_of(unit) == Some(self.len)
    }

    /// Whether [`seal`](Self::seal) can be tried: it is a memfd.
    pub(super) fn is_sealable(&self) -> bool {
        !self.is_cut_off()
            && matches!(&self.backing, Backing::Descriptor(fd) if memfd::is_sealable(fd.as_fd()))
            && self.map.as_ref().is_some_and(SharedMap::is_writable)
    }

    /// Seals it against writing by anybody, if nobody can write to it any more: the kernel knows. It comes back, sealed
    /// or as it was.
    ///
    /// # Errors
    /// [`MemoryError::StillWritable`] when somebody else has it.
    pub(super) fn seal(this: Arc<Self>) -> (Arc<Self>, Result<(), MemoryError>) {
        let bytes = this.len;
        let mut alone = match Arc::try_unwrap(this) {
            Ok(alone) => alone,
            Err(held) => {
                let holder = super::storage::OTHER_HANDLE;
                return (held, Err(MemoryError::StillWritable { bytes, holder }));
            }
        };
        let sealed = alone.try_seal();
        let this = Arc::new(alone);
        known::table().insert(&this);
        (this, sealed)
    }

    fn try_seal(&mut self) -> Result<(), MemoryError> {
        let bytes = self.len;
        let (Backing::Descriptor(fd), Some(map)) = (&self.backing, self.map.as_mut()) else {
            return Err(MemoryError::ReadOnly);
        };
        let sealed = map.seal_with(fd.as_fd(), || memfd::seal_contents(fd.as_fd()));
        sealed.map_err(|os| match os.kind() {
            io::ErrorKind::ResourceBusy => MemoryError::StillWritable { bytes, holder: "another process" },
            _ => MemoryError::os("sealing a memfd", bytes as u64)(os),
        })
    }
}

impl Backing {
    /// Runs `work` with a descriptor, which a name does not keep.
    fn with_descriptor<T>(&self, work: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Descriptor(fd) => work(fd.as_fd()),
            Self::Name(name) => work(with_room(|| name.open())?.as_fd()),
            Self::Closed => Err(closed()),
        }
    }
}

fn closed() -> io::Error {
    io::Error::other("its descriptor was closed by a fork")
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.is_cut_off() {
            // Its number may be another's by now.
            std::mem::forget(std::mem::replace(&mut self.backing, Backing::Closed));
        }
        known::table().remove(self.identity);
    }
}

/// Whether that is where a memfd of a storage or named memory lies.
fn is_shared_memory(target: &Path) -> bool {
    let is_tree = |name: &OsStr| tree::is_tree(&name.to_string_lossy());
    target.to_string_lossy().starts_with(&format!("/memfd:{NAME}")) || target.iter().any(is_tree)
}

fn no_memory(os: io::Error, asked: u64) -> MemoryError {
    match Shortage::of(&os) {
        Some(Shortage::Space | Shortage::Memory) => {
            MemoryError::not_enough(asked, memory::available().as_ref())
        }
        _ => MemoryError::os("reserving a memfd", asked)(os),
    }
}

/// hugetlbfs says either of them when it has not so many.
fn no_huge_pages(os: io::Error, asked: u64) -> MemoryError {
    match Shortage::of(&os) {
        Some(Shortage::Space | Shortage::Memory) => {
            let (page, free) = memfd::huge_pages().unwrap_or_default();
            MemoryError::NoHugePages { asked, page, free }
        }
        _ => MemoryError::os("reserving a memfd of huge pages", asked)(os),
    }
}

fn no_space(os: io::Error, asked: u64, place: &Place) -> MemoryError {
    let (available, directory) = (place.space().unwrap_or(0), Some(place.base().to_owned()));
    match Shortage::of(&os) {
        Some(Shortage::Space | Shortage::Memory) if available < asked => {
            MemoryError::NotEnough { asked, available, limit: None, tensor: None, directory }
        }
        // Not the bytes, but the names.
        Some(Shortage::Space) => {
            let (doing, hint) = ("reserving a file of named memory", Some(place.room_text()));
            MemoryError::Os { doing, bytes: asked, os, hint }
        }
        _ => MemoryError::os("reserving a file of named memory", asked)(os),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(strategy: SharingStrategy) -> Plan {
        Plan { strategy, bytes: 4096, reserved: 4096, huge: false }
    }

    #[test]
    fn segment_that_arrives_again_is_the_same_and_is_forgotten_with_its_last_holder() {
        for strategy in [SharingStrategy::FileDescriptor, SharingStrategy::FileSystem] {
            let segment = Segment::create(plan(strategy)).unwrap();
            let again = Segment::receive(segment.open().unwrap()).unwrap();
            assert!(Arc::ptr_eq(&segment, &again));
            let identity = segment.identity();
            drop((segment, again));
            assert!(known::table().find(identity, 4096).is_none());
        }
    }

    #[test]
    fn unnamed_segment_cannot_be_resized() {
        let segment = Segment::create(plan(SharingStrategy::FileDescriptor)).unwrap();
        let file = std::fs::File::from(segment.open().unwrap());
        assert!(file.set_len(10).is_err());
        assert!(file.set_len(10_000).is_err());
    }

    #[test]
    fn receive_refuses_what_is_not_sealed() {
        let loose = memfd::create("loose", 100).unwrap();
        assert!(Segment::receive(loose).unwrap_err().to_string().contains("not sealed"));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(Segment::receive(null.into()).is_err());
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        assert!(Segment::receive(file.into()).is_ok(), "a file has no seals");
    }

    #[test]
    fn named_segment_has_as_many_names_as_holders() {
        let segment = Segment::create(plan(SharingStrategy::FileSystem)).unwrap();
        assert!(!segment.has_other_names());
        let place = tree::place().unwrap();
        let nest = place.nest().unwrap();
        segment.link(&nest.argument(0)).unwrap();
        assert!(segment.has_other_names());
        drop(nest);
        assert!(!segment.has_other_names());
    }
}
