//! clone(2), execve(2): start a program that knows nothing of this library, with what posix_spawn(3) cannot set.
//!
//! Between clone and exec the child arms its parent-death signal, lets the launcher trace it, leads a process group, takes its
//! processors, and enters its directory. posix_spawn has no hook for that, and a helper program that does it before a second exec
//! costs half a millisecond a worker.

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::atomic::{AtomicI32, AtomicU32};
use std::{io, ptr};

use nix::fcntl::AtFlags;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::AccessFlags;

use super::affinity::Affinity;
use super::fd::above_stdio;
use super::raw;
use super::signal::Signal;

/// A program, and what its process begins with. It leads a process group of its own, all dispositions of signals are the default
/// ones, and no signal is blocked.
#[derive(Debug)]
pub(crate) struct ForeignProgram<'a> {
    /// The file; it is not looked up.
    pub(crate) file: &'a CStr,
    /// All of them: the first is the name by which the program is called.
    pub(crate) arguments: &'a [CString],
    /// `KEY=value`, all of them.
    pub(crate) environment: &'a [CString],
    /// `None`: the working directory of this process.
    pub(crate) directory: Option<&'a CStr>,
    /// Stdin, stdout and stderr.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// Descriptors that keep their numbers. Their close-on-exec flag stays set in this process.
    pub(crate) inherited: &'a [BorrowedFd<'a>],
    /// The signal that the kernel sends the program when the thread that has started it ends.
    pub(crate) death_signal: Signal,
    /// `None`: the processors of the calling thread.
    pub(crate) affinity: Option<&'a Affinity>,
    /// The NUMA nodes that its memory is to come from, a bit each. A kernel or a container that refuses it is no error.
    pub(crate) memory_nodes: Option<&'a [u64]>,
    /// The [`ignored_signals`] of this process, which are given their default dispositions.
    pub(crate) ignored: u64,
}

impl ForeignProgram<'_> {
    /// Begins to start the program. The child shares this process's memory until its execve(2), while this thread goes on: so
    /// several programs are started at once, as vfork(2), which stops the parent, would not let them.
    ///
    /// # Errors
    /// Those of clone(2).
    pub(crate) fn begin(&self) -> io::Result<Starting<'_>> {
        let mut child = Box::new(Child {
            program: self,
            arguments: pointers(self.arguments),
            environment: pointers(self.environment),
            inherited: self.inherited.iter().map(AsRawFd::as_raw_fd).collect(),
            stdio: self.stdio.map(|fd| fd.as_raw_fd()),
            launcher: std::process::id(),
            stack: vec![0; STACK_WORDS],
            error: AtomicI32::new(0),
            // Not zero until the kernel says so.
            shares_memory: AtomicU32::new(1),
        });
        let (mut pidfd, none) = (-1, ptr::null_mut::<c_void>());
        let top = child.stack.as_mut_ptr_range().end.cast::<c_void>();
        let record: *const Child<'_> = &raw const *child;
        // CLONE_CHILD_CLEARTID: the word becomes zero, and whoever waits for it is woken, when the child lets go of the memory: by
        // execve or by its end (mm_release in the kernel).
        let flags = libc::CLONE_VM | libc::CLONE_PIDFD | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
        // No handler of this process may run in the child: it would write to the memory of both.
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
        // SAFETY: the stack is the child's alone, and the record, which is on the heap, outlives its use of it: `Starting` waits
        // for that before it is dropped. The child calls the system without the C library, so that it does not share this thread's errno.
        let pid = unsafe {
            libc::clone(
                run,
                top,
                flags,
                record.cast_mut().cast(),
                &raw mut pidfd,
                none,
                child.shares_memory.as_ptr(),
            )
        };
        let error = io::Error::last_os_error();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
        if pid < 0 {
            return Err(error);
        }
        // SAFETY: the kernel has just made this descriptor for us.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Starting { pid: pid.unsigned_abs(), pidfd: Some(pidfd), child })
    }

    /// Starts the program, and returns the pid of its process, a child of this one.
    ///
    /// # Errors
    /// Those of clone(2), and of what the child does up to execve(2); then no process is left.
    #[cfg(test)]
    fn start(&self) -> io::Result<u32> {
        let starting = self.begin()?;
        let pid = starting.pid;
        starting.finish().map(|()| pid).inspect_err(|_| {
            // SAFETY: no status is asked for. The child has ended, and only this thread knows it.
            unsafe { libc::waitpid(pid as i32, ptr::null_mut(), 0) };
        })
    }
}

