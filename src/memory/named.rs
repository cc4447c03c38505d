//! Named memory: a directory for each tree of processes, and in it a directory for each process. A tree is a launcher, its
//! workers, and the workers of these.
//!
//! ```text
//! /dev/shm/phalanx-5f3a…/        the launcher's, whose shared lock (flock) every process of the tree holds
//!     s1 s2 …                    its storages
//!     w1/                        its first worker's, made before the worker and removed when it is reaped
//!         a0 a1 …                the storages in its arguments
//!         s1 …  out/0 out/1 …    its own, and those in its result
//!         w1/ …                  of the workers that it starts itself
//! ```
//!
//! Each process that holds a storage has a hard link of its own to its file. The link count is the reference count, and the
//! kernel keeps it: it frees the memory with the last link and the last map. A holder that is killed leaves links, which are
//! removed with its directory. A tree whose lock no process holds is dead; the next process that begins a tree removes it.
//!
//! All processes of a tree die with the process that began it. A worker that may outlive its launcher has no directory in the
//! launcher's tree: it is sent descriptors, and begins a tree of its own when it needs one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use super::strategy::{choose_directory, get_sharing_directory};
use crate::error::{MemoryError, with_hint};
use crate::sys::dir::{self, Dir};
use crate::sys::forks::Here;
use crate::sys::{fd, fork, limits};

/// The directory of every tree has a name that begins so.
const PREFIX: &str = "phalanx-";
/// The directory of a result's storages, in its worker's directory.
pub(super) const OUT: &str = "out";

