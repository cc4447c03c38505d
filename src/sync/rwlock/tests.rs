//! Readers and writers of one process, as threads.

use super::super::readers::READERS;
use super::*;

fn elsewhere<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

#[test]
fn many_read_or_one_writes() {
    let lock = RwLock::new(5_u64).unwrap();
    let reader = lock.read().unwrap();
    assert_eq!(elsewhere(|| *lock.try_read().unwrap()), 5);
    assert!(matches!(elsewhere(|| lock.try_write().map(drop)), Err(SyncError::WouldBlock)));
    drop(reader);
    *lock.write().unwrap() += 1;
    let writer = lock.try_write().unwrap();
    let timeout = Duration::from_millis(2);
    assert!(matches!(elsewhere(|| lock.try_read().map(drop)), Err(SyncError::WouldBlock)));
    let timed = elsewhere(|| lock.read_timeout(timeout).map(drop));
    assert!(matches!(timed, Err(SyncError::TimedOut { .. })));
    let timed = elsewhere(|| lock.write_timeout(timeout).map(drop));
    assert!(matches!(timed, Err(SyncError::TimedOut { .. })));
    drop(writer);
    assert_eq!(*lock.read().unwrap(), 6);
}

#[test]
fn thread_does_not_wait_for_itself_and_reads_again_though_a_writer_waits() {
    let lock = RwLock::new(0_u64).unwrap();
    let reader = lock.read().unwrap();
    assert!(matches!(lock.write(), Err(SyncError::Deadlock)));
    assert!(matches!(lock.recover(), Err(SyncError::Deadlock)));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| *lock.write().unwrap() = 1);
        while !lock.fields().has_writer() {
            std::thread::yield_now();
        }
        let again = lock.read().unwrap();
        drop(reader);
        assert!(matches!(elsewhere(|| lock.try_read().map(drop)), Err(SyncError::WouldBlock)));
        assert_eq!(*again, 0);
        drop(again);
        writer.join().unwrap();
    });
    let writer = lock.write().unwrap();
    assert!(matches!(lock.read(), Err(SyncError::Deadlock)));
    assert!(matches!(lock.write(), Err(SyncError::Deadlock)));
    assert_eq!(*writer, 1);
}

#[test]
fn more_readers_than_places_wait_for_one_of_them() {
    let lock = RwLock::new(0_u64).unwrap();
    let all = std::sync::Barrier::new(READERS + 1);
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let guard = lock.read().unwrap();
                all.wait();
                all.wait();
                drop(guard);
            });
        }
        all.wait();
        assert!(matches!(lock.try_read(), Err(SyncError::WouldBlock)));
        let late = scope.spawn(|| *lock.read().unwrap());
        all.wait();
        assert_eq!(late.join().unwrap(), 0);
    });
    drop(lock.try_write().unwrap());
}

#[test]
fn only_a_writer_that_panics_poisons() {
    let (lock, own) = (RwLock::new(0_u64).unwrap(), std::process::id());
    let panics = |work: &dyn Fn()| {
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err());
    };
    panics(&|| {
        let _guard = lock.read().unwrap();
        panic!("it reads");
    });
    *lock.write().unwrap() = 1;
    panics(&|| {
        let _guard = lock.write().unwrap();
        panic!("it writes");
    });
    assert!(matches!(lock.read(), Err(SyncError::Poisoned { pid }) if pid == own));
    assert!(matches!(lock.write(), Err(SyncError::Poisoned { pid }) if pid == own));
    let (mut guard, poison) = lock.recover().unwrap();
    *guard = 2;
    drop(guard);
    assert_eq!((poison, *lock.read().unwrap()), (Some(own), 2));
}
