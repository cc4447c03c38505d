//! The launcher's end of its fork server: the process, and one question with one answer at a time.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::attributes;
use super::spawn::Template;
use crate::error::{Error, with_limit};
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::forks::Here;
use crate::sys::pidfd;
use crate::sys::signal::Signal;
use crate::sys::socket::Socket;
use crate::sys::spawn::Blocked;
use crate::sys::wait::{self, Reaped};
use crate::wire::framed::{self, Framed};
use crate::wire::names::SERVER;
use crate::wire::service::{LandlockProbe, Reply, Request, ServerMarker};

/// How often a server that does not answer is woken.
const WAKE: Duration = Duration::from_secs(1);
/// How long the server may take to take a message, to fork one worker, or to end.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// The running server. Dropping it ends the server.
#[derive(Debug)]
pub(super) struct ServerLink {
    /// The process that has started the server. A fork of that process has a copy of this link, but must not take its parent's answers.
    owner: Here,
    pid: u32,
    pidfd: Arc<OwnedFd>,
    requests: Socket,
    /// The socket by which workers ask the server to guard them.
    guards: Arc<OwnedFd>,
    /// Whether this side has tried to end it.
    given_up: Cell<bool>,
    /// Whether the thread that started it could inspect it.
    is_open: bool,
}

impl ServerLink {
    /// Runs this executable again as a fork server.
    pub(super) fn start() -> Result<Self, Error> {
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
        let inherited = [theirs.as_fd(), guards.as_fd()].into_iter().map(|fd| (fd, fd.as_raw_fd()));
        // A batch system may signal all processes of the job just now. Blocked from before its first instruction
        // (POSIX_SPAWN_SETSIGMASK), such a signal cannot end the server before it has said itself how it takes signals.
        let pid = Template::new(&[]).run(&format!("{SERVER}={marker}"), &[], inherited, Blocked::Everything);
        let pid = pid.map_err(failed("posix_spawn"))?;
        // Our child, not reaped yet: its pid cannot have become another's.
        let pidfd = pidfd::open(pid).inspect_err(|_| wait::kill_unwatched(pid));
        let pidfd = pidfd.map_err(failed("pidfd_open"))?;
        let guards = guards_out.as_fd().try_clone_to_owned().map_err(failed("dup"))?;
        // Landlock rules cannot be read, but this thread cannot inspect a process that has other rules.
        let is_open = attributes::landlock_probe(pid).is_some_and(|probe| probe.sees_server);
        // `theirs` is closed on return. With a copy of the server's end here, a dead server would never be an EOF, and `ask`
        // would wait for ever.
        Ok(Self::to((pid, pidfd), requests, guards, is_open))
    }

    fn to((pid, pidfd): (u32, OwnedFd), requests: Socket, guards: OwnedFd, is_open: bool) -> Self {
        let (pidfd, guards, given_up) = (Arc::new(pidfd), Arc::new(guards), Cell::new(false));
        Self { owner: Here::now(), pid, pidfd, requests, guards, given_up, is_open }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// The pidfd and the pid.
    pub(super) fn process(&self) -> (Arc<OwnedFd>, u32) {
        (self.pidfd.clone(), self.pid)
    }

    pub(super) fn guards(&self) -> Arc<OwnedFd> {
        self.guards.clone()
    }

    /// Whether the calling thread may inspect the server, if that says something about Landlock rules.
    pub(super) fn landlock_probe(&self) -> Option<LandlockProbe> {
        // If even the thread that started the server could not inspect it, something else than rules forbids it, and the answer says
        // nothing about rules.
        attributes::landlock_probe(self.pid).filter(|_| self.is_open)
    }

    /// Whether this process has started the server.
    pub(super) fn is_own(&self) -> bool {
        self.owner.is_now()
    }

    pub(super) fn is_usable(&self) -> bool {
        // A pidfd is readable once its process has ended (pidfd_open(2)), reaped or not: this takes nothing away from `ended`,
        // which reaps.
        let ended = wait_readable(self.pidfd.as_fd(), Some(Moment::now())).unwrap_or(true);
        self.is_own() && !ended && !self.given_up.get()
    }

    /// One message there and one back. When either fails, the server is ended.
    pub(super) fn ask(
        &self,
        mut request: Framed<BorrowedFd<'_>>,
        deadline: Option<Moment>,
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        let asked = Moment::now();
        // Before the message too: a server that is stopped (SIGSTOP) reads nothing, and a large message waits for room in the socket.
        self.wake();
        let sent = request.send(&self.requests, asked.checked_add(ANSWER));
        let answer = sent.and_then(|()| self.await_answer(deadline));
        match answer.and_then(|()| framed::receive(&self.requests, deadline)) {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.ended()),
            // EPIPE: it has ended before it took the message.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(self.ended()),
            Err(error) => {
                // The question may have been understood all the same, and its answer, with pidfds of workers, may still come: the
                // next question would take it for its own. Messages have no numbers. So the server ends, and its workers with it.
                let (ended, after) = (self.end(), Moment::now().since(asked));
                Err(Error::ForkServer {
                    reason: format!(
                        "{ended}, since it could not be asked or did not answer: {error}, after {after:.1?}"
                    ),
                })
            }
        }
    }

