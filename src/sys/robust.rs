//! get_robust_list(2): words in shared memory that a thread owns, which the kernel marks when the thread ends, however
//! it ends.
//!
//! The C library has registered one list for each thread, for its own robust mutexes. Ours is a chain in that list, between
//! two anchors in private memory. The C library changes only what is before the first anchor or after the second;
//! what is between them is written by us and read by the kernel alone, so that a process which damages shared memory cannot
//! lead us astray. The offset from a link to its word is the C library's too, hence the layout of [`RobustWord`].

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::io;
use std::mem::{self, offset_of};
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64, compiler_fence};
use std::sync::{Arc, OnceLock};

use super::cells::cells;
use super::{estate, forks};

/// The bits of a word that say whose it is (futex(2)): a thread's id.
pub(crate) const OWNER: u32 = 0x3fff_ffff;
/// Set by the kernel, which has taken the owner out: it ended.
pub(crate) const OWNER_DIED: u32 = 0x4000_0000;
/// Set by who sleeps: whoever frees the word, the kernel too, wakes one.
pub(crate) const WAITERS: u32 = 0x8000_0000;

/// How many a thread may own: beyond its ROBUST_LIST_LIMIT of 2048 the kernel does not look, and others have theirs too.
const MOST: usize = 1000;

cells! {
    /// A word that a thread can own.
    pub(crate) struct RobustWord {
        pub(crate) word: AtomicU32,
        /// The process of the owner, once it is inside; 0 before it is and when it begins to leave.
        pub(crate) holder: AtomicU32,
        /// For whoever uses it.
        pub(crate) mark: AtomicU32,
        spare: [AtomicU32; 3],
        /// Of the anchors: where the C library keeps the link before.
        before: AtomicU64,
        /// The link that comes next. The kernel reads it.
        next: AtomicU64,
    }
}

/// From a link to its word, as the C library has told the kernel.
const OFFSET: isize = offset_of!(RobustWord, word) as isize - offset_of!(RobustWord, next) as isize;
/// From a link to the C library's link before.
const BEFORE: usize = offset_of!(RobustWord, next) - offset_of!(RobustWord, before);

/// What keeps the memory of a word mapped as long as it is owned.
pub(crate) enum Keeper {
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
}

/// struct robust_list_head (linux/futex.h), which lies in the C library's record of the thread.
#[repr(C)]
struct Head {
    first: usize,
    offset: isize,
    pending: usize,
}

/// What this thread owns.
struct Roll {
    me: Me,
    generation: Option<u32>,
    head: NonNull<Head>,
    /// Front and back.
    anchors: Box<[RobustWord; 2]>,
    /// The last is the first after the front anchor.
    owned: Vec<(NonNull<RobustWord>, Keeper)>,
}

thread_local! {
    /// Made by this thread, and freed after all destructors of its thread-locals, which may still have guards: by [`end`].
    static ROLL: Cell<Option<NonNull<RefCell<Roll>>>> = const { Cell::new(None) };
}

