//! What semaphores are made of: a total of permits, and an owner table of their holders.

use std::fmt;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use serde::{Deserializer, Serialize};

use super::awaited::Awaited;
use super::error::SyncError;
use super::event_count::EventCount;
use super::futex_lock;
use super::owner_table::{self, OwnerTable, Slot};
use super::record_with;
use super::robust_mutex::Locked;
use super::wait_policy::{Interrupted, WaitPolicy};
use crate::error::MemoryError;
use crate::sys::atomic_record::atomic_record;
use crate::sys::robust::{self, RobustWord};
use crate::transfer::record::{Record, TypeTag};

atomic_record! {
    /// A permit that a thread holds: the one that owns it.
    pub(super) struct PermitSlot {
        holder: RobustWord,
    }
}

impl Slot for PermitSlot {
    #[inline]
    fn robust(&self) -> &RobustWord {
        &self.holder
    }
}

atomic_record! {
    pub(super) struct PermitFields {
        /// The thread that waits for a permit owns it until it has one. So one thread at a time sleeps for a permit,
        /// and all others for the mutex, which the kernel hands on when that one dies: its wakeup is not lost with it.
        mutex: RobustWord,
        /// Notified when a permit is given back or added.
        changed: EventCount,
        /// How many permits there are, held or not.
        total: AtomicU32,
        /// How many permits there may be.
        most: AtomicU32,
        /// Of the table of holders: see [`OwnerTable`].
        used: AtomicU32,
    }
}

/// The fewest and the most places; never more than there can be permits.
const PLACES: (u32, u32) = (64, 1024);

/// Permits, of which the total less the slots that living threads own are free.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub(super) struct Permits {
    shared: Record<PermitFields>,
}

/// What a thread finds that looks for a permit.
enum Availability {
    Free(usize),
    NoneFree,
    NoSlot,
}

impl Permits {
    pub(super) fn new(kind: &str, total: u32, most: u32) -> Result<Self, MemoryError> {
        // Permits may be added later, hence at least 64; a slot is a cache line, and each look goes through all that
        // were ever used.
        let places = total.clamp(PLACES.0, PLACES.1).min(most.max(1)) as usize;
        let shared = Record::<PermitFields>::new(TypeTag::of::<()>(kind), places * size_of::<PermitSlot>())?;
        // Relaxed: no other process has the record before it is sent, which orders this.
        shared.fields().total.store(total, Relaxed);
        shared.fields().most.store(most, Relaxed);
        Ok(Self { shared })
    }

