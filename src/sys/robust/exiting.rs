//! What threads have left that ended as owners: it stays mapped until the kernel has read it.

use std::sync::{Mutex, PoisonError};

use super::list::Unread;

/// Each with the id of its thread, whose list the kernel has yet to walk.
static EXITING: Mutex<Vec<(u32, Unread)>> = Mutex::new(Vec::new());

/// Keeps what a thread owned until the thread is gone.
pub(super) fn keep(tid: u32, unread: Unread) {
    EXITING.lock().unwrap_or_else(PoisonError::into_inner).push((tid, unread));
}

/// Drops what the kernel has read.
pub(super) fn forget_read() {
    // In a fork that came while another thread had it locked, it stays locked: then all of it stays mapped.
    if let Ok(mut exiting) = EXITING.try_lock() {
        let pid = std::process::id();
        // The kernel walks the list before it takes the thread out of its process (do_exit: exit_mm_release before exit_notify).
        // SAFETY: takes integers, and sends nothing.
        let lives = |tid: u32| unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, 0) } == 0;
        exiting.retain(|(tid, _)| lives(*tid));
    }
}
