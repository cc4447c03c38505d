//! Locks, semaphores, events and the like between processes, some of which are killed at the worst moment.

mod common;
#[path = "common/together.rs"]
mod together;

use std::time::Duration;

use common::{await_asleep, kill, launched, served, wait_for_ever, watched};
use phalanx::sync::{Condvar, Event, Lock, Once, Permit, RLock, RwLock, Semaphore, SyncError, Value};
use phalanx::{Options, ProcessContext, spawn, start_processes};
use serde::Serialize;
use serde::de::DeserializeOwned;

phalanx::auto_init!();

/// What a worker is given, with an event for it to say that it is where it is to be killed.
type Given<A> = (A, Event);

/// Starts one worker that comes to a certain point.
fn begin<A: Clone + Serialize + DeserializeOwned>(
    given: &A,
    work: impl Fn(usize, Given<A>) -> anyhow::Result<()> + Copy + Send + 'static,
) -> ProcessContext<()> {
    let ready = Event::new().unwrap();
    let context = start_processes(work, (given.clone(), ready.clone()), Options::new(1)).unwrap();
    ready.wait().unwrap();
    context
}

/// Starts workers that fall asleep.
fn begin_asleep<A: Clone + Serialize + DeserializeOwned, R: Serialize + DeserializeOwned>(
    given: &A,
    work: impl Fn(usize, A) -> anyhow::Result<R> + Copy + Send + 'static,
    nprocs: usize,
) -> ProcessContext<R> {
    let context = start_processes(work, given.clone(), Options::new(nprocs)).unwrap();
    context.pids().into_iter().for_each(await_asleep);
    context
}

/// The process that a call blames.
fn blamed<T>(result: Result<T, SyncError>) -> anyhow::Result<u32> {
    match result.map(drop) {
        Err(SyncError::Poisoned { pid }) => Ok(pid),
        other => anyhow::bail!("{other:?}"),
    }
}

#[test]
fn recovering_waits_no_longer_than_it_is_to() {
    watched(|| {
        let (lock, rlock, rwlock) =
            (Lock::new(0_u8).unwrap(), RLock::new().unwrap(), RwLock::new(0_u8).unwrap());
        let held = (lock.lock().unwrap(), rlock.lock().unwrap(), rwlock.read().unwrap());
        let soon = Duration::from_millis(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let refused = [
                    lock.try_recover().map(drop),
                    rlock.try_recover().map(drop),
                    rwlock.try_recover().map(drop),
                ];
                assert!(refused.iter().all(|told| matches!(told, Err(SyncError::WouldBlock))), "{refused:?}");
                let refused = [
                    lock.recover_timeout(soon).map(drop),
                    rlock.recover_timeout(soon).map(drop),
                    rwlock.recover_timeout(soon).map(drop),
                ];
                for told in &refused {
                    let timed_out =
                        matches!(told, Err(SyncError::TimedOut { waited, .. }) if *waited == soon);
                    assert!(timed_out, "{refused:?}");
                }
            });
        });
        drop(held);
        assert!(lock.try_recover().map(|(_, poison)| poison).unwrap().is_none());
        assert!(rlock.try_recover().map(|(_, poison)| poison).unwrap().is_none());
        assert!(rwlock.try_recover().map(|(_, poison)| poison).unwrap().is_none());
        assert!(lock.recover_timeout(soon).map(|(_, poison)| poison).unwrap().is_none());
        assert!(rlock.recover_timeout(soon).map(|(_, poison)| poison).unwrap().is_none());
        assert!(rwlock.recover_timeout(soon).map(|(_, poison)| poison).unwrap().is_none());
    });
}

#[test]
fn one_of_each_under_spawn() {
    watched(|| {
        let all = together::all();
        spawn(together::work, all.clone(), together::WORKERS).unwrap();
        together::check(&all);
    });
}

#[test]
fn one_of_each_under_the_fork_server() {
    launched(|_, ()| {
        let all = together::all();
        start_processes(together::work, all.clone(), served(together::WORKERS))?.join()?;
        together::check(&all);
        Ok(())
    });
}

