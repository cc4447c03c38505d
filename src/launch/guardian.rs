//! The guardian of a job: a small process that ends the job's descendants when the launcher is killed, and removes its temporary files.
//!
//! Workers die with the launcher by their death signal; what they have started does not.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use super::descendants;
use crate::sys::epoll::wait_readable;
use crate::sys::fork::{self, ForkError, UnsignaledChild};
use crate::sys::pipe::{Read, pipe, read_now, write_all};
use crate::sys::{fd, signal};

/// The launcher's end of a pipe: the guardian acts when it is closed, unless it was told that all is over.
#[derive(Debug)]
pub(super) struct Guardian {
    /// The pipe's end for writing. The kernel closes it when this process dies.
    end: OwnedFd,
    process: UnsignaledChild,
}

impl Guardian {
    /// Forks it. It acts by the job's `token`, and removes the `temporary` directory, if there is one.
    ///
    /// # Errors
    /// When this process has several threads, or the system has no room for another process.
    pub(super) fn start(token: &str, temporary: Option<&Path>) -> io::Result<Self> {
        let (begin, end) = pipe()?;
        let refused = |error| match error {
            ForkError::Threads(threads) => {
                io::Error::other(format!("this process has {threads} threads, and must have one"))
            }
            ForkError::Uncounted(error) => {
                io::Error::new(error.kind(), format!("counting its threads (/proc/self/task): {error}"))
            }
            ForkError::Os(error) => error,
        };
        let alone = fork::single_thread().map_err(refused)?;
        // The child's copy of the launcher's end is closed with all its other descriptors.
        let child = || {
            guard(&begin, token, temporary);
            fork::exit_at_once(0)
        };
        Ok(Self { process: UnsignaledChild::fork(&alone, child).map_err(refused)?, end })
    }
}

impl Guardian {
    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // One that was killed takes no byte, and has nothing to be told.
        let _ = write_all(self.end.as_fd(), &[1]);
        self.process.reap();
    }
}

/// The guardian: it holds no descriptor of the launcher's, and no signal but SIGKILL ends it.
fn guard(begin: &OwnedFd, token: &str, temporary: Option<&Path>) {
    signal::outlive_all();
    let _ = signal::unblock_all();
    // Ctrl-C at the terminal and `kill` of the job's group are not meant for it.
    let _ = fork::lead_session();
    let _ = fd::close_inherited(fd::Inherited::ThroughFork, &[begin.as_raw_fd()]);
    // Who reads the launcher's output waits for its end.
    let _ = fd::null().and_then(|null| (0..3).try_for_each(|number| fd::put_at(null.as_fd(), number)));
    let _ = crate::sys::prctl::set_name("phalanx-guard");
    if wait_readable(begin.as_fd(), None).is_ok()
        && !matches!(read_now(begin.as_fd(), &mut [0]), Ok(Read::Bytes(_)))
    {
        descendants::kill_all(token, None);
        // All writers are dead, and an error has no process to be told to.
        let _ = temporary.map(std::fs::remove_dir_all);
    }
}
