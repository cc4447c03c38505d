//! Ask the fork server for workers: the launcher's side.

use std::borrow::Cow;
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::plan::{Failure, Group};
use super::spawn::Template;
use super::surroundings;
use crate::error::{Error, RaisedError, WorkerError, with_limit};
use crate::supervise::child::Child;
use crate::supervise::reaper::ServerReaper;
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::forks::Here;
use crate::sys::image::Image;
use crate::sys::process;
use crate::sys::signal::Signal;
use crate::sys::socket::Socket;
use crate::sys::spawn::Blocked;
use crate::sys::standing::Difference;
use crate::sys::{dir, fd, limits};
use crate::wire::framed::{self, Framed};
use crate::wire::ledger::Ledger;
use crate::wire::lifeline::WorkersEnd;
use crate::wire::names::SERVER;
use crate::wire::service::{Order, Reply, Request, ServerMarker, Surroundings, Trouble};
use crate::wire::slot::Slot;
use crate::worker::entry::{self, Entry};

/// How many workers go in one message: all their descriptors are in the server, and in each of them for a moment.
const PORTION: usize = 64;
/// Descriptors that an answer needs besides the pidfds.
const SPARE: usize = 8;
/// How often a server that does not answer is woken.
const WAKE: Duration = Duration::from_secs(1);
/// How long the server may take to fork one of them, or to end.
const ANSWER: Duration = Duration::from_secs(10);

/// The server that forks the workers of [`StartMethod::ForkServer`](crate::StartMethod).
///
/// It is this executable once more, with a single thread. The first start that needs it starts it, and it ends with this
/// process. If it dies, its workers die with it, and the next start begins a new one.
#[derive(Clone, Copy, Debug)]
pub struct ForkServer;

/// The running server.
#[derive(Debug)]
struct Link {
    /// The process that has started it: a fork of that has a copy of this, but must not use it.
    owner: Here,
    pid: u32,
    pidfd: Arc<OwnedFd>,
    requests: Socket,
    /// Where workers ask for its guard.
    guards: Arc<OwnedFd>,
    /// Whether it was to be ended.
    given_up: Cell<bool>,
    /// Whether the thread that started it could inspect it.
    is_open: bool,
}

static LINK: Mutex<Option<Link>> = Mutex::new(None);
static PRELOAD: Mutex<Option<&'static Entry>> = Mutex::new(None);

impl ForkServer {
    /// Has the server run `f` once, before its first fork: for what takes long or much memory and is then there in every
    /// worker, copy-on-write, such as a data set in a static. It runs in the server, not here, when that is started.
    ///
    /// `f` is a plain function or a closure that captures nothing. It must not leave threads behind. When it fails, every
    /// start fails with [`Error::Preload`] and its traceback.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::sync::OnceLock;
    /// use phalanx::{ForkServer, Options, StartMethod, start_processes};
    ///
    /// static WORDS: OnceLock<Vec<String>> = OnceLock::new();
    ///
    /// fn load() -> anyhow::Result<()> {
    ///     WORDS.get_or_init(|| vec!["loaded".to_owned(), "once".to_owned()]);
    ///     Ok(())
    /// }
    ///
    /// fn work(rank: usize, _: ()) -> anyhow::Result<String> {
    ///     Ok(WORDS.get().expect("the server has loaded them")[rank].clone())
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// ForkServer::preload(load)?;
    /// let options = Options::new(2).start_method(StartMethod::ForkServer);
    /// assert_eq!(start_processes(work, (), options)?.join()?, ["loaded", "once"]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::ForkServerRuns`] when the server has been started already.
    pub fn preload<F, E>(f: F) -> Result<(), Error>
    where
        F: Fn() -> Result<(), E> + Copy + Send + 'static,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        let _ = f;
        // Held until it is set: another thread may be about to start the server.
        let known = link();
        if let Some(link) = known.as_ref().filter(|link| link.is_usable()) {
            return Err(Error::ForkServerRuns { pid: link.pid });
        }
        *PRELOAD.lock().unwrap_or_else(PoisonError::into_inner) = Some(entry::of_preload::<F, E>());
        Ok(())
    }

    /// The server's process, while there is one.
    #[must_use]
    pub fn pid() -> Option<u32> {
        link().as_ref().filter(|link| link.is_usable()).map(|link| link.pid)
    }
}

fn link() -> MutexGuard<'static, Option<Link>> {
    LINK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a worker asks for the server's guard.
pub(crate) fn guards() -> Result<Arc<OwnedFd>, Error> {
    let mut known = link();
    let link = connected(&mut known)?;
    link.wake();
    Ok(link.guards.clone())
}

