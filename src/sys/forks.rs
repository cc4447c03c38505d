//! madvise(2), MADV_WIPEONFORK: which process this is, of those that are forks of one another.

use std::io;
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use super::global::Global;

/// Which process this is, of those that are forks of one another: the C library gives a child an empty list. The kernel makes it 0
/// in the child of any fork (MADV_WIPEONFORK), also of one that runs no handlers, as _Fork(3).
static GENERATION: Global<AtomicU32> = Global::new();
/// How many generations there have been before this one.
static EARLIER: AtomicU32 = AtomicU32::new(0);

/// `None`: nobody has asked to [`watch`] yet.
#[inline]
pub(super) fn generation() -> Option<u32> {
    let generation = GENERATION.get()?;
    match generation.load(Relaxed) {
        0 => Some(begin_generation(generation)),
        known => Some(known),
    }
}

#[cold]
fn begin_generation(generation: &AtomicU32) -> u32 {
    let next = EARLIER.fetch_add(1, Relaxed) + 1;
    generation.compare_exchange(0, next, Relaxed, Relaxed).map_or_else(|first| first, |_| next)
}

/// Makes the page in which the kernel tells of forks.
pub(super) fn watch() -> io::Result<()> {
    if GENERATION.get().is_some() {
        return Ok(());
    }
    let (any, size) = (ptr::null_mut(), size_of::<AtomicU32>());
    let (access, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: new memory, somewhere.
    let page = unsafe { libc::mmap(any, size, access, private, -1, 0) };
    // SAFETY: the page that was just mapped, if it was, which nobody uses yet.
    if page == libc::MAP_FAILED || unsafe { libc::madvise(page, size, libc::MADV_WIPEONFORK) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeros, aligned, mapped for ever if they are used.
    if !GENERATION.set_first(unsafe { AtomicU32::from_ptr(page.cast()) }) {
        // SAFETY: another thread was faster, and this page is nobody's.
        unsafe { libc::munmap(page, size) };
    }
    Ok(())
}
