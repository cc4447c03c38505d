//! madvise(2), MADV_WIPEONFORK: which process this is, of those that are forks of one another.

use std::io;
use std::ptr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};

use super::global::Global;

/// Which process this is, of those that are forks of one another: the C library gives a child an empty list. The kernel makes it 0
/// in the child of any fork (MADV_WIPEONFORK), also of one that runs no handlers, as _Fork(3).
static GENERATION: Global<AtomicU32> = Global::new();
/// How many generations there have been before this one.
static EARLIER: AtomicU32 = AtomicU32::new(0);

/// Whether [`Here`] has to make do with pids: there was no page to watch by (no memory, no mapping left). It stays so, since
/// what was noted with a pid must not look like another process's after a later attempt that succeeds.
static BY_PID: AtomicBool = AtomicBool::new(false);

/// A process, told from its forks and from the one of which it is a fork. It takes no system call to compare, unlike a pid, and
/// a process and its child in another PID namespace differ also when both have the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Here(u64);

impl Here {
    /// This process. Async-signal-safe, if it was called before in some process of which this one is a fork.
    #[inline]
    pub(crate) fn now() -> Self {
        match generation() {
            // Above 32 bits: no pid is so high (pid_max is 2^22 at most, proc(5)).
            Some(generation) if !BY_PID.load(Relaxed) => Self((1 << 32) + u64::from(generation)),
            _ => Self::without_generation(),
        }
    }

    /// Whether this process is that one, and not a fork of it.
    #[inline]
    pub(crate) fn is_now(self) -> bool {
        self == Self::now()
    }

    #[cold]
    fn without_generation() -> Self {
        if BY_PID.load(Relaxed) || watch().is_err() && GENERATION.get().is_none() {
            BY_PID.store(true, Relaxed);
            return Self(std::process::id().into());
        }
        // The page is there now, and BY_PID is not set: this does not come back here.
        Self::now()
    }
}

/// `None` before the first [`watch`].
#[inline]
pub(super) fn generation() -> Option<u32> {
    let generation = GENERATION.get()?;
    match generation.load(Relaxed) {
        0 => Some(begin_generation(generation)),
        known => Some(known),
    }
}

/// Whether `known` is the present [`generation`], and not `None`.
#[inline]
pub(super) fn is_generation(known: Option<u32>) -> bool {
    // In a fork the kernel has made it 0, which no known one is.
    known.is_some_and(|known| GENERATION.get().is_some_and(|now| now.load(Relaxed) == known))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_in_every_thread() {
        let here = Here::now();
        assert!(here.is_now() && std::thread::spawn(move || here.is_now()).join().unwrap());
    }

    #[test]
    fn generations_go_up_and_never_come_back() {
        let generation = AtomicU32::new(0);
        let first = begin_generation(&generation);
        generation.store(0, Relaxed);
        assert!(begin_generation(&generation) > first && first > 0);
    }
}
