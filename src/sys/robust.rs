//! get_robust_list(2): words in shared memory that a thread owns, which the kernel marks when the thread ends, however
//! it ends.
//!
//! Which words a thread owns is kept in `roll`.

use std::any::Any;
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Release;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::atomic_record::atomic_record;
use super::pending::Pending;
use super::roll::{own, with, with_roll};

/// The bits of a word that say whose it is (futex(2)): a thread's id.
pub(crate) const OWNER: u32 = 0x3fff_ffff;
/// Set by the kernel, which has taken the owner out: it ended.
pub(crate) const OWNER_DIED: u32 = 0x4000_0000;
/// Set by who sleeps: whoever frees the word, the kernel too, wakes one.
pub(crate) const WAITERS: u32 = 0x8000_0000;

atomic_record! {
    /// A word that a thread can own.
    pub(crate) struct RobustWord {
        pub(crate) word: AtomicU32,
        /// The process of the owner, once it is inside; 0 before it is and when it begins to leave.
        pub(crate) holder: AtomicU32,
        /// For whoever uses it.
        pub(crate) mark: AtomicU32,
        /// The [`nonce`](Me::nonce) of the owner, as long as the `holder` is there.
        pub(crate) nonce: AtomicU32,
        spare: [AtomicU32; 2],
        /// Of the anchors: where the C library keeps the link before.
        pub(super) before: AtomicU64,
        /// The link that comes next. The kernel reads it.
        pub(super) next: AtomicU64,
    }
}

/// What keeps the memory of a word mapped as long as it is owned.
pub(crate) enum MapPin {
    This(#[expect(dead_code, reason = "it is there to be dropped late")] Held),
    /// As this one; and who owns the word may have references to what it guards, which are used as long as the process lives if
    /// the owner's guard is leaked. So the word does not go with the thread: see `Roll::bequeath`.
    Lender(#[expect(dead_code, reason = "as above")] Held),
    /// Who owns the word borrows its memory until it is freed, and never forgets to free it: it is nothing that a user has.
    /// That spares the time of counting.
    Owner,
}

/// Memory that is held.
type Held = Arc<dyn Any + Send + Sync>;

/// A thread and its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Me {
    pub(crate) tid: u32,
    pub(crate) pid: u32,
    /// A random number, not 0: threads of two PID namespaces may have the same ids.
    pub(crate) nonce: u32,
}

/// Runs `take`, which tries to write our id into the word, and enters it among those that this thread owns. If the thread
/// ends at any moment meanwhile, the kernel looks whose the word is, and wakes another if it is nobody's.
pub(crate) fn take<T, E: From<io::Error>>(
    word: &RobustWord,
    keep: impl FnOnce() -> MapPin,
    take: impl FnOnce(Me) -> Result<T, E>,
) -> Result<T, E> {
    let own = own()?;
    let (me, head) = with(own, |roll| roll.check_room().map(|()| (roll.me, roll.head)))??;
    let _pending = Pending::new(head, word);
    let taken = take(me)?;
    let map_pin = keep();
    with(own, |roll| roll.enter(word, map_pin))?;
    Ok(taken)
}

/// Runs `free`, which takes our id out of the word and wakes another, unless this thread does not own it, as in a fork of
/// the owner; says whether it does.
pub(crate) fn free(word: &RobustWord, free: impl FnOnce()) -> bool {
    let Ok(own) = own() else { return false };
    let left = with(own, |roll| roll.find(word).map(|place| (roll.head, place)));
    let Ok(Some((head, place))) = left else { return false };
    let pending = Pending::new(head, word);
    let kept = with(own, |roll| roll.leave(place));
    free();
    // The word may be gone with what kept it, and must not be announced any more.
    drop(pending);
    drop(kept);
    true
}

/// Runs `work`, which changes something and wakes those who wait for it, or waits itself. If the thread ends meanwhile,
/// the kernel wakes one of those who sleep on the word, which is nobody's ever.
pub(crate) fn attend<T>(word: &RobustWord, work: impl FnOnce() -> T) -> T {
    // In a signal handler that came between, it is done unattended.
    let head = with_roll(|roll| roll.head).ok();
    let _pending = head.map(|head| Pending::new(head, word));
    work()
}

/// As [`attend`], where only one thread at a time does, which owns the word meanwhile: if it ends, the kernel changes the word, too,
/// so that one is told who was only about to sleep on it.
pub(crate) fn attend_alone<T>(word: &RobustWord, work: impl FnOnce() -> T) -> T {
    // In a signal handler that came between, it is done unattended.
    let own = with_roll(|roll| (roll.head, roll.me.tid)).ok();
    let _pending = own.map(|(head, _)| Pending::new(head, word));
    if let Some((_, tid)) = own {
        word.word.store(tid | WAITERS, Release);
    }
    let done = work();
    word.word.store(0, Release);
    done
}

/// Whether this thread owns it.
pub(crate) fn owns(word: &RobustWord) -> bool {
    with_roll(|roll| roll.find(word).is_some()).unwrap_or(false)
}

/// This thread.
pub(crate) fn me() -> io::Result<Me> {
    with_roll(|roll| roll.me)
}

impl RobustWord {
    pub(super) fn new() -> Self {
        let zero = || AtomicU32::new(0);
        let (before, next) = (AtomicU64::new(0), AtomicU64::new(0));
        let spare = [zero(), zero()];
        Self { word: zero(), holder: zero(), mark: zero(), nonce: zero(), spare, before, next }
    }

