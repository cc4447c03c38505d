//! How many workers a pool has, and when it replaces them.

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use calls::{double, end_by, ended, own_pid, tell_and_wait_politely};
use common::{await_end, await_that, children, race_time, send, watched};
use nix::sys::signal::Signal as NixSignal;
use phalanx::pool::{Pool, PoolError};
use phalanx::{Options, Queue, Signal, StartMethod, Status, Tensor};

phalanx::auto_init!();

/// Runs a test by both start methods, the server running already.
fn by_both(test: impl Fn(Options)) {
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        common::alone(|| {
            phalanx::start_processes(|_, ()| anyhow::Ok(()), (), common::by(method, 1)).unwrap().join()
        })
        .unwrap();
        watched(|| test(common::by(method, 2)));
    }
}

#[test]
fn successor_is_there_before_the_last_task_of_a_worker_has_ended() {
    watched(|| {
        let before = children();
        let pool = Pool::options(Options::new(1)).recycle_after(1).build().unwrap();
        let told = Queue::bounded(8).unwrap();
        let task = pool.submit(tell_and_wait_politely, told.clone()).unwrap();
        let first = told.get().unwrap();
        await_that(|| children().difference(&before).count() == 2);
        let next = pool.submit(own_pid, ()).unwrap();
        // It waits: one worker does one task at a time.
        assert!(!next.has_begun());
        assert_eq!(pool.workers().len(), 1);
        assert_eq!(pool.workers()[0].pid, first);
        let successor: Vec<_> = children().difference(&before).copied().filter(|&pid| pid != first).collect();
        assert!(task.kill());
        assert_eq!(task.join().unwrap(), "as you wish");
        assert_eq!([next.join().unwrap()][..], successor);
        // It ends after its only task, and the one that follows may not be there yet.
        await_that(|| pool.workers().first().is_some_and(|worker| worker.begun == 2));
    });
}

/// Tells its pid, and how many calls ran when it began.
fn meet(board: Tensor<i64>) -> anyhow::Result<(u32, i64)> {
    let inside = board.fetch_add(0, 1)? + 1;
    for _ in 0..100 {
        std::thread::yield_now();
    }
    board.fetch_add(0, -1)?;
    Ok((std::process::id(), inside))
}

#[test]
fn each_task_has_a_process_of_its_own_and_never_more_than_the_workers_run() {
    by_both(|options| {
        let (pool, board) =
            (Pool::options(options).recycle_after(1).build().unwrap(), Tensor::zeros(&[1]).unwrap());
        let tasks: Vec<_> = (0..60).map(|_| pool.submit(meet, board.clone()).unwrap()).collect();
        let seen: Vec<_> = tasks.into_iter().map(|task| task.join().unwrap()).collect();
        assert_eq!(seen.iter().map(|(pid, _)| *pid).collect::<BTreeSet<_>>().len(), 60);
        assert!(seen.iter().all(|(_, inside)| *inside <= 2), "{seen:?}");
        let summary = pool.join().unwrap();
        assert_eq!((summary.succeeded, summary.failed), (60, 0));
    });
}

#[test]
fn deaths_while_workers_are_replaced_cost_their_own_call_only() {
    by_both(|options| {
        let pool = Pool::options(options).recycle_after(2).build().unwrap();
        let tasks: Vec<_> = (0..60)
            .map(|n| pool.submit(end_by, if n % 5 == 3 { "SIGKILL" } else { "" }.to_owned()).unwrap())
            .collect();
        for (n, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.join().is_err(), n % 5 == 3, "{n}");
        }
        assert_eq!(pool.join().unwrap().failed, 12);
    });
}

