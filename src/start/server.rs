//! The fork server process itself: our executable again, with one thread, which forks workers when its launcher asks. It
//! reaps them and writes into the ledger how they ended.
//!
//! It outlives a launcher that was killed just long enough to end the process groups of the workers, and of those that
//! the launcher has started itself and that have asked for its guard.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use super::guardian::{Guardian, complain, is_readable};
use super::surroundings;
use crate::error::Raised;
use crate::sys::clock::Moment;
use crate::sys::epoll::Epoll;
use crate::sys::fd::{self, Inherited};
use crate::sys::image::Image;
use crate::sys::process::{self, ForkError, SingleThread};
use crate::sys::signal::{self, ChildSignals, Signal};
use crate::sys::socket::Socket;
use crate::sys::standing::Standing;
use crate::sys::{limits, prctl};
use crate::transfer::received::Received;
use crate::wire::codec;
use crate::wire::framed::{self, Framed};
use crate::wire::ledger::Ledger;
use crate::wire::marker::Marker;
use crate::wire::names::EXIT_REFUSED;
use crate::wire::service::{BEFORE_JOBS, Order, Reply, Request, ServerMarker, Step, Trouble};
use crate::worker::{self, Changes, Origin, Served, entry, report};

/// How long a message may take, to come or to go.
const MESSAGE: Duration = Duration::from_secs(10);

// What is waited for; a guarded worker has a number behind these.
const REQUESTS: u64 = 0;
const GUARDS: u64 = 1;
const LAUNCHER: u64 = 2;
const CHILDREN: u64 = 3;
const FIRST_GUARDED: u64 = 4;

/// Lives the life of a fork server.
pub(crate) fn run(marker: &ServerMarker) -> ! {
    let _no_way_back = process::AbortOnUnwind;
    let served = Server::begin(marker).and_then(|mut server| {
        let served = server.serve();
        // However it came to an end: nobody else will do it.
        server.end_all();
        served
    });
    let code = match served {
        Ok(()) => 0,
        Err(error) => {
            complain(&format!("the fork server of process {} ends: {error}", marker.launcher));
            EXIT_REFUSED
        }
    };
    leave(code)
}

#[expect(clippy::exit, clippy::disallowed_methods, reason = "this is where the server ends")]
fn leave(code: i32) -> ! {
    std::process::exit(code)
}

struct Server {
    epoll: Epoll,
    requests: Socket,
    guardian: Guardian,
    /// Readable when the launcher has ended; `None`: it was gone before we began.
    launcher: Option<OwnedFd>,
    ends: ChildSignals,
    standing: Standing,
    /// By pid.
    forked: HashMap<u32, Forked>,
}

/// A worker of ours.
struct Forked {
    ledger: Rc<Ledger>,
    rank: usize,
    /// Whether it is to die with the launcher, as most are.
    ends_with_launcher: bool,
}

impl Server {
    fn begin(marker: &ServerMarker) -> io::Result<Self> {
        // Should somebody have stopped us, the launcher's death wakes us.
        prctl::set_death_signal(Some(Signal::CONT))?;
        // When it is gone already, there may be workers that have asked for our guard.
        let launcher = process::pidfd_open(marker.launcher).ok();
        let launcher = launcher.filter(|_| process::parent_id() == marker.launcher);
        let requests = Socket::from_descriptor(fd::adopt(marker.requests)?);
        let guards = Socket::from_descriptor(fd::adopt(marker.guards)?);
        let guardian = Guardian::new(guards, FIRST_GUARDED);
        fd::close_inherited(Inherited::ThroughExec, &[marker.requests, marker.guards])?;
        fd::settle_stdio()?;
        // All that there may be: what finds no room is lost on its way. Workers get the launcher's limit back.
        limits::make_room_for_descriptors(usize::MAX);
        // For who looks at it; nothing depends on it.
        let _ = prctl::set_name("fork-server");
        let (epoll, ends) = (Epoll::new()?, prepare()?);
        epoll.add(requests.as_fd(), REQUESTS)?;
        epoll.add(guardian.as_fd(), GUARDS)?;
        launcher.iter().try_for_each(|launcher| epoll.add(launcher.as_fd(), LAUNCHER))?;
        epoll.add(ends.as_fd(), CHILDREN)?;
        let (standing, _) = Standing::of_caller()?;
        Ok(Self { epoll, requests, guardian, launcher, ends, standing, forked: HashMap::new() })
    }

