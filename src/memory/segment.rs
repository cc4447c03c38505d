//! A piece of memory that this process has mapped: what storages lie in, and what travels.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering::Acquire, Ordering::Relaxed, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::descriptor::Descriptor;
use super::named::{self, FileName};
use crate::error::MemoryError;
use crate::sys::fd::Generation;
use crate::sys::limits::with_room;
use crate::sys::map::SharedMap;
use crate::sys::{memfd, opens};

/// Device and inode: what tells a file from any other.
pub(super) type Identity = (u64, u64);

/// What an error calls the holder that keeps a segment from being sealed, when it is a handle in this process.
pub(super) const OTHER_HANDLE: &str = "a clone or a view of it in this process";

/// Memory in a memfd or a file, mapped here once.
#[derive(Debug)]
pub(crate) struct Segment {
    /// The map of all its bytes; `None` when it has no bytes, since mmap(2) refuses those.
    map: Option<SharedMap>,
    /// Its size in bytes.
    len: usize,
    /// By what another map of the same memory can be made.
    pub(super) backing: Backing,
    /// What it is in every process.
    identity: Identity,
    /// Whether a fork has closed its descriptor: see [`close_all`].
    generation: Generation,
    /// Whether it is known who else has it: [`UNCOUNTED`], [`COUNTED`] or [`MISCOUNTED`].
    count: AtomicU8,
}

/// Nobody asks.
const UNCOUNTED: u8 = 0;
/// Each process and each message that has it, but for this process, has an open file description that is seen ([`opens`]).
const COUNTED: u8 = 1;
/// One could not be made.
const MISCOUNTED: u8 = 2;

/// What this process keeps of a segment beside its map.
#[derive(Debug)]
pub(super) enum Backing {
    /// The descriptor of a memfd or of a file of data.
    Descriptor(Descriptor),
    /// A hard link to a file of named memory.
    Name(FileName),
    /// Nothing: a fork has closed the descriptor.
    Closed,
}

/// How a segment travels to a process of the same tree.
#[derive(Debug)]
pub(crate) enum Transport<'a> {
    /// By its descriptor, which the other process gets a duplicate of.
    Descriptor(&'a Descriptor),
    /// By a name that is put where the other process looks for it.
    Name,
    /// By a descriptor that is [opened](Segment::open) for it alone, so that the kernel tells how long it is held.
    Opened,
}

/// The segments of this process, each found by what it is: one that arrives twice is mapped once.
static REGISTRY: Mutex<Option<HashMap<Identity, Entry>>> = Mutex::new(None);

/// What the registry has of a segment.
#[derive(Debug)]
struct Entry {
    /// The segment, as long as a storage holds it.
    segment: Weak<Segment>,
    /// What [`stats`](super::stats::stats) tells of it: a strong handle, even for a moment, would look like another holder.
    bytes: usize,
    /// Whether it keeps a descriptor open, as [`stats`](super::stats::stats) counts them.
    has_descriptor: bool,
}

impl Entry {
    /// The entry of a segment that is mapped here.
    fn of(segment: &Arc<Segment>) -> Self {
        let has_descriptor = segment.has_descriptor();
        Self { segment: Arc::downgrade(segment), bytes: segment.len(), has_descriptor }
    }
}

