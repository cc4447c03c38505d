//! The readers and the writer of an `RwLock`.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use super::awaited::Awaited;
use super::error::SyncError;
use super::owner_table::{self, OwnerTable, Slot};
use super::robust_mutex::{self, Locked};
use super::wait_policy::{Interrupted, WaitPolicy};
use crate::sys::atomic_record::atomic_record;
use crate::sys::futex::MOST_WORDS;
use crate::sys::robust::{self, MapPin, Me, RobustWord};

/// How many threads can read at a time: a writer that waits for them sleeps on all their words at once (futex_waitv).
pub(super) const READERS: usize = MOST_WORDS - 8;

/// No reader is left: the value may be half written.
const ALONE: u32 = 1 << 31;

atomic_record! {
    /// A place among the readers: the thread that owns it reads.
    pub(super) struct ReaderSlot {
        reader: RobustWord,
        /// How many guards the reader has. Only the reader uses it.
        times: AtomicU32,
    }
}

impl Slot for ReaderSlot {
    #[inline]
    fn robust(&self) -> &RobustWord {
        &self.reader
    }
}

atomic_record! {
    pub(super) struct RwFields {
        /// A writer is inside from when it comes until it has written, a reader until it has a place. So new readers
        /// stand behind a writer that waits.
        mutex: RobustWord,
        /// The process that left the value in disorder; 0: none.
        poisoned_by: AtomicU32,
        /// The process of the writer that is inside, and whether it is [`ALONE`].
        writer: AtomicU32,
        /// Of the table of readers: see [`OwnerTable`].
        used: AtomicU32,
        readers: [ReaderSlot; READERS],
    }
}

impl RwFields {
    /// Takes a place among the readers, for which it waits.
    pub(super) fn read(
        &self,
        keep: impl Fn() -> MapPin,
        policy: &WaitPolicy,
    ) -> Result<&ReaderSlot, SyncError> {
        // Without the mutex, which a waiting writer owns: that writer waits for this very thread.
        if let Some(place) = self.table().own(robust::me()?) {
            return read_again(place);
        }
        let _inside = self.enter(&keep, policy).map_err(|stop| stop.awaiting(|| self.holders()))?;
        // Under the mutex: no writer can poison the lock between this look and the slot.
        self.check_order()?;
        let number = self.await_slot(policy).map_err(|stop| stop.awaiting(|| self.holders()))?;
        // No other thread takes it meanwhile, since this one owns the mutex.
        let place = self.table().take(number, keep)?;
        place.times.store(1, Relaxed);
        Ok(place)
    }