#[test]
fn successor_that_is_killed_while_it_waits_is_followed_by_another() {
    watched(|| {
        let before = children();
        let pool = Pool::options(Options::new(1)).recycle_after(1).build().unwrap();
        let told = Queue::bounded(8).unwrap();
        let task = pool.submit(tell_and_wait_politely, told.clone()).unwrap();
        let first = told.get().unwrap();
        let waiting = || children().difference(&before).copied().find(|&pid| pid != first);
        let mut last = None;
        for _ in 0..5 {
            await_that(|| waiting().is_some_and(|pid| Some(pid) != last));
            last = waiting();
            send(last.unwrap(), NixSignal::SIGKILL);
        }
        assert!(task.kill());
        task.join().unwrap();
        assert_eq!(pool.submit(double, 4).unwrap().join().unwrap(), 8);
        assert_eq!(pool.join().unwrap().failed, 0);
    });
}

#[test]
fn items_of_a_map_survive_replacements() {
    by_both(|options| {
        let pool = Pool::options(options).recycle_after(50).build().unwrap();
        let pid = |x: u64| anyhow::Ok((x, std::process::id()));
        let results: Vec<_> = pool.map(pid, 0..2000).unwrap().chunk(5).collect::<Result<_, _>>().unwrap();
        assert!(results.iter().enumerate().all(|(n, (x, _))| n as u64 == *x));
        let pids: BTreeSet<_> = results.iter().map(|(_, pid)| *pid).collect();
        // A tenth more or less, and the last ones have not done theirs.
        assert!((2000 / 60..=2000 / 45 + 2).contains(&pids.len()), "{}", pids.len());
    });
}

#[test]
fn workers_come_when_there_are_more_tasks_than_workers_and_go_when_they_are_not_needed() {
    by_both(|options| {
        let pool = Pool::options(options).min(0).idle_after(Duration::from_millis(20)).build().unwrap();
        assert_eq!((pool.size(), pool.workers().len()), (2, 0));
        for _ in 0..3 {
            let pid = pool.submit(own_pid, ()).unwrap().join().unwrap();
            let told = Queue::bounded(8).unwrap();
            let tasks = [0, 1].map(|_| pool.submit(tell_and_wait_politely, told.clone()).unwrap());
            let pids = [told.get().unwrap(), told.get().unwrap()];
            assert_eq!(pool.workers().len(), 2);
            tasks.into_iter().for_each(|task| drop((task.kill(), task.join().unwrap())));
            await_that(|| pool.workers().is_empty());
            [pid].into_iter().chain(pids).for_each(await_end);
        }
        assert_eq!(pool.join().unwrap().failed, 0);
    });
}

#[test]
fn fixed_number_of_workers_stays_and_a_minimum_does() {
    watched(|| {
        let pool =
            Pool::options(Options::new(3)).min(1).idle_after(Duration::from_millis(10)).build().unwrap();
        for _ in 0..5 {
            assert_eq!(pool.map(double, 0..40).unwrap().chunk(1).filter(Result::is_ok).count(), 40);
            await_that(|| pool.workers().len() == 1);
        }
        let pids = |pool: &Pool| pool.workers().iter().map(|worker| worker.pid).collect::<Vec<_>>();
        // The pool's thread may be late, and start workers for items that are done by now. Then the last one stays however long it has
        // nothing to do: many times the time of the option.
        let (mut before, mut quiet) = (pids(&pool), Instant::now());
        await_that(|| {
            let now = pids(&pool);
            if now != before {
                (before, quiet) = (now, Instant::now());
            }
            quiet.elapsed() > Duration::from_millis(200)
        });
        assert_eq!(before.len(), 1);
    });
}

#[test]
fn tasks_that_come_while_workers_leave_are_done() {
    watched(|| {
        let pool =
            Pool::options(Options::new(3)).min(0).idle_after(Duration::from_micros(300)).build().unwrap();
        let end = Instant::now() + race_time();
        let mut round = 0;
        while Instant::now() < end {
            let tasks: Vec<_> = (0..1 + round % 7).map(|x| pool.submit(double, x).unwrap()).collect();
            for (x, task) in tasks.into_iter().enumerate() {
                assert_eq!(task.join().unwrap(), 2 * x as u64);
            }
            // Pauses of all lengths about that of the option.
            let pause = Instant::now() + Duration::from_micros(round * 37 % 1500);
            await_that(|| Instant::now() > pause);
            round += 1;
        }
        assert_eq!(pool.join().unwrap().failed, 0);
    });
}