/// For the few frames from `run` to execve.
const STACK_WORDS: usize = 1024;

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// A child on its way to execve(2). Dropping it waits until the child is there.
#[derive(Debug)]
pub(crate) struct Starting<'a> {
    pid: u32,
    pidfd: Option<OwnedFd>,
    child: Box<Child<'a>>,
}

impl Starting<'_> {
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The child's pidfd, which the caller may have once.
    pub(crate) fn take_pidfd(&mut self) -> io::Result<OwnedFd> {
        above_stdio(self.pidfd.take().ok_or(io::ErrorKind::NotFound)?)
    }

    /// Waits until the program runs.
    ///
    /// # Errors
    /// What the child has met instead. It has ended then, and is to be reaped as any other.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.wait();
        match self.child.error.load(Acquire) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn wait(&self) {
        let word = &self.child.shares_memory;
        while word.load(Acquire) != 0 {
            // The kernel's wake is one for words that processes share (no FUTEX_PRIVATE_FLAG). Interrupted, or woken for nothing, the
            // word is looked at again.
            // SAFETY: the word is in memory of ours, and outlives the call; no time limit is passed.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    word.as_ptr(),
                    libc::FUTEX_WAIT,
                    1,
                    ptr::null::<libc::timespec>(),
                )
            };
        }
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.wait();
    }
}

/// What the child reads, and the error that it leaves.
#[derive(Debug)]
struct Child<'a> {
    program: &'a ForeignProgram<'a>,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    inherited: Vec<RawFd>,
    stdio: [RawFd; 3],
    launcher: u32,
    stack: Vec<u128>,
    error: AtomicI32,
    shares_memory: AtomicU32,
}

/// The child, on a stack of 16 KiB.
extern "C" fn run(child: *mut c_void) -> i32 {
    // SAFETY: it is the `Child` that `begin` has made, and keeps until this process shares no memory with it any more.
    let child = unsafe { &*child.cast::<Child<'_>>() };
    if let Err(errno) = child.exec() {
        child.error.store(errno, Release);
    }
    // clone(2) ends the process with this.
    127
}

/// A system call of the child's.
macro_rules! call {
    ($number:ident $(, $argument:expr)*) => {{
        let mut arguments = [0; 4];
        let given: &[usize] = &[$($argument as usize),*];
        arguments[..given.len()].copy_from_slice(given);
        // SAFETY: its arguments are integers, or point to what lives in `Child` or on the stack until after the call.
        unsafe { raw::call(libc::$number, arguments) }
    }};
}

impl Child<'_> {
    /// Becomes the program; returns only to say why not.
    fn exec(&self) -> Result<usize, i32> {
        self.set_attributes()?;
        self.set_descriptors()?;
        if let Some(directory) = self.program.directory {
            call!(SYS_chdir, directory.as_ptr())?;
        }
        reset_signals(self.program.ignored);
        call!(SYS_execve, self.program.file.as_ptr(), self.arguments.as_ptr(), self.environment.as_ptr())
    }

    fn set_attributes(&self) -> Result<(), i32> {
        call!(SYS_setpgid, 0, 0)?;
        call!(SYS_prctl, libc::PR_SET_PDEATHSIG, self.program.death_signal.number())?;
        // Yama lets a debugger trace its own descendants only; stacks of a worker are taken by the launcher and its children.
        // A kernel without Yama answers EINVAL.
        let _ = call!(SYS_prctl, libc::PR_SET_PTRACER, self.launcher);
        if call!(SYS_getppid)? != self.launcher as usize {
            // The launcher was killed before the death signal was armed, so the signal will not come.
            return Err(libc::ESRCH);
        }
        if let Some(affinity) = self.program.affinity {
            let words = affinity.words();
            call!(SYS_sched_setaffinity, 0, size_of_val(words), words.as_ptr())?;
        }
        if let Some(nodes) = self.program.memory_nodes {
            // MPOL_PREFERRED_MANY (Linux 5.15): a full node is no reason to die. Containers refuse the call (EPERM): a wish.
            const PREFERRED_MANY: i32 = 5;
            // The kernel takes one bit less than it is told.
            let _ = call!(SYS_set_mempolicy, PREFERRED_MANY, nodes.as_ptr(), 64 * nodes.len() + 1);
        }
        Ok(())
    }

    fn set_descriptors(&self) -> Result<(), i32> {
        // Copies above all numbers in use first: a source may have the number 0, 1 or 2 of another stream.
        let mut copies = [0; 3];
        for (copy, source) in copies.iter_mut().zip(self.stdio) {
            *copy = call!(SYS_fcntl, source, libc::F_DUPFD_CLOEXEC, libc::STDERR_FILENO + 1)?;
        }
        for (number, copy) in copies.into_iter().enumerate() {
            // The new number has no close-on-exec flag.
            call!(SYS_dup3, copy, number, 0)?;
        }
        for &fd in &self.inherited {
            // The table of descriptors is a copy (no CLONE_FILES): the parent's flag stays.
            call!(SYS_fcntl, fd, libc::F_SETFD, 0)?;
        }
        Ok(())
    }
}