/// Runs `take`, which tries to write our id into the word, and enters it among those that this thread owns. If the thread
/// ends at any moment meanwhile, the kernel looks whose the word is, and wakes another if it is nobody's.
pub(crate) fn take<T, E: From<io::Error>>(
    word: &RobustWord,
    keep: impl FnOnce() -> Keeper,
    take: impl FnOnce(Me) -> Result<T, E>,
) -> Result<T, E> {
    let own = own()?;
    let (me, head) = with(own, |roll| roll.check_room().map(|()| (roll.me, roll.head)))??;
    let _pending = Pending::new(head, word);
    let taken = take(me)?;
    let keeper = keep();
    with(own, |roll| roll.enter(word, keeper))?;
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

/// Whether this thread owns it.
pub(crate) fn owns(word: &RobustWord) -> bool {
    with_roll(|roll| roll.find(word).is_some()).unwrap_or(false)
}

/// This thread.
pub(crate) fn me() -> io::Result<Me> {
    with_roll(|roll| roll.me)
}

fn with_roll<T>(work: impl FnOnce(&mut Roll) -> T) -> io::Result<T> {
    with(own()?, work)
}

/// # Errors
/// In a signal handler that came in the middle.
#[inline]
fn with<T>(own: NonNull<RefCell<Roll>>, work: impl FnOnce(&mut Roll) -> T) -> io::Result<T> {
    // SAFETY: this thread's own, which lives until the thread has ended (see `end`).
    let mut roll = unsafe { own.as_ref() }.try_borrow_mut().map_err(io::Error::other)?;
    Ok(work(&mut roll))
}

/// The roll of this thread, in this process.
#[inline]
fn own() -> io::Result<NonNull<RefCell<Roll>>> {
    let Some(own) = ROLL.get() else { return begin() };
    if with(own, |roll| roll.generation)? != forks::generation() {
        let new = Roll::new()?;
        // What the parent owns is dropped without being freed.
        let old = with(own, |roll| mem::replace(roll, new))?;
        drop(old);
    }
    Ok(own)
}

/// Gives this thread a roll.
#[cold]
fn begin() -> io::Result<NonNull<RefCell<Roll>>> {
    let key = key()?;
    let roll = NonNull::from(Box::leak(Box::new(RefCell::new(Roll::new()?))));
    // SAFETY: a key of ours, and a pointer that only `end` will take.
    let set = unsafe { libc::pthread_setspecific(key, roll.as_ptr().cast()) };
    if set != 0 {
        // SAFETY: nobody else has it.
        drop(unsafe { Box::from_raw(roll.as_ptr()) });
        return Err(io::Error::from_raw_os_error(set));
    }
    ROLL.set(Some(roll));
    Ok(roll)
}

/// The key whose destructor is [`end`]: the C library runs it after the destructors of Rust's thread-locals.
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
unsafe extern "C" fn end(roll: *mut libc::c_void) {
    ROLL.set(None);
    // SAFETY: what `begin` has leaked, which the C library hands out once.
    drop(unsafe { Box::from_raw(roll.cast::<RefCell<Roll>>()) });
}

impl Roll {
    #[cold]
    fn new() -> io::Result<Self> {
        forks::watch()?;
        estate::clear_graves();
        // SAFETY: takes nothing, and cannot fail.
        let tid = unsafe { libc::gettid() }.unsigned_abs();
        let me = Me { tid, pid: std::process::id() };
        let anchors = Box::new([RobustWord::new(), RobustWord::new()]);
        let roll = Self { me, generation: forks::generation(), head: head()?, anchors, owned: Vec::new() };
        roll.hang_in();
        Ok(roll)
    }

    fn check_room(&self) -> io::Result<()> {
        if self.owned.len() < MOST {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "this thread holds {MOST} locks: the kernel would not free more when it dies"
        )))
    }

    /// Puts the anchors first in the C library's list.
    fn hang_in(&self) {
        let [front, back] = &*self.anchors;
        let others = read(self.first());
        back.next.store(others as u64, Relaxed);
        back.before.store(front.link() as u64, Relaxed);
        front.next.store(back.link() as u64, Relaxed);
        front.before.store(self.first() as u64, Relaxed);
        write(before(others), back.link());
        write(self.first(), front.link());
    }

    /// Takes the anchors out of it again, between which there must be nothing.
    fn take_down(&self) {
        let [front, back] = &*self.anchors;
        let (earlier, others) = (front.before.load(Relaxed) as usize, back.next.load(Relaxed) as usize);
        write(earlier, others);
        write(before(others), earlier);
    }

    /// The address of the link to the first of the list.
    fn first(&self) -> usize {
        self.head.as_ptr().expose_provenance()
    }

    fn enter(&mut self, word: &RobustWord, kept: Keeper) {
        let below = self.owned.last().map_or(self.anchors[1].link(), |(top, _)| link_of(*top));
        word.next.store(below as u64, Relaxed);
        self.owned.push((NonNull::from(word), kept));
        // The kernel may look after any instruction: the new one points on before anything points to it.
        compiler_fence(SeqCst);
        self.anchors[0].next.store(word.link() as u64, Relaxed);
    }

    /// Where a word is among those that this thread owns: mostly the last.
    fn find(&self, word: &RobustWord) -> Option<usize> {
        self.owned.iter().rposition(|(owned, _)| ptr::eq(owned.as_ptr(), word))
    }

    fn leave(&mut self, place: usize) -> Keeper {
        let below = place.checked_sub(1).map_or(self.anchors[1].link(), |below| link_of(self.owned[below].0));
        match self.owned.get(place + 1) {
            None => self.anchors[0].next.store(below as u64, Relaxed),
            // SAFETY: it is mapped: the entry says who sees to that.
            Some((above, _)) => unsafe { above.as_ref() }.next.store(below as u64, Relaxed),
        }
        compiler_fence(SeqCst);
        if place + 1 == self.owned.len() {
            return self.owned.pop().map_or(Keeper::Owner, |(_, kept)| kept);
        }
        self.owned.remove(place).1
    }
}