/// The running server; a new one if there is none.
fn connected(known: &mut Option<Link>) -> Result<&mut Link, Error> {
    if !known.as_ref().is_some_and(Link::is_usable) {
        match known.take() {
            // Of a fork's parent: its numbers may be another's by now.
            Some(link) if !link.owner.is_now() => std::mem::forget(link),
            // It is reaped by this.
            dead => drop(dead),
        }
        let mut link = Link::start()?;
        link.preload()?;
        *known = Some(link);
    }
    known.as_mut().ok_or_else(|| died("before it could be used"))
}

fn message<'a>(
    request: &Request<'_>,
    descriptors: Vec<BorrowedFd<'a>>,
) -> Result<Framed<BorrowedFd<'a>>, Error> {
    Framed::of(request, descriptors).map_err(Error::system("write to the fork server (memfd_create)"))
}

fn died(when: &str) -> Error {
    Error::ForkServer { reason: format!("it ended {when}") }
}

impl Link {
    fn start() -> Result<Self, Error> {
        let failed = |call: &'static str| {
            move |error: io::Error| Error::ForkServer {
                reason: format!("it cannot be started: {call}: {}", with_limit(&error)),
            }
        };
        let (requests, theirs) = Socket::pair().map_err(failed("socketpair"))?;
        let (guards, guards_out) = Socket::pair().map_err(failed("socketpair"))?;
        let marker = ServerMarker {
            launcher: std::process::id(),
            requests: theirs.as_fd().as_raw_fd(),
            guards: guards.as_fd().as_raw_fd(),
        };
        let inherited = [theirs.as_fd(), guards.as_fd()].into_iter();
        // What signals the whole job may come before the server has blocked what would end it.
        let pid = Template::new(&[]).run(&format!("{SERVER}={marker}"), &[], inherited, Blocked::Everything);
        let pid = pid.map_err(failed("posix_spawn"))?;
        let pidfd = process::pidfd_open(pid).inspect_err(|_| process::kill_unwatched(pid));
        let pidfd = Arc::new(pidfd.map_err(failed("pidfd_open"))?);
        let guards = guards_out.as_fd().try_clone_to_owned().map_err(failed("dup"))?;
        let (guards, given_up) = (Arc::new(guards), Cell::new(false));
        let is_open = surroundings::peer(pid).is_some_and(|peer| peer.sees_server);
        Ok(Self { owner: Here::now(), pid, pidfd, requests, guards, given_up, is_open })
    }

    fn is_usable(&self) -> bool {
        let ended = wait_readable(self.pidfd.as_fd(), Some(Moment::now())).unwrap_or(true);
        self.owner.is_now() && !ended && !self.given_up.get()
    }

    /// Has it run the preload function, for which there is no time limit.
    fn preload(&mut self) -> Result<(), Error> {
        let Some(entry) = *PRELOAD.lock().unwrap_or_else(PoisonError::into_inner) else { return Ok(()) };
        let image = Image::main().map_err(Error::system("identify this executable"))?;
        let (function, image_id) = (entry.name().to_owned(), image.id().to_vec());
        let request = Request::Preload { image: image_id, entry: entry.offset(image)?, function };
        let (reply, _) = self.ask(message(&request, Vec::new())?, None)?;
        reply.trouble.map_or(Ok(()), |trouble| Err(before_any_rank(trouble)))
    }

    /// One message there and one back. When either fails, the server is ended: the two would no longer agree on which answer
    /// belongs to which question, nor on who has been forked.
    fn ask(
        &self,
        mut request: Framed<BorrowedFd<'_>>,
        deadline: Option<Moment>,
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        let asked = Moment::now();
        self.wake();
        let sent = request.send(&self.requests, asked.checked_add(ANSWER));
        let answer = sent.and_then(|()| self.await_answer(deadline));
        match answer.and_then(|()| framed::receive(&self.requests, deadline)) {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.ended()),
            // It has ended before it took the message.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(self.ended()),
            Err(error) => {
                let (ended, after) = (self.end(), Moment::now().since(asked));
                Err(Error::ForkServer {
                    reason: format!(
                        "{ended}, since it could not be asked or did not answer: {error}, after {after:.1?}"
                    ),
                })
            }
        }
    }

    /// Somebody may stop it while it works: it is woken once a second.
    fn await_answer(&self, deadline: Option<Moment>) -> io::Result<()> {
        loop {
            let until = [deadline, Moment::now().checked_add(WAKE)].into_iter().flatten().min();
            if wait_readable(self.requests.as_fd(), until)? {
                return Ok(());
            }
            if deadline.is_some_and(|at| at <= Moment::now()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.wake();
        }
    }

    fn wake(&self) {
        // One that has ended needs no waking; one that may not be woken does not answer, which is told then.
        let _ = process::send_signal(self.pidfd.as_fd(), self.pid, Signal::CONT);
    }

    /// Ends it, and says in words whether that was allowed. It is used no more in either case.
    fn end(&self) -> String {
        self.given_up.set(true);
        match process::send_signal(self.pidfd.as_fd(), self.pid, Signal::KILL) {
            Ok(()) => "it was ended".to_owned(),
            Err(os) => format!("it is used no more and runs on, as it cannot be sent SIGKILL ({os})"),
        }
    }

    fn ended(&self) -> Error {
        let _ = wait_readable(self.pidfd.as_fd(), Moment::now().checked_add(ANSWER));
        match process::reap(self.pidfd.as_fd(), |_| ()) {
            Ok(process::Reaped::Exit(exit)) => died(&format!("while it was asked: {}", exit.status)),
            _ => died("while it was asked"),
        }
    }

    fn start_portion(&mut self, portion: &Portion<'_>) -> Result<Vec<(Child, Slot)>, Error> {
        let started = Moment::now();
        let Portion { group, first, ledger, .. } = *portion;
        let failed = |failure: Failure, rank| failure.for_rank(rank, group.nprocs);
        let slots = (first..first + portion.len)
            .map(|rank| group.slot(rank).map_err(|failure| failed(failure, rank)));
        let slots = slots.collect::<Result<Vec<_>, _>>()?;
        let lifelines = (first..first + portion.len)
            .map(|rank| group.lifeline().map_err(|failure| failed(failure, rank)))
            .collect::<Result<Vec<_>, _>>()?;
        let (lifelines, ends): (Vec<_>, Vec<_>) = lifelines.into_iter().map(Option::unzip).unzip();
        let (order, descriptors) = portion.order(&slots, &ends);
        let request = message(&Request::Fork(Box::new(order)), descriptors)?;
        if !limits::has_room_for(portion.len + SPARE) {
            let none_left = io::Error::from_raw_os_error(limits::NO_DESCRIPTORS);
            return Err(failed(Failure::of("watching the processes (pidfd_open)")(none_left), first));
        }
        let deadline = Moment::now().checked_add(ANSWER * portion.len as u32);
        let (reply, pidfds) = self.ask(request, deadline)?;
        if pidfds.len() != reply.pids.len() || (reply.trouble.is_none() && pidfds.len() != portion.len) {
            let (ended, pids, pidfds) = (self.end(), reply.pids.len(), pidfds.len());
            let reason = format!(
                "{ended}, since it answered {} workers with {pids} pids and {pidfds} pidfds",
                portion.len
            );
            return Err(Error::ForkServer { reason });
        }
        let reaper = |rank| ServerReaper::new(ledger.clone(), rank, (self.pidfd.clone(), self.pid));
        let forked = slots.into_iter().zip(lifelines).zip(reply.pids.iter().zip(pidfds)).zip(first..);
        let children = forked.map(|(((slot, lifeline), (&pid, pidfd)), rank)| {
            let child = Child::of_server((pid, pidfd), (started, reply.rss_kib), reaper(rank), lifeline);
            (child, slot)
        });
        let children: Vec<_> = children.collect();
        match reply.trouble {
            Some(trouble) => Err(failed(failure(trouble), first + children.len())),
            None => Ok(children),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Of a fork of its launcher it is no child.
        if self.owner.is_now() {
            // For what was not sent there is no use in waiting. One that ended before has nothing to be sent.
            let sent = process::send_signal(self.pidfd.as_fd(), self.pid, Signal::KILL);
            let death = if sent.is_ok() { ANSWER } else { Duration::ZERO };
            let _ = wait_readable(self.pidfd.as_fd(), Moment::now().checked_add(death));
            let _ = process::reap(self.pidfd.as_fd(), |_| ());
        }
    }
}

/// Some of a group's workers.
struct Portion<'a> {
    group: &'a Group,
    first: usize,
    len: usize,
    surroundings: &'a Surroundings,
    /// The ledger, the working directory, stdout and stderr.
    before: &'a [OwnedFd; 4],
    ledger: &'a Arc<Ledger>,
}