/// Whether a directory has the name of a tree.
pub(super) fn is_tree(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|rest| rest.len() == 32 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// This process's directory in its tree.
#[derive(Debug)]
pub(crate) struct ProcessDir {
    /// The tree's directory, which this process has locked.
    pub(super) tree: Dir,
    /// The directory in which the tree's lies, such as `/dev/shm`.
    base: PathBuf,
    /// The name of the tree's directory in `base`, if this process began the tree.
    founded: Option<String>,
    /// The path of this process's directory in the tree's: "", or one that ends in "/".
    own: String,
    /// A fork of this process has a copy of this record, but storages of its own.
    owner: Here,
    /// The last number that was given to a storage or to a worker's directory.
    serial: AtomicU64,
}

/// The directory that this process began or adopted, or has a copy of since a fork.
static PLACE: Mutex<Option<Arc<ProcessDir>>> = Mutex::new(None);

/// This process's directory; `None` if it has none yet, or another program has removed it.
pub(crate) fn process_dir_in_use() -> Option<Arc<ProcessDir>> {
    let process_dir = PLACE.lock().unwrap_or_else(PoisonError::into_inner);
    process_dir.as_ref().filter(|process_dir| process_dir.is_usable()).cloned()
}

/// The directory in which this process has named memory.
fn base_in_use() -> Option<PathBuf> {
    Some(process_dir_in_use()?.base.clone())
}

/// Chooses the directory in which [`SharingStrategy::FileSystem`](crate::SharingStrategy::FileSystem) makes its files, instead of `/dev/shm`. Its file system
/// should be a tmpfs: elsewhere the memory is a file on disk. Workers use their launcher's directory.
///
/// ```
/// phalanx::shm::set_sharing_directory("/dev/shm")?;
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
///
/// # Errors
/// [`MemoryError::Directory`] when there is no such directory, or when this process has named memory in another one
/// already.
pub fn set_sharing_directory(path: impl AsRef<Path>) -> Result<(), MemoryError> {
    let path = path.as_ref();
    let refuse = |reason: String| MemoryError::Directory { path: path.to_owned(), reason };
    let path = path.canonicalize().map_err(|error| refuse(error.to_string()))?;
    if !path.is_dir() {
        return Err(refuse("it is no directory".to_owned()));
    }
    match base_in_use() {
        Some(used) if used != path => {
            Err(refuse(format!("this process already has named memory in {}", used.display())))
        }
        _ => {
            choose_directory(path);
            Ok(())
        }
    }
}

/// This process's directory. The first call begins a tree, unless the launcher has made a directory for this process; so does
/// a call after another program has removed the directory.
///
/// # Errors
/// [`MemoryError::Directory`] when a tree is to be begun and the system refuses.
pub(crate) fn process_dir() -> Result<Arc<ProcessDir>, MemoryError> {
    let mut known = PLACE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(process_dir) = known.as_ref().filter(|process_dir| process_dir.is_usable()) {
        return Ok(process_dir.clone());
    }
    let base = get_sharing_directory();
    let process_dir =
        limits::with_room(|| ProcessDir::found(&base)).map_err(|error| MemoryError::Directory {
            path: base,
            reason: format!("a directory for this process cannot be made in it: {}", with_hint(&error)),
        })?;
    let process_dir = Arc::new(process_dir);
    replace(&mut known, process_dir.clone());
    Ok(process_dir)
}

/// In a worker: adopts the directory that the launcher has made for it. `tree`: the descriptor of the tree's directory;
/// `launchers`: the path of the launcher's directory in it; `number`: that of the worker's directory in the launcher's.
pub(crate) fn adopt_process_dir(tree: OwnedFd, launchers: &str, number: u64) -> io::Result<()> {
    // A duplicate of the launcher's descriptor: flock(2) locks the open file, so this keeps the tree locked also when the
    // launcher is dead.
    let tree = Dir::from_descriptor(tree)?;
    let own = worker_dir_in(launchers, number);
    let process_dir = ProcessDir {
        tree,
        base: get_sharing_directory(),
        founded: None,
        own,
        owner: Here::now(),
        serial: AtomicU64::new(0),
    };
    replace(&mut PLACE.lock().unwrap_or_else(PoisonError::into_inner), Arc::new(process_dir));
    Ok(())
}

/// Replaces the known directory. One that was copied by a fork is never dropped: the worker may have closed its descriptor, whose
/// number may belong to another file by now.
fn replace(known: &mut Option<Arc<ProcessDir>>, process_dir: Arc<ProcessDir>) {
    match known.replace(process_dir) {
        Some(before) if !before.is_own() => std::mem::forget(before),
        before => drop(before),
    }
}

/// The path of a worker's directory in its launcher's.
pub(super) fn worker_dir_in(launchers: &str, number: u64) -> String {
    format!("{launchers}w{number}/")
}

impl ProcessDir {
    /// Begins a tree, after removing the dead ones.
    fn found(base: &Path) -> io::Result<Self> {
        let dir = Dir::open(base)?;
        sweep(&dir);
        loop {
            let name = format!("{PREFIX}{}", dir::unguessable()?);
            let made = make_locked(&dir, &name);
            // A directory that could not be locked is removed here: its mode may keep a later sweep from opening it.
            let Some(tree) = made.inspect_err(|_| drop(dir.remove_dir(&name)))? else { continue };
            fork::at_exit(leave)?;
            return Ok(Self {
                tree,
                base: base.to_owned(),
                founded: Some(name),
                own: String::new(),
                owner: Here::now(),
                serial: AtomicU64::new(0),
            });
        }
    }

    /// Whether this process began or adopted it, and has not just a copy of the record by a fork.
    pub(super) fn is_own(&self) -> bool {
        self.owner.is_now()
    }

    /// Whether it is this process's, and no other program has removed it.
    fn is_usable(&self) -> bool {
        let own = if self.own.is_empty() { "." } else { &self.own };
        self.is_own() && !self.tree.is_removed(own)
    }

    /// Explains ENOENT of a file in a directory that another program has removed.
    pub(super) fn explain(&self, error: io::Error) -> io::Error {
        if error.kind() != io::ErrorKind::NotFound || self.is_usable() {
            return error;
        }
        let path = fd::target(self.tree.as_fd()).unwrap_or_else(|| self.base.clone());
        let text = format!(
            "the directory of this process's named memory, {}, was removed by another program while it was in use (systemd-logind \
             does so when its user logs out, unless RemoveIPC=no is set): what was in it cannot be sent any more",
            path.display()
        );
        io::Error::new(io::ErrorKind::NotFound, text)
    }

    /// A number that nothing in this directory has been named by.
    pub(super) fn next(&self) -> u64 {
        self.serial.fetch_add(1, Relaxed) + 1
    }

    /// This process's directory in the tree's.
    pub(crate) fn own(&self) -> &str {
        &self.own
    }

    /// Free bytes of its file system (statvfs(3)); `None` when the system does not tell.
    pub(super) fn space(&self) -> Option<u64> {
        self.tree.space()
    }

    /// Free bytes and inodes of its file system, in words.
    pub(crate) fn room_text(&self) -> String {
        let space = self.space().map(|bytes| format!("{bytes} bytes")).unwrap_or_default();
        let names = self.tree.room_for_names();
        let names =
            names.map(|(left, all)| format!(" and {left} of {all} names (inodes)")).unwrap_or_default();
        format!("the file system of {} has {space}{names} left", self.base.display())
    }

    /// Whether its file system is in memory.
    pub(super) fn is_memory(&self) -> bool {
        self.tree.is_memory()
    }

    /// The directory in which the tree's directory is.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// Makes an empty file.
    pub(super) fn new_file(self: &Arc<Self>) -> io::Result<(FileName, OwnedFd)> {
        let path = self.new_path();
        let fd = self.tree.make_file(&path).map_err(|error| self.explain(error))?;
        Ok((FileName { process_dir: self.clone(), path }, fd))
    }

    /// The path of a new storage of this process's own.
    fn new_path(&self) -> String {
        format!("{}s{}", self.own, self.next())
    }

    /// Moves the file `from`, which another process has linked for this one, into this process's directory.
    pub(super) fn take_over(self: &Arc<Self>, from: &str) -> io::Result<FileName> {
        let path = self.new_path();
        self.tree.rename(from, &path)?;
        Ok(FileName { process_dir: self.clone(), path })
    }

    /// Makes the directory of a result's storages; `None` in a process that began its tree itself, whose launcher does not look
    /// there.
    pub(crate) fn make_out(&self) -> io::Result<Option<String>> {
        if self.founded.is_some() {
            return Ok(None);
        }
        let out = format!("{}{OUT}", self.own);
        self.tree.make_dir(&out).map_err(|error| self.explain(error))?;
        Ok(Some(out))
    }

    /// The path of a storage in this process's arguments.
    pub(crate) fn argument(&self, number: usize) -> String {
        argument_in(&self.own, number)
    }
}

/// The path of a storage in the arguments of the worker whose directory that is.
pub(super) fn argument_in(worker_dir: &str, number: usize) -> String {
    format!("{worker_dir}a{number}")
}

/// The path of a storage in a result, whose directory is `out`.
pub(crate) fn result_in(out: &str, number: usize) -> String {
    format!("{out}/{number}")
}

impl AsFd for ProcessDir {
    /// The tree's directory, which a worker inherits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }
}

/// Makes a tree's directory and locks it; `None` when another process's sweep has removed it before it was locked.
fn make_locked(base: &Dir, name: &str) -> io::Result<Option<Dir>> {
    base.make_dir(name)?;
    // Race: between mkdirat(2) and flock(2) a sweep may take the directory for a dead tree and remove it. After the lock is
    // taken it cannot; so the name is looked up once more, and must still lead to the directory that was locked.
    let Some(tree) = if_there(base.open_dir(name))? else { return Ok(None) };
    tree.lock_shared()?;
    match if_there(base.open_dir(name))? {
        Some(named) if named.is_same(&tree)? => Ok(Some(tree)),
        _ => Ok(None),
    }
}

/// What was opened; `None` for ENOENT.
fn if_there(opened: io::Result<Dir>) -> io::Result<Option<Dir>> {
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Removes the dead trees of this user in `base`. What cannot be removed is left to the next sweep: no start fails because of it.
fn sweep(base: &Dir) {
    for name in base.names().unwrap_or_default().iter().filter(|name| is_tree(name)) {
        let _ = remove_if_dead(base, name);
    }
}

fn remove_if_dead(base: &Dir, name: &str) -> io::Result<()> {
    let tree = base.open_dir(name)?;
    if !tree.is_private()? {
        return Ok(());
    }
    // The exclusive lock is held until the name is gone: see `make_locked` for the other side.
    let removed = tree.if_unused(|tree| tree.clear(|_| true).and_then(|()| base.remove_dir(name)))?;
    removed.unwrap_or(Ok(()))
}

/// Runs at exit: removes the tree that this process began. The other processes of the tree die with this one, so that they need
/// no names any more.
pub(crate) extern "C" fn leave() {
    let Some(process_dir) = process_dir_in_use() else { return };
    let Some(name) = &process_dir.founded else { return };
    // An error is ignored: the next sweep tries again.
    let _ = Dir::open(&process_dir.base).and_then(|base| base.remove_tree(name));
}

/// A hard link of this process to a file. Dropping it unlinks it.
#[derive(Debug)]
pub(super) struct FileName {
    process_dir: Arc<ProcessDir>,
    path: String,
}

impl FileName {
    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        self.process_dir.tree.open_file(&self.path).map_err(|error| self.process_dir.explain(error))
    }

    /// Makes another hard link to the file, in the same tree.
    pub(super) fn link(&self, path: &str) -> io::Result<()> {
        self.process_dir.tree.link(&self.path, path).map_err(|error| self.process_dir.explain(error))
    }

    pub(super) fn process_dir(&self) -> &ProcessDir {
        &self.process_dir
    }
}

impl Drop for FileName {
    /// A link that cannot be removed goes with the directory.
    fn drop(&mut self) {
        if self.process_dir.is_own() {
            let _ = self.process_dir.tree.unlink(&self.path);
        }
    }
}
