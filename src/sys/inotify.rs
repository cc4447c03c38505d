//! inotify(7): tells by a descriptor when a file of a directory has been written.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// That a file is removed, or moved elsewhere.
const GOES: AddWatchFlags = AddWatchFlags::IN_DELETE.union(AddWatchFlags::IN_MOVED_FROM);

/// Directories that are watched for files that have been written.
#[derive(Debug)]
pub(crate) struct FileWatch {
    inotify: Inotify,
    directories: Vec<(WatchDescriptor, PathBuf)>,
}

impl FileWatch {
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(Self { inotify, directories: Vec::new() })
    }

    /// Watches a directory, too, for files that are closed after they were written, or renamed into their place.
    pub(crate) fn add(&mut self, directory: &Path) -> io::Result<()> {
        self.watch(directory, AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO)
    }

    /// Watches a directory, too, for files that grow.
    pub(crate) fn add_growing(&mut self, directory: &Path) -> io::Result<()> {
        self.watch(directory, AddWatchFlags::IN_MODIFY)
    }

    /// Watches a directory, too, for files that are made or moved there: each time, of a file that is made, removed and made again.
    pub(crate) fn add_new(&mut self, directory: &Path) -> io::Result<()> {
        // What goes is not told, but it lies between two events that are alike, which the kernel would make one of (inotify(7)).
        self.watch(directory, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | GOES)
    }

    fn watch(&mut self, directory: &Path, events: AddWatchFlags) -> io::Result<()> {
        let watch = self.inotify.add_watch(directory, events)?;
        self.directories.push((watch, directory.to_owned()));
        Ok(())
    }

    /// The files to which that has happened since the last look.
    pub(crate) fn written(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return Ok(found),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let path = |wd: WatchDescriptor, name: Option<OsString>| {
                let (_, directory) = self.directories.iter().find(|(watch, _)| *watch == wd)?;
                Some(directory.join(name?))
            };
            let told = events.into_iter().filter(|event| !event.mask.intersects(GOES));
            found.extend(told.filter_map(|event| path(event.wd, event.name)));
        }
    }
}

impl AsFd for FileWatch {
    /// Readable when a file has been written.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_renamed_files_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = FileWatch::new().unwrap();
        watch.add(dir.path()).unwrap();
        assert!(watch.written().unwrap().is_empty());
        std::fs::write(dir.path().join("one"), "1").unwrap();
        std::fs::rename(dir.path().join("one"), dir.path().join("two")).unwrap();
        assert_eq!(watch.written().unwrap(), [dir.path().join("one"), dir.path().join("two")]);
    }

    #[test]
    fn new_file_is_told_once_before_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = FileWatch::new().unwrap();
        watch.add_new(dir.path()).unwrap();
        // Of two files in one directory there is one watch.
        watch.add_new(dir.path()).unwrap();
        let _open = std::fs::File::create(dir.path().join("new")).unwrap();
        assert_eq!(watch.written().unwrap(), [dir.path().join("new")]);
        std::fs::rename(dir.path().join("new"), dir.path().join("moved")).unwrap();
        assert_eq!(watch.written().unwrap(), [dir.path().join("moved")]);
        for _ in 0..3 {
            std::fs::remove_file(dir.path().join("moved")).unwrap();
            std::fs::File::create(dir.path().join("moved")).unwrap();
        }
        assert_eq!(watch.written().unwrap(), vec![dir.path().join("moved"); 3]);
    }

    #[test]
    fn growing_file_is_told_though_it_is_not_closed() {
        use std::io::Write;

        let dir = tempfile::tempdir().unwrap();
        let mut file = std::fs::File::create(dir.path().join("log")).unwrap();
        let mut watch = FileWatch::new().unwrap();
        watch.add_growing(dir.path()).unwrap();
        file.write_all(b"line").unwrap();
        assert_eq!(watch.written().unwrap(), [dir.path().join("log")]);
    }
}
