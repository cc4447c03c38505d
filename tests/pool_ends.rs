//! How calls and pools are ended: cancelled, killed, too slow, dropped, closed, forked.

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use calls::{double, ended, own_pid, tell_and_wait, tell_and_wait_politely};
use common::{await_that, watched};
use phalanx::pool::{Pool, PoolError, TaskFailure};
use phalanx::{Cause, Options, Queue, Status};

phalanx::auto_init!();

#[test]
fn cancelled_call_never_begins_and_others_are_not_touched() {
    watched(|| {
        let (pool, told) = (Pool::new(1).unwrap(), Queue::bounded(8).unwrap());
        let busy = pool.submit(tell_and_wait_politely, told.clone()).unwrap();
        told.get().unwrap();
        let (first, second) = (pool.submit(double, 1).unwrap(), pool.submit(double, 2).unwrap());
        assert!(!first.has_begun() && first.cancel() && !first.cancel());
        assert!(!busy.cancel() && busy.has_begun());
        assert!(busy.kill());
        assert_eq!(busy.join().unwrap(), "as you wish");
        let failed = first.join().unwrap_err();
        assert_eq!((failed.failure(), failed.began()), (&TaskFailure::Cancelled, false));
        assert_eq!(second.join().unwrap(), 4);
        assert_eq!(pool.cancel_queued(), 0);
    });
}

#[test]
fn cancelled_calls_are_told_to_who_waits_for_them_already() {
    watched(|| {
        let (pool, told) = (Pool::new(1).unwrap(), Queue::bounded(8).unwrap());
        let busy = pool.submit(tell_and_wait_politely, told.clone()).unwrap();
        told.get().unwrap();
        let queued = [(); 2].map(|()| pool.submit(double, 1).unwrap());
        std::thread::scope(|scope| {
            let joins = queued.map(|task| scope.spawn(|| task.join()));
            let mut cancelled = 0;
            await_that(|| {
                cancelled += pool.cancel_queued();
                cancelled == 2
            });
            for join in joins {
                assert_eq!(join.join().unwrap().unwrap_err().failure(), &TaskFailure::Cancelled);
            }
        });
        assert!(busy.kill());
    });
}

#[test]
fn kill_ends_the_call_after_the_grace_and_the_pool_goes_on() {
    watched(|| {
        let pool = Pool::options(Options::new(1)).grace(Duration::from_millis(20)).build().unwrap();
        let told = Queue::bounded(8).unwrap();
        let stubborn = pool.submit(tell_and_wait, told.clone()).unwrap();
        let pid = told.get().unwrap();
        assert!(stubborn.join_timeout(Duration::from_millis(1)).is_none());
        assert!(stubborn.kill());
        let failed = stubborn.join().unwrap_err();
        let TaskFailure::Killed(outcome) = failed.failure() else { panic!("{failed}") };
        assert_eq!((outcome.pid(), outcome.cause()), (pid, Some(Cause::SignaledByLauncher)));
        assert_ne!(pool.submit(own_pid, ()).unwrap().join().unwrap(), pid);
    });
}

#[test]
fn time_limit_counts_from_the_begin_of_the_call() {
    watched(|| {
        let limit = Duration::from_millis(30);
        let pool = Pool::options(Options::new(1)).timeout(limit).grace(Duration::ZERO).build().unwrap();
        let told = Queue::bounded(8).unwrap();
        let slow: Vec<_> = (0..3).map(|_| pool.submit(tell_and_wait, told.clone()).unwrap()).collect();
        let last = pool.submit(double, 4).unwrap();
        for task in slow {
            let failed = task.join().unwrap_err();
            assert!(
                matches!(failed.failure(), TaskFailure::TimedOut { limit: found, .. } if *found == limit)
            );
            assert!(failed.outcome().unwrap().lifetime().unwrap() >= limit, "{failed}");
        }
        assert_eq!(last.join().unwrap(), 8);
        assert_eq!(told.len(), 3);
    });
}

fn wait_for_ever(_: ()) -> anyhow::Result<()> {
    common::wait_for_ever()
}

#[test]
fn each_attempt_has_the_time_limit() {
    watched(|| {
        let workers = Pool::options(Options::new(1)).timeout(Duration::from_millis(30)).grace(Duration::ZERO);
        let pool = workers.retries(2).build().unwrap();
        let failed = pool.submit(wait_for_ever, ()).unwrap().join().unwrap_err();
        assert!(matches!(failed.failure(), TaskFailure::TimedOut { .. }), "{failed}");
        assert_eq!(failed.attempts(), 3);
    });
}