static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Keeps so many bytes for as long as the process lives.
fn keep(bytes: usize) -> anyhow::Result<u32> {
    KEPT.lock().unwrap().push(vec![1; bytes]);
    Ok(std::process::id())
}

/// Fills shared memory, and keeps it mapped.
fn keep_shared(tensor: Tensor<u8>) -> anyhow::Result<u32> {
    static SHARED: Mutex<Vec<Tensor<u8>>> = Mutex::new(Vec::new());
    tensor.fill(1)?;
    SHARED.lock().unwrap().push(tensor);
    Ok(std::process::id())
}

#[test]
fn worker_with_too_much_memory_of_its_own_is_replaced_and_shared_memory_does_not_count() {
    by_both(|options| {
        let pool = Pool::options(options).recycle_above(64 << 20).build().unwrap();
        let large = Tensor::<u8>::zeros(&[100 << 20]).unwrap();
        let pids = |pool: &Pool| pool.workers().iter().map(|worker| worker.pid).collect::<BTreeSet<_>>();
        let before = pids(&pool);
        let by = pool.submit(keep_shared, large.clone()).unwrap().join().unwrap();
        assert!(before.contains(&by));
        assert!((0..100).all(|x| pool.submit(double, x).unwrap().join().is_ok()));
        assert_eq!(pids(&pool), before, "it has touched 100 MiB that are not its own");
        let large = pool.submit(keep, 100 << 20).unwrap().join().unwrap();
        assert!(before.contains(&large));
        await_end(large);
        await_that(|| pids(&pool).len() == 2);
        let small = pool.submit(keep, 1 << 20).unwrap().join().unwrap();
        assert!((0..100).all(|x| pool.submit(double, x).unwrap().join().is_ok()));
        assert!(pids(&pool).contains(&small));
        assert_eq!(pool.join().unwrap().failed, 0);
    });
}

/// Fills so many bytes, and gives them back.
fn fill(bytes: usize) -> anyhow::Result<usize> {
    Ok(vec![1_u8; bytes].iter().map(|&byte| usize::from(byte)).sum())
}

#[test]
fn allocation_beyond_the_limit_fails_its_call_and_names_the_limit() {
    by_both(|options| {
        let pool = Pool::options(options).memory_limit(200 << 20).build().unwrap();
        assert_eq!(pool.submit(fill, 50 << 20).unwrap().join().unwrap(), 50 << 20);
        let failed = pool.submit(fill, 300 << 20).unwrap().join().unwrap_err();
        let aborted = Status::Signaled { signal: Signal::ABRT, core_dumped: false };
        let status = ended(&failed);
        assert!(
            status == aborted || matches!(status, Status::Signaled { core_dumped: true, .. }),
            "{failed}"
        );
        let text = failed.to_string();
        assert!(
            text.contains("its last words: an allocation failed: the pool has a memory_limit of 200.0 MiB"),
            "{text}"
        );
        // An abort for another reason does not say so.
        let aborted = pool.submit(end_by, "abort".to_owned()).unwrap().join().unwrap_err();
        assert_eq!(aborted.outcome().unwrap().note(), None, "{aborted}");
        // Shared memory is not limited.
        let tensor = Tensor::<u8>::zeros(&[300 << 20]).unwrap();
        pool.submit(keep_shared, tensor).unwrap().join().unwrap();
        assert_eq!(pool.submit(fill, 50 << 20).unwrap().join().unwrap(), 50 << 20);
    });
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    watched(|| {
        let text = |built: Result<Pool, PoolError>| built.unwrap_err().to_string();
        let refused = text(Pool::options(Options::new(2)).min(3).build());
        assert!(refused.contains("it can have 2 workers, so min cannot be 3"), "{refused}");
        let refused = text(Pool::options(Options::new(2)).idle_after(Duration::ZERO).build());
        assert!(refused.contains("idle_after of no time"), "{refused}");
    });
}