impl Drop for Roll {
    fn drop(&mut self) {
        if self.generation != forks::generation() {
            // The list of the child is another one, and what its parent owns is none of its business.
            return;
        }
        while let Some(place) = self.owned.iter().rposition(|(_, keeper)| matches!(keeper, Keeper::Lender(_)))
        {
            self.bequeath(place);
        }
        if self.owned.is_empty() {
            self.take_down();
        } else {
            self.bury();
        }
    }
}

impl Roll {
    /// The thread ends with a guard that was leaked, and references from it may be used as long as the process lives: a thread that
    /// lives as long takes the word over, so that it stays taken.
    fn bequeath(&mut self, place: usize) {
        let word = self.owned[place].0;
        // SAFETY: its keeper, which goes with it, keeps it mapped.
        let pending = Pending::new(self.head, unsafe { word.as_ref() });
        let keeper = self.leave(place);
        estate::hand_over(word, keeper, self.me.tid);
        drop(pending);
    }

    /// The thread ends as the owner of something: that is told by the kernel, which reads it when the thread is gone.
    fn bury(&mut self) {
        let anchors = mem::replace(&mut self.anchors, Box::new([RobustWord::new(), RobustWord::new()]));
        estate::bury(self.me.tid, mem::take(&mut self.owned), anchors);
    }
}

impl RobustWord {
    fn new() -> Self {
        let zero = || AtomicU32::new(0);
        let (before, next) = (AtomicU64::new(0), AtomicU64::new(0));
        let spare = [zero(), zero(), zero()];
        Self { word: zero(), holder: zero(), mark: zero(), spare, before, next }
    }

    /// The address of its link, by which a list knows it.
    fn link(&self) -> usize {
        ptr::from_ref(&self.next).expose_provenance()
    }
}

fn link_of(word: NonNull<RobustWord>) -> usize {
    word.as_ptr().expose_provenance() + offset_of!(RobustWord, next)
}

/// Where the C library keeps the link before an entry; of the list's head too. The lowest bit of a link is a flag.
fn before(link: usize) -> usize {
    (link & !1) - BEFORE
}

/// Reads a link of this thread's list.
fn read(at: usize) -> usize {
    // SAFETY: the address of a link in the list of this thread, which only this thread changes.
    unsafe { ptr::with_exposed_provenance::<usize>(at).read_volatile() }
}

/// Writes a link of this thread's list. What the kernel reads is written in the order of the program.
fn write(at: usize, link: usize) {
    compiler_fence(SeqCst);
    // SAFETY: as in `read`.
    unsafe { ptr::with_exposed_provenance_mut::<usize>(at).write_volatile(link) }
    compiler_fence(SeqCst);
}

/// get_robust_list(2): where the C library keeps this thread's list.
fn head() -> io::Result<NonNull<Head>> {
    let (mut head, mut size) = (ptr::null_mut::<Head>(), 0_usize);
    // SAFETY: the kernel writes a pointer and a size to where two variables of ours are.
    let done = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut size) };
    let known = NonNull::new(head).filter(|_| done == 0 && size == size_of::<Head>());
    let unknown = || io::Error::other("the C library has no list of robust mutexes that this library knows");
    let head = known.ok_or_else(unknown)?;
    // SAFETY: the record that the C library has registered for this thread, in the kernel's layout.
    let offset = unsafe { head.as_ref() }.offset;
    if offset == OFFSET { Ok(head) } else { Err(unknown()) }
}

/// Says to the kernel which word this thread is about to take or to free.
struct Pending(usize);

impl Pending {
    fn new(head: NonNull<Head>, word: &RobustWord) -> Self {
        let place = head.as_ptr().expose_provenance() + offset_of!(Head, pending);
        write(place, word.link());
        Self(place)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        write(self.0, 0);
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
    use super::*;

    fn word() -> Arc<RobustWord> {
        Arc::new(free_word())
    }

    fn take_over(word: &Arc<RobustWord>) {
        let keep = || Keeper::This(word.clone());
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
