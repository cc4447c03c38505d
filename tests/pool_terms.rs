//! Retries, time limits and deadlines of single handles of a pool, and the time limit of a state's making.

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::sync::Mutex;
use std::time::Duration;

use calls::{double, end_by, own_pid, tell_and_wait};
use common::watched;
use phalanx::pool::{Pool, PoolError, StatePool, TaskFailure};
use phalanx::sync::Value;
use phalanx::{Options, Queue};

phalanx::auto_init!();

const SHORT: Duration = Duration::from_millis(20);

/// A pool that ends at once what is asked to end.
fn pool(workers: usize) -> Pool {
    Pool::options(Options::new(workers)).grace(Duration::ZERO).build().unwrap()
}

fn attempts(pool: &Pool, how: &str) -> u32 {
    pool.submit(end_by, how.to_owned()).unwrap().join().unwrap_err().attempts()
}

#[test]
fn retries_are_those_of_the_handle() {
    watched(|| {
        let pool = pool(1);
        let patient = pool.with_retries(2);
        assert_eq!((attempts(&pool, "abort"), attempts(&patient, "abort")), (1, 3));
        assert_eq!(
            (attempts(&patient.with_retries(0), "abort"), attempts(&patient.clone(), "abort")),
            (1, 3)
        );
        let attempts = |pool: &Pool| {
            let failed = pool.map(end_by, ["abort".to_owned()]).unwrap().next().unwrap().unwrap_err();
            failed.attempts()
        };
        assert_eq!((attempts(&pool), attempts(&patient)), (1, 3));
        let mut set = patient.task_set();
        set.submit(end_by, "abort".to_owned()).unwrap();
        assert_eq!(set.next().unwrap().1.unwrap_err().attempts(), 3);
    });
}

#[test]
fn time_limits_are_those_of_the_handle() {
    watched(|| {
        let (pool, told) = (pool(1), Queue::bounded(4).unwrap());
        let impatient = pool.with_timeout(SHORT);
        let failed = impatient.submit(tell_and_wait, told.clone()).unwrap().join().unwrap_err();
        assert!(matches!(failed.failure(), TaskFailure::TimedOut { limit: SHORT, .. }), "{failed}");
        let failed = impatient.map(tell_and_wait, [told.clone()]).unwrap().next().unwrap().unwrap_err();
        assert!(matches!(failed.failure(), TaskFailure::TimedOut { limit: SHORT, .. }), "{failed}");
        // Neither the handle that it was made from nor one without it has that limit.
        for forever in [&pool, &impatient.with_timeout(None)] {
            let told = Queue::bounded(1).unwrap();
            let task = forever.submit(tell_and_wait, told.clone()).unwrap();
            told.get().unwrap();
            assert!(task.join_timeout(5 * SHORT).is_none());
            assert!(task.kill());
            assert!(matches!(task.join().unwrap_err().failure(), TaskFailure::Killed(_)));
        }
    });
}

#[test]
fn deadlines_are_those_of_the_handle() {
    watched(|| {
        let pool = pool(1);
        let late = pool.with_deadline(Duration::ZERO);
        let failed = late.submit(double, 1).unwrap().join().unwrap_err();
        assert!(matches!(failed.failure(), TaskFailure::DeadlinePassed { outcome: None, .. }), "{failed}");
        assert_eq!(pool.submit(double, 1).unwrap().join().unwrap(), 2);
        assert_eq!(late.with_deadline(None).submit(double, 2).unwrap().join().unwrap(), 4);
    });
}

#[test]
fn program_decides_which_failures_are_worth_another_attempt() {
    watched(|| {
        let pool = pool(1).with_retries(2);
        assert_eq!(attempts(&pool.with_retry_if(|_| true), "SIGKILL"), 3);
        assert_eq!(attempts(&pool.with_retry_if(|_| false), "SIGKILL"), 1);
        let crashes = pool.with_retry_if(|failure| matches!(failure, TaskFailure::WorkerEnded(_)));
        assert_eq!(attempts(&crashes, "SIGSEGV"), 3);
        let hang = crashes.with_timeout(SHORT).submit(tell_and_wait, Queue::bounded(9).unwrap()).unwrap();
        assert_eq!(hang.join().unwrap_err().attempts(), 1, "it was a time limit");
    });
}

#[test]
fn decision_that_panics_is_a_no_and_the_pool_goes_on() {
    watched(|| {
        let pool = pool(1).with_retries(2);
        assert_eq!(attempts(&pool.with_retry_if(|_| panic!("I cannot decide")), "abort"), 1);
        assert_eq!(pool.submit(double, 1).unwrap().join().unwrap(), 2);
    });
}

/// The pool at which a decision looks.
static POOL: Mutex<Option<Pool>> = Mutex::new(None);

