//! Processes: pidfd_open(2), waitid(2), fork(2), kill(2) of groups, _exit(2).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use std::{fmt, io, mem, ptr};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::Pid;

use super::clock::Moment;
use super::fd::above_stdio;
use super::signal::Signal;
use super::stdio;

/// The error of who asks for a process that is not there.
pub(crate) const NO_SUCH_PROCESS: i32 = libc::ESRCH;

/// How a process ended, and what it had used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) status: ExitStatus,
    pub(crate) user: Duration,
    pub(crate) system: Duration,
    pub(crate) max_rss_kib: u64,
}

/// The part of a wait status that is left when a process is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    Code(i32),
    Signal { signal: Signal, core_dumped: bool },
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal { signal, .. } => write!(f, "signal {signal}"),
        }
    }
}

/// pidfd_open(2), close-on-exec. The pid must be that of a child that has not been reaped.
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers; no memory is passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    above_stdio(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Whether a process is stopped, by a signal or a debugger (proc_pid_stat(5)). The pid must be that of a child that has not
/// been reaped; one of which the kernel says nothing is not.
pub(crate) fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it is in parentheses, and may have any in it.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('T' | 't'))
}

/// Sends a signal to exactly this process: by its pidfd, or where that call is not there or a filter of system calls
/// refuses it, by its number.
///
/// # Errors
/// ESRCH when the process has been reaped; EPERM when this process may not signal it.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, pid: u32, signal: Signal) -> io::Result<()> {
    match send_by_pidfd(pidfd, signal, 0) {
        Err(error) if error.raw_os_error() != Some(NO_SUCH_PROCESS) => send_by_number(pidfd, pid, signal),
        done => done,
    }
}

fn send_by_number(pidfd: BorrowedFd<'_>, pid: u32, signal: Signal) -> io::Result<()> {
    // A child that waitid(2) knows is not reaped, so its number is its own. ECHILD: it has been reaped, or is another
    // process's child, which is not reaped while it runs. (That one could end, be reaped and its number be given to a new
    // process before the next line: numbers are given out in turn, so not without a full turn in that moment.)
    match wait(pidfd, libc::WNOWAIT) {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
            if gone(pidfd)? == Reaped::ByOthers {
                return Err(io::Error::from_raw_os_error(NO_SUCH_PROCESS));
            }
        }
        Err(error) => return Err(error),
    }
    kill(pid as i32, signal)
}

