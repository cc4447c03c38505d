//! struct robust_list_head of get_robust_list(2): the calling thread's list as the C library has registered it, and its
//! list_op_pending, the word that the thread is about to take or to free.

use std::io;
use std::mem::offset_of;
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::compiler_fence;

use super::word::RobustWord;

/// From a link to its word, as the C library has told the kernel.
const OFFSET: isize = offset_of!(RobustWord, word) as isize - offset_of!(RobustWord, next) as isize;

/// struct robust_list_head (linux/futex.h), which lies in the C library's record of the thread.
#[repr(C)]
pub(super) struct Head {
    // Filled by the C library when the thread begins. The kernel reads it through the address given to set_robust_list(2), once,
    // when the thread ends: so plain stores to it are all that it takes to announce a word.
    first: usize,
    offset: isize,
    pub(super) pending: usize,
}

/// The time in which a word is this thread's list_op_pending.
//
// To take a word, a thread writes its id and then links the word into its list; to free it, it unlinks the word and then takes
// the id out. Between the two steps the word is taken and on no list. If the thread ends then, the kernel looks at the pending
// word: it marks it if this thread owns it, and wakes a waiter if nobody does (handle_futex_death of kernel/futex).
pub(super) struct PendingOp {
    place: usize,
    before: usize,
}

impl PendingOp {
    #[inline]
    pub(super) fn new(list: NonNull<Head>, word: &RobustWord) -> Self {
        let place = list.as_ptr().expose_provenance() + offset_of!(Head, pending);
        // Restored at the end, since they nest: a signal handler may take a word between two instructions of this thread, the
        // work while one word is freed may free another, and the C library announces its own robust mutexes in the same place.
        let before = read(place);
        write(place, word.link());
        Self { place, before }
    }
}

impl Drop for PendingOp {
    #[inline]
    fn drop(&mut self) {
        write(self.place, self.before);
    }
}

/// Reads a link of this thread's list.
#[inline]
pub(super) fn read(at: usize) -> usize {
    // SAFETY: the address of a link in the list of this thread, which only this thread changes.
    unsafe { ptr::with_exposed_provenance::<usize>(at).read_volatile() }
}

/// Writes a link of this thread's list.
#[inline]
pub(super) fn write(at: usize, link: usize) {
    // The kernel reads the list on behalf of this thread, after its last instruction, as a signal handler would: the processor
    // shows it this thread's own stores in their order, and only the compiler has to be kept from moving them.
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
    // A process for another ABI (32 bits) has a list of another size. One that was started by a bare clone(2) has none.
    let known = NonNull::new(head).filter(|_| done == 0 && size == size_of::<Head>());
    let unknown = || io::Error::other("the C library has no list of robust mutexes that this library knows");
    let head = known.ok_or_else(unknown)?;
    // SAFETY: the record that the C library has registered for this thread, in the kernel's layout.
    let offset = unsafe { head.as_ref() }.offset;
    // Another C library has its mutex words at another distance (musl: 28 bytes). The kernel would then mark what lies there, not
    // our word, and a dead owner would go unnoticed: so no word is taken at all.
    if offset == OFFSET { Ok(head) } else { Err(unknown()) }
}
