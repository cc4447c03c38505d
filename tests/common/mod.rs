//! What every process test stands on: a watchdog, a leak check, and events to wait for.

#![allow(
    dead_code,
    unused_imports,
    clippy::allow_attributes,
    reason = "every test binary uses its own part of this"
)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use phalanx::{
    Connection, Error, Options, ProcessContext, ProcessExitedException, ProcessRaisedException, Signal,
    StartMethod, Tensor, pipe, spawn, start_processes,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

mod leftovers;

use leftovers::{Snapshot, take_own_directory};
pub(crate) use leftovers::{
    children, children_of, descriptors, left_by_ended_processes, named_memory, own_name, trees,
};

/// After so many seconds without an end, and the time of a race, a test is taken to hang: SIGALRM ends it and its
/// workers.
const WATCHDOG_SECONDS: u32 = 120;

/// How long a race test goes on, from the environment.
pub(crate) fn race_time() -> Duration {
    Duration::from_secs(setting("PHALANX_RACE_SECONDS", 2))
}

/// How many times slower than usual the machine is, from the environment: an emulated one needs it.
fn slowness() -> u32 {
    setting("PHALANX_TEST_SLOWNESS", 1)
}

fn setting<T: FromStr>(variable: &str, default: T) -> T {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs one test under the watchdog, alone in its process, and looks for what it left behind.
pub(crate) fn watched<T>(test: impl FnOnce() -> T) -> T {
    watched_after(|| {}, test)
}

/// As [`watched`], after something that may leave what it makes.
fn watched_after<T>(prepare: impl FnOnce(), test: impl FnOnce() -> T) -> T {
    alone(|| {
        prepare();
        let before = Snapshot::take();
        let result = test();
        before.assert_nothing_new();
        result
    })
}

/// As [`watched`], of a test that leaves something on purpose, such as what is for ever.
pub(crate) fn alone<T>(test: impl FnOnce() -> T) -> T {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    take_own_directory();
    nix::unistd::alarm::set((WATCHDOG_SECONDS + race_time().as_secs() as u32) * slowness());
    let result = test();
    nix::unistd::alarm::cancel();
    result
}

pub(crate) fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn parent_of(pid: u32) -> Option<u32> {
    stat_field(pid, 1)?.parse().ok()
}

/// The state letter of a process (proc_pid_stat(5)), `None` when there is none.
pub(crate) fn state_of(pid: u32) -> Option<char> {
    stat_field(pid, 0)?.chars().next()
}

/// Whether a process is on its way out, or has ended: the flag PF_EXITING.
pub(crate) fn is_ending(pid: u32) -> bool {
    const PF_EXITING: u64 = 4;
    let flags = stat_field(pid, 6).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_none_or(|flags| flags & PF_EXITING != 0)
}

/// A field of /proc/PID/stat, counted from the one after the name, which may have anything in it.
fn stat_field(pid: u32, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(number).map(str::to_owned)
}

/// Runs a test under each sharing strategy, each time watched.
pub(crate) fn under_both_strategies(test: impl Fn()) {
    for &strategy in phalanx::get_all_sharing_strategies() {
        // A process's place in a tree of named memory costs it a descriptor, which it keeps.
        let take_place = || {
            phalanx::set_sharing_strategy(phalanx::SharingStrategy::FileSystem);
            drop(Tensor::<u8>::zeros(&[1]).unwrap());
            phalanx::set_sharing_strategy(strategy);
        };
        // Set back before another test has its turn.
        watched_after(take_place, || {
            test();
            phalanx::set_sharing_strategy(phalanx::SharingStrategy::default());
        });
    }
}

/// Living processes in whose environment at their start a variable has this value.
pub(crate) fn tagged(variable: &str, value: &str) -> BTreeSet<u32> {
    let wanted = format!("{variable}={value}");
    let has_tag = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|pair| pair == wanted.as_bytes())
    };
    let living = |pid: &u32| state_of(*pid).is_some_and(|state| state != 'Z');
    processes().filter(has_tag).filter(living).collect()
}

/// The loader of dynamically linked programs (ld.so(8)).
pub(crate) const LOADER: &str =
    if cfg!(target_arch = "x86_64") { "/lib64/ld-linux-x86-64.so.2" } else { "/lib/ld-linux-aarch64.so.1" };

