//! A file that takes the place of another one when it is complete: open(2) with `O_TMPFILE`, linkat(2), rename(2).

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::dir::{self, Dir};
use super::fd::above_stdio;

/// What a new file may be used for, less the umask: as with any program.
const NEW_FILE: Mode = Mode::from_bits_truncate(0o666);
/// The bits of a mode that chmod(2) sets.
const PERMISSIONS: u32 = 0o7777;

/// Writes a file by `write`. A regular file keeps its old contents until the new ones are complete, and its mode, and where
/// the system allows it its owner; symbolic links to it stay links. What is no regular file (a pipe, a device) is written to.
pub(crate) fn write(path: &Path, write: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(old) if !old.is_file() => {
            let flags = OFlag::O_NOCTTY.bits();
            write(&OpenOptions::new().write(true).custom_flags(flags).open(path)?)
        }
        Ok(old) => replace(&fs::canonicalize(path)?, Some(&old), write),
        Err(error) if error.kind() == io::ErrorKind::NotFound => replace(&end_of_links(path)?, None, write),
        Err(error) => Err(error),
    }
}

/// Where a path leads whose last file does not exist.
fn end_of_links(path: &Path) -> io::Result<PathBuf> {
    // As many as the kernel follows (path_resolution(7)).
    const MOST: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

fn replace(
    path: &Path,
    old: Option<&Metadata>,
    write: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = Unfinished::new(Dir::open(parent)?, name)?;
    if let Some(old) = old {
        keep_owner_and_mode(&new.file, old)?;
    }
    write(&new.file)?;
    new.put_in_place()
}

fn keep_owner_and_mode(file: &File, old: &Metadata) -> io::Result<()> {
    let new = file.metadata()?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        // Only the superuser may give a file away: the file is then the writer's own, as every file that it makes.
        let _ = fchown(file, Some(old.uid()), Some(old.gid()));
    }
    // After the owner, whose change clears the set-user-ID bit.
    file.set_permissions(Permissions::from_mode(old.mode() & PERMISSIONS))
}

/// A file that no other process sees until it is put in place. While it has no name, the kernel removes it if this process dies.
struct Unfinished<'a> {
    dir: Dir,
    file: File,
    /// What it is to be called.
    name: &'a OsStr,
    /// What it is called meanwhile, if it has a name. It goes with this.
    temporary: Option<OsString>,
}

impl<'a> Unfinished<'a> {
    fn new(dir: Dir, name: &'a OsStr) -> io::Result<Self> {
        let open = |path: &OsStr, flags: OFlag| -> io::Result<File> {
            let flags = flags | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            Ok(File::from(above_stdio(openat(&dir, path, flags, NEW_FILE)?)?))
        };
        match open(OsStr::new("."), OFlag::O_TMPFILE) {
            Ok(file) => Ok(Self { dir, file, name, temporary: None }),
            // A file system that has no such files (open(2)).
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
                let temporary = temporary_name(name)?;
                let file = open(&temporary, OFlag::O_CREAT | OFlag::O_EXCL)?;
                Ok(Self { dir, file, name, temporary: Some(temporary) })
            }
            Err(error) => Err(error),
        }
    }

    fn put_in_place(&mut self) -> io::Result<()> {
        if self.temporary.is_none() {
            let temporary = temporary_name(self.name)?;
            let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(AT_FDCWD, own.as_str(), &self.dir, &*temporary, AtFlags::AT_SYMLINK_FOLLOW)?;
            self.temporary = Some(temporary);
        }
        if let Some(temporary) = &self.temporary {
            // linkat cannot take the place of a file; rename can, in one step.
            renameat(&self.dir, &**temporary, &self.dir, self.name)?;
        }
        self.temporary = None;
        Ok(())
    }
}

impl Drop for Unfinished<'_> {
    /// The error that is on its way to the caller says more than one of this would.
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = unlinkat(&self.dir, &**temporary, UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// A name for a file that is to be called `name`. It has 255 bytes at the most (NAME_MAX).
fn temporary_name(name: &OsStr) -> io::Result<OsString> {
    const KEPT: usize = 200;
    let mut temporary = OsString::from(".");
    temporary.push(OsStr::from_bytes(&name.as_bytes()[..name.len().min(KEPT)]));
    temporary.push(format!(".{}", dir::unguessable()?));
    Ok(temporary)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn text(text: &str) -> impl FnOnce(&File) -> io::Result<()> {
        move |mut file| file.write_all(text.as_bytes())
    }

    #[test]
    fn file_with_a_name_while_it_is_written_is_gone_after_an_error() {
        let home = tempfile::tempdir().unwrap();
        let named = |name: &'static str| -> Unfinished<'static> {
            let dir = Dir::open(home.path()).unwrap();
            let temporary = temporary_name(OsStr::new(name)).unwrap();
            let file = File::create(home.path().join(&temporary)).unwrap();
            Unfinished { dir, file, name: OsStr::new(name), temporary: Some(temporary) }
        };
        drop(named("a"));
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
        named("b").put_in_place().unwrap();
        let names: Vec<_> =
            fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["b"]);
    }

    #[test]
    fn old_file_stays_until_the_new_one_is_complete() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("file");
        write(&path, text("old")).unwrap();
        let failed = write(&path, |mut file| {
            file.write_all(b"half")?;
            assert_eq!(fs::read_to_string(&path)?, "old");
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(
            (fs::read_to_string(&path).unwrap(), fs::read_dir(&home).unwrap().count()),
            ("old".into(), 1)
        );
    }

    #[test]
    fn links_that_lead_in_a_circle_and_directories_are_errors() {
        let home = tempfile::tempdir().unwrap();
        let (one, other) = (home.path().join("one"), home.path().join("other"));
        std::os::unix::fs::symlink(&one, &other).unwrap();
        std::os::unix::fs::symlink(&other, &one).unwrap();
        assert_eq!(write(&one, text("")).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        assert_eq!(write(home.path(), text("")).unwrap_err().raw_os_error(), Some(libc::EISDIR));
    }
}