    /// Waits until there is an answer, or the server has ended.
    fn await_answer(&self, deadline: Option<Moment>) -> io::Result<()> {
        loop {
            // The server may be stopped (SIGSTOP) while it works, which no descriptor tells. SIGCONT does nothing to a process that
            // runs, so it is sent once a second.
            let until = [deadline, Moment::now().checked_add(WAKE)].into_iter().flatten().min();
            // Readable, too, when the server has ended: its end of the socket is closed then.
            if wait_readable(self.requests.as_fd(), until)? {
                return Ok(());
            }
            if deadline.is_some_and(|at| at <= Moment::now()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.wake();
        }
    }

    pub(super) fn wake(&self) {
        // A server that has ended needs no waking; one that may not be woken does not answer, which is told then.
        let _ = pidfd::send_signal(self.pidfd.as_fd(), self.pid, Signal::CONT);
    }

    /// Ends it, and says in words whether that was allowed. It is used no more in either case.
    pub(super) fn end(&self) -> String {
        // First, and whatever comes of the signal: EPERM means a server that has changed its user. It runs on, but is not asked
        // again.
        self.given_up.set(true);
        match pidfd::send_signal(self.pidfd.as_fd(), self.pid, Signal::KILL) {
            Ok(()) => "it was ended".to_owned(),
            Err(os) => format!("it is used no more and runs on, as it cannot be sent SIGKILL ({os})"),
        }
    }

    fn ended(&self) -> Error {
        // EOF comes before the end: the kernel closes a dying process's sockets, and later makes it a zombie that can be reaped
        // (exit_files before exit_notify in do_exit). Its exit status is worth that moment.
        let _ = wait_readable(self.pidfd.as_fd(), Moment::now().checked_add(ANSWER));
        match wait::reap(self.pidfd.as_fd(), |_| ()) {
            Ok(Reaped::Exit(exit)) => died(&format!("while it was asked: {}", exit.status)),
            _ => died("while it was asked"),
        }
    }
}

impl Drop for ServerLink {
    fn drop(&mut self) {
        // In a fork of the launcher the server is the parent's, which goes on with it; and waitid(2) would find no child.
        if self.is_own() {
            // Killed, and not only left to EOF: a server in a long preload function does not look at its socket. The wait is for
            // the zombie, which only this process reaps.
            let sent = pidfd::send_signal(self.pidfd.as_fd(), self.pid, Signal::KILL);
            // Without a signal there is no death to wait for.
            let death = if sent.is_ok() { ANSWER } else { Duration::ZERO };
            let _ = wait_readable(self.pidfd.as_fd(), Moment::now().checked_add(death));
            let _ = wait::reap(self.pidfd.as_fd(), |_| ());
        }
    }
}

pub(super) fn message<'a>(
    request: &Request<'_>,
    descriptors: Vec<BorrowedFd<'a>>,
) -> Result<Framed<BorrowedFd<'a>>, Error> {
    Framed::of(request, descriptors).map_err(Error::system("write to the fork server (memfd_create)"))
}

