//! An idle pool. A process of its own, whose only threads of pools are those of this test.

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::time::{Duration, Instant};

use calls::double;
use common::{await_that, watched};
use phalanx::Options;
use phalanx::pool::Pool;

phalanx::auto_init!();

/// How often a thread, or a process of one thread, has gone to sleep.
fn sleeps(task: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{task}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}

/// The threads of pools in this process.
fn threads_of_pools() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let tasks = tasks.map(|task| format!("self/task/{}", task.unwrap().file_name().to_str().unwrap()));
    let named = |task: &String| {
        std::fs::read_to_string(format!("/proc/{task}/comm")).is_ok_and(|name| name.trim() == "phalanx-pool")
    };
    tasks.filter(named).collect()
}

#[test]
fn idle_pool_sleeps_and_never_wakes() {
    watched(|| {
        let fixed = Pool::new(2).unwrap();
        let small =
            Pool::options(Options::new(3)).min(1).idle_after(Duration::from_millis(10)).build().unwrap();
        for pool in [&fixed, &small] {
            assert_eq!(pool.map(double, 0..40).unwrap().chunk(1).filter(Result::is_ok).count(), 40);
        }
        await_that(|| small.workers().len() == 1);
        let workers = fixed.workers().into_iter().chain(small.workers());
        let pids: Vec<_> = workers.map(|worker| worker.pid).collect();
        pids.iter().for_each(|&pid| common::await_asleep(pid));
        let tasks: Vec<_> = pids.iter().map(u32::to_string).chain(threads_of_pools()).collect();
        assert_eq!(tasks.len(), 3 + 2);
        let count = || tasks.iter().map(|task| sleeps(task)).collect::<Vec<_>>();
        // The thread of the small pool has dealt with the last end, and sleeps, when its count stays for many times its period.
        let mut before = count();
        let mut quiet = Instant::now();
        await_that(|| {
            let now = count();
            if now != before {
                (before, quiet) = (now, Instant::now());
            }
            quiet.elapsed() > Duration::from_millis(200)
        });
        assert_eq!((fixed.workers().len(), small.workers().len()), (2, 1));
    });
}
