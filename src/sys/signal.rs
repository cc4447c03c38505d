//! Signals: signal(7), sigaction(2), sigaltstack(2), pthread_sigmask(3).

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::{fmt, io, mem, ptr};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, pthread_sigmask, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::{Deserialize, Serialize};

/// The number of a signal.
///
/// ```
/// use phalanx::Signal;
/// assert_eq!(Signal::TERM.to_string(), "SIGTERM");
/// assert_eq!(Signal::new(40).unwrap().to_string(), "signal 40");
/// assert!(Signal::new(65).is_none());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Signal(i32);

impl Signal {
    /// SIGHUP.
    pub const HUP: Self = Self(libc::SIGHUP);
    /// SIGINT.
    pub const INT: Self = Self(libc::SIGINT);
    /// SIGQUIT.
    pub const QUIT: Self = Self(libc::SIGQUIT);
    /// SIGABRT.
    pub const ABRT: Self = Self(libc::SIGABRT);
    /// SIGKILL.
    pub const KILL: Self = Self(libc::SIGKILL);
    /// SIGUSR1.
    pub const USR1: Self = Self(libc::SIGUSR1);
    /// SIGSEGV.
    pub const SEGV: Self = Self(libc::SIGSEGV);
    /// An access to memory whose file is not there, or is cut off.
    pub const BUS: Self = Self(libc::SIGBUS);
    /// SIGPIPE.
    pub const PIPE: Self = Self(libc::SIGPIPE);
    /// SIGUSR2.
    pub const USR2: Self = Self(libc::SIGUSR2);
    /// SIGTERM.
    pub const TERM: Self = Self(libc::SIGTERM);
    /// SIGCONT.
    pub const CONT: Self = Self(libc::SIGCONT);
    /// SIGSTOP.
    pub const STOP: Self = Self(libc::SIGSTOP);
    /// SIGTSTP.
    pub const TSTP: Self = Self(libc::SIGTSTP);
    /// SIGTTIN.
    pub const TTIN: Self = Self(libc::SIGTTIN);
    /// SIGTTOU.
    pub const TTOU: Self = Self(libc::SIGTTOU);
    /// SIGCHLD.
    pub const CHLD: Self = Self(libc::SIGCHLD);
    /// SIGWINCH.
    pub const WINCH: Self = Self(libc::SIGWINCH);

    /// The signal of this number, if there is one (1 to 64).
    #[must_use]
    pub const fn new(number: i32) -> Option<Self> {
        if number >= 1 && number <= 64 { Some(Self(number)) } else { None }
    }

    /// A number that the kernel reported.
    pub(super) const fn from_kernel(number: i32) -> Self {
        Self(number)
    }

    /// Its number on this machine.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }

    /// The signal of a name such as "SIGTERM", "TERM" or "15", in letters of either case.
    ///
    /// ```
    /// use phalanx::Signal;
    /// assert_eq!(Signal::from_name("sigusr1"), Some(Signal::USR1));
    /// assert_eq!(Signal::from_name("INT"), Signal::from_name("2"));
    /// assert_eq!(Signal::from_name("SIGNOTHING"), None);
    /// ```
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        if let Ok(number) = name.parse() {
            return Self::new(number);
        }
        let name = name.to_ascii_uppercase();
        let full = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
        full.parse::<nix::sys::signal::Signal>().ok().map(|signal| Self(signal as i32))
    }

    /// Its name, such as "SIGTERM"; real-time signals have none.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        nix::sys::signal::Signal::try_from(self.0).ok().map(nix::sys::signal::Signal::as_str)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "signal {}", self.0),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A set of signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signals(u64);

impl Signals {
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn insert(&mut self, signal: Signal) {
        self.0 |= Self::bit(signal);
    }

    pub(crate) fn contains(self, signal: Signal) -> bool {
        self.0 & Self::bit(signal) != 0
    }

    fn bit(signal: Signal) -> u64 {
        // A number from the kernel may be any.
        u32::try_from(signal.0 - 1).ok().and_then(|place| 1_u64.checked_shl(place)).unwrap_or(0)
    }
}

