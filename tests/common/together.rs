//! What workers do with one of each primitive, however they were started.

use phalanx::sync::{
    Array, Barrier, BoundedSemaphore, Condvar, Event, Lock, Once, RLock, RwLock, Semaphore, Value,
};
use serde::{Deserialize, Serialize};

pub(crate) const WORKERS: usize = 3;
const ROUNDS: u64 = 50;

/// One of each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct All {
    start: Event,
    total: Lock<u64>,
    changed: Condvar,
    rlock: RLock,
    rlocked: Value<u64>,
    pair: RwLock<[u64; 2]>,
    doors: Semaphore,
    bounded: BoundedSemaphore,
    once: Once,
    made: Value<u32>,
    barrier: Barrier,
    counts: Array<u64>,
}

pub(crate) fn all() -> All {
    All {
        start: Event::new().unwrap(),
        total: Lock::new(0).unwrap(),
        changed: Condvar::new().unwrap(),
        rlock: RLock::new().unwrap(),
        rlocked: Value::new(0).unwrap(),
        pair: RwLock::new([0; 2]).unwrap(),
        doors: Semaphore::new(2).unwrap(),
        bounded: BoundedSemaphore::new(1).unwrap(),
        once: Once::new().unwrap(),
        made: Value::new(0).unwrap(),
        barrier: Barrier::new(WORKERS).unwrap(),
        counts: Array::zeros(WORKERS).unwrap(),
    }
}

/// What every worker does.
pub(crate) fn work(rank: usize, all: All) -> anyhow::Result<()> {
    if rank + 1 == WORKERS {
        all.start.set()
    } else {
        all.start.wait()?
    }
    all.once.call_once(|| all.made.set(all.made.get() + 1))?;
    for round in 1..=ROUNDS {
        work_a_round(rank, &all)?;
        all.counts.fetch_add(rank, 1)?;
        let leads = all.barrier.wait()?.is_leader();
        anyhow::ensure!(all.counts.to_vec().iter().all(|&count| count >= round));
        if leads {
            all.pair.write()?.iter_mut().for_each(|half| *half += 1);
        }
    }
    let whole = ROUNDS * WORKERS as u64;
    let total = all.changed.wait_while(all.total.lock()?, |total| *total < whole)?;
    anyhow::ensure!(*total == whole, "{total:?}");
    Ok(())
}

fn work_a_round(rank: usize, all: &All) -> anyhow::Result<()> {
    let [one, other] = *all.pair.read()?;
    anyhow::ensure!(one == other, "{one} and {other}");
    let _door = all.doors.acquire()?;
    let _outer = all.rlock.lock()?;
    let _inner = all.rlock.lock()?;
    anyhow::ensure!(all.rlock.depth() == 2);
    all.rlocked.set(all.rlocked.get() + 1);
    all.bounded.acquire()?.forget();
    *all.total.lock()? += 1;
    all.changed.notify_one();
    all.bounded.release(1)?;
    anyhow::ensure!(all.bounded.value() <= 1, "rank {rank}: {:?}", all.bounded);
    Ok(())
}

/// What is to be found when all have done it.
pub(crate) fn check(all: &All) {
    let whole = ROUNDS * WORKERS as u64;
    assert_eq!((*all.total.lock().unwrap(), all.rlocked.get()), (whole, whole));
    assert_eq!(*all.pair.read().unwrap(), [ROUNDS; 2]);
    assert_eq!((all.doors.value(), all.bounded.value()), (2, 1));
    assert_eq!((all.made.get(), all.once.is_completed()), (1, true));
    assert!(!all.barrier.is_broken() && all.barrier.waiting() == 0, "{:?}", all.barrier);
    assert_eq!(all.counts.to_vec(), [ROUNDS; WORKERS]);
}