    /// Until the launcher is gone.
    fn serve(&mut self) -> io::Result<()> {
        while self.launcher.is_some() {
            self.epoll.wait_until(None)?;
            let ready = self.epoll.ready()?;
            if ready.contains(&LAUNCHER) {
                break;
            }
            for token in ready {
                match token {
                    CHILDREN => self.reap()?,
                    GUARDS if !self.guardian.take(&self.epoll) => self.epoll.remove(self.guardian.as_fd())?,
                    // The launcher is ending, but its workers have not been killed yet: until it is gone they may still
                    // start children, and ask for our guard.
                    REQUESTS if !self.answer()? => self.epoll.remove(self.requests.as_fd())?,
                    REQUESTS | GUARDS => {}
                    guarded => self.guardian.forget(guarded, &self.epoll),
                }
            }
        }
        Ok(())
    }

    /// Ends all who are to end with the launcher, and what they have started.
    fn end_all(&mut self) {
        self.guardian.take(&self.epoll);
        let forked = self.forked.iter().filter(|(_, forked)| forked.ends_with_launcher);
        forked.for_each(|(&pid, _)| process::kill_group_of_child(pid));
        self.guardian.end_all();
    }

    fn reap(&mut self) -> io::Result<()> {
        self.ends.clear()?;
        while let Some(pid) = process::next_ended()? {
            let exit = process::sweep_and_reap(pid)?;
            // Others are children of the preload function, whom nobody waits for any more.
            if let Some(Forked { ledger, rank, .. }) = self.forked.remove(&pid) {
                ledger.record(rank, exit);
            }
        }
        Ok(())
    }

