//! Whatever a worker of `sync` waits for, the failure of a sibling ends the wait, and leaves nothing behind that others
//! stumble over.

mod common;

use std::time::Duration;

use common::{await_asleep, await_that, watched};
use phalanx::sync::{
    AbortedBy, Array, Barrier, Condvar, Event, Lock, Once, Permit, RLock, RwLock, Semaphore, SyncError,
};
use phalanx::{Options, start_processes};
use serde::{Deserialize, Serialize};

phalanx::auto_init!();

#[derive(Clone, Serialize, Deserialize)]
struct All {
    lock: Lock<u8>,
    rlock: RLock,
    read: RwLock<u8>,
    written: RwLock<u8>,
    doors: Semaphore,
    event: Event,
    turn: (Lock<u8>, Condvar),
    once: Once,
    barrier: Barrier,
    /// Set when there is a writer behind whom one can wait.
    behind: Event,
    /// The first fails when this is set.
    fail: Event,
    /// Who was told that the first has failed.
    told: Array<bool>,
}

/// Each rank waits for something else, but for the first.
fn wait(rank: usize, all: &All) -> Result<(), SyncError> {
    match rank {
        1 => all.lock.lock().map(drop),
        2 => all.rlock.lock().map(drop),
        3 => all.read.write().map(drop),
        // Behind that writer, who is there when there is no reading any more.
        4 => {
            await_that(|| all.read.try_read().is_err());
            all.behind.set();
            all.read.read().map(drop)
        }
        5 => all.written.read().map(drop),
        // One inside the gate, one before it.
        6 | 7 => all.doors.acquire().map(drop),
        8 => all.event.wait(),
        9 => all.turn.1.wait_while(all.turn.0.lock()?, |turn| *turn == 0).map(drop),
        10 => all.once.call_once(|| ()),
        11 | 12 => all.barrier.wait().map(drop),
        _ => unreachable!("there are {RANKS}"),
    }
}

const RANKS: usize = 13;

fn work(rank: usize, all: All) -> anyhow::Result<()> {
    if rank == 0 {
        all.fail.wait()?;
        anyhow::bail!("out of luck")
    }
    let told = match wait(rank, &all) {
        Err(SyncError::Aborted { by: AbortedBy::Rank(0) }) => true,
        // The one that was told first breaks it for the other.
        Err(SyncError::Broken { pid: Some(_), .. }) => rank > 10,
        // The writer was told first, and has made way.
        Ok(()) => rank == 4,
        _ => false,
    };
    Ok(all.told.set(rank, told)?)
}

fn all() -> All {
    All {
        lock: Lock::new(0).unwrap(),
        rlock: RLock::new().unwrap(),
        read: RwLock::new(0).unwrap(),
        written: RwLock::new(0).unwrap(),
        doors: Semaphore::new(1).unwrap(),
        event: Event::new().unwrap(),
        turn: (Lock::new(0).unwrap(), Condvar::new().unwrap()),
        once: Once::new().unwrap(),
        barrier: Barrier::new(3).unwrap(),
        behind: Event::new().unwrap(),
        fail: Event::new().unwrap(),
        told: Array::zeros(RANKS).unwrap(),
    }
}

/// Runs the workers until they have all been told, while this process holds everything.
fn hold_and_fail(all: &All) {
    let options = Options::new(RANKS).abort_on_failure(true).grace_period(Duration::from_secs(3600));
    let held = (all.lock.lock().unwrap(), all.rlock.lock().unwrap(), all.doors.acquire().unwrap());
    let (reading, writing) = (all.read.read().unwrap(), all.written.write().unwrap());
    all.once
        .call_once(|| {
            let context = start_processes(work, all.clone(), options).unwrap();
            // To try is to sleep for a moment, too.
            all.behind.wait().unwrap();
            context.pids().into_iter().for_each(await_asleep);
            await_that(|| all.barrier.waiting() == 2);
            all.fail.set();
            assert!(context.join().is_err());
        })
        .unwrap();
    drop((held, reading, writing));
}

#[test]
fn every_wait_ends_and_leaves_its_gate() {
    watched(|| {
        let all = all();
        hold_and_fail(&all);
        let mut expected = [true; RANKS];
        expected[0] = false;
        assert_eq!(all.told.to_vec(), expected);
        // All can be had, at once.
        drop((all.lock.try_lock().unwrap(), all.rlock.try_lock().unwrap(), all.turn.0.try_lock().unwrap()));
        drop(all.read.try_write().unwrap());
        drop((all.read.try_read().unwrap(), all.written.try_read().unwrap()));
        all.doors.try_acquire().map(Permit::forget).unwrap();
        assert!(all.once.is_completed() && all.barrier.is_broken());
        assert_eq!(all.barrier.waiting(), 0);
    });
}
