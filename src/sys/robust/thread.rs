//! Taking and freeing words as the calling thread: the list is that of the thread, and ends with it.

use std::cell::{Cell, RefCell, RefMut};
use std::io;
use std::mem;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::OnceLock;

use super::super::forks;
use super::list::{MapPin, Me, RobustList};
use super::pending::{Head, PendingOp};
use super::word::RobustWord;
use super::{exiting, owner_thread};

thread_local! {
    /// Allocated by this thread, and freed by [`end`] after all destructors of its thread-locals, which may still have guards.
// A pointer without a destructor: a thread-local with one is gone before those that were first used earlier, whose destructors
// may still have guards to drop.
    static LIST: Cell<Option<NonNull<OwnList>>> = const { Cell::new(None) };
}

/// The list of this thread.
struct OwnList {
    /// The fork generation of the process: a fork's copy of the list is not the child's.
    generation: Cell<Option<u32>>,
    // Beside the list, so that they can be read while a signal handler has interrupted a change of it.
    me: Cell<Me>,
    head: Cell<NonNull<Head>>,
    list: RefCell<RobustList>,
}

impl OwnList {
    fn new() -> io::Result<Self> {
        let list = RobustList::new()?;
        let (generation, me, head) =
            (Cell::new(forks::generation()), Cell::new(list.me), Cell::new(list.head));
        Ok(Self { generation, me, head, list: RefCell::new(list) })
    }

    /// Whether it is the list of a thread of this process, not a copy that a fork has made.
    #[inline]
    fn is_own(&self) -> bool {
        forks::is_generation(self.generation.get())
    }

    /// Begins anew in a fork, in the same place: the thread may be in the middle of taking a word.
    #[cold]
    fn renew(&self) -> io::Result<()> {
        let Self { generation, me, head, list } = Self::new()?;
        // A fork has copied the list, but its words are owned by the parent's thread id. They are dropped without being freed:
        // the parent still has them.
        drop(mem::replace(&mut *self.borrow_mut()?, list.into_inner()));
        self.me.set(me.get());
        self.head.set(head.get());
        self.generation.set(generation.get());
        Ok(())
    }

    /// # Errors
    /// In a signal handler that came in the middle.
    #[inline]
    fn borrow_mut(&self) -> io::Result<RefMut<'_, RobustList>> {
        self.list.try_borrow_mut().map_err(io::Error::other)
    }
}

/// A reference to the list of this thread, which is used before the thread ends.
struct Own(NonNull<OwnList>);

impl Deref for Own {
    type Target = OwnList;

    #[inline]
    fn deref(&self) -> &OwnList {
        // SAFETY: this thread's own, which lives until the thread has ended (see `end`), and is changed through cells alone.
        unsafe { self.0.as_ref() }
    }
}

/// The list of this thread, in this process.
#[inline]
fn own() -> io::Result<Own> {
    let Some(own) = LIST.get().map(Own) else { return begin() };
    if !own.is_own() {
        own.renew()?;
    }
    Ok(own)
}

/// Makes the list of this thread.
#[cold]
fn begin() -> io::Result<Own> {
    let key = key()?;
    exiting::forget_read();
    let list = NonNull::from(Box::leak(Box::new(OwnList::new()?)));
    // SAFETY: a key of ours, and a pointer that only `end` will take.
    let set = unsafe { libc::pthread_setspecific(key, list.as_ptr().cast()) };
    if set != 0 {
        // SAFETY: nobody else has it.
        drop(unsafe { Box::from_raw(list.as_ptr()) });
        return Err(io::Error::from_raw_os_error(set));
    }
    LIST.set(Some(list));
    Ok(Own(list))
}

/// The key whose destructor is [`end`].
//
// glibc calls destructors of thread_local objects first (__call_tls_dtors), and then those of pthread keys
// (__nptl_deallocate_tsd): so the list is given up after every guard in a thread-local was dropped.
fn key() -> io::Result<libc::pthread_key_t> {
    static KEY: OnceLock<Result<libc::pthread_key_t, i32>> = OnceLock::new();
    let made = KEY.get_or_init(|| {
        let mut key = 0;
        // SAFETY: writes a key to where a variable of ours is.
        match unsafe { libc::pthread_key_create(&raw mut key, Some(end)) } {
            0 => Ok(key),
            error => Err(error),
        }
    });
    made.map_err(io::Error::from_raw_os_error)
}

/// The thread ends.
unsafe extern "C" fn end(list: *mut libc::c_void) {
    // A destructor of another key may still take a word. It then makes a new list, for which this is called once more:
    // pthread_key_create(3) has destructors run again, up to PTHREAD_DESTRUCTOR_ITERATIONS times.
    LIST.set(None);
    // SAFETY: what `begin` has leaked, which the C library hands out once.
    let list = unsafe { Box::from_raw(list.cast::<OwnList>()) };
    // Else it is a copy that a fork has made: the words are the parent's.
    if list.is_own() {
        give_up(list.list.into_inner());
    }
}

