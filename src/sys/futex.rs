//! futex(2) in memory that several processes share.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::clock::Moment;

/// How many words can be waited for at a time (FUTEX_WAITV_MAX).
pub(crate) const MOST_WORDS: usize = 128;

/// Sleeps while `word` is `expected`, until it is woken or `deadline` has come. It may also wake without a reason.
pub(crate) fn wait(word: &AtomicU32, expected: u32, deadline: Option<Moment>) -> io::Result<()> {
    woken(wait_until(word, expected, deadline))
}

/// As [`wait`], without end; says whether it was woken.
pub(super) fn wait_to_be_woken(word: &AtomicU32, expected: u32) -> bool {
    wait_until(word, expected, None) == 0
}

fn wait_until(word: &AtomicU32, expected: u32, deadline: Option<Moment>) -> libc::c_long {
    let deadline = deadline.map(timespec);
    let timeout = deadline.as_ref().map_or(ptr::null(), ptr::from_ref);
    let (nothing, all) = (ptr::null::<u32>(), libc::FUTEX_BITSET_MATCH_ANY);
    // With a set of bits, all of them, the time is one of the clock rather than a duration.
    let operation = libc::FUTEX_WAIT_BITSET;
    // SAFETY: the word is valid as a reference, and the timeout null or a record of ours; both outlive the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, expected, timeout, nothing, all) }
}

/// The halves of a word and of what is expected of it, to [sleep](wait_any) on: a futex has 32 bits.
pub(crate) fn halves(word: &AtomicU64, expected: u64) -> [(&AtomicU32, u32); 2] {
    let first = word.as_ptr().cast::<u32>();
    // SAFETY: a valid word as long as the reference lives, aligned to more than that; only the kernel looks at it as such.
    let first_half = unsafe { AtomicU32::from_ptr(first) };
    // SAFETY: its second half.
    let second = unsafe { first.add(1) };
    // SAFETY: as the first half.
    let second_half = unsafe { AtomicU32::from_ptr(second) };
    let [low, high] = [expected as u32, (expected >> 32) as u32];
    if cfg!(target_endian = "little") {
        [(first_half, low), (second_half, high)]
    } else {
        [(first_half, high), (second_half, low)]
    }
}

/// How many sleep until `word`, which is `expected`, changes.
///
/// # Errors
/// `EAGAIN` when the word is not as expected; when the kernel has no FUTEX_CMP_REQUEUE, or a filter refuses it.
pub(crate) fn sleepers(word: &AtomicU32, expected: u32) -> io::Result<usize> {
    // Requeueing the sleepers of a word to the same word changes nothing, and returns their number.
    let (operation, none, all) = (libc::FUTEX_CMP_REQUEUE, 0_usize, i32::MAX as usize);
    // SAFETY: takes the address of a valid word as a key, twice, and integers.
    let moved = unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), operation, none, all, word.as_ptr(), expected)
    };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// As [`wait`], while each of at most [`MOST_WORDS`] words is what is expected of it. Says by which of them it was woken, of
/// several the last; `None`: by none.
///
/// # Errors
/// `Unsupported` before Linux 5.16, and where it is forbidden.
pub(crate) fn wait_any(words: &[(&AtomicU32, u32)], deadline: Option<Moment>) -> io::Result<Option<usize>> {
    /// struct futex_waitv (linux/futex.h).
    #[repr(C)]
    struct Waiter {
        expected: u64,
        word: u64,
        flags: u32,
        reserved: u32,
    }
    /// FUTEX2_SIZE_U32; without FUTEX2_PRIVATE.
    const SHARED: u32 = 2;
    let waiter = |&(word, expected): &(&AtomicU32, u32)| Waiter {
        expected: expected.into(),
        word: word.as_ptr().expose_provenance() as u64,
        flags: SHARED,
        reserved: 0,
    };
    let waiters: Vec<_> = words.iter().map(waiter).collect();
    let deadline = deadline.map(timespec);
    let timeout = deadline.as_ref().map_or(ptr::null(), ptr::from_ref);
    let (first, count) = (waiters.as_ptr(), waiters.len());
    // SAFETY: the words are valid as references, the timeout is null or a record of ours; all outlive the call.
    let done =
        unsafe { libc::syscall(libc::SYS_futex_waitv, first, count, 0, timeout, libc::CLOCK_MONOTONIC) };
    woken(done).map(|()| usize::try_from(done).ok())
}

