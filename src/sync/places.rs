//! Places in a table, each of which a thread can own: who holds a permit, reads, or takes part.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::patience::{Patience, Stop};
use super::word;
use crate::sys::robust::{self, MapPin, Me, OWNER, RobustWord, WAITERS};

/// Whether a living thread owns it. What it did before it gave it up is seen by who finds that it does not.
#[inline]
pub(crate) fn is_taken(place: &RobustWord) -> bool {
    place.word.load(Acquire) & OWNER != 0
}

/// Whether this thread, which is `me`, owns it.
#[inline]
pub(crate) fn is_mine(place: &RobustWord, me: Me) -> bool {
    // A thread of another PID namespace may have the same number.
    place.word.load(Relaxed) & OWNER == me.tid && robust::owns(place)
}

/// Takes a place that is nobody's, and enters this process as its holder.
///
/// # Errors
/// [`Stop::WouldBlock`] when it is somebody's.
#[inline]
pub(crate) fn take(place: &RobustWord, keep: impl FnOnce() -> MapPin) -> Result<(), Stop> {
    robust::take(place, keep, |me| {
        word::take(&place.word, me.tid, &Patience::None)?;
        place.holder.store(me.pid, Relaxed);
        Ok(())
    })
}

/// Sees to it that who sleeps on the word of a place is woken when its owner gives it up or dies; returns the word, and
/// what it is until then. `None`: it is nobody's.
pub(crate) fn watch(place: &RobustWord) -> Option<(&AtomicU32, u32)> {
    let mut seen = place.word.load(Acquire);
    while seen & OWNER != 0 {
        let watched = seen | WAITERS;
        match place.word.compare_exchange(seen, watched, Relaxed, Acquire) {
            Ok(_) => return Some((&place.word, watched)),
            Err(now) => seen = now,
        }
    }
    None
}

/// As [`watch`], of a place that is nobody's: who sleeps on its word is woken when the next owner dies. `None`: it is
/// somebody's.
pub(crate) fn watch_free(place: &RobustWord) -> Option<(&AtomicU32, u32)> {
    let mut seen = place.word.load(Acquire);
    while seen & OWNER == 0 {
        // Who takes it leaves the bit as it is.
        let watched = seen | WAITERS;
        match place.word.compare_exchange(seen, watched, Relaxed, Acquire) {
            Ok(_) => return Some((&place.word, watched)),
            Err(now) => seen = now,
        }
    }
    None
}