pub(super) fn died(when: &str) -> Error {
    Error::ForkServer { reason: format!("it ended {when}") }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::thread;

    use super::*;
    use crate::sys::spawn::Program;

    /// A link to a process that only sleeps, and the socket at which it would be asked.
    fn link() -> (ServerLink, Socket) {
        let arguments = ["sleep", "1000"].map(|argument| CString::new(argument).unwrap());
        let program = Program {
            program: c"sleep",
            arguments: &arguments,
            environment: &[],
            directory: None,
            descriptors: &[],
            group: None,
            blocked: Blocked::Nothing,
        };
        let pid = program.start().unwrap();
        let (requests, theirs) = Socket::pair().unwrap();
        let (guards, _) = Socket::pair().unwrap();
        let process = (pid, pidfd::open(pid).unwrap());
        (ServerLink::to(process, requests, guards.into_descriptor(), false), theirs)
    }

    fn question() -> Framed<BorrowedFd<'static>> {
        let request = Request::Preload { image: vec![1], entry: 2, function: "f".to_owned() };
        message(&request, Vec::new()).unwrap()
    }

    fn answer(theirs: &Socket) {
        let asked = framed::receive::<Request<'_>>(theirs, None).unwrap();
        assert!(matches!(asked, Some((Request::Preload { entry: 2, .. }, _))));
        let reply = Reply { pids: vec![5], rss_kib: 7, trouble: None };
        Framed::of(&reply, Vec::<OwnedFd>::new()).unwrap().send(theirs, None).unwrap();
    }

    fn has_ended(link: &ServerLink) -> bool {
        wait_readable(link.pidfd.as_fd(), None).unwrap()
    }

    #[test]
    fn answer_belongs_to_the_question_before_it() {
        let (link, theirs) = link();
        let server = thread::spawn(move || {
            answer(&theirs);
            answer(&theirs);
        });
        for _ in 0..2 {
            let (reply, descriptors) = link.ask(question(), None).unwrap();
            assert_eq!((reply.pids, reply.rss_kib, descriptors.len()), (vec![5], 7, 0));
        }
        server.join().unwrap();
        assert!(link.is_usable());
    }

    #[test]
    fn server_that_does_not_answer_in_time_is_ended_and_used_no_more() {
        let (link, _theirs) = link();
        // The socket takes the message, and there is no answer by a time that has come already.
        let error = link.ask(question(), Some(Moment::now())).unwrap_err().to_string();
        assert!(error.contains("it was ended, since it could not be asked or did not answer"), "{error}");
        assert!(has_ended(&link) && !link.is_usable());
    }

    #[test]
    fn server_that_has_ended_is_told_with_its_status() {
        let (link, theirs) = link();
        pidfd::send_signal(link.pidfd.as_fd(), link.pid, Signal::KILL).unwrap();
        assert!(has_ended(&link) && !link.is_usable());
        drop(theirs);
        let error = link.ask(question(), None).unwrap_err().to_string();
        assert!(error.contains("it ended while it was asked: signal SIGKILL"), "{error}");
    }

    #[test]
    fn stopped_server_is_woken_when_it_is_asked() {
        let (link, theirs) = link();
        pidfd::send_signal(link.pidfd.as_fd(), link.pid, Signal::STOP).unwrap();
        while !wait::is_stopped(link.pid) {
            thread::yield_now();
        }
        // The process sleeps and does not answer, stopped or not: this thread answers for it, and what is looked at is its state.
        let server = thread::spawn(move || answer(&theirs));
        link.ask(question(), None).unwrap();
        server.join().unwrap();
        while wait::is_stopped(link.pid) {
            thread::yield_now();
        }
    }

    #[test]
    fn dropped_link_leaves_no_server() {
        let (link, _theirs) = link();
        let pidfd = link.process().0;
        let pid = link.pid();
        drop(link);
        // ESRCH says that it was reaped: a signal to a zombie succeeds (kill(2)).
        let error = pidfd::send_signal(pidfd.as_fd(), pid, Signal::CONT).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(pidfd::NO_SUCH_PROCESS));
    }
}
