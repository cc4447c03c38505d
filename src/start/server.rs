//! The fork server process itself: our executable again, with one thread, which forks workers when its launcher asks. It
//! reaps them and writes into the ledger how they ended.
//!
//! It outlives a launcher that was killed just long enough to end the process groups of the workers, and of those that
//! the launcher has started itself and that have asked for its guard.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use super::attributes;
use super::fork_request::OpenRequest;
use super::guardian::{Guardian, complain, is_readable};
use super::spares::Spares;
use crate::error::Raised;
use crate::sys::clock::Moment;
use crate::sys::epoll::Epoll;
use crate::sys::fd::{self, Inherited};
use crate::sys::fork::{self, ForkError, SingleThread};
use crate::sys::image::Image;
use crate::sys::signal::{self, ChildSignals, Signal};
use crate::sys::socket::Socket;
use crate::sys::standing::Standing;
use crate::sys::{limits, pidfd, prctl, wait};
use crate::transfer::received::Received;
use crate::wire::codec;
use crate::wire::framed::{self, Framed};
use crate::wire::ledger::Ledger;
use crate::wire::names::EXIT_REFUSED;
use crate::wire::service::{ForkRequest, Reply, Request, ServerMarker, Step, Trouble};
use crate::worker::{self, Origin, entry, report};

/// How long a message may take, to come or to go.
const MESSAGE: Duration = Duration::from_secs(10);

// The tokens of the epoll; a guarded worker has one behind these.
const REQUESTS: u64 = 0;
const GUARDS: u64 = 1;
const LAUNCHER: u64 = 2;
const CHILDREN: u64 = 3;
const FIRST_GUARDED: u64 = 4;