/// Whether the kernel reaps the children of this process itself, since SIGCHLD is ignored or has
/// SA_NOCLDWAIT: their exit statuses are lost then.
pub(crate) fn children_are_reaped_by_kernel() -> io::Result<bool> {
    // SAFETY: a plain record of integers and pointers, for which zeros are valid.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: a null new action only asks; the old one is written to a record of ours.
    if unsafe { libc::sigaction(libc::SIGCHLD, ptr::null(), &raw mut action) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(action.sa_sigaction == libc::SIG_IGN || action.sa_flags & libc::SA_NOCLDWAIT != 0)
}

/// Resets every disposition to the default and empties the signal mask, as a new program finds them, but for
/// SIGPIPE, which every Rust main ignores.
pub(crate) fn reset_all() -> io::Result<()> {
    reset_dispositions()?;
    unblock_all()
}

/// As [`reset_all`], but for the mask.
pub(crate) fn reset_dispositions() -> io::Result<()> {
    for number in 1..=64 {
        // SIGKILL, SIGSTOP and the two that glibc keeps for itself cannot be set.
        let _ = set_disposition(number, libc::SIG_DFL);
    }
    set_disposition(libc::SIGPIPE, libc::SIG_IGN)
}

/// Blocks every signal but those that the program's own mistakes raise: the kernel ends a program that blocks one of these
/// when it raises it, without calling the handler.
pub(crate) fn block_all_but_faults() -> io::Result<()> {
    let mut set = SigSet::all();
    FATAL.into_iter().chain(FATAL_UNHANDLED).for_each(|signal| set.remove(signal));
    Ok(pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&set), None)?)
}

/// Gives each signal that ends a process by default, but for its own faults, a handler that does nothing. Other than by
/// ignoring or blocking them, what this process starts meanwhile does not inherit it: exec(2) resets handlers.
pub(crate) fn outlive_all() {
    use nix::sys::signal::Signal::{
        SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGPWR, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM,
        SIGXCPU, SIGXFSZ,
    };
    extern "C" fn nothing(_: i32) {}
    let named = [
        SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGPWR, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM,
        SIGXCPU, SIGXFSZ,
    ];
    let nothing: extern "C" fn(i32) = nothing;
    for number in named.into_iter().map(|signal| signal as i32).chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        // All of these can be set.
        let _ = set_disposition(number, nothing as libc::sighandler_t);
    }
}