/// Ends the list of a thread that ends.
fn give_up(mut list: RobustList) {
    // References from a leaked guard may be used as long as the process lives: the word stays taken, by a thread that lives as long.
    while let Some(place) = list.find_lent() {
        let word = list.word(place);
        // SAFETY: its map pin, which goes with it, keeps it mapped.
        let pending = PendingOp::new(list.head, unsafe { word.as_ref() });
        let map_pin = MapPin { held: list.leave(place), lends: true };
        owner_thread::hand_over(word, map_pin, list.me.tid);
        drop(pending);
    }
    if list.is_empty() {
        list.take_down();
    } else {
        exiting::keep(list.me.tid, list.take_unread());
    }
}

/// Runs `take`, which tries to write our id into the word, and adds the word to those that this thread owns.
#[inline]
pub(crate) fn take<T, E: From<io::Error>>(
    word: &RobustWord,
    keep: impl FnOnce() -> MapPin,
    take: impl FnOnce(Me) -> Result<T, E>,
) -> Result<T, E> {
    let own = own()?;
    own.borrow_mut()?.check_room()?;
    // Between the write of the id and the entry in the list the word is known to the kernel by this alone.
    let _pending = PendingOp::new(own.head.get(), word);
    let taken = take(own.me.get())?;
    let map_pin = keep();
    own.borrow_mut()?.enter(word, map_pin);
    Ok(taken)
}

/// Runs `free`, which takes our id out of the word and wakes another, unless this thread does not own it, as in a fork of
/// the owner; says whether it does.
#[inline]
pub(crate) fn free(word: &RobustWord, free: impl FnOnce()) -> bool {
    let Ok(own) = own() else { return false };
    let Ok(mut list) = own.borrow_mut() else { return false };
    let Some(place) = list.find(word) else { return false };
    let pending = PendingOp::new(own.head.get(), word);
    // Off the list before it is free. In the other order its next owner, in another process, would write its own `next` into the
    // word while this thread's list still leads there, and the kernel would follow addresses of that process in this one.
    let kept = list.leave(place);
    drop(list);
    free();
    // With its pin the word may be unmapped, so it must not be pending any more.
    drop(pending);
    drop(kept);
    true
}

/// Runs `work` with `word`, which no thread owns, as this thread's list_op_pending. If the thread ends in it, the kernel wakes a waiter.
pub(crate) fn with_pending<T>(word: &RobustWord, work: impl FnOnce() -> T) -> T {
    // `None` where there is no list: `work` then runs without that protection, since it has to run all the same.
    let head = own().ok().map(|own| own.head.get());
    let _pending = head.map(|head| PendingOp::new(head, word));
    work()
}

/// As [`with_pending`]; `work` is told this thread's id, so that it can own the word meanwhile without entering it in the
/// list. `None`: the kernel would not see the word, so that it must not be owned.
//
// The word is pending before `work` owns it: the other way round, a thread that ends between the two leaves an owner that
// nobody takes out.
#[inline]
pub(crate) fn with_pending_to_own<T>(word: &RobustWord, work: impl FnOnce(Option<u32>) -> T) -> T {
    let own = own().ok().map(|own| (own.head.get(), own.me.get().tid));
    let _pending = own.map(|(head, _)| PendingOp::new(head, word));
    work(own.map(|(_, tid)| tid))
}

/// Whether this thread owns it.
pub(crate) fn owns(word: &RobustWord) -> bool {
    own().is_ok_and(|own| own.list.try_borrow().is_ok_and(|list| list.find(word).is_some()))
}

/// This thread.
pub(crate) fn me() -> io::Result<Me> {
    Ok(own()?.me.get())
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Runs something on a thread that [dies](die) in it.
    pub(crate) fn doomed(work: impl FnOnce() + Send + 'static) {
        // Nobody can join it: it leaves no result.
        drop(std::thread::spawn(work));
    }

    /// Ends this thread as SIGKILL would: nothing is unwound or dropped, and the kernel looks at the words that it owns.
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
    use std::mem;
    use std::sync::Arc;
    use std::sync::atomic::Ordering::SeqCst;

    use super::super::word::OWNER_DIED;
    use super::testing::free_word;
    use super::*;

    fn word() -> Arc<RobustWord> {
        Arc::new(free_word())
    }

    fn take_over(word: &Arc<RobustWord>) {
        let keep = || MapPin::of(word.clone());
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
    fn word_stays_pending_when_another_was_pending_meanwhile() {
        let (taken, attended) = (word(), word());
        let doomed = taken.clone();
        testing::doomed(move || {
            let _ = take(
                &doomed,
                || MapPin::OWNER,
                |me| -> io::Result<()> {
                    with_pending(&attended, || ());
                    doomed.word.store(me.tid, SeqCst);
                    // It is on no list yet: the kernel knows of it only by list_op_pending.
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