/// The registry, locked.
pub(crate) struct Registry(MutexGuard<'static, Option<HashMap<Identity, Entry>>>);

/// Locks the registry, also one that a thread left poisoned.
pub(crate) fn registry() -> Registry {
    Registry(REGISTRY.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Registry {
    /// Whether only the caller has this handle in this process, and no other process and no message has the segment. Where that is not known,
    /// it is not so.
    ///
    /// While the registry is locked no thread takes a segment over that has arrived: see [`Segment::map_known`]. So this process does not get
    /// another handle between the two looks.
    pub(super) fn has_nobody_else(&self, segment: &Arc<Segment>) -> bool {
        let is_alone = Arc::strong_count(segment) == 1;
        // With the Release of the drops of the other handles: what their threads have done to the memory is over (`Arc::get_mut` does the same).
        fence(Acquire);
        is_alone && segment.count.load(Relaxed) == COUNTED && !segment.is_elsewhere()
    }

    /// The segment of that file, if it is mapped here in that size. No other is even touched: the last handle of a
    /// segment must not be dropped while the table is locked.
    pub(crate) fn find(&self, identity: Identity, size: u64) -> Option<Arc<Segment>> {
        let entry = self.0.as_ref()?.get(&identity)?;
        if entry.bytes as u64 == size { entry.segment.upgrade() } else { None }
    }

    /// Makes a segment known, in the place of one of the same identity.
    pub(crate) fn insert(&mut self, segment: &Arc<Segment>) {
        self.0.get_or_insert_default().insert(segment.identity(), Entry::of(segment));
    }

    /// Forgets a segment that is gone. Another thread may have mapped it anew meanwhile: that one stays known.
    pub(crate) fn remove(&mut self, identity: Identity) {
        if let Some(known) = self.0.as_mut()
            && known.get(&identity).is_some_and(|entry| entry.segment.strong_count() == 0)
        {
            known.remove(&identity);
        }
    }

    /// Forgets all segments.
    pub(crate) fn clear(&mut self) {
        *self.0 = None;
    }

    /// Bytes, and whether it keeps a descriptor, of each that is mapped.
    pub(crate) fn mapped(&self) -> impl Iterator<Item = (usize, bool)> + '_ {
        let living = self.0.iter().flat_map(HashMap::values).filter(|entry| entry.segment.strong_count() > 0);
        living.map(|entry| (entry.bytes, entry.has_descriptor))
    }
}

/// Says that all descriptors were closed that the process had of which this one is a fork. The segments stay mapped, but
/// the numbers of their descriptors are free, and will belong to other files.
pub(crate) fn close_all() {
    registry().clear();
    Generation::end();
}

impl Segment {
    /// Takes over a segment that another process has sent by its descriptor.
    ///
    /// # Errors
    /// When it is a memfd whose size is not sealed; when it is no file, or cannot be mapped.
    pub(crate) fn receive(fd: OwnedFd) -> io::Result<Arc<Self>> {
        // The descriptor is asked, not its sender. Files have no seals: those of `Storage::from_file` and named memory. The seals first: whether it
        // is a memfd takes ten times as long to find out.
        if !memfd::is_size_sealed(fd.as_fd()) && memfd::is_memfd(fd.as_fd()) {
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

    /// Takes over a segment that another process has put under a name.
    ///
    /// # Errors
    /// When this process has no directory in the tree, or when there is no such name.
    pub(crate) fn receive_named(path: &str) -> io::Result<Arc<Self>> {
        let process_dir = named::process_dir_in_use()
            .ok_or_else(|| io::Error::other("this process has no named memory"))?;
        Self::map_known(Backing::Name(process_dir.take_over(path)?), SharedMap::new)
    }

    /// The segment of that memory: the one that is mapped here already, or else a new one, of which `map` makes the map.
    pub(super) fn map_known(
        backing: Backing,
        map: impl FnOnce(BorrowedFd<'_>, usize) -> io::Result<SharedMap>,
    ) -> io::Result<Arc<Self>> {
        // Held until it is mapped: two threads that receive the same one must not both map it.
        let mut known = registry();
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
        let count = AtomicU8::new(UNCOUNTED);
        let segment = Arc::new(Self { map, len, identity, backing, generation, count });
        known.insert(&segment);
        Ok(segment)
    }

    /// The map of all its bytes; `None` when it has no bytes.
    #[inline]
    pub(crate) fn map(&self) -> Option<&SharedMap> {
        self.map.as_ref()
    }

    /// Its size in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether it keeps a descriptor open in this process.
    pub(super) fn has_descriptor(&self) -> bool {
        matches!(self.backing, Backing::Descriptor(_))
    }

    /// The device and inode of its file, the same in every process.
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether a fork has closed its descriptor: the map can be used here, but the segment cannot be sent on.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.generation.is_past()
    }

    /// How this segment travels to a process of the same tree.
    pub(crate) fn transport(&self) -> Transport<'_> {
        match &self.backing {
            Backing::Descriptor(_) if self.is_counted() => Transport::Opened,
            Backing::Descriptor(fd) => Transport::Descriptor(fd),
            Backing::Name(_) | Backing::Closed => Transport::Name,
        }
    }

    /// Puts it under a name for another process of the tree.
    pub(crate) fn link(&self, path: &str) -> io::Result<()> {
        match &self.backing {
            Backing::Name(name) => name.link(path),
            Backing::Descriptor(_) | Backing::Closed => Err(io::Error::other("it has no name")),
        }
    }

    /// A descriptor of its own, for a process of another tree or for one that is to be counted.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let is_counted = self.is_counted();
        let opened = match &self.backing {
            Backing::Name(name) => with_room(|| name.open())?,
            Backing::Descriptor(fd) if is_counted => match with_room(|| opens::reopen(fd.as_fd())) {
                Ok(opened) => opened,
                // As without /proc. It can be sent all the same.
                Err(_) => return self.share_uncounted(fd),
            },
            Backing::Descriptor(fd) => return with_room(|| fd.as_fd().try_clone_to_owned()),
            Backing::Closed => return Err(closed()),
        };
        if is_counted && opens::show(opened.as_fd()).is_err() {
            self.count.store(MISCOUNTED, Relaxed);
        }
        Ok(opened)
    }

    fn share_uncounted(&self, fd: &Descriptor) -> io::Result<OwnedFd> {
        self.count.store(MISCOUNTED, Relaxed);
        with_room(|| fd.as_fd().try_clone_to_owned())
    }

    /// For tests: [`open`](Self::open) where the file cannot be opened once more.
    #[cfg(test)]
    pub(super) fn open_without_proc(&self) -> io::Result<OwnedFd> {
        match &self.backing {
            Backing::Descriptor(fd) => self.share_uncounted(fd),
            Backing::Name(_) | Backing::Closed => Err(closed()),
        }
    }

    /// Has all that get it from now on counted. Nobody but the caller has it yet.
    pub(super) fn count_holders(&self) {
        self.count.store(COUNTED, Relaxed);
    }

    fn is_counted(&self) -> bool {
        self.count.load(Relaxed) != UNCOUNTED
    }

    /// Whether another process or a message has it that was counted, or it is not known.
    fn is_elsewhere(&self) -> bool {
        self.has_other_names() || self.backing.with_descriptor(opens::is_seen).unwrap_or(true)
    }

    /// Whether another process or a message holds it: each holder has a hard link of its own.
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
    pub(crate) fn is_sealable(&self) -> bool {
        // One that is counted is to be used again.
        !self.is_cut_off()
            && !self.is_counted()
            && matches!(&self.backing, Backing::Descriptor(fd) if memfd::is_sealable(fd.as_fd()))
            && self.map.as_ref().is_some_and(SharedMap::is_writable)
    }

    /// Seals it against writing in any process. The kernel refuses while it has a writable map anywhere. It comes back, sealed
    /// or as it was.
    ///
    /// # Errors
    /// [`MemoryError::StillWritable`] when another handle or process has it.
    pub(crate) fn seal(this: Arc<Self>) -> (Arc<Self>, Result<(), MemoryError>) {
        let bytes = this.len;
        let mut alone = match Arc::try_unwrap(this) {
            Ok(alone) => alone,
            Err(held) => {
                let holder = OTHER_HANDLE;
                return (held, Err(MemoryError::StillWritable { bytes, holder }));
            }
        };
        let sealed = alone.try_seal();
        let this = Arc::new(alone);
        registry().insert(&this);
        (this, sealed)
    }

    /// Takes the writable map away, seals the memory (F_SEAL_WRITE of fcntl(2)) and maps it again at the same place.
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
    pub(super) fn with_descriptor<T>(
        &self,
        work: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        match self {
            Self::Descriptor(fd) => work(fd.as_fd()),
            Self::Name(name) => work(with_room(|| name.open())?.as_fd()),
            Self::Closed => Err(closed()),
        }
    }
}

/// The error of a use of [`Backing::Closed`].
fn closed() -> io::Error {
    io::Error::other("its descriptor was closed by a fork")
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.is_cut_off() {
            // Its number may be another's by now.
            std::mem::forget(std::mem::replace(&mut self.backing, Backing::Closed));
        }
        registry().remove(self.identity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