#[test]
fn lock_of_a_killed_holder_is_poisoned_for_who_waits() {
    watched(|| {
        let lock = Lock::new([0_u64; 2]).unwrap();
        let holder = begin(&lock, |_, (lock, ready): Given<Lock<[u64; 2]>>| {
            lock.lock()?[0] = 1;
            let _guard = lock.lock()?;
            ready.set();
            wait_for_ever()
        });
        let waiters = begin_asleep(&lock, |_, lock: Lock<[u64; 2]>| blamed(lock.lock()), 2);
        assert!(matches!(lock.try_lock(), Err(SyncError::WouldBlock)));
        assert!(matches!(lock.lock_timeout(Duration::from_millis(1)), Err(SyncError::TimedOut { .. })));
        let pid = kill(holder);
        assert_eq!(waiters.join().unwrap(), [pid, pid]);
        let (guard, poison) = lock.recover().unwrap();
        assert_eq!((*guard, poison), ([1, 0], Some(pid)));
        drop(guard);
        assert_eq!(*lock.lock().unwrap(), [1, 0]);
    });
}

#[test]
fn lock_goes_past_a_killed_waiter() {
    watched(|| {
        let lock = Lock::new(0_u64).unwrap();
        let guard = lock.lock().unwrap();
        let add = |_, lock: Lock<u64>| Ok(lock.lock().map(|mut sum| *sum += 1)?);
        let [first, second, third] = [(); 3].map(|()| begin_asleep(&lock, add, 1));
        kill(first);
        drop(guard);
        second.join().unwrap();
        third.join().unwrap();
        assert_eq!(*lock.lock().unwrap(), 2);
    });
}

#[test]
fn rlock_of_a_killed_holder_is_poisoned_at_any_depth() {
    watched(|| {
        let lock = RLock::new().unwrap();
        let holder = begin(&lock, |_, (lock, ready): Given<RLock>| {
            let _outer = lock.lock()?;
            let _inner = lock.lock()?;
            ready.set();
            wait_for_ever()
        });
        let waiters = begin_asleep(&lock, |_, lock: RLock| blamed(lock.lock()), 2);
        assert!(matches!(lock.try_lock(), Err(SyncError::WouldBlock)));
        let pid = kill(holder);
        assert_eq!(waiters.join().unwrap(), [pid, pid]);
        let (guard, poison) = lock.recover().unwrap();
        assert_eq!((lock.depth(), poison), (1, Some(pid)));
        drop(guard);
        drop(lock.try_lock().unwrap());
    });
}

#[test]
fn killed_reader_harms_nobody_and_a_killed_writer_poisons() {
    watched(|| {
        let lock = RwLock::new(0_u64).unwrap();
        let reader = begin(&lock, |_, (lock, ready): Given<RwLock<u64>>| {
            let _guard = lock.read()?;
            let _again = lock.read()?;
            ready.set();
            wait_for_ever()
        });
        let writer =
            begin_asleep(&lock, |_, lock: RwLock<u64>| Ok(lock.write().map(|mut sum| *sum += 1)?), 1);
        kill(reader);
        writer.join().unwrap();
        assert_eq!(*lock.read().unwrap(), 1);

        let writer = begin(&lock, |_, (lock, ready): Given<RwLock<u64>>| {
            let _guard = lock.write()?;
            ready.set();
            wait_for_ever()
        });
        let readers = begin_asleep(&lock, |_, lock: RwLock<u64>| blamed(lock.read()), 2);
        let writers = begin_asleep(&lock, |_, lock: RwLock<u64>| blamed(lock.write()), 1);
        let pid = kill(writer);
        assert_eq!((readers.join().unwrap(), writers.join().unwrap()), (vec![pid, pid], vec![pid]));
        assert_eq!(lock.recover().map(|(guard, poison)| (*guard, poison)).unwrap(), (1, Some(pid)));
        assert_eq!(*lock.read().unwrap(), 1);
    });
}

#[test]
fn writer_that_is_killed_while_it_waits_lets_those_behind_it_go() {
    watched(|| {
        let lock = RwLock::new(0_u64).unwrap();
        let guard = lock.read().unwrap();
        let writer =
            begin_asleep(&lock, |_, lock: RwLock<u64>| Ok(lock.write().map(|mut sum| *sum += 1)?), 1);
        let readers = begin_asleep(&lock, |_, lock: RwLock<u64>| Ok(*lock.read()?), 2);
        kill(writer);
        assert_eq!(readers.join().unwrap(), [0, 0]);
        assert_eq!(lock.poisoned(), None);
        drop(guard);
        *lock.try_write().unwrap() += 1;
    });
}

