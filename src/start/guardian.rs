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
    /// The guarded workers, by their numbers in the epoll.
    guarded: HashMap<u64, Guarded>,
    next: u64,
}

/// A worker that the launcher has started itself.
//
// It is no child of this process. So its number may become another's as soon as the launcher has reaped it, which this process is
// not told: only the pidfd is certain, and, before Linux 6.9, a member of the group that is a child of this process.
struct Guarded {
    pid: u32,
    pidfd: OwnedFd,
    /// The held group, where the kernel does not take the pidfd for the group (before Linux 6.9).
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
                // EOF: launcher and workers have closed their ends. The launcher may still live, as after an exec, so no worker is
                // ended yet.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return false,
                // A message of another length is no worker's: some process has inherited a worker's descriptor.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Err(error) => {
                    complain(&format!("a worker that asks to be guarded cannot be heard: {error}"));
                    return true;
                }
            }
        }
    }

    /// Guards the worker that asks, and says on stderr what cannot be done.
    //
    // No error is returned: it would end the server, and with it all other workers.
    fn guard(&mut self, message: Message<[u8; size_of::<GuardRequest>()]>, epoll: &Epoll) {
        let pid = u64::from_ne_bytes(message.bytes) as u32;
        let mut descriptors = message.descriptors.into_iter();
        // The worker has sent a pidfd of itself. Its number alone would not do: when it is read here, the worker may have ended and
        // the number be another process's.
        let Some(pidfd) = descriptors.next() else {
            let limit = limits::descriptors_text().unwrap_or_default();
            return complain(&format!("no descriptor is left to guard process {pid}: {limit}"));
        };
        match epoll.add(pidfd.as_fd(), self.next) {
            // EPERM of epoll_ctl(2): a file that cannot be watched, and so no pidfd.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return complain(&format!(
                    "process {pid} cannot be guarded: watching it (epoll_ctl): {error}"
                ));
            }
            // Without room to watch it (max_user_watches) it is guarded all the same, until the launcher is gone.
            Ok(()) | Err(_) => {}
        }
        // The worker asks with a second descriptor where its pidfd does not mean its group, and waits until that is closed. So it
        // has no children yet when the group is held, and none can escape.
        let answer = descriptors.next();
        let group = answer.as_ref().and_then(|_| hold(pid, &pidfd));
        // `answer` is dropped on return, which lets the worker go on, with its group held or not.
        self.guarded.insert(self.next, Guarded { pid, pidfd, group });
        self.next += 1;
    }

    /// Ends what is left of the group of a guarded worker that has ended.
    pub(super) fn forget(&mut self, number: u64, epoll: &Epoll) {
        if let Some(guarded) = self.guarded.remove(&number) {
            // epoll(7) watches the open file, and drops it when the last copy of the descriptor is closed. A worker that was just
            // forked from this process, or is stopped, has a copy for as long as it likes: without this the end would be reported
            // again and again.
            let _ = epoll.remove(guarded.pidfd.as_fd());
            // The launcher ends the group too. But it may be killed before it comes to that, and then no process knows the
            // worker.
            guarded.end();
        }
    }

    pub(super) fn end_all(&self) {
        self.guarded.values().for_each(Guarded::end);
    }
}

impl AsFd for Guardian {
    /// Readable when a worker asks to be guarded.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.requests.as_fd()
    }
}

/// Holds the group of a worker that runs.
fn hold(pid: u32, pidfd: &OwnedFd) -> Option<HeldGroup> {
    // By its number, as clone(2) and setpgid(2) know no pidfd. So the look at the pidfd comes after it: a worker that lives even
    // then had that number all the while. One that has ended had no children, and what was joined may be another's group: it is
    // left at once.
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
            // The number goes along only while the worker has not ended: until then it cannot be another's. It may end between
            // the look and the kill, but numbers are given out in turn, so its own does not come again in that moment.
            None => {
                pidfd::kill_group(self.pidfd.as_fd(), Some(self.pid).filter(|_| !is_readable(&self.pidfd)))
            }
        }
    }
}

/// Reports on stderr what no answer can carry.
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
