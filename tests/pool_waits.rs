//! What waits in a task ends when the task is asked to end, whatever it waits for; and what waits in the next one does not.

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::thread;
use std::time::{Duration, Instant};

use calls::own_pid;
use common::{await_that, race_time, watched};
use phalanx::pool::{self, Pool, PoolError, TaskFailure};
use phalanx::sync::{
    AbortedBy, Barrier, Condvar, Event, Lock, Once, Permit, RLock, RwLock, Semaphore, SyncError,
};
use phalanx::{Connection, JoinableQueue, Options, Queue, QueueError, wait};
use serde::{Deserialize, Serialize};

phalanx::auto_init!();

/// What never comes, as long as the test's process has it all.
#[derive(Clone, Serialize, Deserialize)]
struct All {
    told: Queue<u32>,
    empty: Queue<u8>,
    full: Queue<u8>,
    undone: JoinableQueue<u8>,
    lock: Lock<u8>,
    rlock: RLock,
    read: RwLock<u8>,
    written: RwLock<u8>,
    doors: Semaphore,
    event: Event,
    turn: (Lock<u8>, Condvar),
    once: Once,
    barrier: Barrier,
}

fn all() -> All {
    All {
        told: Queue::bounded(8).unwrap(),
        empty: Queue::bounded(1).unwrap(),
        full: Queue::bounded(1).unwrap(),
        undone: JoinableQueue::bounded(1).unwrap(),
        lock: Lock::new(0).unwrap(),
        rlock: RLock::new().unwrap(),
        read: RwLock::new(0).unwrap(),
        written: RwLock::new(0).unwrap(),
        doors: Semaphore::new(1).unwrap(),
        event: Event::new().unwrap(),
        turn: (Lock::new(0).unwrap(), Condvar::new().unwrap()),
        once: Once::new().unwrap(),
        barrier: Barrier::new(2).unwrap(),
    }
}

const ASKED: AbortedBy = AbortedBy::Pool;
const LONG: Duration = Duration::from_secs(1000);

fn of_sync<T>(waited: Result<T, SyncError>) -> bool {
    matches!(waited, Err(SyncError::Aborted { by: ASKED }))
}

fn of_queue<T>(waited: Result<T, QueueError>) -> bool {
    matches!(waited, Err(QueueError::Aborted { by: ASKED }))
}

fn never(event: Event) -> anyhow::Result<()> {
    Ok(event.wait()?)
}

/// A pool of the task's own, whose task does not end.
fn in_a_pool(event: &Event, joins: bool) -> anyhow::Result<bool> {
    let inner = Pool::new(1)?;
    let task = inner.submit(never, event.clone())?;
    if joins {
        return Ok(matches!(inner.join(), Err(PoolError::Queue(QueueError::Aborted { by: ASKED }))));
    }
    let failed = task.join().unwrap_err();
    Ok(matches!(failed.failure(), TaskFailure::WaitEnded(why) if why.contains("the task was asked to end")))
}

/// Each way to wait; says whether the wait was ended for the right reason.
const WAYS: [fn(&All) -> anyhow::Result<bool>; 22] = [
    |all| Ok(of_queue(all.empty.get())),
    |all| Ok(of_queue(all.empty.get_timeout(LONG))),
    |all| Ok(of_queue(all.full.put(1))),
    |all| Ok(of_queue(all.undone.join())),
    |all| Ok(of_queue(wait(&[&all.empty], None))),
    |_| Ok(of_queue(phalanx::pipe::<u8, u8>()?.0.recv())),
    |_| {
        let (ours, _theirs): (Connection<Vec<u8>, u8>, Connection<u8, Vec<u8>>) = phalanx::pipe()?;
        Ok(of_queue((0..10_000).try_for_each(|_| ours.send(vec![0; 1000]))))
    },
    |all| Ok(of_sync(all.lock.lock())),
    |all| Ok(of_sync(all.lock.lock_timeout(LONG))),
    |all| Ok(of_sync(all.rlock.lock())),
    |all| Ok(of_sync(all.read.write())),
    |all| Ok(of_sync(all.written.read())),
    |all| Ok(of_sync(all.doors.acquire())),
    |all| Ok(of_sync(all.event.wait())),
    |all| Ok(of_sync(all.turn.1.wait_while(all.turn.0.lock()?, |turn| *turn == 0))),
    |all| Ok(of_sync(all.once.call_once(|| ()))),
    |all| Ok(of_sync(all.barrier.wait())),
    |all| in_a_pool(&all.event, false),
    |all| in_a_pool(&all.event, true),
    // Another thread of the task.
    |all| Ok(thread::scope(|scope| scope.spawn(|| of_sync(all.event.wait())).join().unwrap())),
    // What can be had is had, and what cannot is not waited for again.
    |all| {
        let own = Queue::bounded(1)?;
        let first = of_queue(all.empty.get());
        own.put(7)?;
        Ok(first && own.get()? == 7 && of_queue(own.get()) && pool::cancelled())
    },
    // The condition variable gives its lock back.
    |all| {
        drop(all.turn.1.wait(all.turn.0.lock()?));
        Ok(all.turn.0.try_lock().is_ok())
    },
];