/// Lives the life of a fork server.
pub(crate) fn run(marker: &ServerMarker) -> ! {
    let _no_way_back = fork::AbortOnUnwind;
    let served = Server::begin(marker).and_then(|mut server| {
        let served = server.serve();
        // However the serving came to an end: without the server, no other process ends the workers.
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
    /// The workers that it has forked and not reaped, by pid.
    forked: HashMap<u32, Forked>,
    spares: Spares,
}

/// A worker that this server has forked.
struct Forked {
    ledger: Rc<Ledger>,
    rank: usize,
    /// Whether it is to die with the launcher, as most are.
    ends_with_launcher: bool,
}

impl Server {
    fn begin(marker: &ServerMarker) -> io::Result<Self> {
        // If this process is stopped (SIGSTOP), the launcher's death continues it. SIGKILL would be wrong: the server has to
        // end the workers first.
        prctl::set_death_signal(Some(Signal::CONT))?;
        // A launcher that is gone already is no error: there may be workers that have asked to be guarded. Its pid may be
        // another process's by now; this process's parent tells which (prctl(2), PR_SET_PDEATHSIG).
        let launcher = pidfd::open(marker.launcher).ok();
        let launcher = launcher.filter(|_| fork::parent_id() == marker.launcher);
        let requests = Socket::from_descriptor(fd::adopt(marker.requests)?);
        let guards = Socket::from_descriptor(fd::adopt(marker.guards)?);
        let guardian = Guardian::new(guards, FIRST_GUARDED);
        fd::close_inherited(Inherited::ThroughExec, &[marker.requests, marker.guards])?;
        fd::open_stdio_on_null()?;
        // As many descriptors as the hard limit allows: one for which there is no room is lost on its way (recvmsg(2), MSG_CTRUNC).
        // Workers get the launcher's limit back.
        limits::make_room_for_descriptors(usize::MAX);
        // For people who look at the process list; nothing depends on it.
        let _ = prctl::set_name("fork-server");
        let (epoll, ends) = (Epoll::new()?, prepare()?);
        epoll.add(requests.as_fd(), REQUESTS)?;
        epoll.add(guardian.as_fd(), GUARDS)?;
        launcher.iter().try_for_each(|launcher| epoll.add(launcher.as_fd(), LAUNCHER))?;
        epoll.add(ends.as_fd(), CHILDREN)?;
        let (standing, _) = Standing::of_caller()?;
        let (forked, spares) = (HashMap::new(), Spares::none());
        Ok(Self { epoll, requests, guardian, launcher, ends, standing, forked, spares })
    }

    /// Until the launcher is gone.
    fn serve(&mut self) -> io::Result<()> {
        while self.launcher.is_some() {
            self.epoll.wait_until(self.spares.next())?;
            let ready = self.epoll.ready()?;
            // Nothing else is to be done, so it is time for a spare.
            if ready.is_empty() {
                // If that is refused, starts fork their workers, and tell why they cannot.
                let _ = self.spares.fork_one();
            }
            // Looked at before all others: no process needs the answer to a dead launcher's request, and the workers would live on
            // meanwhile.
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

    /// Ends all workers that are to end with the launcher, and what they have started.
    fn end_all(&mut self) {
        // Requests that came since the last look: a worker asks before it can have children, so none is missed.
        self.guardian.take(&self.epoll);
        let forked = self.forked.iter().filter(|(_, forked)| forked.ends_with_launcher);
        forked.for_each(|(&pid, _)| pidfd::kill_group_of_child(pid));
        self.spares.end_all();
        self.guardian.end_all();
    }

    fn reap(&mut self) -> io::Result<()> {
        // Cleared first: an end that comes after this makes the descriptor readable again, and the loop below finds those before it.
        self.ends.clear()?;
        while let Some(pid) = wait::next_ended()? {
            // The group first: once the child is reaped, its number may be another group's.
            pidfd::kill_group_of_child(pid);
            let exit = wait::reap_ended(pid)?;
            match self.forked.remove(&pid) {
                Some(Forked { ledger, rank, .. }) => ledger.record(rank, exit),
                // A spare, or a child of the preload function, which has returned and waits for it no longer.
                None => self.spares.forget(pid),
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
            Ok(Some((Request::Spares(count), _))) => (Reply::of(self.keep_spares(count).err()), Vec::new()),
            Ok(Some((Request::Fork(request), descriptors))) => self.fork(&request, &descriptors),
            // A message is one packet, so the next message begins at its begin: only this request fails.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                (Reply::of(Some(Trouble::Malformed(error.to_string()))), Vec::new())
            }
            // The launcher sees that the server is gone.
            Err(error) => return Err(error),
        };
        let deadline = Moment::now().checked_add(MESSAGE);
        // If the launcher does not take the answer, it is gone, or its own deadline ends the server.
        Ok(Framed::of(&reply, pidfds)?.send(&self.requests, deadline).is_ok())
    }

    fn preload(&mut self, image: &[u8], entry: u64, function: &str) -> Result<(), Trouble> {
        let done = preload(image, entry, function);
        let ends = prepare().and_then(|ends| self.epoll.add(ends.as_fd(), CHILDREN).map(|()| ends));
        // The signalfd before is replaced, since the function may have changed the mask. A process that the function has forked may
        // have a copy of it, so it is taken out of the epoll first (epoll(7)).
        let _ = self.epoll.remove(self.ends.as_fd());
        self.ends = ends.map_err(|os| system(Step::Prepare, &os))?;
        let (standing, beside) = Standing::of_caller().map_err(|os| system(Step::LookAtItself, &os))?;
        self.standing = standing;
        done.and_then(|()| match beside.entered_by_children {
            Some(kind) => Err(Trouble::Malformed(format!(
                "its preload function has had its children go into another {kind} namespace (unshare, setns), where no \
                 worker can be"
            ))),
            None => Ok(()),
        })
    }

    fn keep_spares(&mut self, count: usize) -> Result<(), Trouble> {
        self.spares.want(count);
        while self.spares.is_short() {
            self.spares.fork_one().map_err(trouble)?;
        }
        Ok(())
    }

    fn fork(&mut self, request: &ForkRequest<'_>, descriptors: &[OwnedFd]) -> (Reply, Vec<OwnedFd>) {
        let (mut reply, mut pidfds) = (Reply::of(None), Vec::new());
        let done = OpenRequest::of(request, descriptors).and_then(|open| {
            // Before the environment is changed too. From here on only the library's own code runs, which starts no thread.
            let alone = fork::single_thread().map_err(trouble)?;
            attributes::compare(&request.attributes, &self.standing)?;
            open.apply_attributes().map_err(|os| system(Step::ApplyAttributes, &os))?;
            self.fork_each(&alone, &open, &mut reply.pids, &mut pidfds)
        });
        // Workers that were forked before the trouble go with the answer: the launcher ends them by their pidfds.
        reply.trouble = done.err();
        (reply, pidfds)
    }

    fn fork_each(
        &mut self,
        alone: &SingleThread,
        open: &OpenRequest<'_>,
        pids: &mut Vec<u32>,
        pidfds: &mut Vec<OwnedFd>,
    ) -> Result<(), Trouble> {
        let server = std::process::id();
        self.reap().map_err(|os| system(Step::Reap, &os))?;
        if !self.launcher.as_ref().is_some_and(is_readable) {
            for (number, (pid, pidfd)) in self.spares.hand_out(open).into_iter().enumerate() {
                self.note_forked(pid, open, number);
                pidfds.push(pidfd);
                pids.push(pid);
            }
        }
        for (number, slot) in open.slots.iter().enumerate().skip(pids.len()) {
            // A fork of much memory takes milliseconds, and a batch is 64 of them: workers that end meanwhile are reaped in
            // between, and those that ask for the guard are answered.
            self.reap().map_err(|os| system(Step::Reap, &os))?;
            self.guardian.take(&self.epoll);
            if self.launcher.as_ref().is_some_and(is_readable) {
                return Err(Trouble::Malformed("its launcher is gone".to_owned()));
            }
            let marker = open.marker(number, slot.as_raw_fd(), server);
            let pid =
                fork::fork(alone, || worker::run(&marker, &Origin::Served(open.served(number, server))))
                    .map_err(trouble)?;
            self.note_forked(pid, open, number);
            // The worker does so too: whichever process comes first, the group is there when either goes on. An error means
            // that the worker has ended.
            let _ = fork::lead_own_group(pid);
            let pidfd = pidfd::open(pid).map_err(|os| {
                // The launcher has no pidfd of it and so cannot end it.
                self.forked.remove(&pid);
                wait::kill_unwatched(pid);
                system(Step::Watch, &os)
            })?;
            pidfds.push(pidfd);
            pids.push(pid);
        }
        Ok(())
    }

    /// Notes whose record the end of a process is.
    fn note_forked(&mut self, pid: u32, open: &OpenRequest<'_>, number: usize) {
        let (ledger, rank) = (open.ledger.clone(), open.rank(number));
        let ends_with_launcher = open.death_signal() == Some(Signal::KILL);
        self.forked.insert(pid, Forked { ledger, rank, ends_with_launcher });
    }
}

impl Reply {
    fn of(trouble: Option<Trouble>) -> Self {
        Self { pids: Vec::new(), rss_kib: wait::max_rss_kib(), trouble }
    }
}

/// Sets mask and dispositions of signals to what a worker is to find, whatever a preload function has done to them.
fn prepare() -> io::Result<ChildSignals> {
    // Batch systems and service managers signal every process of a job. The server must outlive that, or its workers would die
    // with it, however they handle the signal. Blocked, not ignored: a worker would inherit what is ignored, while it empties its
    // mask anyway, and a signal that is pending here is not pending in a fork (fork(2)). SIGCHLD, blocked too, is read from a
    // signalfd (`ChildSignals`). The mask comes before the dispositions: a signal that is waiting must not meet a default action.
    signal::block_all_but_faults()?;
    signal::reset_dispositions()?;
    worker::crash::prepare()?;
    ChildSignals::new()
}

fn trouble(error: ForkError) -> Trouble {
    match error {
        ForkError::Threads(threads) => Trouble::Threads(threads),
        ForkError::Uncounted(os) => system(Step::CountThreads, &os),
        ForkError::Os(os) => system(Step::Fork, &os),
    }
}

fn system(step: Step, os: &io::Error) -> Trouble {
    Trouble::System { step, errno: os.raw_os_error().unwrap_or(0) }
}

/// Runs the preload function.
fn preload(image: &[u8], entry: u64, function: &str) -> Result<(), Trouble> {
    let malformed = |error: String| Trouble::Malformed(error);
    let own = Image::main().map_err(|error| malformed(error.to_string()))?;
    let entry = entry::find_at(image, entry, function, own).map_err(malformed)?;
    let unit = codec::encode_plain(&()).map_err(malformed)?;
    // The function may take long. The server has no workers yet that it would have to end, so it may die at once with the launcher.
    let launcher = fork::parent_id();
    die_with_launcher(Signal::KILL)?;
    // The kernel sends the signal for a death after the line above; this line sees a death before it.
    if fork::parent_id() != launcher {
        return Err(Trouble::Malformed("its launcher is gone".to_owned()));
    }
    // What the function starts must not inherit this process's mask, nor that signals are ignored: a handler that does
    // nothing is reset by exec.
    signal::outlive_all();
    signal::unblock_all().map_err(|os| system(Step::Prepare, &os))?;
    let done =
        report::call_in_server(|| entry.call(&mut (), &unit, Received::default(), Vec::new()).map(drop));
    die_with_launcher(Signal::CONT)?;
    // Without this each worker would have what the function has printed in its own buffer, and print it once more.
    let _ = io::stdout().flush();
    done.map_err(|raised: Raised| Trouble::Preload(raised))
}

fn die_with_launcher(signal: Signal) -> Result<(), Trouble> {
    prctl::set_death_signal(Some(signal)).map_err(|os| system(Step::ArmDeathSignal, &os))
}
