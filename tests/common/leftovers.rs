//! What a process can leave behind, and the directory of its named memory.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use super::{parent_of, processes, slowness, state_of};

/// How long a test waits for what goes by itself a moment after its owner: what a thread had when it was joined.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// What a process can leave behind.
#[derive(Debug)]
pub(super) struct Snapshot {
    descriptors: BTreeSet<(i32, String)>,
    children: BTreeSet<u32>,
    named_memory: BTreeSet<String>,
    temporary: BTreeSet<String>,
}

impl Snapshot {
    pub(super) fn take() -> Self {
        Self {
            descriptors: descriptors(),
            children: children(),
            named_memory: named_memory(),
            temporary: temporary(),
        }
    }

    /// Children must have been reaped by now. Whatever else is new may still be about to go, such as the memory of a thread
    /// that was just joined. What there was before may have gone, except for descriptors that are not the library's.
    pub(super) fn assert_nothing_new(&self) {
        let children = &children() - &self.children;
        assert!(children.is_empty(), "left behind: children {children:?}");
        let end = Instant::now() + GONE_WITHIN * slowness();
        loop {
            let now = Self::take();
            let lost: Vec<_> =
                self.descriptors.difference(&now.descriptors).filter(|fd| !is_ours(fd)).collect();
            assert!(lost.is_empty(), "closed: {lost:?}");
            let (descriptors, memory, temporary) = (
                &now.descriptors - &self.descriptors,
                &now.named_memory - &self.named_memory,
                &now.temporary - &self.temporary,
            );
            if descriptors.is_empty() && memory.is_empty() && temporary.is_empty() {
                break;
            }
            assert!(Instant::now() < end, "left behind: {descriptors:?} {memory:?} {temporary:?}");
            std::thread::yield_now();
        }
    }
}

/// Whether a descriptor may be one of the library's, which it may close when it likes.
fn is_ours((_, target): &(i32, String)) -> bool {
    ["phalanx", "anon_inode:", "socket:", "pipe:"].iter().any(|part| target.contains(part))
}

/// Open descriptors with what they are.
pub(crate) fn descriptors() -> BTreeSet<(i32, String)> {
    let entries = fs::read_dir("/proc/self/fd").unwrap();
    let found = entries.filter_map(|entry| {
        let entry = entry.unwrap();
        let target = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        Some((entry.file_name().to_str()?.parse().ok()?, target))
    });
    // The directory that is being read is one of them.
    found.filter(|(_, target)| !target.ends_with("/fd")).collect()
}

/// All processes whose parent is this one, zombies included.
pub(crate) fn children() -> BTreeSet<u32> {
    children_of(std::process::id())
}

/// As [`children`], of another process.
pub(crate) fn children_of(parent: u32) -> BTreeSet<u32> {
    processes().filter(|&pid| parent_of(pid) == Some(parent)).collect()
}

/// The directories of named memory that this process and its workers have, and those that dead ones have left.
pub(crate) fn trees() -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(phalanx::shm::get_sharing_directory()).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// All that lies in the directories of named memory, but not these: a process keeps its own until it ends.
pub(crate) fn named_memory() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut dirs: Vec<_> = trees().into_iter().collect();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(entry.path());
            }
            found.insert(entry.path().to_string_lossy().into_owned());
        }
    }
    found
}

fn temporary() -> BTreeSet<String> {
    let names = fs::read_dir(std::env::temp_dir()).into_iter().flatten();
    let names = names.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    names.filter(|name| name.contains("phalanx")).collect()
}

/// Has this process and its workers make named memory in a directory of their own: other processes of the same user, such
/// as a second test binary, make and remove theirs in /dev/shm at any moment.
#[expect(unsafe_code, reason = "atexit(3) is unsafe")]
pub(super) fn take_own_directory() {
    extern "C" fn remove() {
        let _ = fs::remove_dir(own_directory());
    }
    static TAKEN: Once = Once::new();
    TAKEN.call_once(|| {
        // A worker that is a test's launcher has that test's directory.
        if phalanx::shm::get_sharing_directory() != Path::new("/dev/shm") {
            return;
        }
        // A test process that a signal has ended, as the watchdog does, could not remove its directory.
        for left in left_by_ended_processes(Path::new("/dev/shm")) {
            // Another test process may remove it in the same moment.
            let _ = fs::remove_dir_all(left);
        }
        fs::create_dir(own_directory()).unwrap();
        fs::set_permissions(own_directory(), PermissionsExt::from_mode(0o1777)).unwrap();
        phalanx::shm::set_sharing_directory(own_directory()).unwrap();
        // SAFETY: `remove` is a function of this executable. It runs after the library's own, which was registered later.
        unsafe { libc::atexit(remove) };
    });
}

fn own_directory() -> PathBuf {
    Path::new("/dev/shm").join(own_name())
}

const PREFIX: &str = "phalanx-test-";

/// The name of a directory that this process makes and removes when it exits.
pub(crate) fn own_name() -> String {
    format!("{PREFIX}{}", std::process::id())
}

/// The directories in `parent` that were made under such names, and never removed: their processes have ended, or this process
/// has the id of the one that did.
pub(crate) fn left_by_ended_processes(parent: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        let pid = name.and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        pid.is_some_and(|pid| pid == std::process::id() || state_of(pid).is_none())
    })
}
