//! torch's file timer: a worker says in a FIFO until when it must have come through a part of its work.
//!
//! `torch.distributed.elastic.timer.FileTimerClient` writes a line of JSON for each `timer.expires(after=…)`, and another one when
//! that is over: `{"version": 1, "pid": 7, "scope_id": "step", "expiration_time": 1764230000.5, "signal": 9}`. A write of at most
//! PIPE_BUF bytes is one piece, so lines of several workers do not mix (pipe(7)). What expires is the worker's failure.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::devices::Environment;
use super::error::{LaunchError, Result};
use crate::sys::clock::Moment;
use crate::sys::pipe::{self, Read, read_now};

/// A program that uses timers is started with this variable set to 1, as with torchrun.
const ENABLED: &str = "TORCHELASTIC_ENABLE_FILE_TIMER";
/// Where workers find the FIFO.
pub(super) const FILE: &str = "TORCHELASTIC_TIMER_FILE";
/// More than a client may write at once (PIPE_BUF): a longer line is no request.
const LONGEST: usize = 64 * 1024;

/// The FIFO, and what has been said in it.
#[derive(Debug)]
pub(super) struct Timers {
    path: PathBuf,
    /// Open for reading and for writing, so that it never ends.
    fifo: OwnedFd,
    /// The begin of a line whose end has not come.
    partial: Vec<u8>,
    running: Running,
}

impl Timers {
    /// Makes the FIFO if the workers' environment asks for timers.
    pub(super) fn make(environment: &Environment, dir: &Path) -> Result<Option<Self>> {
        if environment.get(OsStr::new(ENABLED)).is_none_or(|value| value != "1") {
            return Ok(None);
        }
        let path = dir.join("timers");
        let fifo =
            pipe::fifo(&path).map_err(LaunchError::system(format!("making the FIFO {}", path.display())))?;
        Ok(Some(Self { path, fifo, partial: Vec::new(), running: Running::default() }))
    }

    /// Where workers find it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what workers have said since the last call. A line that is no request, or has no end, is dropped.
    ///
    /// # Errors
    /// When the FIFO cannot be read.
    pub(super) fn read(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        while let Read::Bytes(count) = read_now(self.fifo.as_fd(), &mut buffer)
            .map_err(LaunchError::system("reading the FIFO of timers"))?
        {
            self.partial.extend_from_slice(&buffer[..count]);
        }
        let (wall, now) = (SystemTime::now(), Moment::now());
        while let Some(end) = memchr::memchr(b'\n', &self.partial) {
            self.running.take(&self.partial[..end], wall, now);
            self.partial.drain(..=end);
        }
        if self.partial.len() > LONGEST {
            self.partial.clear();
        }
        Ok(())
    }

    /// Puts all of them off, as when the workers were stopped for a while.
    pub(super) fn put_off(&mut self, by: Duration) {
        self.running.0.values_mut().for_each(|at| *at = at.checked_add(by).unwrap_or(*at));
    }

    /// When the next timer expires; `None`: none runs.
    pub(super) fn next(&self) -> Option<Moment> {
        self.running.0.values().copied().min()
    }

    /// The pids of the processes whose timers have expired, and the scope of each timer. They are told once.
    pub(super) fn expired(&mut self) -> Vec<(u32, String)> {
        self.running.expired(Moment::now())
    }
}

impl AsFd for Timers {
    /// Readable when a worker has said something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fifo.as_fd()
    }
}

/// A client's line: one timer begins, or is over.
#[derive(Deserialize)]
struct Request {
    pid: u32,
    scope_id: String,
    /// Seconds on the wall clock; negative: it is over.
    expiration_time: f64,
}

/// By process and scope: when it expires.
#[derive(Debug, Default)]
struct Running(BTreeMap<(u32, String), Moment>);

impl Running {
    /// A line that is no request is no reason to do anything: the client has its own checks.
    fn take(&mut self, line: &[u8], wall: SystemTime, now: Moment) {
        let Ok(request) = serde_json::from_slice::<Request>(line) else { return };
        let key = (request.pid, request.scope_id);
        let Ok(until) = Duration::try_from_secs_f64(request.expiration_time) else {
            self.0.remove(&key);
            return;
        };
        // The wall clock may be set; from here on the monotonic one counts.
        let left = until.saturating_sub(wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        self.0.extend(now.checked_add(left).map(|at| (key, at)));
    }

    /// Takes out what has expired by now.
    fn expired(&mut self, now: Moment) -> Vec<(u32, String)> {
        let expired: Vec<_> =
            self.0.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        // All timers of such a process go with it.
        self.0.retain(|(pid, _), _| expired.iter().all(|(ended, _)| ended != pid));
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_run_by_process_and_scope_until_they_are_over() {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let at = |seconds: u64| Moment::from_nanos(seconds * 1_000_000_000);
        let mut running = Running::default();
        let mut say = |pid: u32, scope: &str, time: f64| {
            let line = format!(
                r#"{{"version": 1, "pid": {pid}, "scope_id": "{scope}", "expiration_time": {time}, "signal": 9}}"#
            );
            running.take(line.as_bytes(), wall, at(50));
        };
        say(7, "step", 1_010.0);
        say(7, "load", 1_020.0);
        say(8, "step", 1_030.0);
        say(8, "step", -1.0);
        running.take(b"no JSON", wall, at(50));
        assert_eq!(running.expired(at(59)), []);
        assert_eq!(running.expired(at(60)), [(7, "step".to_owned())]);
        // The process is ended, so its other timers do not count.
        assert_eq!(running.expired(at(1_000)), []);
    }
}