impl<'a> Portion<'a> {
    fn order(&self, slots: &'a [Slot], ends: &'a [Option<WorkersEnd>]) -> (Order<'a>, Vec<BorrowedFd<'a>>) {
        let ranks = self.first..self.first + self.len;
        let jobs = match &self.group.jobs[..] {
            one @ [_] => one,
            each => &each[ranks],
        };
        let mut named: Vec<_> = jobs.iter().flat_map(|job| job.descriptors().skip(1)).collect();
        named.push(self.group.result_channel.sender());
        named.extend(self.group.process_dir.as_ref().map(|dir| dir.as_fd()));
        named.sort_unstable_by_key(AsRawFd::as_raw_fd);
        named.dedup_by_key(|fd| fd.as_raw_fd());
        let order = Order {
            nprocs: self.group.nprocs,
            first: self.first,
            worker_dirs: slots
                .iter()
                .map(|slot| slot.worker_dir().map(|worker_dir| worker_dir.number()))
                .collect(),
            death_signal: self.group.death_signal.map_or(0, Signal::number),
            surroundings: Cow::Borrowed(self.surroundings),
            jobs: jobs.len(),
            lifelines: ends.iter().flatten().count(),
            numbers: named.iter().map(AsRawFd::as_raw_fd).collect::<Vec<RawFd>>(),
        };
        let before = self.before.iter().map(AsFd::as_fd);
        let descriptors = before.chain(jobs.iter().map(AsFd::as_fd)).chain(named);
        let of_workers = slots.iter().map(AsFd::as_fd).chain(ends.iter().flatten().map(AsFd::as_fd));
        (order, descriptors.chain(of_workers).collect())
    }
}