/// The signals that this process ignores, a bit each: what execve(2) would keep in a program.
pub(crate) fn ignored_signals() -> u64 {
    let is_ignored = |number: &i32| {
        // The kernel's record begins with the handler.
        let mut record = [0_u64; 4];
        // SAFETY: the kernel writes one record of that size, and reads none.
        let asked = unsafe {
            raw::call(
                libc::SYS_rt_sigaction,
                [*number as usize, 0, record.as_mut_ptr() as usize, size_of::<u64>()],
            )
        };
        asked.is_ok() && record[0] == libc::SIG_IGN as u64
    };
    (1..=64).filter(is_ignored).fold(0, |all, number| all | bit(number))
}

fn bit(number: i32) -> u64 {
    1 << (number - 1)
}

/// exec(2) resets handlers, but keeps what is ignored, what is blocked, and what is pending.
///
/// Before it left the launcher's process group the child may have been sent a Ctrl-Z or a Ctrl-C. A child that is stopped before
/// exec would hold up its launcher; and what was meant for the launcher, the launcher passes on.
fn reset_signals(ignored: u64) {
    let mut pending = 0_u64;
    let asked = call!(SYS_rt_sigpending, &raw mut pending, size_of::<u64>());
    let pending = asked.map_or(u64::MAX, |_| pending);
    // Two calls for each of the 64 would be a tenth of the time that a small program takes to start.
    for number in (1..=64).filter(|&number| (ignored | pending) & bit(number) != 0) {
        // Ignoring a signal discards it where it is pending (sigaction(2)).
        set_disposition(number, libc::SIG_IGN);
        set_disposition(number, libc::SIG_DFL);
    }
    // From here on nobody stops this process before exec: no terminal has its group in the foreground yet, and nobody else knows
    // its pid.
    let empty = 0_u64;
    let _ = call!(SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const empty, 0, size_of::<u64>());
}

/// By the system call itself: signal(3) refuses the two signals that glibc has for itself, and these too may have been ignored by
/// whoever has started this process. Of SIGKILL and SIGSTOP it fails, and nothing is lost. The table of handlers is a copy
/// (no CLONE_SIGHAND).
fn set_disposition(number: i32, disposition: libc::sighandler_t) {
    // The kernel's record: the handler, and zeros for the flags, the restorer and the mask.
    let record = [disposition as u64, 0, 0, 0];
    let _ = call!(SYS_rt_sigaction, number, record.as_ptr(), 0, size_of::<u64>());
}

/// The error of a file that is no program.
pub(crate) const NOT_EXECUTABLE: i32 = libc::EACCES;
/// The error of execve(2) for a file that may be executed, and whose begin the kernel does not know.
pub(crate) const UNKNOWN_FORMAT: i32 = libc::ENOEXEC;

/// Whether this process may run the file (access(2), by the effective ids).
pub(crate) fn may_execute(path: &Path) -> io::Result<()> {
    let flags = AtFlags::AT_EACCESS;
    Ok(nix::unistd::faccessat(nix::fcntl::AT_FDCWD, path, AccessFlags::X_OK, flags)?)
}

#[cfg(test)]
mod tests;
