//! Spares: processes that the fork server has forked ahead of demand. Each waits for the request of one worker, and becomes that worker.
//!
//! A spare is a fork of the server like any worker's process: it has the server's memory, leads a process group, is the server's child and
//! is reaped by it. What a worker has from the thread that asks for it is not in the server's memory but in the request, so a spare takes
//! it on from there, by the same code as a process that was just forked.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use super::fork_request::OpenRequest;
use super::guardian::{complain, is_readable};
use crate::sys::clock::Moment;
use crate::sys::fd::{self, Inherited};
use crate::sys::fork::{self, ForkError, SingleThread};
use crate::sys::signal::{self, Signal};
use crate::sys::socket::Socket;
use crate::sys::{pidfd, prctl, wait};
use crate::wire::framed::{self, Framed};
use crate::wire::names::EXIT_REFUSED;
use crate::wire::service::ForkRequest;
use crate::worker::{self, Origin};

/// How long the server leaves the processors to the workers that it has just started, before it forks spares in the place of those.
const PAUSE: Duration = Duration::from_millis(1);
/// When a spare that was not asked for has ended, or one cannot be forked: how long the server waits before it forks another. Whatever ends
/// spares may end the next one too.
const AFTER_LOSS: Duration = Duration::from_secs(1);

/// The spares of a fork server.
#[derive(Debug)]
pub(super) struct Spares {
    wanted: usize,
    /// The oldest first.
    waiting: VecDeque<Spare>,
    /// When the next one is to be forked, where some are missing.
    next: Option<Moment>,
}

#[derive(Debug)]
struct Spare {
    pid: u32,
    pidfd: OwnedFd,
    /// Where it waits for its request. It ends when this is closed.
    requests: Socket,
    place: Place,
}

/// What a process has from its parent at the fork, and others may change later for each alone: its control groups, and how soon it is
/// killed for want of memory.
//
// A worker that is forked now has what the server has now. A spare that was forked before a change does not, and is not used.
#[derive(Debug, PartialEq, Eq)]
struct Place([Option<Vec<u8>>; 2]);

impl Place {
    fn of_this_process() -> Self {
        Self(["/proc/self/cgroup", "/proc/self/oom_score_adj"].map(|file| std::fs::read(file).ok()))
    }
}

impl Spares {
    pub(super) fn none() -> Self {
        Self { wanted: 0, waiting: VecDeque::new(), next: None }
    }

    /// Sets how many there are to be. Those that are too many end.
    pub(super) fn want(&mut self, count: usize) {
        self.wanted = count;
        self.waiting.drain(count.min(self.waiting.len())..).for_each(Spare::end);
        self.next = self.is_short().then(Moment::now);
    }

    /// Whether there are fewer than there are to be.
    pub(super) fn is_short(&self) -> bool {
        self.waiting.len() < self.wanted
    }

    /// When [`fork_one`](Self::fork_one) is to be called, if the server has nothing else to do; `None`: no spare is missing.
    pub(super) fn next(&self) -> Option<Moment> {
        self.next
    }

    /// Forks one. After a failure the next one is tried later: without spares each start forks, and tells what is wrong.
    pub(super) fn fork_one(&mut self) -> Result<(), ForkError> {
        let forked = fork::single_thread().and_then(|alone| Spare::fork(&alone));
        self.next = match &forked {
            Ok(_) if self.waiting.len() + 1 < self.wanted => Some(Moment::now()),
            Ok(_) => None,
            Err(_) => Moment::now().checked_add(AFTER_LOSS),
        };
        self.waiting.push_back(forked?);
        Ok(())
    }

    /// Has spares become the first workers of a request, as many as there are; returns their pids with their pidfds.
    pub(super) fn hand_out(&mut self, open: &OpenRequest<'_>) -> Vec<(u32, OwnedFd)> {
        let mut handed = Vec::new();
        if self.waiting.is_empty() {
            return handed;
        }
        let place = Place::of_this_process();
        while handed.len() < open.slots.len() {
            let Some(spare) = self.waiting.pop_front() else { break };
            let is_fit = spare.place == place && !is_readable(&spare.pidfd);
            // After an error nothing has arrived: the next one is sent the same.
            if is_fit && spare.send(open, handed.len()).is_ok() {
                handed.push((spare.pid, spare.pidfd));
            } else {
                spare.end();
            }
        }
        self.next = if self.is_short() { Moment::now().checked_add(PAUSE) } else { None };
        handed
    }