    pub(super) fn receive<'de, D: Deserializer<'de>>(kind: &str, deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { shared: record_with::receive(kind, deserializer)? })
    }

    /// Takes a permit; returns its place.
    pub(super) fn take(&self, policy: &WaitPolicy) -> Result<usize, SyncError> {
        let _inside = self.enter(policy).map_err(|stop| stop.awaiting(|| self.awaited()))?;
        loop {
            // Before the look: a permit that is given back after the look advances the epoch, and this thread does not
            // sleep on `seen`.
            let seen = self.fields().changed.epoch();
            match self.look() {
                Availability::Free(number) => {
                    // Nobody is faster: slots are taken inside the mutex only.
                    self.holders().take(number, || self.shared.map_pin())?;
                    return Ok(number);
                }
                // It does not wait for a slot: there are permits, and no holder has to give one back.
                Availability::NoSlot => return Err(self.full()),
                Availability::NoneFree => {
                    self.sleep(seen, policy).map_err(|stop| stop.awaiting(|| self.awaited()))?;
                }
            }
        }
    }

    /// Gives back the permit of a place, unless this is a fork of its holder.
    pub(super) fn give_back(&self, slot: usize) {
        let (holder, changed) = (&self.holders().slot(slot).holder, &self.fields().changed);
        // No mutex: a holder that gives back must not wait behind a waiter, which keeps the mutex while it sleeps.
        robust::free(holder, || {
            // The waiter sleeps on the epoch beside the holders' words (`sleep`), and so is woken by it; WAITERS says
            // that there is one.
            if futex_lock::free_for_all(&holder.word) {
                changed.notify_all();
            }
        });
    }

    /// Removes a permit from the total, whose place is then to be given back.
    pub(super) fn remove(&self, slot: usize) {
        // First the total, then the slot: in the other order a waiter would find a free permit in between. A holder
        // that dies after the first step has taken its permit with it, as it wanted.
        if robust::owns(&self.holders().slot(slot).holder) {
            let _ = self.fields().total.fetch_update(AcqRel, Relaxed, |total| total.checked_sub(1));
        }
    }

    /// Adds permits.
    pub(super) fn add(&self, permits: u32) -> Result<(), SyncError> {
        let fields = self.fields();
        let most = fields.most.load(Relaxed);
        let mut before = 0;
        let added = fields.changed.notify_if(|count| {
            let sum = |total: u32| total.checked_add(permits).filter(|&sum| sum <= most);
            // The total first. A thread that dies before the epoch advances has added its permits, and a waiter finds
            // the total changed.
            let added = fields.total.fetch_update(AcqRel, Relaxed, sum);
            before = added.unwrap_or_else(|total| total);
            count.fetch_add(added.is_ok().into(), AcqRel);
            added.is_ok()
        });
        if added { Ok(()) } else { Err(SyncError::TooMany { value: before, limit: most }) }
    }

    /// How many are free.
    pub(super) fn free(&self) -> u32 {
        // A snapshot: outside the mutex permits may be taken and given back during the count. Inside, holders can only
        // become fewer.
        let held = self.holders().owned().count();
        let held = u32::try_from(held).unwrap_or(u32::MAX);
        self.fields().total.load(Acquire).saturating_sub(held)
    }

    fn fields(&self) -> &PermitFields {
        self.shared.fields()
    }

    fn holders(&self) -> OwnerTable<'_, PermitSlot> {
        OwnerTable::new(self.shared.beside(), &self.fields().used)
    }

    /// Takes the mutex. An owner that died inside can have left nothing that would have to be put right.
    fn enter(&self, policy: &WaitPolicy) -> Result<Locked<'_>, Interrupted> {
        let (mutex, keep) = (&self.fields().mutex, || self.shared.map_pin());
        // A waiter has the mutex for as long as all permits are held. To wait for the mutex would be hopeless then:
        // inside this thread would find no permit either.
        let (inside, _) = Locked::lock_as(policy, mutex, keep, || self.free() == 0)?;
        Ok(inside)
    }

    /// Looks for a permit, inside the mutex.
    fn look(&self) -> Availability {
        let holders = self.holders();
        if holders.owned().count() >= self.fields().total.load(Acquire) as usize {
            return Availability::NoneFree;
        }
        holders.first(|slot| !owner_table::is_owned(slot)).map_or(Availability::NoSlot, Availability::Free)
    }

    fn full(&self) -> SyncError {
        SyncError::Full { what: "the holders of a semaphore's permits", capacity: self.holders().capacity() }
    }

    /// The processes that hold permits. A waiter inside the mutex waits for these itself.
    fn awaited(&self) -> Awaited {
        Awaited::holders("all permits are", self.holders().owner_pids())
    }

    /// Sleeps, inside the mutex, until there may be a permit.
    fn sleep(&self, seen: u32, policy: &WaitPolicy) -> Result<(), Interrupted> {
        // A caller that does not wait must not set WAITERS: it would cost a holder a system call for nothing.
        policy.check()?;
        let total = self.fields().total.load(Acquire);
        // On the total too: it changes although the thread that adds permits dies before it notifies.
        let mut words = vec![(&self.fields().total, total)];
        // And on each holder's word: its death frees the permit, and nobody but the kernel tells.
        words.extend(self.holders().used().iter().filter_map(owner_table::watch));
        // Fewer slots are owned than there are permits: a holder has freed one or died since the look.
        if words.len() <= total as usize {
            return Ok(());
        }
        self.fields().changed.wait_once(seen, &words, policy)
    }
}

impl fmt::Debug for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}
