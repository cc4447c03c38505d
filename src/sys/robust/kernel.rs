//! Whether this kernel wakes a waiter of a word when a thread ends that has the word pending: found out once by trying.

use std::io;
use std::mem;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU8, AtomicU32};
use std::thread::{self, Builder};
use std::time::Duration;

use super::super::clock::Moment;
use super::super::futex;
use super::pending::{PendingOp, head};
use super::word::{RobustWord, WAITERS};

/// How long the trial looks for its sleeper. An emulation of Linux may not count sleepers, and would be asked for ever.
const SOON: Duration = Duration::from_secs(1);

/// Whether the kernel wakes a sleeper when a thread ends that has the sleeper's word pending and does not own it. Where that cannot
/// be tried out, the answer is no.
//
// Such a thread has freed the word and not woken a sleeper yet, or it was woken and has not taken the word. The word has no owner
// then, but still the bit that says that threads sleep (WAITERS). Linux wakes one of them since 6.2, and in stable kernels since
// December 2022 (commit 90d758896787, "futex: Resend potentially swallowed owner death notification"). Before, it did so only if
// the whole word was 0 (since 5.5), or never.
pub(crate) fn death_wakes() -> bool {
    const YES: u8 = 1;
    const NO: u8 = 2;
    /// 0: it is not known yet.
    static KNOWN: AtomicU8 = AtomicU8::new(0);
    // Several threads may try it out at the same time. Each finds the same, so nothing has to be ordered.
    match KNOWN.load(Relaxed) {
        0 => {
            let limit = Moment::now().checked_add(SOON);
            // The trial costs two threads. On a kernel that is known to wake it would tell nothing new.
            let answer = match runs_fixed_release() {
                true => Some(true),
                false => try_out(|word| sleeps(word, limit), end_with_pending).unwrap_or(Some(false)),
            };
            KNOWN.store(answer.map_or(0, |wakes| if wakes { YES } else { NO }), Relaxed);
            answer.unwrap_or(false)
        }
        known => known == YES,
    }
}

/// Whether the kernel's release is one that wakes for certain.
fn runs_fixed_release() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|release| is_fixed_release(&release))
}

fn is_fixed_release(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>());
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 2))
}

/// Whether a thread sleeps on the word.
///
/// # Errors
/// When the kernel does not tell, or no thread does at the time of `limit`.
fn sleeps(word: &AtomicU32, limit: Option<Moment>) -> io::Result<bool> {
    let sleeps = futex::sleepers(word, WAITERS)? > 0;
    let is_late = !sleeps && limit.is_some_and(|limit| Moment::now() > limit);
    if is_late { Err(io::ErrorKind::TimedOut.into()) } else { Ok(sleeps) }
}

/// Tries it out: one thread sleeps on such a word, and when `sleeps` says so, another one ends by `end`. Says whether the first was woken;
/// `None`: something else has disturbed the sleeper.
//
// No step depends on time: the second thread begins when the first sleeps, and the look comes when the second is gone. A trial by
// timeouts would find a kernel that wakes nobody wherever the machine is busy.
fn try_out(
    sleeps: impl Fn(&AtomicU32) -> io::Result<bool>,
    end: impl FnOnce(&RobustWord) + Send,
) -> io::Result<Option<bool>> {
    let robust = RobustWord::new();
    let word = &robust.word;
    // As `sync::futex_lock::free` leaves a word between the store and the wake: no owner, and a bit that says that some
    // sleep. It is set here because this room knows nothing of that one, and the word is nobody's lock.
    word.store(WAITERS, SeqCst);
    let small = || Builder::new().stack_size(64 << 10);
    thread::scope(|scope| {
        let sleeper = small().spawn_scoped(scope, || futex::wait_to_be_woken(word, WAITERS))?;
        let asleep = loop {
            match sleeps(word) {
                Ok(false) if !sleeper.is_finished() => thread::yield_now(),
                told => break told,
            }
        };
        // A join returns when the kernel has cleared the thread's id, which it does after it has read the robust list.
        let ended = asleep.and_then(|_| small().spawn_scoped(scope, || end(&robust)));
        let ended = ended.map(|doomed| doomed.join().is_ok());
        // The count of FUTEX_WAKE is the answer: nobody to wake means that the kernel has woken the sleeper, or that something
        // else did.
        let still_asleep = futex::wake(word, 1) > 0;
        // Should the sleeper have been disturbed, it sleeps again, or will: it is sent away in either case.
        word.store(0, SeqCst);
        let sent_away = futex::wake(word, 1) > 0;
        let woken = sleeper.join().unwrap_or(false);
        Ok(match (ended?, still_asleep) {
            (true, true) => Some(false),
            (true, false) if woken && !sent_away => Some(true),
            _ => None,
        })
    })
}

/// Leaves the word pending for good.
fn end_with_pending(word: &RobustWord) {
    if let Ok(list) = head() {
        // The closure returns and the thread ends in the usual way; the kernel walks the robust list in that case as well
        // (exit_mm_release).
        mem::forget(PendingOp::new(list, word));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn told(word: &AtomicU32) -> io::Result<bool> {
        sleeps(word, None)
    }

    #[test]
    fn kernel_that_does_not_count_who_sleeps_is_not_waited_for() {
        // Nobody sleeps on this word: as if the one that does were not counted.
        let (other, limit) = (AtomicU32::new(WAITERS), Some(Moment::now()));
        let refused = try_out(|_| sleeps(&other, limit), end_with_pending).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        // Nor is the word what it is to be, which the kernel refuses.
        other.store(0, SeqCst);
        assert!(try_out(|_| sleeps(&other, None), end_with_pending).is_err());
    }

    #[test]
    fn release_is_certain_from_6_2_on() {
        for fixed in ["6.2.0", "6.18.44-fc-v669", "7.0-rc1", "10.1"] {
            assert!(is_fixed_release(fixed), "{fixed}");
        }
        for uncertain in ["6.1.192", "5.10.46", "4.4.0", "6", "", "Linux", "6.x"] {
            assert!(!is_fixed_release(uncertain), "{uncertain}");
        }
    }

    #[test]
    fn kernel_that_wakes_is_known_on_a_machine_that_is_busy() {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !done.load(Relaxed) {
                        std::hint::spin_loop()
                    }
                });
            }
            let answers: Vec<_> = (0..20).map(|_| try_out(told, end_with_pending).unwrap()).collect();
            done.store(true, Relaxed);
            // On an older kernel all that can be said is that the answer is always the same.
            let expected = if runs_fixed_release() { Some(true) } else { answers[0] };
            assert_eq!(answers, [expected; 20]);
        });
    }

    #[test]
    fn kernel_that_wakes_nobody_is_known() {
        // As a thread is to an old kernel that has such a word pending.
        assert_eq!(try_out(told, |_| ()).unwrap(), Some(false));
    }
}