    /// The address of its link, by which a list knows it.
    pub(super) fn link(&self) -> usize {
        ptr::from_ref(&self.next).expose_provenance()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Runs something on a thread that [dies](die) in it.
    pub(crate) fn doomed(work: impl FnOnce() + Send + 'static) {
        // Nobody can join it: it leaves no result.
        drop(std::thread::spawn(work));
    }

    /// Ends this thread as a signal would that nothing can catch: nothing is unwound or dropped, and the kernel sees to the
    /// words.
    pub(crate) fn die() -> ! {
        // SAFETY: nobody has references to what is on the stack, which stays behind.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
        unreachable!("the thread has ended")
    }

    pub(crate) fn free_word() -> RobustWord {
        RobustWord::new()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::free_word;
    use std::mem;
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;

    fn word() -> Arc<RobustWord> {
        Arc::new(free_word())
    }

    fn take_over(word: &Arc<RobustWord>) {
        let keep = || MapPin::This(word.clone());
        let taken = take(word, keep, |me| -> io::Result<()> {
            word.word.store(me.tid, SeqCst);
            Ok(())
        });
        taken.unwrap();
    }

    fn free_all(word: &RobustWord) -> bool {
        free(word, || word.word.store(0, SeqCst))
    }

    #[test]
    fn words_are_marked_when_their_thread_ends_in_whatever_order_others_were_freed() {
        let words: Vec<_> = std::iter::repeat_with(word).take(5).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                words.iter().for_each(take_over);
                assert!(free_all(&words[2]) && free_all(&words[4]) && free_all(&words[0]));
                assert!(!free_all(&words[2]), "it is not owned any more");
                assert!(owns(&words[1]) && !owns(&words[0]));
            });
        });
        // A scope waits for the closures, not for what the kernel does afterwards.
        for word in [&words[1], &words[3]] {
            while word.word.load(SeqCst) != OWNER_DIED {
                std::thread::yield_now();
            }
        }
        for word in [&words[0], &words[2], &words[4]] {
            assert_eq!(word.word.load(SeqCst), 0);
        }
    }

    #[test]
    fn word_stays_announced_when_another_was_attended_meanwhile() {
        let (taken, attended) = (word(), word());
        let doomed = taken.clone();
        testing::doomed(move || {
            let _ = take(
                &doomed,
                || MapPin::Owner,
                |me| -> io::Result<()> {
                    attend(&attended, || ());
                    doomed.word.store(me.tid, SeqCst);
                    // It is on no list yet: the kernel knows of it only by what was announced.
                    testing::die()
                },
            );
        });
        while taken.word.load(SeqCst) != OWNER_DIED {
            std::thread::yield_now();
        }
    }

    #[test]
    fn child_of_a_fork_that_runs_no_handlers_frees_nothing_of_its_parent() {
        unsafe extern "C" {
            safe fn _Fork() -> libc::pid_t;
        }
        let word = word();
        take_over(&word);
        let child = _Fork();
        if child == 0 {
            let knows = me().is_ok_and(|me| me.pid == std::process::id());
            let harmless = knows && !owns(&word) && !free_all(&word);
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(!harmless)) };
        }
        let mut status = 0;
        // SAFETY: our child, and a variable of ours.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        assert!(owns(&word) && free_all(&word));
    }

    #[test]
    fn mutexes_of_the_c_library_go_on_beside_it() {
        let mutex = c_mutex();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (one, two) = (word(), word());
                take_over(&one);
                // SAFETY: an initialised mutex.
                assert_eq!(unsafe { libc::pthread_mutex_lock(mutex.get()) }, 0);
                take_over(&two);
                assert!(free_all(&one));
            });
        });
        loop {
            // SAFETY: as above.
            match unsafe { libc::pthread_mutex_trylock(mutex.get()) } {
                libc::EBUSY => std::thread::yield_now(),
                told => return assert_eq!(told, libc::EOWNERDEAD),
            }
        }
    }

    struct CMutex(std::cell::UnsafeCell<libc::pthread_mutex_t>);

    // SAFETY: a mutex is for several threads.
    unsafe impl Sync for CMutex {}

    impl CMutex {
        fn get(&self) -> *mut libc::pthread_mutex_t {
            self.0.get()
        }
    }

    fn c_mutex() -> Box<CMutex> {
        // SAFETY: plain records, which the calls below initialise.
        let (mut attributes, mutex) = unsafe { mem::zeroed::<(libc::pthread_mutexattr_t, _)>() };
        let mutex = Box::new(CMutex(std::cell::UnsafeCell::new(mutex)));
        // SAFETY: a record of ours.
        unsafe { libc::pthread_mutexattr_init(&raw mut attributes) };
        // SAFETY: it was just initialised.
        unsafe { libc::pthread_mutexattr_setrobust(&raw mut attributes, libc::PTHREAD_MUTEX_ROBUST) };
        // SAFETY: both are ours.
        assert_eq!(unsafe { libc::pthread_mutex_init(mutex.get(), &raw const attributes) }, 0);
        mutex
    }
}
