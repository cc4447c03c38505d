//! What a thread leaves that ends as the owner of something.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, PoisonError};

use super::futex;
use super::robust::{MapPin, OWNER, RobustWord, take};
use super::roll::Anchors;

/// What an ended thread owned, which the kernel has yet to read.
struct Grave {
    tid: u32,
    _owned: Vec<(NonNull<RobustWord>, MapPin)>,
    _anchors: Anchors,
}

// SAFETY: nobody uses the pointers any more: it is only there to be dropped.
unsafe impl Send for Grave {}

static GRAVES: Mutex<Vec<Grave>> = Mutex::new(Vec::new());

/// Keeps what the thread of that id owned until it is gone.
pub(super) fn bury(tid: u32, owned: Vec<(NonNull<RobustWord>, MapPin)>, anchors: Anchors) {
    let grave = Grave { tid, _owned: owned, _anchors: anchors };
    GRAVES.lock().unwrap_or_else(PoisonError::into_inner).push(grave);
}

/// Drops what the kernel has read. A fork may have come while another thread was at it: then nobody ever is in the child.
pub(super) fn clear_graves() {
    if let Ok(mut graves) = GRAVES.try_lock() {
        let pid = std::process::id();
        // SAFETY: takes integers, and sends nothing.
        let lives = |tid: u32| unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, 0) } == 0;
        graves.retain(|grave| lives(grave.tid));
    }
}

/// A word on its way from one thread to another.
struct Estate {
    word: NonNull<RobustWord>,
    map_pin: MapPin,
    old: u32,
    /// 0 until it has been taken over.
    done: &'static AtomicU32,
}

/// Gives a word of this thread, which is on no list at the moment, to a thread that lives as long as the process.
pub(super) fn hand_over(word: NonNull<RobustWord>, map_pin: MapPin, old: u32) {
    let done: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(0)));
    let estate = Box::into_raw(Box::new(Estate { word, map_pin, old, done }));
    let mut thread = 0;
    // SAFETY: the estate is the new thread's alone.
    let made = unsafe { libc::pthread_create(&raw mut thread, ptr::null(), heir, estate.cast()) };
    if made != 0 {
        // Else two could have what only one may have.
        std::process::abort();
    }
    while done.load(SeqCst) == 0 {
        // It changes soon: a wait that fails is tried again.
        let _ = futex::wait(done, 0, None);
    }
}

/// Owns an estate for ever.
extern "C" fn heir(estate: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: `hand_over` has made it for this thread.
    let Estate { word, map_pin, old, done } = *unsafe { Box::from_raw(estate.cast::<Estate>()) };
    // SAFETY: the map_pin, which is kept for ever, keeps it mapped.
    let word = unsafe { word.as_ref() };
    let taken = take(
        word,
        || map_pin,
        |me| -> io::Result<()> {
            let to_us = |seen: u32| (seen & OWNER == old).then_some(me.tid | (seen & !OWNER));
            word.word
                .fetch_update(SeqCst, SeqCst, to_us)
                .map(drop)
                .map_err(|_| io::ErrorKind::NotFound.into())
        },
    );
    if taken.is_err() {
        std::process::abort();
    }
    done.store(1, SeqCst);
    futex::wake_all(done);
    loop {
        std::thread::park();
    }
}