/// kill(2), of a number that is still its process's own.
fn kill(number: i32, signal: Signal) -> io::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "an unreaped child's number is as good as a pidfd")]
    // SAFETY: takes two integers; the caller vouches for whose number it is.
    let done = unsafe { libc::kill(number, signal.number()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// pidfd_send_signal(2).
fn send_by_pidfd(pidfd: BorrowedFd<'_>, signal: Signal, flags: u32) -> io::Result<()> {
    let no_info = ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means the one that kill(2) would make.
    let done = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal.number(), no_info, flags)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What [`reap`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaped {
    /// The child has not ended.
    Running,
    Exit(Exit),
    /// The child has ended, but somebody else has taken its status.
    ByOthers,
}

/// Reaps the child if it has ended, after `before`, which is told how and can still count on its pid being nobody else's.
/// Does not block.
pub(crate) fn reap(pidfd: BorrowedFd<'_>, before: impl FnOnce(ExitStatus)) -> io::Result<Reaped> {
    let found = match wait(pidfd, libc::WNOWAIT) {
        Ok(Some(exit)) => {
            before(exit.status);
            wait(pidfd, 0)
        }
        other => other,
    };
    match found {
        Ok(Some(exit)) => Ok(Reaped::Exit(exit)),
        Ok(None) => Ok(Reaped::Running),
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => gone(pidfd),
        Err(error) => Err(error),
    }
}

/// Whether a child that cannot be waited for has ended: with SIGCHLD ignored waitid(2) says ECHILD for it only
/// then, but a child of a thread or process that is not ours gives it always.
fn gone(pidfd: BorrowedFd<'_>) -> io::Result<Reaped> {
    let ended = super::epoll::wait_readable(pidfd, Some(Moment::now()))?;
    Ok(if ended { Reaped::ByOthers } else { Reaped::Running })
}

/// waitid(P_PIDFD): the raw system call, since only it returns the resource use too.
fn wait(pidfd: BorrowedFd<'_>, flags: i32) -> io::Result<Option<Exit>> {
    wait_for(libc::P_PIDFD, pidfd.as_raw_fd().unsigned_abs(), libc::WNOHANG | flags)
}

fn wait_for(kind: libc::idtype_t, id: u32, flags: i32) -> io::Result<Option<Exit>> {
    // SAFETY: a plain record of integers, for which zeros are valid.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    // SAFETY: likewise.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: both pointers are to records of ours that outlive the call.
    let done = unsafe {
        libc::syscall(libc::SYS_waitid, kind, id, &raw mut info, libc::WEXITED | flags, &raw mut usage)
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid has filled in the fields of a SIGCHLD, or left them zero.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    Ok((pid != 0).then(|| Exit {
        status: exit_status(info.si_code, status),
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
        max_rss_kib: usage.ru_maxrss.unsigned_abs(),
    }))
}

/// Ends and reaps a child of which there is no pidfd. It must not have been reaped yet.
pub(crate) fn kill_unwatched(pid: u32) {
    let pid = Pid::from_raw(pid as i32);
    // ESRCH and ECHILD mean that it is gone already, which is what we want.
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
    let _ = nix::sys::wait::waitpid(pid, None);
}

fn exit_status(code: i32, status: i32) -> ExitStatus {
    match code {
        libc::CLD_EXITED => ExitStatus::Code(status),
        code => {
            ExitStatus::Signal { signal: Signal::from_kernel(status), core_dumped: code == libc::CLD_DUMPED }
        }
    }
}

fn duration(time: libc::timeval) -> Duration {
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_usec.unsigned_abs() as u32 * 1000)
}

/// PIDFD_SIGNAL_PROCESS_GROUP of linux/pidfd.h, which libc does not have yet.
const SIGNAL_PROCESS_GROUP: u32 = 1 << 2;

/// Kills what is left of the process group that the process of `pidfd` led, also when it has been reaped.
/// `leader` is its pid if it has not been: on kernels before 6.9 the group has no other handle.
pub(crate) fn kill_group(pidfd: BorrowedFd<'_>, leader: Option<u32>) {
    // ESRCH: nobody is left. EINVAL: the kernel does not know the flag. ENOSYS or EPERM: a filter refuses the call, or all
    // members have changed their user, which kill(2) will say too and which cannot be mended here.
    let by_pidfd = send_by_pidfd(pidfd, Signal::KILL, SIGNAL_PROCESS_GROUP);
    let refused = by_pidfd.is_err_and(|error| error.raw_os_error() != Some(NO_SUCH_PROCESS));
    if let Some(leader) = leader.filter(|_| refused) {
        kill_group_of_child(leader);
    }
}

/// Whether a pidfd means its process's group, too (Linux 6.9); this one's process leads it.
pub(crate) fn means_group(pidfd: BorrowedFd<'_>) -> bool {
    send_by_pidfd(pidfd, Signal::from_kernel(0), SIGNAL_PROCESS_GROUP).is_ok()
}

/// Makes `pid` (0: this process) the leader of a process group of its own.
pub(crate) fn lead_own_group(pid: u32) -> io::Result<()> {
    let pid = Pid::from_raw(pid as i32);
    Ok(nix::unistd::setpgid(pid, pid)?)
}

/// How many threads this process has: each adds a link to the directory of threads, which has two by itself.
fn thread_count() -> io::Result<usize> {
    let links = std::fs::metadata("/proc/self/task")?.nlink();
    Ok(usize::try_from(links).map_err(io::Error::other)?.saturating_sub(2))
}

/// The comm names of this process's threads; none where there is only one.
pub(crate) fn thread_names() -> io::Result<Vec<String>> {
    if thread_count()? == 1 {
        // Cheaper, and nobody asks for the name of the only one.
        return Ok(Vec::new());
    }
    let names = std::fs::read_dir("/proc/self/task")?.filter_map(|task| {
        // One that has just ended has none.
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    });
    Ok(names.map(|name| name.trim_end().to_owned()).collect())
}

/// The comm name of the calling thread.
pub(crate) fn thread_name() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/thread-self/comm")?.trim_end().to_owned())
}

/// Why [`fork`] did not.
#[derive(Debug)]
pub(crate) enum ForkError {
    /// There are other threads: this many in all.
    Threads(usize),
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
        Err(error) => Err(ForkError::Os(error)),
    }
}

/// fork(2) in a process of one thread. What C's streams have in their buffers is written first, or both would write it.
/// The child runs `child`, which must end the process, or it is aborted; it
/// begins with all signals blocked, so that none runs a handler of the parent's in it, and empties the mask when
/// it has reset the dispositions.
pub(crate) fn fork(_alone: &SingleThread, child: impl FnOnce()) -> Result<u32, ForkError> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    let before = before.map_err(|error| ForkError::Os(error.into()))?;
    stdio::flush();
    // SAFETY: we are the only thread, so no lock is held by a thread that the child will not have.
    let forked = unsafe { libc::fork() };
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

/// The number of threads, when those that are just ending are gone: `join` returns a moment before they are.
fn settled_thread_count() -> io::Result<usize> {
    const A_MOMENT: Duration = Duration::from_millis(5);
    let start = Moment::now();
    loop {
        let threads = thread_count()?;
        if threads == 1 || Moment::now().since(start) > A_MOMENT {
            return Ok(threads);
        }
        std::thread::yield_now();
    }
}

/// A panic must not unwind out of a worker into the frames of the main that it shares with the launcher.
#[derive(Debug)]
pub(crate) struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
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

/// Whether the calling thread is the one that the process started with.
pub(crate) fn is_main_thread() -> bool {
    nix::unistd::gettid() == nix::unistd::getpid()
}

/// The number of the calling thread. Async-signal-safe.
pub(crate) fn thread_id() -> u32 {
    nix::unistd::gettid().as_raw().unsigned_abs()
}

pub(crate) fn parent_id() -> u32 {
    nix::unistd::getppid().as_raw().unsigned_abs()
}

/// The most memory this process has had resident, in KiB, as a child's count begins with it (getrusage(2)).
pub(crate) fn max_rss_kib() -> u64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss().unsigned_abs())
}