fn timespec(at: Moment) -> libc::timespec {
    const SECOND: u64 = 1_000_000_000;
    let (seconds, nanos) = (at.as_nanos() / SECOND, at.as_nanos() % SECOND);
    libc::timespec { tv_sec: seconds.cast_signed(), tv_nsec: nanos.cast_signed() }
}

fn woken(returned: libc::c_long) -> io::Result<()> {
    if returned >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // It has changed, time is up, or a signal came: the waiter looks again.
        error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ETIMEDOUT | libc::EINTR)) => Ok(()),
        // Some containers forbid what they have not heard of.
        error if error.raw_os_error() == Some(libc::EPERM) => Err(io::ErrorKind::Unsupported.into()),
        error => Err(error),
    }
}

/// Wakes at most `count` waiters of `word`; returns how many it has woken.
pub(crate) fn wake(word: &AtomicU32, count: i32) -> usize {
    // SAFETY: takes the word's address as a key, and two integers.
    // With a valid word it cannot fail.
    let woken = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, count) };
    usize::try_from(woken).unwrap_or(0)
}

/// Wakes all waiters of `word`.
pub(crate) fn wake_all(word: &AtomicU32) {
    wake(word, i32::MAX);
}

/// Sets `word` to 1 and wakes all its waiters. The kernel does both, so the caller cannot be killed in between.
pub(crate) fn set_and_wake_all(word: &AtomicU32) -> io::Result<()> {
    // FUTEX_OP_SET of 1. Of a second word nobody is to be woken, hence a comparison that is never true.
    const SET_ONE: u32 = (libc::FUTEX_OP_SET as u32) << 28 | 1 << 12 | 0x7ff;
    let (operation, all, no_more) = (libc::FUTEX_WAKE_OP, i32::MAX, 0_usize);
    // SAFETY: the word is valid as a reference and may be changed by anybody; the rest are integers.
    let woken = unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), operation, all, no_more, word.as_ptr(), SET_ONE)
    };
    if woken < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::Ordering::{Acquire, Release};
    use std::time::Duration;

    use super::*;

    /// Waits until the thread whose id is, or will be, in `tid` sleeps in a futex.
    pub(crate) fn await_asleep(tid: &AtomicU32) {
        let futexes = [libc::SYS_futex, libc::SYS_futex_waitv].map(|number| number.to_string());
        let asleep = || {
            let call = std::fs::read_to_string(format!("/proc/self/task/{}/syscall", tid.load(Acquire)));
            let call = call.unwrap_or_default();
            call.split(' ').next().is_some_and(|number| futexes.iter().any(|futex| futex == number))
        };
        while !asleep() {
            std::thread::yield_now();
        }
    }

    /// Whether the kernel has [`wait_any`], by which one sleeper can be woken by any of several words.
    pub(crate) fn can_wait_for_several() -> bool {
        let word = AtomicU32::new(0);
        !wait_any(&[(&word, 1)], None).is_err_and(|error| error.kind() == io::ErrorKind::Unsupported)
    }

    #[test]
    fn wait_ends_with_the_wake_the_change_or_the_deadline() {
        let word = AtomicU32::new(0);
        wait(&word, 1, None).unwrap();
        let soon = || Moment::now().checked_add(Duration::from_millis(1));
        wait(&word, 0, soon()).unwrap();
        if can_wait_for_several() {
            wait_any(&[(&word, 0), (&AtomicU32::new(5), 5)], soon()).unwrap();
            wait_any(&[(&word, 0), (&AtomicU32::new(5), 4)], None).unwrap();
        }
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

    #[test]
    fn change_of_either_half_of_a_word_ends_the_wait() {
        let word = AtomicU64::new(7 << 32 | 9);
        for expected in [7 << 32 | 8, 6 << 32 | 9] {
            for half in
                halves(&word, expected).into_iter().filter(|(half, value)| half.load(Acquire) != *value)
            {
                wait(half.0, half.1, None).unwrap();
            }
            assert_ne!(halves(&word, expected).map(|(half, value)| half.load(Acquire) == value), [true; 2]);
        }
        assert_eq!(halves(&word, 7 << 32 | 9).map(|(half, value)| half.load(Acquire) == value), [true; 2]);
    }

    #[test]
    fn setting_a_word_wakes_who_waits_for_it() {
        let (word, tid) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                tid.store(crate::sys::thread::id(), Release);
                while word.load(Acquire) == 0 {
                    wait(&word, 0, None).unwrap();
                }
            });
            await_asleep(&tid);
            set_and_wake_all(&word).unwrap();
        });
        set_and_wake_all(&word).unwrap();
        assert_eq!(word.load(Acquire), 1);
    }
}