/// A pidfd of any process.
#[expect(unsafe_code, reason = "nix has no pidfd_open")]
pub(crate) fn pidfd(pid: u32) -> Option<OwnedFd> {
    // SAFETY: takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: the kernel has just made it for us.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Waits until a process has ended; one that does not exist has.
pub(crate) fn await_end(pid: u32) {
    if let Some(fd) = pidfd(pid) {
        poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(&fd), PollFlags::POLLIN)], PollTimeout::NONE)
            .unwrap();
        let _ = fd.as_raw_fd();
    }
}

/// Waits, for the watchdog's time at most, until `done`; for what the kernel gives no event of.
pub(crate) fn await_that(mut done: impl FnMut() -> bool) {
    while !done() {
        std::thread::yield_now();
    }
}

/// Sends a signal to a process of the test's own.
pub(crate) fn send(pid: u32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal).unwrap();
}

/// Waits until a process of one thread sleeps in a futex.
pub(crate) fn await_asleep(pid: u32) {
    let futexes = [libc::SYS_futex, libc::SYS_futex_waitv].map(|number| number.to_string());
    await_that(|| {
        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        call.split_whitespace().next().is_some_and(|number| futexes.iter().any(|futex| futex == number))
    });
}

/// Kills the only worker of a context; returns which it was, when it has ended.
pub(crate) fn kill(context: ProcessContext<()>) -> u32 {
    let pid = context.pids()[0];
    send(pid, nix::sys::signal::SIGKILL);
    let exception = exited(context.join().unwrap_err());
    assert_eq!(exception.signal_name().as_deref(), Some("SIGKILL"), "{exception}");
    pid
}

/// Ends this process by a signal that nothing can catch.
pub(crate) fn kill_self() -> ! {
    send(std::process::id(), nix::sys::signal::SIGKILL);
    unreachable!("SIGKILL is not survived")
}

/// Waits for ever; only a signal ends it.
pub(crate) fn wait_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

/// Numbers that the processes of one test tell each other.
pub(crate) fn board(places: usize) -> Tensor<i64> {
    Tensor::zeros(&[places]).unwrap()
}

/// Writes `value`, which must not be zero, to a place of the board.
pub(crate) fn post(board: &Tensor<i64>, place: usize, value: u32) {
    board.set(place, value.into()).unwrap();
}

/// Waits until somebody has written to a place of the board, and returns what.
pub(crate) fn await_post(board: &Tensor<i64>, place: usize) -> u32 {
    let mut seen = 0;
    await_that(|| {
        seen = board.get(place).unwrap();
        seen != 0
    });
    seen as u32
}

/// A set of signals from /proc/PID/status, such as "SigIgn", without the two that glibc keeps for itself: it
/// ignores them in what posix_spawn starts, and catches them once there are threads.
pub(crate) fn signal_set(status: &str, name: &str) -> u64 {
    let of_glibc = 0b11 << 31;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    u64::from_str_radix(line.unwrap().trim(), 16).unwrap() & !of_glibc
}

/// The sets in which a worker finds its signals: nothing blocked, SIGPIPE ignored, fatal signals caught.
pub(crate) fn assert_fresh_signals(status: &str) {
    use nix::sys::signal::Signal::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGPIPE, SIGSEGV};
    let bits = |signals: &[nix::sys::signal::Signal]| {
        signals.iter().map(|&signal| 1_u64 << (signal as u64 - 1)).sum()
    };
    let seen = ["SigBlk", "SigIgn", "SigCgt"].map(|name| signal_set(status, name));
    assert_eq!(seen, [0, bits(&[SIGPIPE]), bits(&[SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE])]);
}

/// Long enough to see that nothing comes.
pub(crate) const SOON: Duration = Duration::from_millis(20);

/// Polls until something else than "still running" comes.
pub(crate) fn poll_join<R>(context: &mut ProcessContext<R>) -> Result<(), Error> {
    while !context.join_timeout(SOON)? {}
    Ok(())
}

pub(crate) fn raised(error: Error) -> ProcessRaisedException {
    match error {
        Error::ProcessRaised(exception) => *exception,
        other => panic!("{other}"),
    }
}

pub(crate) fn exited(error: Error) -> ProcessExitedException {
    match error {
        Error::ProcessExited(exception) => *exception,
        other => panic!("{other}"),
    }
}

#[expect(unsafe_code, reason = "signal(2) is unsafe")]
pub(crate) fn ignore_term() {
    // SAFETY: SIG_IGN runs no code.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
}

