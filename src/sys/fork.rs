//! fork(2), getppid(2), setpgid(2), _exit(2), atexit(3): how a forked process begins and ends.

use std::io;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::Pid;

use super::clock::Moment;
use super::stdio;
use super::thread;

/// Why [`fork`] did not.
#[derive(Debug)]
pub(crate) enum ForkError {
    /// There are other threads: this many in all.
    Threads(usize),
    /// How many threads there are cannot be asked, as where /proc is not mounted.
    Uncounted(io::Error),
    Os(io::Error),
}

/// Evidence that this process had a single thread, and starts none while it is held.
#[derive(Debug)]
pub(crate) struct SingleThread(());

/// Asks how many threads there are.
pub(crate) fn single_thread() -> Result<SingleThread, ForkError> {
    match settled_thread_count() {
        Ok(1) => Ok(SingleThread(())),
        Ok(threads) => Err(ForkError::Threads(threads)),
        Err(error) => Err(ForkError::Uncounted(error)),
    }
}

/// The number of threads, when those that are just ending are gone: `join` returns a moment before they are.
fn settled_thread_count() -> io::Result<usize> {
    const A_MOMENT: Duration = Duration::from_millis(5);
    let start = Moment::now();
    loop {
        let threads = thread::count()?;
        if threads == 1 || Moment::now().since(start) > A_MOMENT {
            return Ok(threads);
        }
        std::thread::yield_now();
    }
}

/// fork(2) in a process of one thread. What C's streams have in their buffers is written first, or both would write it.
/// The child runs `child`, which must end the process, or it is aborted; it
/// begins with all signals blocked, so that none runs a handler of the parent's in it, and empties the mask when
/// it has reset the dispositions.
pub(crate) fn fork(alone: &SingleThread, child: impl FnOnce()) -> Result<u32, ForkError> {
    // SAFETY: there is only this thread, so no lock is held by a thread that the child will not have.
    fork_by(alone, || unsafe { libc::fork() }, child)
}

/// A child whose end is told by no signal, so that waits for any child do not find it ("clone child" of waitpid(2)).
#[derive(Debug)]
pub(crate) struct UnsignaledChild(u32);

impl UnsignaledChild {
    /// As [`fork`], but for the handlers of pthread_atfork(3).
    pub(crate) fn fork(alone: &SingleThread, child: impl FnOnce()) -> Result<Self, ForkError> {
        // SAFETY: as above. No flag is set, so memory and descriptors are copies; a null stack is that of the parent.
        let clone = || unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) as i32 };
        fork_by(alone, clone, child).map(Self)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0
    }

    /// Waits for its end.
    pub(crate) fn reap(&self) {
        // SAFETY: no status is asked for. Only this reaps it.
        unsafe { libc::waitpid(self.0 as i32, std::ptr::null_mut(), libc::__WALL) };
    }
}

fn fork_by(
    _alone: &SingleThread,
    call: impl FnOnce() -> i32,
    child: impl FnOnce(),
) -> Result<u32, ForkError> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    let before = before.map_err(|error| ForkError::Os(error.into()))?;
    stdio::flush();
    let forked = call();
    if forked == 0 {
        let _no_way_back = AbortOnUnwind;
        child();
        std::process::abort()
    }
    let failed = (forked < 0).then(io::Error::last_os_error);
    // It was valid when it was read.
    let _ = before.thread_set_mask();
    failed.map_or(Ok(forked.unsigned_abs()), |error| Err(ForkError::Os(error)))
}

/// A panic must not unwind out of a worker into the frames of the main that it shares with the launcher.
#[derive(Debug)]
pub(crate) struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// Makes `pid` (0: this process) the leader of a process group of its own.
pub(crate) fn lead_own_group(pid: u32) -> io::Result<()> {
    let pid = Pid::from_raw(pid as i32);
    Ok(nix::unistd::setpgid(pid, pid)?)
}

/// getpgrp(2): the process group of this process.
pub(crate) fn group_id() -> u32 {
    nix::unistd::getpgrp().as_raw().unsigned_abs()
}

/// setsid(2): a session of its own, without a terminal.
pub(crate) fn lead_session() -> io::Result<()> {
    nix::unistd::setsid()?;
    Ok(())
}

/// getsid(2): the session of this process.
pub(crate) fn session_id() -> u32 {
    // Its own it may always ask for.
    nix::unistd::getsid(None).map_or(0, |session| session.as_raw().unsigned_abs())
}

/// getppid(2).
pub(crate) fn parent_id() -> u32 {
    nix::unistd::getppid().as_raw().unsigned_abs()
}

/// _exit(2): ends a forked child without running what its parent registered with atexit.
pub(crate) fn exit_at_once(code: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// atexit(3).
pub(crate) fn at_exit(hook: extern "C" fn()) -> io::Result<()> {
    // SAFETY: the function is a static of this program, which stays mapped until exit.
    match unsafe { libc::atexit(hook) } {
        0 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
    }
}
