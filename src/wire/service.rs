//! The protocol between a launcher and its fork server. Each message has descriptors beside it.

use std::borrow::Cow;
use std::fmt;
use std::os::fd::RawFd;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::names::PROTOCOL;
use crate::error::Raised;
use crate::sys::limits::Limits;
use crate::sys::standing::{Difference, Standing};
use crate::sys::thread_state::ThreadState;

/// The marker of a fork server, as [`Marker`](super::marker::Marker) is of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServerMarker {
    /// The pid of the launcher, which must be the server's parent: with another parent the launcher is dead.
    pub(crate) launcher: u32,
    /// The socket of its requests.
    pub(crate) requests: RawFd,
    /// The socket by which workers of `Spawn` and `Fork` ask for a guardian.
    pub(crate) guards: RawFd,
}

impl fmt::Display for ServerMarker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { launcher, requests, guards } = self;
        write!(f, "{PROTOCOL} {launcher} {requests} {guards}")
    }
}

impl FromStr for ServerMarker {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no fork server's marker of protocol {PROTOCOL}");
        let numbers: Vec<i32> =
            text.split(' ').map(str::parse).collect::<Result<_, _>>().map_err(|_| bad())?;
        let [version, launcher, requests, guards] = numbers[..] else { return Err(bad()) };
        if u32::try_from(version) != Ok(PROTOCOL) {
            return Err(bad());
        }
        Ok(Self { launcher: u32::try_from(launcher).map_err(|_| bad())?, requests, guards })
    }
}

/// What the launcher asks of its fork server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request<'a> {
    /// Run a function once, before the first fork: the function whose entry has this offset and this name.
    Preload { image: Vec<u8>, entry: u64, function: String },
    /// Keep this number of processes forked ahead of demand. Answered when they are there.
    Spares(usize),
    /// Fork some of the workers of a plan.
    Fork(Box<ForkRequest<'a>>),
}

/// Some workers of a group, with these descriptors, in this order: the ledger, the working directory, stdout, stderr,
/// the jobs, those that the jobs speak of, a report slot for each worker, for each the end of its lifeline, if they have one, for each
/// what is to be its stdout, and for each its stderr, where these are not the launcher's.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ForkRequest<'a> {
    /// The number of all workers of the context.
    pub(crate) nprocs: usize,
    /// The rank of the first worker of this request.
    pub(crate) first: usize,
    /// By worker, the number of its directory in the launcher's directory of named memory.
    pub(crate) worker_dirs: Vec<Option<u64>>,
    /// The number of the parent-death signal; 0: none.
    pub(crate) death_signal: i32,
    pub(crate) attributes: Cow<'a, Attributes>,
    /// One for all workers, or one for each of these.
    pub(crate) jobs: usize,
    /// One for each worker, or none.
    pub(crate) lifelines: usize,
    /// Whether each worker has a stdout, and a stderr, of its own.
    pub(crate) piped: [bool; 2],
    /// The numbers that the jobs' descriptors have in the launcher.
    pub(crate) numbers: Vec<RawFd>,
}

/// The number of descriptors of a request that come before those of its jobs: ledger, working directory, stdout, stderr.
pub(crate) const BEFORE_JOBS: usize = 4;

/// The state of the thread that asks for workers, besides what is a descriptor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Attributes {
    /// The whole environment, as bytes. The server applies it and the umask to itself, and its workers inherit both.
    pub(crate) environment: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) umask: u32,
    /// The resource limits, which each worker applies to itself: a server that lowered its own could not raise them again.
    pub(crate) limits: Limits,
    pub(crate) thread: ThreadState,
    /// Credentials, namespaces and the like, which no process can take from another: the server must have the same ones.
    pub(crate) standing: Standing,
    /// What is known of the thread's Landlock rules.
    pub(crate) landlock: Option<LandlockProbe>,
}

/// What a launcher finds out of Landlock rules, which cannot be read: whether the calling thread may inspect the server. The server
/// tries the other direction (landlock(7), "Ptrace restrictions").
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct LandlockProbe {
    /// The tid of the calling thread.
    pub(crate) thread: u32,
    /// Whether it may inspect the server.
    pub(crate) sees_server: bool,
}

/// The server's answer to a [`Request`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reply {
    /// The workers that were forked, whose pidfds come beside, in order.
    pub(crate) pids: Vec<u32>,
    /// The most memory that the server has had resident, in KiB: the kernel's count of a forked worker begins with it.
    pub(crate) rss_kib: u64,
    /// Why fewer workers were forked than were asked for; `None` when all were.
    pub(crate) trouble: Option<Trouble>,
}

/// Why the server refused a request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Trouble {
    /// The preload function failed.
    Preload(Raised),
    /// The calling thread (`here`) and the server (`there`) differ in something that a worker cannot change.
    Differs(Difference),
    /// The preload function left that many threads behind: a fork would inherit their locks as they are, locked for ever.
    Threads(usize),
    /// The system refused, with this errno.
    System { step: Step, errno: i32 },
    /// The request, or what came beside it, cannot be understood.
    Malformed(String),
}

/// The step of the server in which a system call failed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Step {
    ApplyAttributes,
    CountThreads,
    Fork,
    Watch,
    Reap,
    Prepare,
    LookAtItself,
    ArmDeathSignal,
}

impl Step {
    /// For an error's text, with the calls.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ApplyAttributes => {
                "taking on the working directory, stdout and stderr in the fork server (fchdir, dup3)"
            }
            Self::CountThreads => "counting the fork server's threads (/proc/self/task)",
            Self::Fork => "forking in the fork server (fork)",
            Self::Watch => "watching the process in the fork server (pidfd_open)",
            Self::Reap => "reaping in the fork server (waitid)",
            Self::Prepare => "setting signals in the fork server (sigaction, signalfd)",
            Self::LookAtItself => {
                "asking for the fork server's credentials and namespaces (/proc/thread-self)"
            }
            Self::ArmDeathSignal => "arming the fork server's parent-death signal (prctl)",
        }
    }
}

/// The message by which a worker asks for a guard: its pid as a u64 in the machine's byte order, with its pidfd beside it. If a second
/// descriptor comes, the guardian first joins the worker's process group, and then closes that descriptor.
pub(crate) type GuardRequest = [u8; 8];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_marker_round_trips_and_garbage_is_an_error() {
        let marker = ServerMarker { launcher: 77, requests: 5, guards: 6 };
        assert_eq!(marker.to_string().parse(), Ok(marker));
        for text in ["", "2 1 2", "1 1 2 3", "2 -1 2 3", "2 1 2 3 4", "2 1 2 99999999999"] {
            assert!(text.parse::<ServerMarker>().is_err(), "{text:?}");
        }
    }
}