    /// Forgets one that has ended, if it is one.
    pub(super) fn forget(&mut self, pid: u32) {
        let before = self.waiting.len();
        self.waiting.retain(|spare| spare.pid != pid);
        if self.waiting.len() < before {
            self.next = Moment::now().checked_add(AFTER_LOSS);
        }
    }

    /// Ends all.
    pub(super) fn end_all(&mut self) {
        self.waiting.drain(..).for_each(Spare::end);
    }
}

impl Spare {
    fn fork(alone: &SingleThread) -> Result<Self, ForkError> {
        let (requests, theirs) = Socket::pair().map_err(ForkError::Os)?;
        let server = std::process::id();
        let pid = fork::fork(alone, || wait(theirs, server))?;
        // The spare does so too: whichever process comes first, the group is there when either goes on.
        let _ = fork::lead_own_group(pid);
        let pidfd = pidfd::open(pid).inspect_err(|_| wait::kill_unwatched(pid)).map_err(ForkError::Os)?;
        Ok(Self { pid, pidfd, requests, place: Place::of_this_process() })
    }

    /// Ends it. The server reaps it later.
    fn end(self) {
        // A child that was not reaped, also if it has ended: the number is its own.
        pidfd::kill_group_of_child(self.pid);
    }

    /// Sends it the request of one worker.
    fn send(&self, open: &OpenRequest<'_>, number: usize) -> io::Result<()> {
        let (request, descriptors) = open.of_one(number);
        // There is room: nothing else was ever sent.
        Framed::of(&request, descriptors)?.send(&self.requests, Some(Moment::now()))?;
        // It may have been stopped (SIGSTOP) while it waited, as no worker can be before it begins.
        pidfd::send_signal(self.pidfd.as_fd(), self.pid, Signal::CONT)
    }
}

/// Lives the life of a spare: waits for the request of a worker, and becomes that worker. Ends with the server.
fn wait(requests: Socket, server: u32) -> ! {
    let _no_way_back = fork::AbortOnUnwind;
    if let Err(error) = get_ready(&requests, server) {
        complain(&format!("a spare of the fork server {server} ends: {error}"));
        fork::exit_at_once(EXIT_REFUSED);
    }
    // Leaked with this process: the worker closes them by their numbers.
    match framed::receive::<ForkRequest<'_>>(&requests, None) {
        Ok(Some((request, descriptors))) => become_worker(&request, &descriptors, server),
        // The server has ended, or wants no spare any more.
        Ok(None) => fork::exit_at_once(0),
        Err(error) => refuse(server, &error.to_string()),
    }
}

/// What can be done before the request comes.
fn get_ready(requests: &Socket, server: u32) -> io::Result<()> {
    prctl::set_death_signal(Some(Signal::KILL))?;
    if fork::parent_id() != server {
        return Err(io::Error::other("the fork server is gone"));
    }
    fork::lead_own_group(0)?;
    fd::close_inherited(Inherited::ThroughFork, &[requests.as_fd().as_raw_fd()])?;
    let _ = prctl::set_name("fork-spare");
    // So that it can be ended by any signal. One that waited would meet the worker, which it was not for.
    signal::unblock_all()
}

fn become_worker(request: &ForkRequest<'_>, descriptors: &[OwnedFd], server: u32) -> ! {
    let open = match OpenRequest::of(request, descriptors) {
        Ok(open) => open,
        Err(trouble) => refuse(server, &format!("{trouble:?}")),
    };
    if let Err(error) = open.apply_attributes() {
        refuse(server, &error.to_string());
    }
    let Some(slot) = open.slots.first() else { refuse(server, "there is no report slot") };
    let marker = open.marker(0, slot.as_raw_fd(), server);
    worker::run(&marker, &Origin::Served(open.served(0, server)))
}

/// Ends a spare that cannot become a worker. The launcher sees a worker that has ended before it began.
fn refuse(server: u32, reason: &str) -> ! {
    complain(&format!("a spare of the fork server {server} cannot become a worker: {reason}"));
    fork::exit_at_once(EXIT_REFUSED)
}
