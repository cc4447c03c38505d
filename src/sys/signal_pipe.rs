//! sigaction(2) and a pipe: the signals of this process as something to be read.
//!
//! signal-hook has such a pipe too, but leaves its handler in place when it is told to forget a signal; here the program's own
//! dispositions come back.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::{mem, ptr};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::pipe::{Read, pipe, read_now};
use super::signal::Signal;

/// Where the handler writes; -1: there is no pipe.
static WRITER: AtomicI32 = AtomicI32::new(-1);

/// Signals that are taken over while this lives; after that they do what they did before. A process has one at a time.
#[derive(Debug)]
pub(crate) struct SignalPipe {
    reader: OwnedFd,
    _writer: OwnedFd,
    before: Vec<(Signal, Disposition)>,
}

/// What the process had for a signal.
struct Disposition(libc::sigaction);

impl std::fmt::Debug for Disposition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "handler {:#x}", self.0.sa_sigaction)
    }
}

impl SignalPipe {
    /// Takes over these signals, but for those of them that are ignored, as SIGHUP is under nohup(1).
    ///
    /// # Errors
    /// When another one lives, and those of pipe(2) and sigaction(2).
    pub(crate) fn take_over(signals: &[Signal]) -> io::Result<Self> {
        let (reader, writer) = pipe()?;
        // A handler must not wait: a signal for which there is no room is one of very many.
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        if WRITER.compare_exchange(-1, writer.as_raw_fd(), Relaxed, Relaxed).is_err() {
            return Err(io::Error::other("another job of this process has taken over its signals"));
        }
        let mut taken = Self { reader, _writer: writer, before: Vec::new() };
        for &signal in signals {
            let before = disposition(signal)?;
            if before.0.sa_sigaction != libc::SIG_IGN {
                handle(signal)?;
                taken.before.push((signal, before));
            }
        }
        Ok(taken)
    }

    /// The next signal that has come.
    pub(crate) fn next(&self) -> io::Result<Option<Signal>> {
        let mut number = [0];
        Ok(match read_now(self.reader.as_fd(), &mut number)? {
            Read::Bytes(_) => Signal::new(i32::from(number[0])),
            Read::Nothing | Read::End => None,
        })
    }
}

impl AsFd for SignalPipe {
    /// Readable when a signal has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

impl Drop for SignalPipe {
    fn drop(&mut self) {
        for (signal, before) in &self.before {
            // SAFETY: the record is the one that the kernel gave for this signal.
            unsafe { libc::sigaction(signal.number(), &raw const before.0, ptr::null_mut()) };
        }
        WRITER.store(-1, Relaxed);
    }
}

fn disposition(signal: Signal) -> io::Result<Disposition> {
    // SAFETY: a plain record of integers and pointers, for which zeros are valid.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: a null new action only asks; the old one is written to a record of ours.
    match unsafe { libc::sigaction(signal.number(), ptr::null(), &raw mut action) } {
        0 => Ok(Disposition(action)),
        _ => Err(io::Error::last_os_error()),
    }
}

fn handle(signal: Signal) -> io::Result<()> {
    // SAFETY: a plain record of integers and pointers, for which zeros are valid.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    let handler: extern "C" fn(i32) = note;
    (action.sa_sigaction, action.sa_flags) = (handler as libc::sighandler_t, libc::SA_RESTART);
    // SAFETY: the handler is async-signal-safe; the old action is not asked for.
    match unsafe { libc::sigaction(signal.number(), &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The handler: one byte. It keeps errno for the code that it interrupts.
extern "C" fn note(number: i32) {
    let byte = number as u8;
    // SAFETY: takes nothing, and returns a pointer that is valid for this thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    // SAFETY: a byte of ours. A full pipe, and one that is gone since, refuse it without harm.
    unsafe { libc::write(WRITER.load(Relaxed), (&raw const byte).cast(), 1) };
    // SAFETY: as above.
    unsafe { *errno = before };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raise(signal: Signal) {
        // SAFETY: the signal is handled or ignored here.
        unsafe { libc::raise(signal.number()) };
    }

    #[test]
    fn signals_are_read_in_their_order_and_given_back() {
        let (one, two) = (Signal::USR2, Signal::WINCH);
        super::super::signal::ignore(one).unwrap();
        let taken = SignalPipe::take_over(&[one, two]).unwrap();
        assert!(SignalPipe::take_over(&[two]).is_err(), "a process has one at a time");
        raise(two);
        // Ignored before, and so ignored still.
        raise(one);
        raise(two);
        assert_eq!(
            [taken.next().unwrap(), taken.next().unwrap(), taken.next().unwrap()],
            [Some(two), Some(two), None]
        );
        drop(taken);
        assert_eq!(disposition(one).unwrap().0.sa_sigaction, libc::SIG_IGN);
        assert_eq!(disposition(two).unwrap().0.sa_sigaction, libc::SIG_DFL);
        super::super::signal::reset(one).unwrap();
    }
}