fn note(told: Queue<u32>) -> anyhow::Result<()> {
    Ok(told.put(std::process::id())?)
}

#[test]
fn call_that_is_late_never_begins_however_it_races_with_its_deadline() {
    watched(|| {
        let pool = Pool::options(Options::new(2)).deadline(Duration::ZERO).retries(1).build().unwrap();
        let told = Queue::bounded(8).unwrap();
        for _ in 0..1000 {
            let failed = pool.submit(note, told.clone()).unwrap().join().unwrap_err();
            assert!(
                matches!(
                    failed.failure(),
                    TaskFailure::DeadlinePassed { deadline: Duration::ZERO, outcome: None }
                ),
                "{failed}"
            );
            assert_eq!((failed.began(), failed.attempts()), (false, 0));
        }
        let mut map = pool.map(note, [told.clone(), told.clone()]).unwrap();
        assert!(map.all(|late| {
            late.unwrap_err().to_string().contains("its deadline, 0ns after its submit, had passed")
        }));
        assert!(told.is_empty(), "{} have begun", told.len());
    });
}

#[test]
fn deadline_fails_what_waits_without_a_free_worker_and_ends_what_runs() {
    watched(|| {
        let deadline = Duration::from_millis(50);
        let workers = || Pool::options(Options::new(1)).deadline(deadline).grace(Duration::ZERO);
        let (pool, told) = (workers().build().unwrap(), Queue::bounded(8).unwrap());
        // On a busy machine both may be late.
        let ended = loop {
            let tasks = [(); 2].map(|()| pool.submit(tell_and_wait, told.clone()).unwrap());
            let failed = tasks.map(|task| task.join().unwrap_err());
            let began = failed.iter().filter(|failed| failed.began()).count();
            assert_eq!(told.try_iter().count(), began, "{failed:?}");
            if let [first, _] = failed
                && first.began()
            {
                break first;
            }
        };
        let TaskFailure::DeadlinePassed { outcome: Some(outcome), .. } = ended.failure() else {
            panic!("{ended}")
        };
        assert_eq!(outcome.cause(), Some(Cause::SignaledByLauncher));
        assert!(ended.to_string().contains("ran at its deadline, 50ms after its submit"), "{ended}");
        while pool.submit(double, 1).unwrap().join().is_err() {}
        let pool = workers().retries(3).build().unwrap();
        let failed = loop {
            let failed = pool.submit(wait_for_ever, ()).unwrap().join().unwrap_err();
            if failed.began() {
                break failed;
            }
        };
        assert!(matches!(failed.failure(), TaskFailure::DeadlinePassed { outcome: Some(_), .. }), "{failed}");
        assert_eq!(failed.attempts(), 1, "it is not begun again after its deadline");
    });
}

#[test]
fn dropped_pool_finishes_calls_whose_handle_is_held_and_gives_up_the_rest() {
    watched(|| {
        let before = common::children();
        let (pool, told) = (Pool::new(1).unwrap(), Queue::bounded(8).unwrap());
        let first = pool.submit(tell_and_wait_politely, told.clone()).unwrap();
        told.get().unwrap();
        drop(pool.submit(tell_and_wait, told.clone()).unwrap());
        let wanted = pool.submit(double, 5).unwrap();
        drop(pool);
        assert!(first.kill());
        assert_eq!((first.join().unwrap(), wanted.join().unwrap()), ("as you wish".to_owned(), 10));
        assert!(told.is_empty(), "a call without a handle has not begun");
        await_that(|| common::children() == before);
    });
    watched(|| {
        let before = common::children();
        let (pool, told) = (Pool::new(2).unwrap(), Queue::bounded(8).unwrap());
        drop(pool.submit(tell_and_wait, told.clone()).unwrap());
        told.get().unwrap();
        drop(pool);
        assert_eq!(common::children(), before);
    });
}

