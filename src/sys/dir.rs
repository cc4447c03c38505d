//! Directories and the files in them, by descriptor: openat(2), mkdirat(2), linkat(2), flock(2). No symbolic link is
//! followed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstat, fstatat, mkdirat};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, geteuid, linkat, unlinkat};

use super::fd::above_stdio;
use crate::point::point;

/// An open directory.
#[derive(Debug)]
pub(crate) struct Dir(OwnedFd);

/// The error of a name that no file has.
pub(crate) const NOT_FOUND: i32 = libc::ENOENT;
/// Mode 0700: only the owner may use it.
const PRIVATE_DIR: Mode = Mode::S_IRWXU;
const PRIVATE_FILE: Mode = Mode::from_bits_truncate(0o600);

impl Dir {
    /// Opens a directory that the user or the system has named: here alone symbolic links are followed.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(Self(above_stdio(openat(AT_FDCWD, path, flags, Mode::empty())?)?))
    }

    /// Takes over a descriptor of a directory.
    pub(crate) fn from_descriptor(fd: OwnedFd) -> io::Result<Self> {
        let kind = SFlag::from_bits_truncate(fstat(&fd)?.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFDIR { Ok(Self(fd)) } else { Err(io::Error::from_raw_os_error(libc::ENOTDIR)) }
    }

    /// Opens a directory below this one. `.` gives a descriptor of its own for this one, with locks of its own.
    pub(crate) fn open_dir(&self, path: &str) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        Ok(Self(above_stdio(openat(&self.0, path, flags, Mode::empty())?)?))
    }

    /// Makes a directory that only its owner may enter; one that is there is an error.
    pub(crate) fn make_dir(&self, path: &str) -> io::Result<()> {
        mkdirat(&self.0, path, PRIVATE_DIR)?;
        // The umask may have taken away what the owner needs.
        Ok(fchmodat(&self.0, path, PRIVATE_DIR, FchmodatFlags::FollowSymlink)?)
    }

    /// Makes a file that only its owner may use; one that is there is an error.
    pub(crate) fn make_file(&self, path: &str) -> io::Result<OwnedFd> {
        let file = self.open_with(path, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL)?;
        // Likewise: it is opened again by its name.
        fchmod(&file, PRIVATE_FILE)?;
        Ok(file)
    }

    /// Whether a directory below this one, or this one itself (`.`), was removed.
    pub(crate) fn is_removed(&self, path: &str) -> bool {
        match fstatat(&self.0, path, AtFlags::AT_SYMLINK_NOFOLLOW) {
            // A directory that is open still has a stat, but no link any more.
            Ok(stat) => stat.st_nlink == 0,
            Err(error) => error == Errno::ENOENT,
        }
    }

    /// Opens a file for reading and writing.
    pub(crate) fn open_file(&self, path: &str) -> io::Result<OwnedFd> {
        self.open_with(path, OFlag::O_RDWR)
    }

    fn open_with(&self, path: &str, flags: OFlag) -> io::Result<OwnedFd> {
        point!("sys.openat", call);
        above_stdio(openat(&self.0, path, flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, PRIVATE_FILE)?)
    }

    /// Gives a file another name besides.
    pub(crate) fn link(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(linkat(&self.0, from, &self.0, to, AtFlags::empty())?)
    }

    /// Gives a file another name instead.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.0, from, &self.0, to)?)
    }

    /// Removes the name of a file; one that is not there is fine.
    pub(crate) fn unlink(&self, path: &str) -> io::Result<()> {
        match unlinkat(&self.0, path, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes an empty directory; one that is not there is fine.
    pub(crate) fn remove_dir(&self, path: &str) -> io::Result<()> {
        match unlinkat(&self.0, path, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a directory and all that is in it; one that is not there is fine.
    pub(crate) fn remove_tree(&self, path: &str) -> io::Result<()> {
        const TRIES: usize = 100;
        for _ in 1..TRIES {
            match self.try_remove_tree(path) {
                // A process that is about to die has made something there meanwhile.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                done => return done,
            }
        }
        self.try_remove_tree(path)
    }

    fn try_remove_tree(&self, path: &str) -> io::Result<()> {
        match self.open_dir(path) {
            Ok(dir) => dir.clear(|_| true)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        self.remove_dir(path)
    }

    /// Removes what is in it, of which `chosen` says so by the name.
    pub(crate) fn clear(&self, chosen: impl Fn(&str) -> bool) -> io::Result<()> {
        for name in self.names()?.into_iter().filter(|name| chosen(name)) {
            match self.unlink(&name) {
                Err(error) if error.raw_os_error() == Some(libc::EISDIR) => self.remove_tree(&name)?,
                done => done?,
            }
        }
        Ok(())
    }

    /// The names in it.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(self.path())?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// A path to it that holds as long as it is open, whatever becomes of its name.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// Whether it belongs to our user, and nobody else may enter it.
    pub(crate) fn is_private(&self) -> io::Result<bool> {
        let stat = fstat(&self.0)?;
        let others = Mode::S_IRWXG | Mode::S_IRWXO;
        Ok(stat.st_uid == geteuid().as_raw() && !Mode::from_bits_truncate(stat.st_mode).intersects(others))
    }

    /// Whether both are the same directory.
    pub(crate) fn is_same(&self, other: &Self) -> io::Result<bool> {
        let (one, other) = (fstat(&self.0)?, fstat(&other.0)?);
        Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
    }

    /// Takes a shared lock of it, which is held until its descriptor and all copies of that are closed. Waits for who
    /// holds it exclusively, which nobody does for long.
    pub(crate) fn lock_shared(&self) -> io::Result<()> {
        self.flock(libc::LOCK_SH)
    }

    /// Runs `work` while nobody else holds a lock of it; `None` when somebody does. It must not hold one itself.
    pub(crate) fn if_unused<T>(self, work: impl FnOnce(&Self) -> T) -> io::Result<Option<T>> {
        match self.flock(libc::LOCK_EX | libc::LOCK_NB) {
            Ok(()) => Ok(Some(work(&self))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// flock(2) by libc: the guard that nix has gives the lock up, also that of a copy.
    fn flock(&self, operation: i32) -> io::Result<()> {
        loop {
            // SAFETY: takes two integers.
            if unsafe { libc::flock(self.0.as_raw_fd(), operation) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Whether its files are memory: it is on a tmpfs.
    pub(crate) fn is_memory(&self) -> bool {
        fstatfs(&self.0).is_ok_and(|stat| stat.filesystem_type() == TMPFS_MAGIC)
    }

    /// Bytes that its file system still has.
    pub(crate) fn space(&self) -> Option<u64> {
        let stat = fstatvfs(&self.0).ok()?;
        Some(stat.blocks_available() as u64 * stat.fragment_size() as u64)
    }

    /// How many names its file system still has, and how many in all; `None` where that has no limit.
    pub(crate) fn room_for_names(&self) -> Option<(u64, u64)> {
        let stat = fstatvfs(&self.0).ok()?;
        (stat.files() > 0).then(|| (stat.files_available() as u64, stat.files() as u64))
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// 128 random bits, which cannot be guessed, in hexadecimal.
pub(crate) fn unguessable() -> io::Result<String> {
    Ok(format!("{:016x}{:016x}", random()?, random()?))
}

/// getrandom(2): a random number.
pub(crate) fn random() -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    // SAFETY: a buffer of ours with its length. So few bytes come whole.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == bytes.len() as isize { Ok(u64::from_ne_bytes(bytes)) } else { Err(io::Error::last_os_error()) }
}

/// The working directory, as a descriptor that only names it.
pub(crate) fn current() -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    above_stdio(openat(AT_FDCWD, ".", flags, Mode::empty())?)
}

/// fchdir(2).
pub(crate) fn enter(dir: BorrowedFd<'_>) -> io::Result<()> {
    Ok(nix::unistd::fchdir(dir)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary() -> (tempfile::TempDir, Dir) {
        let path = tempfile::tempdir().unwrap();
        let dir = Dir::open(path.path()).unwrap();
        (path, dir)
    }

    #[test]
    fn file_lives_as_long_as_it_has_a_name() {
        let (_path, dir) = temporary();
        dir.make_file("a").unwrap();
        assert!(dir.make_file("a").is_err());
        dir.link("a", "b").unwrap();
        dir.unlink("a").unwrap();
        dir.unlink("a").unwrap();
        assert!(dir.open_file("a").is_err());
        dir.rename("b", "c").unwrap();
        assert_eq!(dir.names().unwrap(), ["c"]);
    }

    #[test]
    fn remove_tree_follows_no_symbolic_link() {
        let (path, dir) = temporary();
        dir.make_dir("tree").unwrap();
        dir.make_dir("other").unwrap();
        dir.make_file("other/kept").unwrap();
        std::os::unix::fs::symlink("../other", path.path().join("tree/link")).unwrap();
        std::os::unix::fs::symlink("other", path.path().join("link")).unwrap();
        assert!(dir.open_dir("link").is_err());
        dir.remove_tree("tree").unwrap();
        dir.remove_tree("tree").unwrap();
        assert!(dir.open_file("other/kept").is_ok());
    }

    #[test]
    fn shared_lock_outlives_a_copy_and_keeps_off_who_asks() {
        let (path, held) = temporary();
        held.lock_shared().unwrap();
        let asks = || Dir::open(path.path()).unwrap().if_unused(|_| ()).unwrap();
        assert_eq!(asks(), None);
        drop(held);
        assert_eq!(asks(), Some(()));
    }

    #[test]
    fn private_is_what_nobody_else_may_enter() {
        use std::os::unix::fs::PermissionsExt;
        let (path, dir) = temporary();
        for (mode, private) in [(0o700, true), (0o755, false), (0o710, false), (0o702, false)] {
            std::fs::set_permissions(path.path(), PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(dir.is_private().unwrap(), private, "{mode:o}");
        }
        assert!(dir.is_same(&Dir::open(path.path()).unwrap()).unwrap());
        assert!(!dir.is_same(&Dir::open(Path::new("/")).unwrap()).unwrap());
    }
}
