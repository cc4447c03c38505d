//! The words that a thread owns: a chain in the robust list that the C library has registered for the thread.
//!
//! The C library has one list for each thread, for its own robust mutexes. Ours is a chain in that list, between two anchors in
//! private memory. The C library changes only what is before the first anchor or after the second; what is between them is
//! written by us and read by the kernel alone (exit_robust_list). The offset from a link to its word is the C library's too, hence
//! the layout of [`RobustWord`].

use std::any::Any;
use std::io;
use std::mem::{self, offset_of};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::compiler_fence;

use super::super::{dir, forks};
use super::pending::{Head, head, read, write};
use super::word::RobustWord;

/// How many words a thread may own.
//
// The kernel follows 2048 links (ROBUST_LIST_LIMIT), lest a ring keep it for ever, and silently leaves what comes after. Some of
// these are of the C library's mutexes, behind ours.
pub(super) const MOST: usize = 1000;

/// From a link to the C library's link before.
const BEFORE: usize = offset_of!(RobustWord, next) - offset_of!(RobustWord, before);

/// What keeps the memory of a word mapped as long as it is owned.
//
// A record and not an enum: an entry of the list is then written field by field from registers. The moves of an enum went through
// memory in other widths than it had been written, which cost a third of a lock's time (store forwarding).
pub(crate) struct MapPin {
    pub(super) held: Option<Held>,
    pub(super) lends: bool,
}

/// Memory that is held.
pub(super) type Held = Arc<dyn Any + Send + Sync>;

impl MapPin {
    /// The owner borrows the memory of the word until it frees it, and cannot leak it, since no user has it. This spares a reference
    /// count.
    pub(crate) const OWNER: Self = Self { held: None, lends: false };

    /// By a reference count.
    #[inline]
    pub(crate) fn of(held: Held) -> Self {
        Self { held: Some(held), lends: false }
    }

    /// As [`of`](Self::of), and the owner's guard gives references to what the word guards. If the guard is leaked, they may be used
    /// as long as the process lives, so the word must stay taken when the thread ends: the owner thread takes it over.
    #[inline]
    pub(crate) fn lender(held: Held) -> Self {
        Self { held: Some(held), lends: true }
    }
}

/// A word that a thread owns.
struct Entry {
    word: NonNull<RobustWord>,
    held: Option<Held>,
    lends: bool,
}

/// A thread and its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Me {
    pub(crate) tid: u32,
    pub(crate) pid: u32,
    /// A random number, not 0: threads of two PID namespaces may have the same ids.
    pub(crate) nonce: u32,
}

/// The first and the last of our words in the C library's list. The C library writes their links through pointers of its own, which
/// the unique ownership of a `Box` would not allow.
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

/// The words that a thread owns.
pub(super) struct RobustList {
    pub(super) me: Me,
    pub(super) head: NonNull<Head>,
    anchors: Anchors,
    /// The last is the first after the front anchor.
    owned: Vec<Entry>,
}

impl RobustList {
    /// An empty list of the calling thread, hung into the C library's.
    #[cold]
    pub(super) fn new() -> io::Result<Self> {
        forks::watch()?;
        // SAFETY: takes nothing, and cannot fail.
        let tid = unsafe { libc::gettid() }.unsigned_abs();
        // 0 stands for no owner.
        let nonce = (dir::random()? as u32).max(1);
        let me = Me { tid, pid: std::process::id(), nonce };
        let list = Self { me, head: head()?, anchors: Anchors::new(), owned: Vec::new() };
        list.hang_in();
        Ok(list)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.owned.is_empty()
    }

