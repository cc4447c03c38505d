//! The guardian, a part of the fork server: ends the process groups of workers that the launcher has started itself and that
//! have asked for it, when the launcher is gone.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::clock::Moment;
use crate::sys::epoll::Epoll;
use crate::sys::epoll::wait_readable;
use crate::sys::group::HeldGroup;
use crate::sys::socket::{Message, Socket};
use crate::sys::{limits, pidfd};
use crate::wire::service::GuardRequest;

pub(super) struct Guardian {
    requests: Socket,
    /// By number in the epoll.
    guarded: HashMap<u64, Guarded>,
    next: u64,
}

/// A worker that the launcher has started itself.
struct Guarded {
    pid: u32,
    pidfd: OwnedFd,
    /// Where the pidfd does not mean the group.
    group: Option<HeldGroup>,
}

impl Guardian {
    /// `first` is the first number that it may use in the epoll.
    pub(super) fn new(requests: Socket, first: u64) -> Self {
        Self { requests, guarded: HashMap::new(), next: first }
    }

    /// Takes all requests that are there; false when there will be no more.
    pub(super) fn take(&mut self, epoll: &Epoll) -> bool {
        loop {
            match self.requests.try_receive() {
                Ok(Some(message)) => self.guard(message, epoll),
                Ok(None) => return true,
                // Also after an exec of the launcher, which lives on.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return false,
                // Not from a worker of ours: some child of theirs that has the descriptor.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Err(error) => {
                    complain(&format!("a worker that asks to be guarded cannot be heard: {error}"));
                    return true;
                }
            }
        }
    }

    /// What one worker asks for must not end the others: what cannot be done is said.
    fn guard(&mut self, message: Message<[u8; size_of::<GuardRequest>()]>, epoll: &Epoll) {
        let pid = u64::from_ne_bytes(message.bytes) as u32;
        let mut descriptors = message.descriptors.into_iter();
        let Some(pidfd) = descriptors.next() else {
            let limit = limits::descriptors_text().unwrap_or_default();
            return complain(&format!("no descriptor is left to guard process {pid}: {limit}"));
        };
        match epoll.add(pidfd.as_fd(), self.next) {
            // Some file, of which no end will be told.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return complain(&format!(
                    "process {pid} cannot be guarded: watching it (epoll_ctl): {error}"
                ));
            }
            // Without room to watch it (max_user_watches) it is guarded all the same, until the launcher is gone.
            Ok(()) | Err(_) => {}
        }
        // A worker that waits for an answer has no children before that descriptor is closed here.
        let answer = descriptors.next();
        let group = answer.as_ref().and_then(|_| hold(pid, &pidfd));
        self.guarded.insert(self.next, Guarded { pid, pidfd, group });
        self.next += 1;
    }

    /// A guarded worker has ended: the launcher sweeps its group too, unless it is killed before it comes to that.
    pub(super) fn forget(&mut self, number: u64, epoll: &Epoll) {
        if let Some(guarded) = self.guarded.remove(&number) {
            // Closing it would not be enough: a worker that was just forked, or is stopped, may still have a copy.
            let _ = epoll.remove(guarded.pidfd.as_fd());
            guarded.end();
        }
    }

    pub(super) fn end_all(&self) {
        self.guarded.values().for_each(Guarded::end);
    }
}

impl AsFd for Guardian {
    /// Readable when somebody asks to be guarded.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.requests.as_fd()
    }
}

/// `None`, too, of a worker that has ended already: it had no children, and its number may be another's.
fn hold(pid: u32, pidfd: &OwnedFd) -> Option<HeldGroup> {
    let held = HeldGroup::of(pid).inspect_err(|error| {
        if !is_readable(pidfd) {
            complain(&format!("the process group of {pid} cannot be guarded (clone, setpgid): {error}"));
        }
    });
    held.ok().filter(|_| !is_readable(pidfd))
}

impl Guarded {
    fn end(&self) {
        match &self.group {
            Some(group) => group.kill(),
            // While it has not ended its number is its own. After that only the pidfd is.
            None => {
                pidfd::kill_group(self.pidfd.as_fd(), Some(self.pid).filter(|_| !is_readable(&self.pidfd)))
            }
        }
    }
}

/// Reports what no answer can: on stderr.
pub(super) fn complain(what: &str) {
    let _ = writeln!(io::stderr(), "phalanx: {what}");
}

/// Whether the process of a pidfd has ended.
pub(super) fn is_readable(pidfd: &OwnedFd) -> bool {
    wait_readable(pidfd.as_fd(), Some(Moment::now())).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::sys::epoll::wait_readable;

    const FIRST: u64 = 7;

    fn guardian() -> (Guardian, Socket, Epoll) {
        let (requests, ask) = Socket::pair().unwrap();
        (Guardian::new(requests, FIRST), ask, Epoll::new().unwrap())
    }

    /// The leader of a process group, ended when it is dropped.
    struct Sleeper(Child, OwnedFd);

    impl Sleeper {
        fn new() -> Self {
            let mut command = Command::new("sleep");
            let command = command.arg("1000").process_group(0);
            let child =
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let pidfd = pidfd::open(child.id()).unwrap();
            Self(child, pidfd)
        }

        fn number(&self) -> GuardRequest {
            u64::from(self.0.id()).to_ne_bytes()
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn bad_request_hurts_nobody_else() {
        let (mut guardian, ask, epoll) = guardian();
        let sleeper = Sleeper::new();
        let file = tempfile::tempfile().unwrap();
        ask.send(b"?", &[], None).unwrap();
        ask.send(&sleeper.number(), &[], None).unwrap();
        ask.send(&sleeper.number(), &[file.as_fd()], None).unwrap();
        ask.send(&sleeper.number(), &[sleeper.1.as_fd()], None).unwrap();
        assert!(guardian.take(&epoll));
        assert_eq!(guardian.guarded.len(), 1);
    }

    #[test]
    fn worker_that_has_ended_is_told_once_though_a_copy_of_its_pidfd_is_left() {
        let (mut guardian, ask, epoll) = guardian();
        let sleeper = Sleeper::new();
        ask.send(&sleeper.number(), &[sleeper.1.as_fd()], None).unwrap();
        assert!(guardian.take(&epoll));
        let _copy = guardian.guarded[&FIRST].pidfd.try_clone().unwrap();
        drop(sleeper);
        assert_eq!(epoll.ready().unwrap(), [FIRST]);
        guardian.forget(FIRST, &epoll);
        assert_eq!((epoll.ready().unwrap(), guardian.guarded.len()), (vec![], 0));
    }

    #[test]
    fn worker_that_waits_for_it_is_answered_when_its_group_is_held() {
        let (mut guardian, ask, epoll) = guardian();
        let (running, ended) = (Sleeper::new(), Sleeper::new());
        let (number, pidfd) = (ended.number(), ended.1.try_clone().unwrap());
        drop(ended);
        let (here, answer) = Socket::pair().unwrap();
        ask.send(&running.number(), &[running.1.as_fd(), answer.as_fd()], None).unwrap();
        ask.send(&number, &[pidfd.as_fd(), answer.as_fd()], None).unwrap();
        drop(answer);
        assert!(guardian.take(&epoll));
        assert!(wait_readable(here.as_fd(), None).unwrap());
        let held = |number: u64| guardian.guarded[&number].group.is_some();
        assert_eq!([held(FIRST), held(FIRST + 1)], [true, false]);
    }
}
