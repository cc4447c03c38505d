//! Named memory: a directory for each tree of processes, and in it one for each process.
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
//! Whoever holds a storage has a name of its own for it, a hard link: the kernel counts them, and frees the memory with
//! the last name and the last map. So a killed holder cannot make a count wrong; it leaves names, which go with its
//! directory. A tree whose lock nobody holds is dead, and whoever begins a new one removes it.
//!
//! All who live in a tree die with the process that began it. A worker that may outlive its launcher has no place in its
//! tree: it gets descriptors, and begins a tree of its own when it needs one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(doc)]
use super::strategy::SharingStrategy;
use super::strategy::{choose_directory, get_sharing_directory};
use crate::error::{MemoryError, with_hint};
use crate::sys::dir::{self, Dir};
use crate::sys::forks::Here;
use crate::sys::{fd, limits, process};

/// What the directories of all trees begin with.
const PREFIX: &str = "phalanx-";
/// In a worker's directory, what its result carries.
pub(super) const OUT: &str = "out";

/// Whether a directory is called like a tree's.
pub(super) fn is_tree(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|rest| rest.len() == 32 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// This process's place in its tree.
#[derive(Debug)]
pub(crate) struct ProcessDir {
    /// The tree's directory, which this process has locked.
    pub(super) tree: Dir,
    base: PathBuf,
    /// Of the tree's directory in `base`, if this process has made it.
    founded: Option<String>,
    /// This process's directory in the tree's: "" or a path that ends in "/".
    own: String,
    /// The process: a fork of it has a copy of this, but other storages.
    owner: Here,
    serial: AtomicU64,
}

static PLACE: Mutex<Option<Arc<ProcessDir>>> = Mutex::new(None);

/// This process's place, if it has one.
pub(crate) fn process_dir_in_use() -> Option<Arc<ProcessDir>> {
    let process_dir = PLACE.lock().unwrap_or_else(PoisonError::into_inner);
    process_dir.as_ref().filter(|process_dir| process_dir.is_usable()).cloned()
}

/// The directory in which this process has named memory.
fn base_in_use() -> Option<PathBuf> {
    Some(process_dir_in_use()?.base.clone())
}

/// Chooses where [`SharingStrategy::FileSystem`] makes its files, in the place of `/dev/shm`. It should be a tmpfs:
/// elsewhere the memory is that of a file on disk. Workers use their launcher's.
///
/// ```
/// phalanx::shm::set_sharing_directory("/dev/shm")?;
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
///
/// # Errors
/// [`MemoryError::Directory`] when there is no such directory, or when this process or its launcher has made files
/// elsewhere already.
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

/// This process's place. The first call begins a tree, unless the launcher gave us a place in its own; so does one after
/// somebody has removed our directory.
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

/// Takes the place that the launcher has made: the directory of that number in its own.
pub(crate) fn adopt_process_dir(tree: OwnedFd, launchers: &str, number: u64) -> io::Result<()> {
    // A copy of the launcher's, whose lock is held until the last copy is closed.
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

/// A place of the process of which this one is a fork is never dropped: its descriptor may have been closed, and the number be
/// another's by now.
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
    /// Begins a tree, after removing those that are dead.
    fn found(base: &Path) -> io::Result<Self> {
        let dir = Dir::open(base)?;
        sweep(&dir);
        loop {
            let name = format!("{PREFIX}{}", dir::unguessable()?);
            let made = make_locked(&dir, &name);
            // One that cannot be used must not stay: maybe nobody else can remove it.
            let Some(tree) = made.inspect_err(|_| drop(dir.remove_dir(&name)))? else { continue };
            process::at_exit(leave)?;
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

    pub(super) fn is_own(&self) -> bool {
        self.owner.is_now()
    }

    /// Whether it is this process's, and nobody has removed its directory.
    fn is_usable(&self) -> bool {
        let own = if self.own.is_empty() { "." } else { &self.own };
        self.is_own() && !self.tree.is_removed(own)
    }

    /// Tells of a directory that was removed, which the system calls a file that does not exist.
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

    pub(super) fn next(&self) -> u64 {
        self.serial.fetch_add(1, Relaxed) + 1
    }

    /// This process's directory in the tree's.
    pub(crate) fn own(&self) -> &str {
        &self.own
    }

    /// Bytes that are left where the files are.
    pub(super) fn space(&self) -> Option<u64> {
        self.tree.space()
    }

    /// What its file system has left, for an error's text.
    pub(crate) fn room_text(&self) -> String {
        let space = self.space().map(|bytes| format!("{bytes} bytes")).unwrap_or_default();
        let names = self.tree.room_for_names();
        let names =
            names.map(|(left, all)| format!(" and {left} of {all} names (inodes)")).unwrap_or_default();
        format!("the file system of {} has {space}{names} left", self.base.display())
    }

    /// Whether its files are memory, and not on a disk.
    pub(super) fn is_memory(&self) -> bool {
        self.tree.is_memory()
    }

    /// Where the tree is.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// A new file of no bytes.
    pub(super) fn new_file(self: &Arc<Self>) -> io::Result<(FileName, OwnedFd)> {
        let path = self.new_path();
        let fd = self.tree.make_file(&path).map_err(|error| self.explain(error))?;
        Ok((FileName { process_dir: self.clone(), path }, fd))
    }

    fn new_path(&self) -> String {
        format!("{}s{}", self.own, self.next())
    }

    /// Takes over the file `from`, which another process has put there, under a name of this process's own.
    pub(super) fn take_over(self: &Arc<Self>, from: &str) -> io::Result<FileName> {
        let path = self.new_path();
        self.tree.rename(from, &path)?;
        Ok(FileName { process_dir: self.clone(), path })
    }

    /// Makes the directory for what a result carries. In a process without a launcher's place there is none.
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

/// Makes a tree's directory and locks it; `None` when another process's sweep has removed it meanwhile.
fn make_locked(base: &Dir, name: &str) -> io::Result<Option<Dir>> {
    base.make_dir(name)?;
    // A sweep may come between each of these lines. It removes only what is not locked.
    let Some(tree) = if_there(base.open_dir(name))? else { return Ok(None) };
    tree.lock_shared()?;
    match if_there(base.open_dir(name))? {
        Some(named) if named.is_same(&tree)? => Ok(Some(tree)),
        _ => Ok(None),
    }
}

/// What was opened, or `None` when it is not there.
fn if_there(opened: io::Result<Dir>) -> io::Result<Option<Dir>> {
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Removes the trees in `base` that are ours and that nobody lives in any more. What cannot be removed is left to the
/// next who comes: a start must not fail of it.
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
    // The lock is held until the name is gone: who begins a tree there now sees then that it was removed.
    let removed = tree.if_unused(|tree| tree.clear(|_| true).and_then(|()| base.remove_dir(name)))?;
    removed.unwrap_or(Ok(()))
}

/// Runs at exit: a tree goes with the process that began it. Whoever else lives in it goes too, and needs no names any
/// more: a worker that may outlive its launcher gets no place in the launcher's tree.
pub(crate) extern "C" fn leave() {
    let Some(process_dir) = process_dir_in_use() else { return };
    let Some(name) = &process_dir.founded else { return };
    // What cannot be removed here is left to the next sweep.
    let _ = Dir::open(&process_dir.base).and_then(|base| base.remove_tree(name));
}

/// This process's name of a file. The name is removed when this is dropped; the file is gone with its last one.
#[derive(Debug)]
pub(super) struct FileName {
    process_dir: Arc<ProcessDir>,
    path: String,
}

impl FileName {
    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        self.process_dir.tree.open_file(&self.path).map_err(|error| self.process_dir.explain(error))
    }

    /// Gives the file another name in the same tree.
    pub(super) fn link(&self, path: &str) -> io::Result<()> {
        self.process_dir.tree.link(&self.path, path).map_err(|error| self.process_dir.explain(error))
    }

    pub(super) fn process_dir(&self) -> &ProcessDir {
        &self.process_dir
    }
}

impl Drop for FileName {
    /// A name that cannot be removed goes with the directory.
    fn drop(&mut self) {
        if self.process_dir.is_own() {
            let _ = self.process_dir.tree.unlink(&self.path);
        }
    }
}