    /// Answers one message; false when there will be no more.
    fn answer(&mut self) -> io::Result<bool> {
        let deadline = Moment::now().checked_add(MESSAGE);
        let (reply, pidfds) = match framed::receive::<Request<'_>>(&self.requests, deadline) {
            Ok(None) => return Ok(false),
            Ok(Some((Request::Preload { image, entry, function }, _))) => {
                (Reply::of(self.preload(&image, entry, &function).err()), Vec::new())
            }
            Ok(Some((Request::Fork(order), descriptors))) => self.fork(&order, &descriptors),
            // It was one packet, which is gone: only this one request fails.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                (Reply::of(Some(Trouble::Confused(error.to_string()))), Vec::new())
            }
            // The launcher sees that the server is gone.
            Err(error) => return Err(error),
        };
        let deadline = Moment::now().checked_add(MESSAGE);
        // A launcher that does not hear it is gone, or comes to the same end by its own deadline.
        Ok(Framed::of(&reply, pidfds)?.send(&self.requests, deadline).is_ok())
    }

    fn preload(&mut self, image: &[u8], entry: u64, function: &str) -> Result<(), Trouble> {
        let done = preload(image, entry, function);
        let ends = prepare().and_then(|ends| self.epoll.add(ends.as_fd(), CHILDREN).map(|()| ends));
        // The one before tells of the same, but is of a mask that the function may have changed. What the function has
        // forked may still have a copy.
        let _ = self.epoll.remove(self.ends.as_fd());
        self.ends = ends.map_err(|os| system(Step::Prepare, &os))?;
        let (standing, beside) = Standing::of_caller().map_err(|os| system(Step::LookAtItself, &os))?;
        self.standing = standing;
        done.and_then(|()| match beside.entered_by_children {
            Some(kind) => Err(Trouble::Confused(format!(
                "its preload function has had its children go into another {kind} namespace (unshare, setns), where no \
                 worker can be"
            ))),
            None => Ok(()),
        })
    }

    fn fork(&mut self, order: &Order<'_>, descriptors: &[OwnedFd]) -> (Reply, Vec<OwnedFd>) {
        let (mut reply, mut pidfds) = (Reply::of(None), Vec::new());
        let done = Parts::of(order, descriptors).and_then(|parts| {
            // Before the environment is changed too. From here on it is only our own code that runs, and that has no
            // thread.
            let alone = process::single_thread().map_err(trouble)?;
            surroundings::compare(&order.surroundings, &self.standing)?;
            parts.surround()?;
            self.fork_each(&alone, &parts, &mut reply.pids, &mut pidfds)
        });
        reply.trouble = done.err();
        (reply, pidfds)
    }

    fn fork_each(
        &mut self,
        alone: &SingleThread,
        parts: &Parts<'_>,
        pids: &mut Vec<u32>,
        pidfds: &mut Vec<OwnedFd>,
    ) -> Result<(), Trouble> {
        let (death_signal, server) = (Signal::new(parts.order.death_signal), std::process::id());
        for (number, slot) in parts.slots.iter().enumerate() {
            // Many forks of much memory take their time: nobody else must wait for us so long.
            self.reap().map_err(|os| system(Step::Reap, &os))?;
            self.guardian.take(&self.epoll);
            if self.launcher.as_ref().is_some_and(is_readable) {
                return Err(Trouble::Confused("its launcher is gone".to_owned()));
            }
            let rank = parts.order.first + number;
            let marker = parts.marker(number, slot.as_raw_fd(), death_signal);
            let pid = process::fork(alone, || worker::run(&marker, &Origin::Served(parts.served(server))))
                .map_err(trouble)?;
            let ledger = parts.ledger.clone();
            let ends_with_launcher = death_signal == Some(Signal::KILL);
            self.forked.insert(pid, Forked { ledger, rank, ends_with_launcher });
            // The worker does so too; whoever comes first, the group is there when either goes on. It can have ended.
            let _ = process::lead_own_group(pid);
            let pidfd = process::pidfd_open(pid).map_err(|os| {
                // The launcher will not hear of it.
                self.forked.remove(&pid);
                process::kill_unwatched(pid);
                system(Step::Watch, &os)
            })?;
            pidfds.push(pidfd);
            pids.push(pid);
        }
        Ok(())
    }
}

impl Reply {
    fn of(trouble: Option<Trouble>) -> Self {
        Self { pids: Vec::new(), rss_kib: process::max_rss_kib(), trouble }
    }
}

/// An order with its descriptors, each in its place.
struct Parts<'a> {
    order: &'a Order<'a>,
    ledger: Rc<Ledger>,
    dir: BorrowedFd<'a>,
    output: [BorrowedFd<'a>; 2],
    jobs: &'a [OwnedFd],
    numbers: HashMap<RawFd, RawFd>,
    slots: &'a [OwnedFd],
    lifelines: &'a [OwnedFd],
    changes: Changes,
}

impl<'a> Parts<'a> {
    fn of(order: &'a Order<'a>, descriptors: &'a [OwnedFd]) -> Result<Self, Trouble> {
        let expected =
            BEFORE_JOBS + order.jobs + order.numbers.len() + order.worker_dirs.len() + order.lifelines;
        if descriptors.len() != expected || order.jobs == 0 {
            let came = descriptors.len();
            return Err(Trouble::Confused(format!("{came} descriptors came with an order, not {expected}")));
        }
        let (before, rest) = descriptors.split_at(BEFORE_JOBS);
        let (jobs, rest) = rest.split_at(order.jobs);
        let (named, rest) = rest.split_at(order.numbers.len());
        let (slots, lifelines) = rest.split_at(order.worker_dirs.len());
        let numbers = order.numbers.iter().copied().zip(named.iter().map(AsRawFd::as_raw_fd)).collect();
        let ledger = Ledger::open(before[0].as_fd(), order.nprocs);
        let ledger = Rc::new(ledger.map_err(|error| Trouble::Confused(format!("its ledger: {error}")))?);
        let output = [before[2].as_fd(), before[3].as_fd()];
        let (dir, changes) = (before[1].as_fd(), surroundings::changes(&order.surroundings));
        Ok(Self { order, ledger, dir, output, jobs, numbers, slots, lifelines, changes })
    }