/// Starts all workers of a group; each is watched, as `add` does, before any runs its function.
pub(super) fn start_each(
    group: &mut Group,
    mut add: impl FnMut(Child, Slot, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let nprocs = group.nprocs;
    let (ledger, before) = prepare(nprocs).map_err(|failure| failure.for_rank(0, nprocs))?;
    let mut surroundings = surroundings::of_caller(&group.environment)?;
    let mut known = link();
    let link = connected(&mut known)?;
    surroundings.peer = surroundings::peer(link.pid).filter(|_| link.is_open);
    for first in (0..nprocs).step_by(PORTION) {
        let len = PORTION.min(nprocs - first);
        let portion =
            Portion { group, first, len, surroundings: &surroundings, before: &before, ledger: &ledger };
        let started = link.start_portion(&portion);
        // From now on what they were given may be with processes of their own too, which their end does not end.
        (first..first + len).for_each(|rank| group.deliver(rank));
        for ((child, slot), rank) in started?.into_iter().zip(first..) {
            add(child, slot, rank)?;
        }
    }
    ledger.open_gate();
    Ok(())
}

/// The ledger, and the descriptors that come first in every order.
fn prepare(nprocs: usize) -> Result<(Arc<Ledger>, [OwnedFd; 4]), Failure> {
    let (ledger, fd) = Ledger::new(nprocs).map_err(Failure::of("making the ledger (memfd_create)"))?;
    let dir = dir::current().map_err(Failure::of("opening the working directory (openat)"))?;
    let copy = |number| fd::copy_of_stdio(number).map_err(Failure::of("copying stdout or stderr (fcntl)"));
    Ok((Arc::new(ledger), [fd, dir, copy(1)?, copy(2)?]))
}

/// Why a worker was not forked.
fn failure(trouble: Trouble) -> Failure {
    match trouble {
        Trouble::System { step, errno } => Failure::of(step.name())(io::Error::from_raw_os_error(errno)),
        other => Failure::Server(before_any_rank(other)),
    }
}

/// Trouble that is not a rank's.
fn before_any_rank(trouble: Trouble) -> Error {
    let reason = match trouble {
        Trouble::Preload(raised) => {
            let preload = *PRELOAD.lock().unwrap_or_else(PoisonError::into_inner);
            let callee = preload.map(|entry| entry.callee(None)).unwrap_or_default();
            return Error::Preload(Box::new(RaisedError::new(raised, callee)));
        }
        Trouble::Unlike(Difference { what, here, there }) => format!(
            "a worker would have the server's {what}, not the calling thread's: {there:?} in the server, {here:?} in the \
             thread. Use StartMethod::Spawn, or start from a thread as the one that started the server"
        ),
        Trouble::Threads(threads) => format!(
            "it has {threads} threads, so it cannot fork: its preload function has left some behind, or a library has \
             started some"
        ),
        Trouble::System { step, errno } => {
            format!("{}: {}", step.name(), io::Error::from_raw_os_error(errno))
        }
        Trouble::Confused(reason) => reason,
    };
    Error::ForkServer { reason }
}