#[test]
fn permits_of_killed_holders_come_back_to_who_waits() {
    watched(|| {
        let doors = Semaphore::new(2).unwrap();
        let hold = |_, (doors, ready): Given<Semaphore>| {
            let _permit = doors.acquire()?;
            ready.set();
            wait_for_ever()
        };
        let holders = [(); 2].map(|()| begin(&doors, hold));
        assert!(matches!(doors.try_acquire(), Err(SyncError::WouldBlock)));
        let waiters = begin_asleep(&doors, |_, doors: Semaphore| Ok(doors.acquire().map(drop)?), 3);
        let [first, second] = holders;
        kill(first);
        waiters.join().unwrap();
        assert_eq!(doors.value(), 1);
        kill(second);
        assert_eq!(doors.value(), 2);
        drop([(); 2].map(|()| doors.try_acquire().unwrap()));
    });
}

#[test]
fn permit_goes_past_killed_waiters() {
    watched(|| {
        let doors = Semaphore::new(1).unwrap();
        let permit = doors.acquire().unwrap();
        let keep = |_, doors: Semaphore| Ok(doors.acquire().map(Permit::forget)?);
        let [inside, at_the_gate, last] = [(); 3].map(|()| begin_asleep(&doors, keep, 1));
        kill(inside);
        kill(at_the_gate);
        drop(permit);
        last.join().unwrap();
        assert_eq!(doors.value(), 0);
        let waiter = begin_asleep(&doors, keep, 1);
        doors.release(1).unwrap();
        waiter.join().unwrap();
    });
}

#[test]
fn event_and_condition_go_past_killed_waiters() {
    watched(|| {
        let event = Event::new().unwrap();
        let wait = |_, event: Event| Ok(event.wait()?);
        let [first, second, third] = [(); 3].map(|()| begin_asleep(&event, wait, 1));
        kill(first);
        event.set();
        second.join().unwrap();
        third.join().unwrap();

        let given = (Lock::new(0_u64).unwrap(), Condvar::new().unwrap());
        let wait = |_, (lock, changed): (Lock<u64>, Condvar)| {
            *changed.wait_while(lock.lock()?, |permits| *permits == 0)? -= 1;
            Ok(())
        };
        let [first, second] = [(); 2].map(|()| begin_asleep(&given, wait, 1));
        kill(first);
        *given.0.lock().unwrap() += 1;
        given.1.notify_one();
        second.join().unwrap();
        assert_eq!(*given.0.lock().unwrap(), 0);
    });
}

#[test]
fn what_a_killed_process_did_once_is_poisoned_until_it_is_made_good() {
    watched(|| {
        let given = (Once::new().unwrap(), Value::new(0_u32).unwrap());
        let (once, made) = &given;
        let runner = begin(&given, |_, ((once, made), ready): Given<(Once, Value<u32>)>| {
            once.call_once(|| {
                made.set(1);
                ready.set();
                wait_for_ever()
            })?;
            Ok(())
        });
        let waiter =
            begin_asleep(&given, |_, (once, _): (Once, Value<u32>)| blamed(once.call_once(|| ())), 1);
        let soon = Duration::from_millis(1);
        assert!(matches!(once.call_once_timeout(soon, || ()), Err(SyncError::TimedOut { .. })));
        let pid = kill(runner);
        assert_eq!(waiter.join().unwrap(), [pid]);
        assert_eq!(once.poisoned(), Some(pid));
        let mend = |_, (once, made): (Once, Value<u32>)| {
            let mut told = None;
            once.call_once_force(|pid| {
                told = pid;
                made.set(7);
            })?;
            anyhow::Ok(told)
        };
        assert_eq!(spawn(mend, given.clone(), 1).unwrap(), [Some(pid)]);
        once.call_once(|| unreachable!("it is done")).unwrap();
        assert_eq!(made.get(), 7);
    });
}
