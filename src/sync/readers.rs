//! Who reads what an `RwLock` guards, and who writes it.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::awaited::Awaited;
use super::error::SyncError;
use super::gate::{self, Inside};
use super::patience::{Patience, Stop};
use super::{places, word};
use crate::sys::atomic_record::atomic_record;
use crate::sys::futex::MOST_WORDS;
use crate::sys::robust::{self, MapPin, Me, RobustWord};

/// How many threads can read at a time: who waits for one of them to end can sleep on all.
pub(super) const READERS: usize = MOST_WORDS - 8;

/// No reader is left: the value may be half written.
const ALONE: u32 = 1 << 31;

atomic_record! {
    pub(super) struct RwFields {
        /// A writer is inside from when it comes until it has written, a reader until it has a place. So new readers stand
        /// behind a writer that waits. The `mark`: which process left the value in disorder.
        gate: RobustWord,
        /// The process of the writer that is inside, and whether it is [`ALONE`].
        writer: AtomicU32,
        /// How many places, from the first on, have ever been taken.
        used: AtomicU32,
        /// Each is a thread that reads; its `mark`: how many times.
        readers: [RobustWord; READERS],
    }
}

impl RwFields {
    /// Takes a place among the readers, for which it waits.
    pub(super) fn read(
        &self,
        keep: impl Fn() -> MapPin,
        patience: &Patience,
    ) -> Result<&RobustWord, SyncError> {
        if let Some(place) = self.own_place(robust::me()?) {
            return read_again(place);
        }
        let _inside = self.enter(&keep, patience).map_err(|stop| stop.awaiting(|| self.holders()))?;
        self.check_order()?;
        let place = self.await_place(patience).map_err(|stop| stop.awaiting(|| self.holders()))?;
        // Nobody else takes it, since this thread is inside.
        places::take(place, keep)?;
        place.mark.store(1, Relaxed);
        Ok(place)
    }

    /// Comes in as a writer. No new reader does from now on.
    pub(super) fn begin_to_write(
        &self,
        me: Me,
        keep: impl Fn() -> MapPin,
        patience: &Patience,
    ) -> Result<Inside<'_>, SyncError> {
        if self.own_place(me).is_some() {
            return Err(SyncError::Deadlock);
        }
        let inside = self.enter(keep, patience).map_err(|stop| stop.awaiting(|| self.holders()))?;
        self.writer.store(me.pid, Relaxed);
        Ok(inside)
    }

    /// Waits until this writer, which is inside, is alone.
    pub(super) fn await_readers(&self, me: Me, patience: &Patience) -> Result<(), SyncError> {
        for place in self.used() {
            while places::is_taken(place) {
                // Who does not wait leaves nothing for which the reader would have to wake somebody.
                let slept = patience
                    .check()
                    .and_then(|()| places::watch(place).map_or(Ok(()), |reader| patience.sleep(&[reader])));
                slept.map_err(|stop| stop.awaiting(|| self.holders()))?;
            }
        }
        self.writer.store(me.pid | ALONE, Relaxed);
        Ok(())
    }

    /// Says that the writer is about to go out, in a panic perhaps. In a fork of the writer nothing happens.
    pub(super) fn end_to_write(&self, panicking: bool) {
        if !gate::is_inside(&self.gate) {
            return;
        }
        let writer = self.writer.load(Relaxed);
        if panicking && writer & ALONE != 0 {
            self.gate.mark.store(writer & !ALONE, Relaxed);
        }
        self.writer.store(0, Relaxed);
    }

    /// Those who write or read. One that is inside the gate and does neither waits for these itself.
    fn holders(&self) -> Awaited {
        let writer = self.writer.load(Relaxed);
        let reading = self.used().iter().filter(|place| places::is_taken(place));
        let readers = || reading.map(|place| place.holder.load(Relaxed)).collect();
        let holders = if writer & ALONE != 0 { vec![writer & !ALONE] } else { readers() };
        let inside = if holders.is_empty() { gate::holder(&self.gate) } else { 0 };
        Awaited::holders("the lock is", holders.into_iter().chain([inside]))
    }

    /// Which process left the value in disorder.
    pub(super) fn poisoned(&self) -> Option<u32> {
        Some(self.gate.mark.load(Relaxed)).filter(|&pid| pid != 0)
    }

    pub(super) fn clear_poison(&self) {
        self.gate.mark.store(0, Relaxed);
    }

    /// # Errors
    /// [`SyncError::Poisoned`].
    pub(super) fn check_order(&self) -> Result<(), SyncError> {
        self.poisoned().map_or(Ok(()), |pid| Err(SyncError::poisoned(pid)))
    }

    /// How many threads read.
    pub(super) fn count(&self) -> usize {
        self.used().iter().filter(|place| places::is_taken(place)).count()
    }

    /// Whether one writes, or waits to.
    pub(super) fn has_writer(&self) -> bool {
        self.writer.load(Relaxed) != 0
    }

    fn is_full(&self) -> bool {
        self.count() == READERS
    }

    /// The places that have ever been taken.
    #[inline]
    fn used(&self) -> &[RobustWord] {
        let used = self.used.load(Acquire) as usize;
        &self.readers[..used.min(READERS)]
    }

    /// Where this thread reads already.
    #[inline]
    fn own_place(&self, me: Me) -> Option<&RobustWord> {
        self.used().iter().find(|place| places::is_mine(place, me))
    }

    fn enter(&self, keep: impl Fn() -> MapPin, patience: &Patience) -> Result<Inside<'_>, Stop> {
        let entered = match patience {
            Patience::None => Inside::enter_soon(&self.gate, keep, || self.has_writer() || self.is_full()),
            patience => Inside::enter(&self.gate, keep, patience),
        };
        let (inside, _) = entered?;
        // Of those who died inside only a writer that was alone has changed anything.
        match self.writer.load(Relaxed) {
            0 => return Ok(inside),
            writer if writer & ALONE != 0 => self.gate.mark.store(writer & !ALONE, Relaxed),
            _ => {}
        }
        self.writer.store(0, Relaxed);
        Ok(inside)
    }

    /// A free place, inside the gate.
    fn await_place(&self, patience: &Patience) -> Result<&RobustWord, Stop> {
        loop {
            if let Some(number) = self.readers.iter().position(|place| !places::is_taken(place)) {
                self.used.fetch_max(number as u32 + 1, AcqRel);
                return Ok(&self.readers[number]);
            }
            patience.check()?;
            let all: Vec<_> = self.readers.iter().filter_map(places::watch).collect();
            if all.len() == READERS {
                patience.sleep(&all)?;
            }
        }
    }
}

/// No writer can be there, and one that waits would wait for us too.
fn read_again(place: &RobustWord) -> Result<&RobustWord, SyncError> {
    let full = SyncError::Full { what: "the times that a thread reads", capacity: u32::MAX as usize };
    place.mark.store(place.mark.load(Relaxed).checked_add(1).ok_or(full)?, Relaxed);
    Ok(place)
}

/// Gives a place up, if this thread has read as often as it came. In a fork of the reader nothing happens.
pub(super) fn end_to_read(place: &RobustWord) {
    if !robust::owns(place) {
        return;
    }
    match place.mark.load(Relaxed).saturating_sub(1) {
        0 => {
            robust::free(place, || word::free(&place.word, &Patience::None));
        }
        less => place.mark.store(less, Relaxed),
    }
}