#[test]
fn killed_or_closed_pool_fails_what_is_left() {
    watched(|| {
        let (pool, told) = (Pool::new(1).unwrap(), Queue::bounded(8).unwrap());
        let running = pool.submit(tell_and_wait, told.clone()).unwrap();
        told.get().unwrap();
        let queued = pool.submit(double, 1).unwrap();
        pool.clone().kill();
        assert!(matches!(ended(&running.join().unwrap_err()), Status::Signaled { .. }));
        assert!(matches!(queued.join().unwrap_err().failure(), TaskFailure::PoolEnded(_)));
        assert!(matches!(pool.submit(double, 1), Err(PoolError::Closed)));
    });
    watched(|| {
        let pool = Pool::new(1).unwrap();
        let task = pool.submit(double, 1).unwrap();
        pool.close();
        assert!(matches!(pool.submit(double, 1), Err(PoolError::Closed)));
        assert_eq!((task.join().unwrap(), pool.join().unwrap().succeeded), (2, 1));
    });
}

#[test]
fn pool_of_a_worker_works_and_dies_with_it() {
    watched(|| {
        let pool = Pool::new(1).unwrap();
        let nested = |_: ()| {
            let inner = Pool::new(2)?;
            let tasks = (0..10).map(|x| inner.submit(double, x)).collect::<Result<Vec<_>, _>>()?;
            anyhow::Ok(tasks.into_iter().map(|task| task.join()).sum::<Result<u64, _>>()?)
        };
        assert_eq!(pool.submit(nested, ()).unwrap().join().unwrap(), 90);
        let left = |_: ()| {
            std::mem::forget(Pool::new(2)?);
            anyhow::Ok(())
        };
        pool.submit(left, ()).unwrap().join().unwrap();
    });
}

#[test]
fn result_is_given_out_once() {
    watched(|| {
        let pool = Pool::new(1).unwrap();
        let task = pool.submit(double, 4).unwrap();
        let found = loop {
            if let Some(found) = task.join_timeout(Duration::from_secs(1)) {
                break found;
            }
        };
        assert!(task.is_finished());
        assert_eq!(found.unwrap(), 8);
        let again = task.join_timeout(Duration::MAX).unwrap().unwrap_err();
        assert!(matches!(again.failure(), TaskFailure::WaitEnded(reason) if reason.contains("already")));
        assert!(matches!(task.join().unwrap_err().failure(), TaskFailure::WaitEnded(_)));
    });
}

/// A child that calls what takes no lock which another thread may have had, and ends by [`exit_child`]; `None`: this is the child.
fn fork() -> Option<nix::unistd::Pid> {
    #[expect(unsafe_code, reason = "a fork of a process with threads")]
    // SAFETY: see above.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            // A fork does not have the alarm of its parent's watchdog.
            nix::unistd::alarm::set(60);
            None
        }
        nix::unistd::ForkResult::Parent { child } => Some(child),
    }
}

fn exit_child(is_right: bool) -> ! {
    #[expect(unsafe_code, reason = "no exit handlers in a fork")]
    // SAFETY: _exit is async-signal-safe.
    unsafe {
        libc::_exit(i32::from(!is_right))
    }
}

fn assert_right(child: nix::unistd::Pid) {
    let status = nix::sys::wait::waitpid(child, None).unwrap();
    assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)), "{status:?}");
}

#[test]
fn fork_of_the_process_has_a_handle_that_does_nothing() {
    watched(|| {
        let pool = Pool::new(1).unwrap();
        let task = pool.submit(double, 4).unwrap();
        let Some(child) = fork() else {
            let refused = matches!(pool.try_submit(double, &1), Err(PoolError::Forked { .. }));
            let ended = !task.cancel() && !task.kill();
            drop((pool, task));
            exit_child(refused && ended)
        };
        assert_right(child);
        assert_eq!(task.join().unwrap(), 8);
        assert_eq!(pool.submit(double, 5).unwrap().join().unwrap(), 10);
    });
}

#[test]
fn fork_that_looks_at_the_pool_does_not_wait_for_a_lock_of_a_thread_that_it_does_not_have() {
    watched(|| {
        let (pool, is_over) = (Pool::new(1).unwrap(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    assert_eq!(pool.stats().failed, 0);
                }
            });
            for _ in 0..200 {
                match fork() {
                    None => exit_child(pool.workers().is_empty() && pool.stats().outstanding == 0),
                    Some(child) => assert_right(child),
                }
            }
            is_over.store(true, Relaxed);
        });
        assert_eq!(pool.workers().len(), 1);
    });
}