/// Empties the signal mask.
pub(crate) fn unblock_all() -> io::Result<()> {
    Ok(pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

/// Ignores `signal` from now on.
pub(crate) fn ignore(signal: Signal) -> io::Result<()> {
    set_disposition(signal.0, libc::SIG_IGN)
}

/// Gives `signal` its default action.
pub(crate) fn reset(signal: Signal) -> io::Result<()> {
    set_disposition(signal.0, libc::SIG_DFL)
}

fn set_disposition(number: i32, disposition: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: SIG_DFL and SIG_IGN run no code of ours, and the one handler that is set so touches nothing.
    if unsafe { libc::signal(number, disposition) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Blocks every signal in the calling thread: the program's handlers then run on its own threads.
pub(crate) fn block_all_in_thread() -> io::Result<()> {
    Ok(pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?)
}

/// Calls `work` while the calling thread is not stopped by this signal, as for using its terminal from the background.
pub(super) fn with_blocked<T>(
    signal: nix::sys::signal::Signal,
    work: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let (mut blocked, mut before) = (SigSet::empty(), SigSet::empty());
    blocked.add(signal);
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), Some(&mut before))?;
    let done = work();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    done
}

/// Sends this process a signal.
pub(crate) fn raise(signal: Signal) -> io::Result<()> {
    // SAFETY: takes an integer. Whatever the signal does, the process had it coming.
    match unsafe { libc::raise(signal.0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tells by a descriptor that children have ended: signalfd(2) of SIGCHLD, which is blocked for that.
#[derive(Debug)]
pub(crate) struct ChildSignals(SignalFd);

impl ChildSignals {
    pub(crate) fn new() -> io::Result<Self> {
        let mut set = SigSet::empty();
        set.add(nix::sys::signal::SIGCHLD);
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// Takes all out that were told.
    pub(crate) fn clear(&self) -> io::Result<()> {
        while self.0.read_signal()?.is_some() {}
        Ok(())
    }
}

impl AsFd for ChildSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The signals that a program's own mistake raises.
const FATAL: [nix::sys::signal::Signal; 5] = {
    use nix::sys::signal::Signal::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV};
    [SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE]
};

/// Likewise, but without a handler of ours.
const FATAL_UNHANDLED: [nix::sys::signal::Signal; 2] =
    [nix::sys::signal::Signal::SIGTRAP, nix::sys::signal::Signal::SIGSYS];

/// In the place of a [`Fault`]'s address where there is none.
pub(crate) const NO_ADDRESS: u64 = u64::MAX;

/// What a fatal signal interrupted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) signal: Signal,
    /// The address whose use failed, or [`NO_ADDRESS`].
    pub(crate) address: u64,
    pub(crate) instruction: u64,
    pub(crate) stack: u64,
}

static ON_FAULT: OnceLock<fn(&Fault)> = OnceLock::new();

/// Lets `record` see every fatal signal before it ends the process, with the status it would have had anyway.
///
/// It runs on a stack of its own in the calling thread, and on the stacks that std gives to other threads. It
/// must be async-signal-safe (signal-safety(7)).
pub(crate) fn on_fault(record: fn(&Fault)) -> io::Result<()> {
    ON_FAULT.get_or_init(|| record);
    use_alternate_stack()?;
    let handler = SigHandler::SigAction(handle_fault);
    // While one is handled the others are blocked: a fault in the handler ends the process instead of entering it once more, and a
    // SIGTERM does not end it before it has said what has met it.
    let mask = SigSet::all();
    let action = SigAction::new(handler, SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK, mask);
    for signal in FATAL {
        // SAFETY: handle_fault is async-signal-safe if `record` is, which the caller vouches for.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Room for the unwinder; what std gives to its threads is 8 KiB.
const ALTERNATE_STACK: usize = 64 * 1024;
/// Below it, so that a handler that needs more faults instead of writing elsewhere. A multiple of every page size.
const GUARD: usize = 64 * 1024;

fn use_alternate_stack() -> io::Result<()> {
    // A map of its own: from the heap its pages would be zeroed, that is touched, in every worker.
    let memory = mem::ManuallyDrop::new(memmap2::MmapOptions::new().len(GUARD + ALTERNATE_STACK).map_anon()?);
    let start = memory.as_ptr().cast_mut();
    // SAFETY: the first page of a map that nobody else knows.
    if unsafe { libc::mprotect(start.cast(), GUARD, libc::PROT_NONE) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let stack =
        libc::stack_t { ss_sp: start.wrapping_add(GUARD).cast(), ss_flags: 0, ss_size: ALTERNATE_STACK };
    // SAFETY: the map is never dropped, so it stays until the process ends.
    if unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Records the fault, then lets the signal take its usual course: with the default action in place, the
/// raised signal is delivered when this handler returns, to the very frame that was interrupted.
extern "C" fn handle_fault(number: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo that is valid during the handler.
    let info = unsafe { &*info };
    // SAFETY: and a ucontext, since the handler was set with SA_SIGINFO.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    let (instruction, stack) = registers(context);
    // A positive code is the kernel's own, and a signal that somebody sent has a pid in the address's place; but of an
    // address that cannot exist the processor does not say which it was (SI_KERNEL).
    let has_address =
        info.si_code > 0 && info.si_code != libc::SI_KERNEL && matches!(number, libc::SIGSEGV | libc::SIGBUS);
    // SAFETY: the kernel has set it for these two signals.
    let address = if has_address { unsafe { info.si_addr() }.addr() as u64 } else { NO_ADDRESS };
    if let Some(record) = ON_FAULT.get() {
        record(&Fault { signal: Signal(number), address, instruction, stack });
    }
    // A failure would leave the signal handled, so a fault that repeats would come back here for ever.
    if set_disposition(number, libc::SIG_DFL).is_err() {
        // SAFETY: _exit takes an integer and does not return.
        unsafe { libc::_exit(128 + number) };
    }
    // SAFETY: raise is async-signal-safe; the signal stays blocked until we return.
    unsafe { libc::raise(number) };
}

#[cfg(target_arch = "x86_64")]
fn registers(context: &libc::ucontext_t) -> (u64, u64) {
    let registers = &context.uc_mcontext.gregs;
    (registers[libc::REG_RIP as usize] as u64, registers[libc::REG_RSP as usize] as u64)
}

#[cfg(target_arch = "aarch64")]
fn registers(context: &libc::ucontext_t) -> (u64, u64) {
    (context.uc_mcontext.pc, context.uc_mcontext.sp)
}

/// pause(2): waits for the signal that ends the process. Async-signal-safe.
pub(crate) fn await_death() -> ! {
    loop {
        // SAFETY: takes nothing.
        unsafe { libc::pause() };
    }
}
