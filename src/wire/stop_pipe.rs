//! The stop pipe: by it a launcher tells programs that it is ending them, in a way that any language can ask for.
//!
//! The programs inherit the end that is read, and find its number in their environment. When the stop begins the launcher writes a
//! line into its own end and closes it: the pipe is readable then, and has an end. The end is there for every reader, since no
//! reader can take it from the others. The line is for a pipe whose other end another process has open too, as a fork of the
//! launcher has.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use super::names::{STOP_FD, STOP_PIPE};
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::{env, fd, pipe};

/// A launcher's stop pipe. Dropping it begins the stop.
#[derive(Debug)]
pub(crate) struct StopPipe {
    reader: OwnedFd,
    /// `None` once the stop has begun.
    writer: Option<OwnedFd>,
}

impl StopPipe {
    pub(crate) fn new() -> io::Result<Self> {
        let (reader, writer) = pipe::line()?;
        Ok(Self { reader, writer: Some(writer) })
    }

    /// The variables by which a program finds the end that it inherits.
    pub(crate) fn variables(&self) -> io::Result<[(&'static str, String); 2]> {
        Ok([(STOP_FD, self.reader.as_raw_fd().to_string()), (STOP_PIPE, identity(self.reader.as_fd())?)])
    }

    /// Tells the programs, once.
    pub(crate) fn begin(&mut self) {
        if let Some(writer) = self.writer.take() {
            // It is refused only when a program has opened this end for itself and filled the pipe, which is readable then.
            let _ = pipe::write_now(writer.as_fd(), b"stop\n");
        }
    }
}

impl AsFd for StopPipe {
    /// The end that programs inherit.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// The stop pipe of the job that this process is a part of.
#[derive(Debug)]
pub(crate) struct OwnStopPipe {
    reader: OwnedFd,
    has_begun: AtomicBool,
}

impl OwnStopPipe {
    /// Finds it; `None` when there is none, or when a process between the launcher and this one has closed it.
    pub(crate) fn find() -> Option<Self> {
        Self::open(&std::env::var(STOP_FD).ok()?, &std::env::var(STOP_PIPE).ok()?)
    }

    fn open(number: &str, known: &str) -> Option<Self> {
        // A copy, since the program may close the number at any time. Programs hand variables on without the descriptors, as
        // Python's subprocess does: then the number is that of another file, or of none.
        let reader = fd::copy_of(number.parse().ok()?).ok()?;
        let is_same = identity(reader.as_fd()).is_ok_and(|identity| identity == known);
        is_same.then(|| Self { reader, has_begun: AtomicBool::new(false) })
    }

    /// Whether the stop has begun.
    pub(crate) fn has_begun(&self) -> bool {
        // Relaxed: nothing is published with it; the pipe says the same to whoever finds it unset.
        if self.has_begun.load(Relaxed) {
            return true;
        }
        // An error is one of memory for the call: the next look tells.
        let begun = wait_readable(self.reader.as_fd(), Some(Moment::now())).unwrap_or(false);
        if begun {
            self.has_begun.store(true, Relaxed);
        }
        begun
    }
}

impl AsFd for OwnStopPipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// Removes the variables of a job from a worker of a context, which does not have the job's descriptors.
///
/// Call it only in a worker before user code has run, while the process has one thread.
pub(crate) fn forget_variables() {
    for key in [STOP_FD, STOP_PIPE] {
        if std::env::var_os(key).is_some() {
            env::remove(key);
        }
    }
}

/// What tells this pipe from any other file.
fn identity(pipe: BorrowedFd<'_>) -> io::Result<String> {
    let (device, inode) = pipe::identity(pipe)?;
    Ok(format!("{device}:{inode}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_is_seen_by_every_reader_also_after_one_has_read() {
        let mut stop = StopPipe::new().unwrap();
        let [(_, number), (_, known)] = stop.variables().unwrap();
        let [one, two] = [(); 2].map(|()| OwnStopPipe::open(&number, &known).unwrap());
        assert!(!one.has_begun() && !two.has_begun());
        stop.begin();
        stop.begin();
        let mut read = String::new();
        io::Read::read_to_string(&mut std::fs::File::from(stop.reader.try_clone().unwrap()), &mut read)
            .unwrap();
        assert_eq!(read, "stop\n");
        assert!(one.has_begun() && two.has_begun());
    }

    #[test]
    fn stop_is_seen_while_another_process_has_the_launchers_end() {
        let mut stop = StopPipe::new().unwrap();
        let _other = stop.writer.as_ref().unwrap().try_clone().unwrap();
        stop.begin();
        assert!(wait_readable(stop.as_fd(), Some(Moment::now())).unwrap());
    }

    #[test]
    fn another_file_under_the_number_is_no_stop_pipe() {
        let (stop, other, null) = (StopPipe::new().unwrap(), StopPipe::new().unwrap(), fd::null().unwrap());
        let [(_, number), (_, known)] = stop.variables().unwrap();
        assert!(OwnStopPipe::open(&number, &known).is_some());
        let others = [other.as_fd().as_raw_fd(), null.as_raw_fd(), 1_000_000, -1].map(|fd| fd.to_string());
        for number in others.iter().map(String::as_str).chain(["", "x"]) {
            assert!(OwnStopPipe::open(number, &known).is_none(), "{number:?}");
        }
    }
}
