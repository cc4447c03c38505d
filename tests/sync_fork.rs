//! Locks, barriers and the like in workers of the Fork start method, in a process that has a single thread: no harness of threads.

mod common;
#[path = "common/harness.rs"]
mod harness;
#[path = "common/together.rs"]
mod together;

use std::cell::RefCell;
use std::process::ExitCode;
use std::sync::OnceLock;

use common::watched;
use phalanx::sync::{
    Barrier, Lock, LockGuard, Permit, RLock, RLockGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    Semaphore, SyncError,
};
use phalanx::{Options, StartMethod, start_processes};

fn forked(nprocs: usize) -> Options {
    Options::new(nprocs).start_method(StartMethod::Fork)
}

fn main() -> ExitCode {
    phalanx::init();
    let _ = LOCKS.set(Locks {
        lock: Lock::new(0).unwrap(),
        rlock: RLock::new().unwrap(),
        read: RwLock::new(0).unwrap(),
        write: RwLock::new(0).unwrap(),
        doors: Semaphore::new(1).unwrap(),
        barrier: Barrier::new(1).unwrap(),
    });
    harness::run(&harness::tests![
        watched: one_of_each_under_fork,
        what_is_held_is_not_the_forks,
        lock_that_a_fork_has_mapped_twice_is_one
    ])
}

fn one_of_each_under_fork() {
    let all = together::all();
    start_processes(together::work, all.clone(), forked(together::WORKERS)).unwrap().join().unwrap();
    together::check(&all);
}

/// One of each, which stay: guards of them can be where a fork finds them.
static LOCKS: OnceLock<Locks> = OnceLock::new();

struct Locks {
    lock: Lock<u8>,
    rlock: RLock,
    read: RwLock<u8>,
    write: RwLock<u8>,
    doors: Semaphore,
    barrier: Barrier,
}

struct Held {
    _lock: LockGuard<'static, u8>,
    _rlock: RLockGuard<'static>,
    /// Were a fork's copy of one to count, the other would be given up.
    read: Vec<RwLockReadGuard<'static, u8>>,
    _write: RwLockWriteGuard<'static, u8>,
    _permit: Permit<'static>,
    _barrier: Barrier,
}

thread_local! {
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

fn what_is_held_is_not_the_forks() {
    let locks = LOCKS.get().unwrap();
    let given = (
        locks.lock.clone(),
        locks.rlock.clone(),
        locks.read.clone(),
        locks.write.clone(),
        locks.doors.clone(),
    );
    let held = take(locks);
    let barrier = held._barrier.clone();
    HELD.set(Some(held));
    let work =
        |_, (lock, rlock, read, write, doors): (Lock<u8>, RLock, RwLock<u8>, RwLock<u8>, Semaphore)| {
            // A copy of what the parent holds.
            drop(HELD.take());
            let refused = [
                lock.try_lock().map(drop),
                rlock.try_lock().map(drop),
                read.try_write().map(drop),
                write.try_read().map(drop),
                doors.try_acquire().map(drop),
            ];
            anyhow::ensure!(
                refused.iter().all(|refused| matches!(refused, Err(SyncError::WouldBlock))),
                "{refused:?}"
            );
            Ok(())
        };
    start_processes(work, given.clone(), forked(2)).unwrap().join().unwrap();
    barrier.wait().unwrap();
    let (lock, rlock, read, write, doors) = &given;
    assert_eq!((rlock.depth(), doors.value(), lock.is_locked()), (1, 0, true));
    let mut held = HELD.take().unwrap();
    held.read.pop();
    assert!(matches!(read.try_write(), Err(SyncError::Deadlock)), "one that reads is left");
    drop(held);
    assert_eq!((rlock.depth(), doors.value(), lock.is_locked()), (0, 1, false));
    drop((read.try_write().unwrap(), write.try_read().unwrap()));
    assert_eq!((lock.poisoned(), rlock.poisoned(), write.poisoned()), (None, None, None));
}

fn take(locks: &'static Locks) -> Held {
    let barrier = locks.barrier.clone();
    barrier.wait().unwrap();
    Held {
        _lock: locks.lock.lock().unwrap(),
        _rlock: locks.rlock.lock().unwrap(),
        read: vec![locks.read.read().unwrap(), locks.read.read().unwrap()],
        _write: locks.write.write().unwrap(),
        _permit: locks.doors.acquire().unwrap(),
        _barrier: barrier,
    }
}

fn lock_that_a_fork_has_mapped_twice_is_one() {
    let work = |_, given: (Lock<u8>, RLock)| {
        let (inherited, (lock, rlock)) = (LOCKS.get().unwrap(), given);
        let _held = (inherited.lock.lock()?, inherited.rlock.lock()?);
        let refused = [lock.lock().map(drop), rlock.lock().map(drop)];
        let all = refused.iter().all(|refused| matches!(refused, Err(SyncError::Deadlock)));
        anyhow::ensure!(all, "{refused:?}");
        Ok(())
    };
    let locks = LOCKS.get().unwrap();
    start_processes(work, (locks.lock.clone(), locks.rlock.clone()), forked(1)).unwrap().join().unwrap();
}