    /// Comes in as a writer. No new reader does from now on.
    pub(super) fn begin_to_write(
        &self,
        me: Me,
        keep: impl Fn() -> MapPin,
        policy: &WaitPolicy,
    ) -> Result<Locked<'_>, SyncError> {
        // It would wait for its own slot to become free.
        if self.table().own(me).is_some() {
            return Err(SyncError::Deadlock);
        }
        let inside = self.enter(keep, policy).map_err(|stop| stop.awaiting(|| self.holders()))?;
        // Not ALONE yet: readers are still there, and a death from here on leaves the value as it was.
        self.writer.store(me.pid, Relaxed);
        Ok(inside)
    }

    /// Waits until this writer, which is inside, is alone.
    pub(super) fn await_readers(&self, me: Me, policy: &WaitPolicy) -> Result<(), SyncError> {
        // One after the other: no slot gets an owner meanwhile, since that takes the mutex. `used` does not grow
        // either.
        for place in self.table().used() {
            // Acquire, with the Release by which a reader frees its slot: what the reader read was there before this
            // writer writes.
            while owner_table::is_owned(place) {
                // A caller that does not wait must not set WAITERS: it would cost the reader a system call for nothing.
                let slept = policy.check().and_then(|()| {
                    // `watch` gives the word and the value that it had. If the reader is gone meanwhile, there
                    // is nothing to sleep on.
                    owner_table::watch(place).map_or(Ok(()), |reader| policy.sleep(&[reader]))
                });
                slept.map_err(|stop| stop.awaiting(|| self.holders()))?;
            }
        }
        // Before the first write to the value. Relaxed: whoever reads it has taken the mutex after this writer, dead or
        // not.
        self.writer.store(me.pid | ALONE, Relaxed);
        Ok(())
    }

    /// Says that the writer is about to go out, in a panic perhaps. In a fork of the writer nothing happens.
    pub(super) fn end_to_write(&self, panicking: bool) {
        // A fork of the writer has a copy of the guard, which means nothing there.
        if !robust_mutex::is_locked_here(&self.mutex) {
            return;
        }
        let writer = self.writer.load(Relaxed);
        // A writer that panics while it still waits for readers has written nothing.
        if panicking && writer & ALONE != 0 {
            self.poisoned_by.store(writer & !ALONE, Relaxed);
        }
        // Inside the mutex still. A death before this line poisons the value although it is whole: to be too careful
        // does no harm.
        self.writer.store(0, Relaxed);
    }

    /// The writer or the readers. A thread that is inside the mutex and does neither waits for these itself.
    fn holders(&self) -> Awaited {
        let writer = self.writer.load(Relaxed);
        let readers = || self.table().owner_pids().collect();
        // Without a lock, for the text of an error alone: what it names may have changed since.
        let holders = if writer & ALONE != 0 { vec![writer & !ALONE] } else { readers() };
        let inside = if holders.is_empty() { robust_mutex::owner_pid(&self.mutex) } else { 0 };
        Awaited::holders("the lock is", holders.into_iter().chain([inside]))
    }

    /// Which process left the value in disorder.
    pub(super) fn poisoned(&self) -> Option<u32> {
        Some(self.poisoned_by.load(Relaxed)).filter(|&pid| pid != 0)
    }

    pub(super) fn clear_poison(&self) {
        self.poisoned_by.store(0, Relaxed);
    }

    /// # Errors
    /// [`SyncError::Poisoned`].
    pub(super) fn check_order(&self) -> Result<(), SyncError> {
        self.poisoned().map_or(Ok(()), |pid| Err(SyncError::poisoned(pid)))
    }

    /// How many threads read.
    pub(super) fn count(&self) -> usize {
        self.table().owned().count()
    }

    /// Whether one writes, or waits to.
    pub(super) fn has_writer(&self) -> bool {
        self.writer.load(Relaxed) != 0
    }

    fn is_full(&self) -> bool {
        self.count() == READERS
    }

    #[inline]
    fn table(&self) -> OwnerTable<'_, ReaderSlot> {
        OwnerTable::new(&self.readers, &self.used)
    }

    fn enter(&self, keep: impl Fn() -> MapPin, policy: &WaitPolicy) -> Result<Locked<'_>, Interrupted> {
        // A writer keeps the mutex as long as it likes, and so does a reader that waits for a slot.
        let is_hopeless = || self.has_writer() || self.is_full();
        let (inside, _) = Locked::lock_as(policy, &self.mutex, keep, is_hopeless)?;
        // Of threads that died inside, only a writer that was alone has changed anything. The field is asked and not
        // EOWNERDEAD: it says more, and it is still there if this thread dies now, too.
        match self.writer.load(Relaxed) {
            0 => return Ok(inside),
            writer if writer & ALONE != 0 => self.poisoned_by.store(writer & !ALONE, Relaxed),
            _ => {}
        }
        // After the poison: a death in between leaves both, and the next one does the same once more.
        self.writer.store(0, Relaxed);
        Ok(inside)
    }

    /// Waits for a slot without an owner, inside the mutex.
    fn await_slot(&self, policy: &WaitPolicy) -> Result<usize, Interrupted> {
        loop {
            // A slot whose owner has died is not owned: it is taken over, and its death is nobody's concern,
            // since readers change nothing.
            if let Some(number) = self.table().first(|slot| !owner_table::is_owned(slot)) {
                return Ok(number);
            }
            policy.check()?;
            // Whichever reader goes first, by itself or by its death, wakes this thread: one futex_waitv takes all the
            // words.
            let all: Vec<_> = self.readers.iter().filter_map(owner_table::watch).collect();
            // Fewer: one has gone since the look, and its slot is free.
            if all.len() == READERS {
                policy.sleep(&all)?;
            }
        }
    }
}

/// No writer can be there, and one that waits would wait for us too.
fn read_again(place: &ReaderSlot) -> Result<&ReaderSlot, SyncError> {
    // Relaxed: only the owner of the slot counts. If it dies, the next owner begins at 1.
    let full = SyncError::Full { what: "the times that a thread reads", capacity: u32::MAX as usize };
    place.times.store(place.times.load(Relaxed).checked_add(1).ok_or(full)?, Relaxed);
    Ok(place)
}

/// Gives a place up, if this thread has read as often as it came. In a fork of the reader nothing happens.
pub(super) fn end_to_read(place: &ReaderSlot) {
    if !robust::owns(&place.reader) {
        return;
    }
    match place.times.load(Relaxed).saturating_sub(1) {
        // The last guard of this thread: a writer that sleeps on the word is woken.
        0 => owner_table::free(place),
        less => place.times.store(less, Relaxed),
    }
}