/// Rank 0 fails when rank 1 ignores SIGTERM.
pub(crate) fn fail_or_ignore_term(rank: usize, ready: Tensor<i64>) -> anyhow::Result<()> {
    if rank == 0 {
        await_post(&ready, 1);
        anyhow::bail!("the first")
    }
    ignore_term();
    post(&ready, rank, 1);
    wait_for_ever()
}

/// What one worker of `work` raises.
pub(crate) fn raised_by(
    work: impl Fn(usize, ()) -> anyhow::Result<()> + Copy + Send + 'static,
) -> ProcessRaisedException {
    raised(spawn(work, (), 1).unwrap_err())
}

/// How one worker of `work` leaves.
pub(crate) fn exited_by(
    work: impl Fn(usize, ()) -> anyhow::Result<()> + Copy + Send + 'static,
) -> ProcessExitedException {
    exited(spawn(work, (), 1).unwrap_err())
}

/// The frames of the test's own functions, without the crate's name; each must have a file and a line.
pub(crate) fn own_frames(traceback: &phalanx::Traceback) -> Vec<(String, u32)> {
    let own = |frame: &phalanx::Frame| {
        let name = frame.function.strip_prefix(env!("CARGO_CRATE_NAME"))?.strip_prefix("::")?.to_owned();
        assert!(frame.file.as_ref().is_some_and(|file| file.contains("tests/")), "{frame:?}");
        Some((name, frame.line.unwrap()))
    };
    traceback.frames().iter().filter_map(own).collect()
}

/// A mistake.
#[inline(never)]
#[expect(unsafe_code, reason = "this is the mistake that is tested")]
pub(crate) fn write_to(address: usize) {
    // SAFETY: none.
    unsafe { (address as *mut u32).write_volatile(1) }
}

/// Options for workers of the fork server.
pub(crate) fn served(nprocs: usize) -> Options {
    Options::new(nprocs).start_method(StartMethod::ForkServer)
}

pub(crate) fn start<R: Serialize + DeserializeOwned>(
    f: impl Fn(usize, ()) -> anyhow::Result<R> + Copy + Send + 'static,
    nprocs: usize,
) -> ProcessContext<R> {
    start_processes(f, (), served(nprocs)).unwrap()
}

/// Runs a test as a launcher in a process of its own, and sees to it that its server ends with it.
pub(crate) fn launched(test: impl Fn(usize, ()) -> anyhow::Result<()> + Copy + Send + 'static) {
    const TAG: &str = "PHALANX_TEST_TAG";
    static ROUND: AtomicU64 = AtomicU64::new(0);
    watched(|| {
        let tag = format!("forkserver-{}-{}", std::process::id(), ROUND.fetch_add(1, Relaxed));
        let options = Options::new(1).env(TAG, &tag);
        if let Err(error) = start_processes(test, (), options).unwrap().join() {
            panic!("{error}");
        }
        await_that(|| tagged(TAG, &tag).is_empty());
    });
}

/// Runs a test once for each start method, in a process with one thread, which may fork.
pub(crate) fn by_each_method(test: impl Fn(StartMethod)) -> anyhow::Result<()> {
    for method in [StartMethod::Fork, StartMethod::Spawn, StartMethod::ForkServer] {
        // The fork server stays.
        start_processes(|_, ()| anyhow::Ok(()), (), by(method, 1))?.join()?;
        watched(|| test(method));
    }
    Ok(())
}

pub(crate) fn by(method: StartMethod, nprocs: usize) -> Options {
    Options::new(nprocs).start_method(method)
}

/// An open file with this text, to be read from its beginning.
pub(crate) fn file_of(text: &str) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    file
}

/// A worker that runs `work` with the other end of a pipe.
pub(crate) fn with_worker<A, B>(
    work: impl Fn(usize, Connection<B, A>) -> anyhow::Result<()> + Copy + Send + 'static,
    test: impl FnOnce(&Connection<A, B>),
) {
    let (ours, theirs) = pipe().unwrap();
    let context = start_processes(work, theirs, Options::new(1)).unwrap();
    test(&ours);
    drop(ours);
    context.join().unwrap();
}

/// Kills the only worker, and waits for its end.
pub(crate) fn kill_and_join<R>(mut context: ProcessContext<R>) -> bool {
    context.signal(0, Signal::KILL).unwrap();
    matches!(poll_join(&mut context), Err(Error::ProcessExited(_)))
}

#[expect(clippy::print_stdout, reason = "who reads the tests' output is to know")]
pub(crate) fn skipped(why: &str) {
    println!("skipped: {why}");
}
