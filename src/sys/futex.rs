//! futex(2) in memory that several processes share.

use std::io;
use std::sync::atomic::AtomicU32;

use super::clock::Moment;

/// Sleeps while `word` is `expected`, until somebody wakes it or `deadline` has come. It may wake for nothing.
pub(crate) fn wait(word: &AtomicU32, expected: u32, deadline: Option<Moment>) -> io::Result<()> {
    let left = deadline.map(|at| at.since(Moment::now())).map(|left| libc::timespec {
        tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    });
    let timeout = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word is valid as a reference, and the timeout null or a record of ours; both outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, timeout) };
    if done == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // It has changed, time is up, or a signal came: who waits looks again.
        error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ETIMEDOUT | libc::EINTR)) => Ok(()),
        error => Err(error),
    }
}

/// Wakes all who wait for `word` to change.
pub(crate) fn wake_all(word: &AtomicU32) {
    // SAFETY: takes the word's address as a key, and two integers.
    // With a valid word it cannot fail.
    let _ = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::{Acquire, Release};
    use std::time::Duration;

    use super::*;

    #[test]
    fn wait_ends_with_the_wake_the_change_or_the_deadline() {
        let word = AtomicU32::new(0);
        wait(&word, 1, None).unwrap();
        wait(&word, 0, Moment::now().checked_add(Duration::from_millis(1))).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                word.store(1, Release);
                wake_all(&word);
            });
            while word.load(Acquire) == 0 {
                wait(&word, 0, None).unwrap();
            }
        });
    }
}
