//! What is left over, leaked, large, or too much, in `sync`.

#![expect(unsafe_code, reason = "types that are plain data")]

mod common;

use std::sync::mpsc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use common::{alone, await_asleep, await_that, watched};
use phalanx::sync::{Barrier, Lock, RLock, RwLock, Semaphore, SyncError};

phalanx::auto_init!();

/// Does `work` on a thread of its own, until the kernel has marked what that leaves: it does so a moment after the thread
/// can be joined, and before it takes its number away.
fn on_a_thread_that_ends(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        work();
        nix::unistd::gettid()
    });
    let number = thread.join().unwrap();
    await_that(|| !std::fs::exists(format!("/proc/self/task/{number}")).unwrap());
}

/// Handles that come on one thread and are dropped on another.
#[test]
fn ten_thousand_barriers_dropped_elsewhere_leave_nothing() {
    watched(|| {
        let (give, given) = mpsc::channel::<Barrier>();
        let (ok, done) = mpsc::channel();
        let dropper = std::thread::spawn(move || {
            for barrier in given {
                drop(barrier);
                ok.send(()).unwrap();
            }
        });
        for number in 0..10_000 {
            let barrier = Barrier::new(1).unwrap();
            if let Err(error) = barrier.wait() {
                panic!("barrier {number}: {error}; {:?}", phalanx::shm::stats());
            }
            give.send(barrier).unwrap();
            done.recv().unwrap();
        }
        drop(give);
        dropper.join().unwrap();
        // This gives up what the last one has left.
        Barrier::new(1).unwrap().wait().unwrap();
        let stats = phalanx::shm::stats();
        assert!(stats.segments <= 3, "{stats:?}");
    });
}

#[test]
fn ten_thousand_of_each_leave_nothing() {
    watched(|| {
        for _ in 0..10_000 {
            let (lock, rlock, rw) =
                (Lock::new(1_u8).unwrap(), RLock::new().unwrap(), RwLock::new(1_u8).unwrap());
            let (doors, barrier) = (Semaphore::new(1).unwrap(), Barrier::new(1).unwrap());
            drop((lock.lock().unwrap(), rlock.lock().unwrap(), doors.acquire().unwrap()));
            drop(rw.read().unwrap());
            drop(rw.write().unwrap());
            barrier.wait().unwrap();
        }
        let stats = phalanx::shm::stats();
        assert!(stats.segments <= 4, "{stats:?}");
    });
}

/// Threads that end with a guard that nobody drops.
#[test]
fn ended_threads_leave_no_memory_mapped() {
    alone(|| {
        for _ in 0..3_000 {
            std::thread::spawn(|| std::mem::forget(Semaphore::new(1).unwrap().acquire().unwrap()))
                .join()
                .unwrap();
        }
        let stats = phalanx::shm::stats();
        assert!(stats.segments <= 2, "{stats:?}");
    });
}

/// What is leaked must not be another's as long as a reference to it is used.
#[test]
fn reference_of_a_leaked_guard_is_alone_though_its_thread_ends() {
    alone(|| {
        let lock: &'static Lock<u64> = Box::leak(Box::new(Lock::new(0).unwrap()));
        let (give, given) = mpsc::channel::<&'static mut u64>();
        on_a_thread_that_ends(move || {
            let guard = Box::leak(Box::new(lock.lock().unwrap()));
            give.send(&mut **guard).unwrap();
        });
        *given.recv().unwrap() = 1;
        assert!(matches!(lock.try_lock(), Err(SyncError::WouldBlock)), "somebody still writes there");
    });
}

#[test]
fn reference_of_a_leaked_reader_stays_unchanged_though_its_thread_ends() {
    alone(|| {
        let lock: &'static RwLock<u64> = Box::leak(Box::new(RwLock::new(0).unwrap()));
        let (give, given) = mpsc::channel::<&'static u64>();
        on_a_thread_that_ends(move || {
            give.send(&**Box::leak(Box::new(lock.read().unwrap()))).unwrap();
        });
        let shared: &'static u64 = given.recv().unwrap();
        assert!(matches!(lock.try_write(), Err(SyncError::WouldBlock)), "somebody still reads {shared}");
    });
}