fn wait_by((way, all): (usize, All)) -> anyhow::Result<bool> {
    all.told.put(std::process::id())?;
    WAYS[way](&all)
}

/// A wait of a task that nobody asks.
fn wait_in_peace(event: Event) -> anyhow::Result<u32> {
    let waited = event.wait_timeout(Duration::from_millis(1));
    anyhow::ensure!(matches!(waited, Err(SyncError::TimedOut { .. })), "{waited:?}");
    let waited = phalanx::pipe::<u8, u8>()?.0.recv_timeout(Duration::from_millis(1));
    anyhow::ensure!(matches!(waited, Err(QueueError::TimedOut { .. })), "{waited:?}");
    Ok(std::process::id())
}

/// Runs `test` while this process holds everything.
fn held(all: &All, test: impl FnOnce()) {
    all.full.put(1).unwrap();
    all.undone.put(1).unwrap();
    let held = (all.lock.lock().unwrap(), all.rlock.lock().unwrap(), all.doors.acquire().unwrap());
    let (reading, writing) = (all.read.read().unwrap(), all.written.write().unwrap());
    all.once.call_once(test).unwrap();
    drop((held, reading, writing));
}

#[test]
fn kill_ends_whatever_waits_in_the_task_and_nothing_of_the_next_one() {
    watched(|| {
        let (all, pool) = (all(), Pool::options(Options::new(1)).grace(LONG).build().unwrap());
        let pid = pool.submit(own_pid, ()).unwrap().join().unwrap();
        held(&all, || {
            for way in 0..WAYS.len() {
                let task = pool.submit(wait_by, (way, all.clone())).unwrap();
                assert_eq!(all.told.get().unwrap(), pid);
                await_that(|| common::state_of(pid) == Some('S'));
                assert!(task.kill());
                assert!(task.join().unwrap(), "way {way}");
                // The worker is the same, and has forgotten it.
                let next = pool.submit(wait_in_peace, all.event.clone()).unwrap();
                assert_eq!(next.join().unwrap(), pid, "after way {way}");
            }
        });
        // What they waited for can be had.
        drop((all.lock.try_lock().unwrap(), all.rlock.try_lock().unwrap(), all.turn.0.try_lock().unwrap()));
        drop((all.read.try_write().unwrap(), all.written.try_read().unwrap()));
        all.doors.try_acquire().map(Permit::forget).unwrap();
        all.empty.put(5).unwrap();
        assert_eq!((all.empty.get().unwrap(), all.full.get().unwrap()), (5, 1));
    });
}

#[test]
fn time_limit_and_drop_of_a_map_end_waits_too() {
    watched(|| {
        let limit = Duration::from_millis(20);
        let pool = Pool::options(Options::new(1)).timeout(limit).grace(LONG).build().unwrap();
        let all = all();
        let task = pool.submit(wait_by, (0, all.clone())).unwrap();
        assert!(task.join().unwrap(), "the limit ends the wait, and what the function returns then counts");
        let pid = all.told.get().unwrap();
        assert_eq!(pool.submit(own_pid, ()).unwrap().join().unwrap(), pid);
    });
    watched(|| {
        let (all, pool) = (all(), Pool::new(1).unwrap());
        let mut map = pool.map(wait_by, [(13, all.clone()), (0, all.clone())]).unwrap().chunk(2);
        let first = thread::scope(|scope| {
            let pid = scope.spawn(|| all.told.get().unwrap());
            // Items are given out once the map is asked for one.
            scope.spawn(|| all.event.set());
            assert!(!map.next().unwrap().unwrap(), "the event ended the wait, and no abort");
            pid.join().unwrap()
        });
        assert_eq!(all.told.get().unwrap(), first);
        drop(map);
        assert_eq!(pool.submit(own_pid, ()).unwrap().join().unwrap(), first);
    });
}

/// Waits until the deadline, which a kill may forestall.
fn wait_a_little((event, micros): (Event, u64)) -> anyhow::Result<bool> {
    match event.wait_timeout(Duration::from_micros(micros)) {
        Err(SyncError::Aborted { by: ASKED }) => Ok(true),
        Err(SyncError::TimedOut { .. }) => Ok(false),
        other => anyhow::bail!("{other:?}"),
    }
}

#[test]
fn kill_that_races_with_the_end_of_its_task_never_ends_a_wait_of_the_next() {
    watched(|| {
        let (pool, event) =
            (Pool::options(Options::new(1)).grace(LONG).build().unwrap(), Event::new().unwrap());
        let (until, mut told, mut late) = (Instant::now() + race_time(), 0, 0);
        for micros in (0..200).cycle() {
            let task = pool.submit(wait_a_little, (event.clone(), 100)).unwrap();
            let next = pool.submit(wait_a_little, (event.clone(), 50)).unwrap();
            await_that(|| task.has_begun());
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_micros(micros) {
                std::hint::spin_loop();
            }
            let killed = task.kill();
            let aborted = task.join().unwrap();
            assert!(!aborted || killed, "nobody has asked it");
            assert!(!next.join().unwrap(), "the kill was meant for the task before");
            told += u32::from(aborted);
            late += u32::from(!killed);
            if Instant::now() > until {
                break;
            }
        }
        assert!(told > 0 && late > 0, "{told} were told in time, {late} kills came too late");
    });
}
