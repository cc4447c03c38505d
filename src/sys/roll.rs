//! What a thread owns: a chain of words, in the list that the C library has registered for it.
//!
//! The C library has one list for each thread, for its own robust mutexes. Ours is a chain in that list, between two anchors in
//! private memory. The C library changes only what is before the first anchor or after the second; what is between them is
//! written by us and read by the kernel alone. The offset from a link to its word is the C library's too, hence the layout of
//! [`RobustWord`].

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::{self, offset_of};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::compiler_fence;

use super::pending::Pending;
use super::robust::{MapPin, Me, RobustWord};
use super::{dir, estate, forks};

/// How many a thread may own: beyond its ROBUST_LIST_LIMIT of 2048 the kernel does not look, and others have theirs too.
const MOST: usize = 1000;

/// From a link to its word, as the C library has told the kernel.
const OFFSET: isize = offset_of!(RobustWord, word) as isize - offset_of!(RobustWord, next) as isize;
/// From a link to the C library's link before.
const BEFORE: usize = offset_of!(RobustWord, next) - offset_of!(RobustWord, before);

/// struct robust_list_head (linux/futex.h), which lies in the C library's record of the thread.
#[repr(C)]
pub(super) struct Head {
    first: usize,
    offset: isize,
    pub(super) pending: usize,
}

/// The first and the last of a thread's words in the C library's list. The C library writes their links by addresses of its
/// own, which a `Box`, as the only way to what it owns, would not allow.
pub(super) struct Anchors(NonNull<[RobustWord; 2]>);

impl Anchors {
    fn new() -> Self {
        Self(NonNull::from(Box::leak(Box::new([RobustWord::new(), RobustWord::new()]))))
    }

    fn both(&self) -> &[RobustWord; 2] {
        // SAFETY: allocated by `new`, and freed only when this is dropped; what others write are atomics.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Anchors {
    fn drop(&mut self) {
        // SAFETY: `new` has allocated it by a box, and nobody frees it twice: this is no copy.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// What this thread owns.
pub(super) struct Roll {
    pub(super) me: Me,
    generation: Option<u32>,
    pub(super) head: NonNull<Head>,
    anchors: Anchors,
    /// The last is the first after the front anchor.
    owned: Vec<(NonNull<RobustWord>, MapPin)>,
}

thread_local! {
    /// Made by this thread, and freed after all destructors of its thread-locals, which may still have guards: by [`end`].
    static ROLL: Cell<Option<NonNull<RefCell<Roll>>>> = const { Cell::new(None) };
}

pub(super) fn with_roll<T>(work: impl FnOnce(&mut Roll) -> T) -> io::Result<T> {
    with(own()?, work)
}

/// # Errors
/// In a signal handler that came in the middle.
#[inline]
pub(super) fn with<T>(own: NonNull<RefCell<Roll>>, work: impl FnOnce(&mut Roll) -> T) -> io::Result<T> {
    // SAFETY: this thread's own, which lives until the thread has ended (see `end`).
    let mut roll = unsafe { own.as_ref() }.try_borrow_mut().map_err(io::Error::other)?;
    Ok(work(&mut roll))
}

/// The roll of this thread, in this process.
#[inline]
pub(super) fn own() -> io::Result<NonNull<RefCell<Roll>>> {
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
        let nonce = (dir::random()? as u32).max(1);
        let me = Me { tid, pid: std::process::id(), nonce };
        let (generation, anchors) = (forks::generation(), Anchors::new());
        let roll = Self { me, generation, head: head()?, anchors, owned: Vec::new() };
        roll.hang_in();
        Ok(roll)
    }

    pub(super) fn check_room(&self) -> io::Result<()> {
        if self.owned.len() < MOST {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "this thread holds {MOST} locks: the kernel would not free more when it dies"
        )))
    }

    /// Puts the anchors first in the C library's list.
    fn hang_in(&self) {
        let [front, back] = self.anchors.both();
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
        let [front, back] = self.anchors.both();
        let (earlier, others) = (front.before.load(Relaxed) as usize, back.next.load(Relaxed) as usize);
        write(earlier, others);
        write(before(others), earlier);
    }

    /// The address of the link to the first of the list.
    fn first(&self) -> usize {
        self.head.as_ptr().expose_provenance()
    }

    pub(super) fn enter(&mut self, word: &RobustWord, kept: MapPin) {
        let below = self.owned.last().map_or(self.anchors.both()[1].link(), |(top, _)| link_of(*top));
        word.next.store(below as u64, Relaxed);
        self.owned.push((NonNull::from(word), kept));
        // The kernel may look after any instruction: the new one points on before anything points to it.
        compiler_fence(SeqCst);
        self.anchors.both()[0].next.store(word.link() as u64, Relaxed);
    }

    /// Where a word is among those that this thread owns: mostly the last.
    pub(super) fn find(&self, word: &RobustWord) -> Option<usize> {
        self.owned.iter().rposition(|(owned, _)| ptr::eq(owned.as_ptr(), word))
    }

    pub(super) fn leave(&mut self, place: usize) -> MapPin {
        let [front, back] = self.anchors.both();
        let below = place.checked_sub(1).map_or(back.link(), |below| link_of(self.owned[below].0));
        match self.owned.get(place + 1) {
            None => front.next.store(below as u64, Relaxed),
            // SAFETY: it is mapped: the entry says who sees to that.
            Some((above, _)) => unsafe { above.as_ref() }.next.store(below as u64, Relaxed),
        }
        compiler_fence(SeqCst);
        if place + 1 == self.owned.len() {
            return self.owned.pop().map_or(MapPin::Owner, |(_, kept)| kept);
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
        while let Some(place) =
            self.owned.iter().rposition(|(_, map_pin)| matches!(map_pin, MapPin::Lender(_)))
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
        // SAFETY: its map_pin, which goes with it, keeps it mapped.
        let pending = Pending::new(self.head, unsafe { word.as_ref() });
        let map_pin = self.leave(place);
        estate::hand_over(word, map_pin, self.me.tid);
        drop(pending);
    }

    /// The thread ends as the owner of something: that is told by the kernel, which reads it when the thread is gone.
    fn bury(&mut self) {
        let anchors = mem::replace(&mut self.anchors, Anchors::new());
        estate::bury(self.me.tid, mem::take(&mut self.owned), anchors);
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
pub(super) fn read(at: usize) -> usize {
    // SAFETY: the address of a link in the list of this thread, which only this thread changes.
    unsafe { ptr::with_exposed_provenance::<usize>(at).read_volatile() }
}

/// Writes a link of this thread's list. What the kernel reads is written in the order of the program.
pub(super) fn write(at: usize, link: usize) {
    compiler_fence(SeqCst);
    // SAFETY: as in `read`.
    unsafe { ptr::with_exposed_provenance_mut::<usize>(at).write_volatile(link) }
    compiler_fence(SeqCst);
}

/// get_robust_list(2): where the C library keeps this thread's list.
pub(super) fn head() -> io::Result<NonNull<Head>> {
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