    fn marker(&self, number: usize, report: RawFd, death_signal: Option<Signal>) -> Marker {
        Marker {
            rank: self.order.first + number,
            launcher: std::process::id(),
            job: self.jobs[number.min(self.jobs.len() - 1)].as_raw_fd(),
            report,
            death_signal,
            worker_dir: self.order.worker_dirs[number],
            lifeline: self.lifelines.get(number).map(AsRawFd::as_raw_fd),
        }
    }

    /// Takes on what all workers are to have from their launcher.
    fn surround(&self) -> Result<(), Trouble> {
        let taken = surroundings::take_on(&self.order.surroundings, self.dir, self.output);
        taken.map_err(|os| system(Step::TakeOnSurroundings, &os))
    }

    fn served(&self, server: u32) -> Served<'_> {
        Served { numbers: &self.numbers, ledger: &self.ledger, changes: &self.changes, server }
    }
}

/// Makes our dispositions what a worker is to find, whatever a preload function has done, and does once what is the same
/// for all workers.
///
/// Batch systems and service managers signal every process of a job. The server must outlive that, or its workers would
/// die with it however they handle the signal. It blocks them rather than ignores them: workers empty the mask anyway, and
/// what is pending here is not pending there (fork(2)). SIGCHLD, which is blocked too, tells us of ends.
fn prepare() -> io::Result<ChildSignals> {
    // Before any default action can come back to a signal that is waiting.
    signal::block_all_but_faults()?;
    signal::reset_dispositions()?;
    worker::crash::prepare()?;
    ChildSignals::new()
}

fn trouble(error: ForkError) -> Trouble {
    match error {
        ForkError::Threads(threads) => Trouble::Threads(threads),
        ForkError::Os(os) => system(Step::Fork, &os),
    }
}

fn system(step: Step, os: &io::Error) -> Trouble {
    Trouble::System { step, errno: os.raw_os_error().unwrap_or(0) }
}

/// Runs the preload function.
fn preload(image: &[u8], entry: u64, function: &str) -> Result<(), Trouble> {
    let confused = |error: String| Trouble::Confused(error);
    let own = Image::main().map_err(|error| confused(error.to_string()))?;
    let entry = entry::find_at(image, entry, function, own).map_err(confused)?;
    let unit = codec::encode_plain(&()).map_err(confused)?;
    // It may take long, and we look after nobody meanwhile; but there is nobody yet to look after.
    let launcher = process::parent_id();
    die_with_launcher(Signal::KILL)?;
    if process::parent_id() != launcher {
        return Err(Trouble::Confused("its launcher is gone".to_owned()));
    }
    // What the function starts must not inherit our mask.
    signal::outlive_all();
    signal::unblock_all().map_err(|os| system(Step::Prepare, &os))?;
    let done = report::call_in_server(|| entry.call(0, &unit, Received::default()).map(drop));
    die_with_launcher(Signal::CONT)?;
    // What it printed is not to be printed by every worker again.
    let _ = io::stdout().flush();
    done.map_err(|raised: Raised| Trouble::Preload(raised))
}

fn die_with_launcher(signal: Signal) -> Result<(), Trouble> {
    prctl::set_death_signal(Some(signal)).map_err(|os| system(Step::ArmDeathSignal, &os))
}
