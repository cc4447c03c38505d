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
    first: usize,
    offset: isize,
    pub(super) pending: usize,
}

/// The time in which a word is this thread's list_op_pending. If the thread ends in it, the kernel looks at the word although it is on
/// no list: it marks the word if this thread owns it, and wakes a waiter if nobody does (handle_futex_death of kernel/futex).
///
/// They nest, so that the end of one restores the word before: a signal handler may come between, the work while one word is freed
/// may free another, and the C library announces its own robust mutexes in the same place.
pub(super) struct PendingOp {
    place: usize,
    before: usize,
}

impl PendingOp {
    pub(super) fn new(list: NonNull<Head>, word: &RobustWord) -> Self {
        let place = list.as_ptr().expose_provenance() + offset_of!(Head, pending);
        let before = read(place);
        write(place, word.link());
        Self { place, before }
    }
}

impl Drop for PendingOp {
    fn drop(&mut self) {
        write(self.place, self.before);
    }
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