struct Keeps(std::cell::RefCell<Option<phalanx::sync::LockGuard<'static, u64>>>);
thread_local! { static KEPT: Keeps = const { Keeps(std::cell::RefCell::new(None)) }; }
thread_local! { static HANDLE: std::cell::RefCell<Option<Barrier>> = const { std::cell::RefCell::new(None) }; }

#[test]
fn guard_dropped_with_the_thread_local_storage_is_no_death() {
    alone(|| {
        let lock: &'static Lock<u64> = Box::leak(Box::new(Lock::new(0).unwrap()));
        on_a_thread_that_ends(move || {
            KEPT.with(|kept| kept.0.replace(None));
            let guard = lock.lock().unwrap();
            KEPT.with(|kept| kept.0.replace(Some(guard)));
        });
        assert!(lock.lock().is_ok(), "{:?}", lock.lock().map(drop));
    });
}

#[test]
fn barrier_dropped_with_the_thread_local_storage_is_no_death() {
    alone(|| {
        let barrier = Barrier::new(1).unwrap();
        let own = barrier.clone();
        on_a_thread_that_ends(move || {
            HANDLE.with(|kept| kept.replace(None));
            own.wait().unwrap();
            HANDLE.with(|kept| kept.replace(Some(own)));
        });
        assert!(!barrier.is_broken());
    });
}

#[test]
fn holder_of_much_takes_what_it_holds_again() {
    watched(|| {
        let doors = Semaphore::new(2000).unwrap();
        let lock = RLock::new().unwrap();
        let _outer = lock.lock().unwrap();
        let all: Vec<_> = std::iter::repeat_with(|| doors.acquire()).take_while(Result::is_ok).collect();
        assert!(all.len() > 990, "{}", all.len());
        let again = lock.lock().map(drop);
        assert!(again.is_ok(), "{again:?}");
    });
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Wide([u8; 64]);
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct WideNothing([u64; 0]);
// SAFETY: plain bytes.
unsafe impl bytemuck::Zeroable for Wide {}
// SAFETY: plain bytes.
unsafe impl bytemuck::Pod for Wide {}
// SAFETY: plain bytes.
unsafe impl bytemuck::Zeroable for WideNothing {}
// SAFETY: plain bytes.
unsafe impl bytemuck::Pod for WideNothing {}

#[test]
fn values_of_any_size_and_alignment() {
    watched(|| {
        for _ in 0..100 {
            let nothing = Lock::new(()).unwrap();
            let _: () = *nothing.lock().unwrap();
            let wide = RwLock::new(Wide([7; 64])).unwrap();
            assert_eq!(std::ptr::from_ref(&*wide.read().unwrap()).addr() % 64, 0);
            let none = Lock::new(WideNothing([])).unwrap();
            assert_eq!(std::ptr::from_ref(&*none.lock().unwrap()).addr() % 64, 0);
            let large = Lock::new([Wide([1; 64]); 1 << 12]).unwrap();
            assert_eq!(large.lock().unwrap()[4095].0[63], 1);
        }
    });
}

/// Runs `work` on a thread of the scope; returns when that sleeps in a futex.
fn asleep<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> ScopedJoinHandle<'scope, T> {
    let (give, given) = mpsc::channel();
    let thread = scope.spawn(move || {
        give.send(nix::unistd::gettid()).unwrap();
        work()
    });
    await_asleep(given.recv().unwrap().as_raw() as u32);
    thread
}

#[test]
fn calls_that_do_not_wait_do_not() {
    watched(|| {
        let (rw, doors) = (RwLock::new(0_u8).unwrap(), Semaphore::new(1).unwrap());
        let (guard, permit) = (rw.read().unwrap(), doors.acquire().unwrap());
        std::thread::scope(|scope| {
            let waiters =
                [asleep(scope, || rw.write().map(drop)), asleep(scope, || doors.acquire().map(drop))];
            let asks = scope.spawn(|| {
                assert!(matches!(rw.try_read(), Err(SyncError::WouldBlock)));
                assert!(matches!(rw.try_write(), Err(SyncError::WouldBlock)));
                assert!(matches!(doors.try_acquire(), Err(SyncError::WouldBlock)));
                let start = Instant::now();
                assert!(rw.read_timeout(Duration::from_millis(30)).is_err());
                assert!(doors.acquire_timeout(Duration::from_millis(30)).is_err());
                assert!(start.elapsed() >= Duration::from_millis(60));
            });
            asks.join().unwrap();
            // Had one of those calls waited as the others do, it would not have come back before this.
            drop((guard, permit));
            waiters.into_iter().for_each(|waiter| waiter.join().unwrap().unwrap());
        });
    });
}

#[test]
fn guards_can_be_looked_at_from_other_threads() {
    watched(|| {
        let (lock, rwlock) = (Lock::new(1_u8).unwrap(), RwLock::new(2_u8).unwrap());
        let (one, two, three) = (lock.lock().unwrap(), rwlock.read().unwrap(), Semaphore::new(1).unwrap());
        let permit = three.acquire().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!((*one, *two, format!("{permit:?}").is_empty()), (1, 2, false)));
        });
    });
}

#[test]
fn death_in_a_crowd_is_told_soon() {
    watched(|| {
        let barrier = Barrier::new(300).unwrap();
        let late = barrier.clone();
        std::thread::scope(|scope| {
            let waiters: Vec<_> = std::iter::repeat_with(|| barrier.clone())
                .take(200)
                .map(|own| scope.spawn(move || own.wait().map(drop)))
                .collect();
            while barrier.waiting() < 200 {
                std::thread::yield_now();
            }
            let dead = scope.spawn(|| {
                let _ = late.wait_timeout(Duration::from_millis(1));
            });
            dead.join().unwrap();
            for waiter in waiters {
                let told = waiter.join().unwrap();
                assert!(matches!(told, Err(SyncError::Broken { .. })), "{told:?}");
            }
        });
    });
}