/// umask(2).
pub(crate) fn set_umask(mask: u32) {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
}

/// The next child of this process that has ended and was not reaped; nothing is reaped yet.
pub(crate) fn next_ended() -> io::Result<Option<u32>> {
    // By libc: nix refuses the status of who died of a real-time signal.
    // SAFETY: a plain record of integers, for which zeros are valid.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the record is ours and outlives the call.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) } != 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ECHILD) { Ok(None) } else { Err(error) };
    }
    // SAFETY: waitid has filled in the fields of a SIGCHLD, or left them zero.
    let pid = unsafe { info.si_pid() };
    Ok((pid != 0).then_some(pid.unsigned_abs()))
}

/// Reaps a child that has ended, after killing what is left of the process group that it led.
pub(crate) fn sweep_and_reap(pid: u32) -> io::Result<Option<Exit>> {
    kill_group_of_child(pid);
    wait_for(libc::P_PID, pid, libc::WNOHANG)
}

/// Kills the process group that a child leads, which has not been reaped.
pub(crate) fn kill_group_of_child(pid: u32) {
    // ESRCH: nobody is left. EPERM: all members have changed their user, which cannot be mended here.
    let _ = kill(-(pid as i32), Signal::KILL);
}

/// Waits for the signal that ends the process. Async-signal-safe.
pub(crate) fn await_death() -> ! {
    loop {
        // SAFETY: takes nothing.
        unsafe { libc::pause() };
    }
}