#[test]
fn decision_may_look_at_the_pool() {
    watched(|| {
        let pool = pool(1).with_retries(1);
        *POOL.lock().unwrap() = Some(pool.clone());
        let look = |_: &TaskFailure| POOL.lock().unwrap().as_ref().unwrap().stats().outstanding == 1;
        assert_eq!(attempts(&pool.with_retry_if(look), "abort"), 2);
        *POOL.lock().unwrap() = None;
    });
}

/// Never comes back the first `hangs` times.
fn connect((begun, hangs): &(Value<u32>, u32)) -> anyhow::Result<u32> {
    let nth = begun.fetch_add(1);
    if nth < *hangs { common::wait_for_ever() } else { Ok(nth) }
}

fn connecting(hangs: u32, limit: Duration) -> (StatePool<u32>, Value<u32>) {
    let begun = Value::new(0).unwrap();
    let options = Pool::options(Options::new(1)).with_state(connect, (begun.clone(), hangs));
    (options.init_timeout(limit).build().unwrap(), begun)
}

/// Runs for longer than a state may take that is given 50 times `SHORT`.
fn wait_in_vain(nothing: Queue<u32>) -> anyhow::Result<()> {
    anyhow::ensure!(nothing.get_timeout(60 * SHORT).is_err(), "something came");
    Ok(())
}

fn nth(state: &mut u32, _: ()) -> anyhow::Result<u32> {
    Ok(*state)
}

#[test]
fn worker_whose_state_takes_too_long_is_replaced_and_calls_wait_for_the_next_one() {
    watched(|| {
        let (pool, begun) = connecting(2, 5 * SHORT);
        assert_eq!(pool.submit(nth, ()).unwrap().join().unwrap(), 2);
        assert_eq!(begun.get(), 3);
    });
}

#[test]
fn pool_whose_states_never_come_is_broken_and_says_that_they_took_too_long() {
    watched(|| {
        let (pool, begun) = connecting(u32::MAX, 5 * SHORT);
        let why = match pool.submit(nth, ()) {
            Ok(task) => task.join().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(why.contains("its workers end before they begin a task"), "{why}");
        assert!(why.contains("(it had not made its state within 100ms)"), "{why}");
        assert!(matches!(pool.join(), Err(PoolError::Broken { .. })));
        assert!(begun.get() <= 3, "{} times", begun.get());
    });
}

#[test]
fn worker_that_has_made_its_state_in_time_has_no_limit_any_more() {
    watched(|| {
        let (pool, begun) = connecting(0, 50 * SHORT);
        let pid = pool.pool().submit(own_pid, ()).unwrap().join().unwrap();
        // Longer than the limit: in a call, and without one.
        pool.pool().submit(wait_in_vain, Queue::bounded(1).unwrap()).unwrap().join().unwrap();
        assert_eq!(pool.pool().submit(own_pid, ()).unwrap().join().unwrap(), pid);
        assert_eq!((pool.submit(nth, ()).unwrap().join().unwrap(), begun.get()), (0, 1));
    });
}

#[test]
fn successor_that_waits_for_its_place_has_made_its_state() {
    watched(|| {
        let begun = Value::new(0).unwrap();
        let options = Pool::options(Options::new(1)).recycle_after(1).with_state(connect, (begun.clone(), 0));
        let pool = options.init_timeout(50 * SHORT).build().unwrap();
        // The successor is there while this call runs, for longer than the limit.
        let wait = |_: &mut u32, nothing: Queue<u32>| wait_in_vain(nothing);
        pool.submit(wait, Queue::bounded(1).unwrap()).unwrap().join().unwrap();
        assert_eq!(pool.submit(nth, ()).unwrap().join().unwrap(), 1, "the first successor serves");
    });
}

#[test]
fn terms_hold_for_calls_with_a_state_too() {
    watched(|| {
        let options = Pool::options(Options::new(1)).grace(Duration::ZERO);
        let pool = options.with_state(|_: &()| anyhow::Ok(0_u32), ()).build().unwrap();
        let abort = |_: &mut u32, _: ()| -> anyhow::Result<()> { std::process::abort() };
        let attempts = |pool: &StatePool<u32>| pool.submit(abort, ()).unwrap().join().unwrap_err().attempts();
        assert_eq!((attempts(&pool), attempts(&pool.with_retries(1))), (1, 2));
        assert_eq!(attempts(&pool.with_retries(1).with_retry_if(|_| false)), 1);
        let hang = |_: &mut u32, told: Queue<u32>| tell_and_wait(told);
        let told = Queue::bounded(1).unwrap();
        let failed = pool.with_timeout(SHORT).submit(hang, told).unwrap().join().unwrap_err();
        assert!(matches!(failed.failure(), TaskFailure::TimedOut { .. }), "{failed}");
        let failed = pool.with_deadline(Duration::ZERO).submit(nth, ()).unwrap().join().unwrap_err();
        assert!(matches!(failed.failure(), TaskFailure::DeadlinePassed { .. }), "{failed}");
        assert_eq!(pool.submit(nth, ()).unwrap().join().unwrap(), 0);
    });
}
