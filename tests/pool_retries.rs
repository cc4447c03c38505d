//! Calls that are begun again after a death or a time limit, where that is allowed.

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::time::{Duration, Instant};

use calls::end_by;
use common::{kill_self, watched};
use phalanx::pool::{Pool, TaskFailed, TaskFailure};
use phalanx::{Options, Queue, Shard, Signal, Status, Tensor};

phalanx::auto_init!();

/// The pids of the workers of the earlier attempts.
fn pids(failed: &TaskFailed) -> Vec<u32> {
    let outcome = |failure: &TaskFailure| match failure {
        TaskFailure::WorkerEnded(outcome) | TaskFailure::TimedOut { outcome, .. } => outcome.pid(),
        other => panic!("{other:?}"),
    };
    failed.earlier_attempts().iter().map(outcome).collect()
}

#[test]
fn call_is_begun_again_after_deaths_and_the_failure_tells_of_each() {
    watched(|| {
        let pool = Pool::options(Options::new(2)).retries(2).build().unwrap();
        let failed = pool.submit(end_by, "SIGKILL".to_owned()).unwrap().join().unwrap_err();
        assert_eq!(failed.attempts(), 3, "{failed}");
        let text = failed.to_string();
        assert!(text.contains("begun 3 times"), "{text}");
        for (attempt, pid) in (1..).zip(pids(&failed)) {
            assert!(text.contains(&format!("attempt {attempt}: worker ")), "{text}");
            assert!(text.contains(&format!("(pid {pid}) terminated with signal SIGKILL")), "{text}");
        }
        let [one, two] = pids(&failed)[..] else { panic!("{text}") };
        assert!(one != two && Some(two) != failed.outcome().map(phalanx::Outcome::pid), "{text}");
        let failed = pool.submit(end_by, "error".to_owned()).unwrap().join().unwrap_err();
        assert_eq!(failed.attempts(), 1, "an error is an answer: {failed}");
    });
}

/// Kills its worker, unless another attempt has left a file there before.
fn once(path: std::path::PathBuf) -> anyhow::Result<u32> {
    if std::fs::File::create_new(path).is_ok() {
        kill_self();
    }
    Ok(1)
}

#[test]
fn one_more_attempt_may_be_enough() {
    watched(|| {
        let (pool, dir) = (Pool::options(Options::new(2)).retries(1).build().unwrap(), tempfile::tempdir());
        let path = dir.as_ref().unwrap().path().join("once");
        assert_eq!(pool.submit(once, path).unwrap().join().unwrap(), 1);
        let paths = (0..20).map(|item| dir.as_ref().unwrap().path().join(item.to_string()));
        assert_eq!(pool.map(once, paths).unwrap().sum::<Result<u32, _>>().unwrap(), 20);
    });
}

/// Adds one to an element, and kills its worker as long as that is small.
fn count(tensor: Tensor<u64>) -> anyhow::Result<u64> {
    let attempts = tensor.fetch_add(0, 1)? + 1;
    if attempts < 3 {
        kill_self();
    }
    Ok(attempts)
}

#[test]
fn tensors_and_queues_come_along_each_time() {
    watched(|| {
        let pool = Pool::options(Options::new(2)).retries(2).build().unwrap();
        let tensor = Tensor::<u64>::zeros(&[1]).unwrap();
        assert_eq!(pool.submit(count, tensor.clone()).unwrap().join().unwrap(), 3);
        // More than goes into the ring: it travels in a memfd.
        let die = |(queue, bytes): (Queue<usize>, Vec<u8>)| -> anyhow::Result<()> {
            queue.put(bytes.len())?;
            kill_self()
        };
        let queue = Queue::bounded(8).unwrap();
        let failed = pool.submit(die, (queue.clone(), vec![1; 4 << 20])).unwrap().join().unwrap_err();
        assert_eq!(failed.attempts(), 3, "{failed}");
        assert_eq!([(); 3].map(|()| queue.get().unwrap()), [4 << 20; 3]);
    });
}

#[test]
fn what_only_one_process_can_have_keeps_a_call_from_being_tried_again_and_that_is_said() {
    watched(|| {
        let die = |_: Shard<u8>| -> anyhow::Result<()> { kill_self() };
        let shard = || Tensor::<u8>::zeros(&[4]).unwrap().into_shards(1).unwrap().remove(0);
        let pool = Pool::options(Options::new(1)).retries(2).build().unwrap();
        let failed = pool.submit(die, shard()).unwrap().join().unwrap_err();
        assert_eq!(failed.attempts(), 1);
        let told = "It was not tried again: its arguments have a shard, which only one process can have.";
        assert!(failed.to_string().contains(told), "{failed}");
        let pool = Pool::new(1).unwrap();
        let failed = pool.submit(die, shard()).unwrap().join().unwrap_err();
        assert!(!failed.to_string().contains("not tried again"), "nobody asked for it: {failed}");
    });
}

#[test]
fn later_attempts_wait_and_a_pool_that_is_closed_meanwhile_waits_for_them() {
    watched(|| {
        let pool = Pool::options(Options::new(1)).retries(3).build().unwrap();
        let begin = Instant::now();
        let task = pool.submit(end_by, "SIGKILL".to_owned()).unwrap();
        assert_eq!(pool.join().unwrap().failed, 1);
        assert_eq!(task.join().unwrap_err().attempts(), 4);
        assert!(begin.elapsed() >= Duration::from_millis(110), "0, 10 and 100 ms: {:?}", begin.elapsed());
    });
}

#[test]
fn call_between_two_attempts_can_be_cancelled_and_its_deadline_comes() {
    watched(|| {
        let workers = || Pool::options(Options::new(1)).retries(1000);
        let pool = workers().build().unwrap();
        let task = pool.submit(end_by, "SIGKILL".to_owned()).unwrap();
        while !task.has_begun() || !task.cancel() {
            std::thread::yield_now();
        }
        let failed = task.join().unwrap_err();
        assert_eq!(failed.failure(), &TaskFailure::Cancelled);
        assert!(failed.began() && pids(&failed).len() == failed.attempts() as usize, "{failed}");
        assert!(failed.to_string().contains("was cancelled before it began again"), "{failed}");

        let pool = workers().deadline(Duration::from_millis(300)).build().unwrap();
        let failed = loop {
            let failed = pool.submit(end_by, "SIGKILL".to_owned()).unwrap().join().unwrap_err();
            if failed.began() && failed.outcome().is_none() {
                break failed;
            }
        };
        assert!(matches!(failed.failure(), TaskFailure::DeadlinePassed { outcome: None, .. }), "{failed}");
        assert!(failed.to_string().contains("did not begin again: its deadline, 300ms"), "{failed}");
    });
}

#[test]
fn attempts_end_in_different_ways_and_each_is_told() {
    watched(|| {
        let first_dies = |path: std::path::PathBuf| -> anyhow::Result<()> {
            once(path)?;
            common::wait_for_ever()
        };
        let workers = Pool::options(Options::new(1)).timeout(Duration::from_millis(50)).grace(Duration::ZERO);
        let (pool, dir) = (workers.retries(1).build().unwrap(), tempfile::tempdir().unwrap());
        let failed = pool.submit(first_dies, dir.path().join("once")).unwrap().join().unwrap_err();
        let [TaskFailure::WorkerEnded(first)] = failed.earlier_attempts() else { panic!("{failed}") };
        assert!(matches!(first.status(), Status::Signaled { signal: Signal::KILL, .. }), "{failed}");
        assert!(matches!(failed.failure(), TaskFailure::TimedOut { .. }), "{failed}");
    });
}
