//! What semaphores are made of: a total, and a place for each permit that is held.

use std::fmt;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use serde::{Deserializer, Serialize};

use super::awaited::Awaited;
use super::bell::Bell;
use super::error::SyncError;
use super::gate::{Found, Inside};
use super::patience::{Patience, Stop};
use super::places;
use super::record_with;
use crate::error::MemoryError;
use crate::sys::atomic_record::atomic_record;
use crate::sys::robust::{self, RobustWord, WAITERS};
use crate::transfer::record::{Record, TypeTag};

atomic_record! {
    pub(super) struct PermitFields {
        /// Who wants a permit is inside until it has one. So one at a time sleeps for a permit, and all others for the
        /// gate, which the kernel hands on when that one dies: it cannot take its wake-up with it.
        gate: RobustWord,
        /// Rung when a permit is given back or added.
        bell: Bell,
        /// How many there are, held or not.
        total: AtomicU32,
        /// How many there may be.
        most: AtomicU32,
        /// How many places, from the first on, have ever been taken.
        used: AtomicU32,
    }
}

/// The fewest and the most places; never more than there can be permits.
const PLACES: (u32, u32) = (64, 1024);

/// Permits. As many are free as the total is more than the places that living threads own.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub(super) struct Permits {
    shared: Record<PermitFields>,
}

/// What one who wants a permit finds.
enum Sight {
    Free(usize),
    NoneFree,
    NoPlace,
}

impl Permits {
    pub(super) fn new(kind: &str, total: u32, most: u32) -> Result<Self, MemoryError> {
        let places = total.clamp(PLACES.0, PLACES.1).min(most.max(1)) as usize;
        let shared = Record::<PermitFields>::new(TypeTag::of::<()>(kind), places * size_of::<RobustWord>())?;
        shared.fields().total.store(total, Relaxed);
        shared.fields().most.store(most, Relaxed);
        Ok(Self { shared })
    }

    pub(super) fn receive<'de, D: Deserializer<'de>>(kind: &str, deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { shared: record_with::receive(kind, deserializer)? })
    }

    /// Takes a permit; returns its place.
    pub(super) fn take(&self, patience: &Patience) -> Result<usize, SyncError> {
        let _inside = self.enter(patience).map_err(|stop| stop.awaiting(|| self.holders()))?;
        loop {
            let seen = self.fields().bell.count();
            match self.look() {
                Sight::Free(place) => return self.occupy(place),
                Sight::NoPlace => return Err(self.full()),
                Sight::NoneFree => {
                    self.sleep(seen, patience).map_err(|stop| stop.awaiting(|| self.holders()))?;
                }
            }
        }
    }

    /// Gives back the permit of a place, unless this is a fork of its holder.
    pub(super) fn give_back(&self, place: usize) {
        let (place, bell) = (self.place(place), &self.fields().bell);
        robust::free(place, || {
            if place.word.swap(0, Release) & WAITERS != 0 {
                bell.ring();
            }
        });
    }

    /// Removes a permit from the total, whose place is then to be given back.
    pub(super) fn remove(&self, place: usize) {
        if robust::owns(self.place(place)) {
            let _ = self.fields().total.fetch_update(AcqRel, Relaxed, |total| total.checked_sub(1));
        }
    }

    /// Adds permits.
    pub(super) fn add(&self, permits: u32) -> Result<(), SyncError> {
        let fields = self.fields();
        let most = fields.most.load(Relaxed);
        let mut before = 0;
        let added = fields.bell.ring_if(|count| {
            let sum = |total: u32| total.checked_add(permits).filter(|&sum| sum <= most);
            let added = fields.total.fetch_update(AcqRel, Relaxed, sum);
            before = added.unwrap_or_else(|total| total);
            count.fetch_add(added.is_ok().into(), AcqRel);
            added.is_ok()
        });
        if added { Ok(()) } else { Err(SyncError::TooMany { value: before, limit: most }) }
    }

    /// How many are free.
    pub(super) fn free(&self) -> u32 {
        let held = self.used().filter(|place| places::is_taken(place)).count();
        let held = u32::try_from(held).unwrap_or(u32::MAX);
        self.fields().total.load(Acquire).saturating_sub(held)
    }

    fn fields(&self) -> &PermitFields {
        self.shared.fields()
    }

    fn capacity(&self) -> usize {
        self.shared.room_len() / size_of::<RobustWord>()
    }

    fn place(&self, number: usize) -> &RobustWord {
        self.shared.beside(number * size_of::<RobustWord>())
    }

    /// The places that have ever been taken.
    fn used(&self) -> impl Iterator<Item = &RobustWord> {
        let used = self.fields().used.load(Acquire) as usize;
        (0..used.min(self.capacity())).map(|number| self.place(number))
    }

    /// Nothing that somebody who died inside can have left is to be put right.
    fn enter(&self, patience: &Patience) -> Result<Inside<'_>, Stop> {
        let (gate, keep) = (&self.fields().gate, || self.shared.map_pin());
        let entered: Result<(_, Found), _> = match patience {
            Patience::None => Inside::enter_soon(gate, keep, || self.free() == 0),
            patience => Inside::enter(gate, keep, patience),
        };
        entered.map(|(inside, _)| inside)
    }

    /// Looks for a permit, inside the gate.
    fn look(&self) -> Sight {
        let (mut held, mut used, mut free) = (0, 0, None);
        for (number, place) in self.used().enumerate() {
            used = number + 1;
            if places::is_taken(place) {
                held += 1;
            } else {
                free = free.or(Some(number));
            }
        }
        match free.unwrap_or(used) {
            _ if held >= self.fields().total.load(Acquire) => Sight::NoneFree,
            number if number < self.capacity() => Sight::Free(number),
            _ => Sight::NoPlace,
        }
    }

    /// Takes a place, and so the permit, inside the gate.
    fn occupy(&self, number: usize) -> Result<usize, SyncError> {
        self.fields().used.fetch_max(number as u32 + 1, AcqRel);
        places::take(self.place(number), || self.shared.map_pin())?;
        Ok(number)
    }

    fn full(&self) -> SyncError {
        SyncError::Full { what: "the holders of a semaphore's permits", capacity: self.capacity() }
    }

    /// Those who hold permits. One that is inside the gate waits for these itself.
    fn holders(&self) -> Awaited {
        let taken = self.used().filter(|place| places::is_taken(place));
        Awaited::holders("all permits are", taken.map(|place| place.holder.load(Relaxed)))
    }

    /// Sleeps, inside the gate, until there may be a permit.
    fn sleep(&self, seen: u32, patience: &Patience) -> Result<(), Stop> {
        // Who does not wait leaves nothing for which a holder would have to wake somebody.
        patience.check()?;
        let total = self.fields().total.load(Acquire);
        // It may change though the one that adds dies before it rings.
        let mut words = vec![(&self.fields().total, total)];
        words.extend(self.used().filter_map(places::watch));
        // One has given up or died between the look and this.
        if words.len() <= total as usize {
            return Ok(());
        }
        self.fields().bell.hear(seen, &words, patience)
    }
}

impl fmt::Debug for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}