    /// # Errors
    /// When the thread owns [`MOST`] words.
    #[inline]
    pub(super) fn check_room(&self) -> io::Result<()> {
        if self.owned.len() < MOST {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "this thread holds {MOST} locks: the kernel would not free more when it dies"
        )))
    }

    /// Puts the anchors first in the C library's list.
    //
    // Two anchors, and in private memory: the C library writes to the neighbours of a mutex when it locks or unlocks it. Between
    // its entries our words would be such neighbours, so that it wrote addresses of this process into shared memory.
    fn hang_in(&self) {
        let [front, back] = self.anchors.both();
        // The list is a ring that begins and ends at the head. An empty one has the head itself here, before which glibc has a
        // link too (robust_prev in front of robust_head in its struct pthread), so there is no special case.
        let others = read(self.first());
        back.next.store(others as u64, Relaxed);
        back.before.store(front.link() as u64, Relaxed);
        front.next.store(back.link() as u64, Relaxed);
        front.before.store(self.first() as u64, Relaxed);
        // The anchors point on before anything points to them. The kernel follows the forward links only; the first anchor enters
        // its walk with the last write, by which time the whole ring is closed again.
        write(before(others), back.link());
        write(self.first(), front.link());
    }

    /// Takes the anchors out of the C library's list again. No word is between them.
    pub(super) fn take_down(&self) {
        let [front, back] = self.anchors.both();
        let (earlier, others) = (front.before.load(Relaxed) as usize, back.next.load(Relaxed) as usize);
        write(earlier, others);
        write(before(others), earlier);
    }

    /// The address of the link to the first of the list.
    fn first(&self) -> usize {
        self.head.as_ptr().expose_provenance()
    }

    /// Adds a word, which the thread owns and has pending.
    #[inline]
    pub(super) fn enter(&mut self, word: &RobustWord, kept: MapPin) {
        let below = self.owned.last().map_or(self.anchors.both()[1].link(), |top| link_of(top.word));
        word.next.store(below as u64, Relaxed);
        let MapPin { held, lends } = kept;
        self.owned.reserve(1);
        // Not `push`, which would have the entry ready in memory before it looks for room: see `MapPin`.
        self.owned.spare_capacity_mut()[0].write(Entry { word: NonNull::from(word), held, lends });
        // SAFETY: one more entry was just written.
        unsafe { self.owned.set_len(self.owned.len() + 1) };
        // The thread may end after any instruction, and the kernel then walks the list: the new word points on before anything points
        // to it. A compiler fence is enough, since the kernel walks after this thread's own stores.
        compiler_fence(SeqCst);
        self.anchors.both()[0].next.store(word.link() as u64, Relaxed);
    }

    /// Where a word is among those that this thread owns: mostly the last.
    #[inline]
    pub(super) fn find(&self, word: &RobustWord) -> Option<usize> {
        self.owned.iter().rposition(|owned| ptr::eq(owned.word.as_ptr(), word))
    }

    /// Takes a word out, which the thread has pending; returns what keeps it mapped.
    #[inline]
    pub(super) fn leave(&mut self, place: usize) -> Option<Held> {
        let [front, back] = self.anchors.both();
        let below = place.checked_sub(1).map_or(back.link(), |below| link_of(self.owned[below].word));
        // The one store after which the kernel's walk goes past this word. The word's own `next` stays: nothing leads to it any more.
        match self.owned.get(place + 1) {
            None => front.next.store(below as u64, Relaxed),
            // SAFETY: it is mapped: the entry has what keeps it so.
            Some(above) => unsafe { above.word.as_ref() }.next.store(below as u64, Relaxed),
        }
        // Unlinked before its pin goes: from then on the memory may be unmapped, and the kernel ends its walk at the first link
        // that it cannot read.
        compiler_fence(SeqCst);
        // The last one is what is left mostly.
        let last = if place + 1 == self.owned.len() { self.owned.pop() } else { None };
        last.unwrap_or_else(|| self.owned.remove(place)).held
    }

    /// The place of a word that has to stay taken when the thread ends: see [`MapPin::Lender`].
    pub(super) fn find_lent(&self) -> Option<usize> {
        self.owned.iter().rposition(|owned| owned.lends)
    }

    /// The word at a place.
    pub(super) fn word(&self, place: usize) -> NonNull<RobustWord> {
        self.owned[place].word
    }

    /// Takes all out that the kernel still has to read, when the thread has ended: the links stay as they are.
    pub(super) fn take_unread(&mut self) -> Unread {
        // The kernel walks the list after the last destructor of this thread has run, through the anchors and all words. Their
        // memory must be there until then: see `exiting`.
        let anchors = mem::replace(&mut self.anchors, Anchors::new());
        Unread { _owned: mem::take(&mut self.owned), _anchors: anchors }
    }
}

/// What a thread owned that has ended or is about to, in memory that the kernel reads when the thread is gone.
pub(super) struct Unread {
    _owned: Vec<Entry>,
    _anchors: Anchors,
}

// SAFETY: nobody uses the pointers any more: it is only there to be dropped, and what the pins hold is `Send`.
unsafe impl Send for Unread {}

fn link_of(word: NonNull<RobustWord>) -> usize {
    word.as_ptr().expose_provenance() + offset_of!(RobustWord, next)
}

/// Where the C library keeps the link before an entry; of the list's head too. The lowest bit of a link is a flag
/// (FUTEX_PI of linux/futex.h).
fn before(link: usize) -> usize {
    (link & !1) - BEFORE
}
