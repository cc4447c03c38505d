//! A run that does not end, and what it leaves behind.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::PlanError;
use crate::injection::{Faults, UnderPlan};
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::signal::Signal;
use crate::sys::{pidfd, process};

/// How long the program has after its workers were killed.
const AFTER_THE_KILL: Duration = Duration::from_secs(30);
/// How long what was killed may take to be gone.
const DYING: Duration = Duration::from_secs(2);

/// Watches a run from a thread of its own.
#[derive(Debug)]
pub(super) struct Watch {
    faults: Faults,
    /// Dropped when the run has ended.
    end: Sender<()>,
    thread: JoinHandle<Option<String>>,
}

impl Watch {
    /// Begins to watch: a run that takes longer than `patience` has its workers killed.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn begin(faults: &Faults, patience: Duration) -> Result<Self, PlanError> {
        let (end, ended) = channel();
        let watched = faults.clone();
        let watch = move || match ended.recv_timeout(patience) {
            Err(RecvTimeoutError::Timeout) => {
                let stood = describe(&watched);
                alive(&watched).iter().for_each(kill);
                if ended.recv_timeout(AFTER_THE_KILL) == Err(RecvTimeoutError::Timeout) {
                    end_this_process(&stood);
                }
                Some(stood)
            }
            _ => None,
        };
        let thread = thread::Builder::new().name("phalanx-trial".into()).spawn(watch);
        let doing = "start the thread that watches over a trial";
        let thread = thread.map_err(|error| PlanError::System { doing, reason: error.to_string() })?;
        Ok(Self { faults: faults.clone(), end, thread })
    }

    /// The run has ended: where all stood, if it hung; and the processes that are left, which are killed now.
    pub(super) fn end(self) -> (Option<String>, Vec<String>) {
        drop(self.end);
        // It panics nowhere; if it did, nothing has hung for it.
        let hung = self.thread.join().unwrap_or_default();
        (hung, left_by(&self.faults))
    }
}

/// The workers that have not ended.
fn alive(faults: &Faults) -> Vec<UnderPlan> {
    let is_alive = |worker: &UnderPlan| process::born(worker.pid) == Some(worker.born);
    faults.workers().into_iter().filter(is_alive).collect()
}

/// Kills a worker. By a pidfd, which is of that very process if that was still there after it was opened.
fn kill(worker: &UnderPlan) {
    if let Ok(pidfd) = pidfd::open(worker.pid)
        && process::born(worker.pid) == Some(worker.born)
    {
        // Refused: it has ended meanwhile.
        let _ = pidfd::send_signal(pidfd.as_fd(), worker.pid, Signal::KILL);
    }
}

/// Where all workers stand, and the threads of this process.
fn describe(faults: &Faults) -> String {
    let mut text = String::new();
    let mut tell = |name: String, pid| {
        let _ = writeln!(text, "  {name} (pid {pid}): {}", process::threads(pid).join("; "));
    };
    alive(faults).into_iter().for_each(|worker| tell(format!("rank {}", worker.rank), worker.pid));
    tell("this process".to_owned(), std::process::id());
    text
}

/// The program itself hangs: it is all that is left to end.
fn end_this_process(stood: &str) -> ! {
    let mut stderr = std::io::stderr();
    let _ =
        writeln!(stderr, "phalanx: a trial hangs though all its workers were killed; before that:\n{stood}");
    std::process::abort()
}

/// The processes that a run has left: its workers, and what is still in their process groups. They are killed.
fn left_by(faults: &Faults) -> Vec<String> {
    let (workers, deadline) = (faults.workers(), Moment::now().checked_add(DYING));
    let of_run = |&(pid, group): &(u32, u32)| {
        let worker = workers.iter().find(|worker| worker.pid == group)?;
        let pidfd = pidfd::open(pid).ok()?;
        // Now the descriptor is of a process of that group. The sweep may have killed it a moment ago.
        let is_left =
            process::group(pid) == Some(group) && !wait_readable(pidfd.as_fd(), deadline).unwrap_or(true);
        is_left.then(|| {
            let stands = process::threads(pid).join("; ");
            let _ = pidfd::send_signal(pidfd.as_fd(), pid, Signal::KILL);
            let _ = wait_readable(pidfd.as_fd(), Moment::now().checked_add(DYING));
            format!("process {pid}, of rank {}'s group: {stands}", worker.rank)
        })
    };
    process::groups().iter().filter_map(of_run).collect()
}
