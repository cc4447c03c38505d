//! What functions of a pool have beside their arguments: the environment of a map, the state of a worker; calls for each worker.

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use calls::{double, own_pid, tell_and_wait_politely};
use common::{await_that, kill_self, watched};
use phalanx::pool::{Pool, PoolError, TaskFailure};
use phalanx::{Options, Queue, Shard, StartMethod, Tensor};
use serde::{Deserialize, Serialize};

phalanx::auto_init!();

/// How often this process has read an environment.
static READ: AtomicU64 = AtomicU64::new(0);

/// An environment that counts how often it is read.
#[derive(Serialize, Deserialize)]
struct Counted {
    factor: u64,
    #[serde(deserialize_with = "count")]
    weights: Tensor<u64>,
}

fn count<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Tensor<u64>, D::Error> {
    READ.fetch_add(1, Relaxed);
    Deserialize::deserialize(deserializer)
}

fn weigh(environment: &Counted, item: u64) -> anyhow::Result<u64> {
    Ok(environment.factor * item + environment.weights.get(0)?)
}

fn environment(factor: u64) -> Counted {
    Counted { factor, weights: Tensor::from_slice(&[factor], &[1]).unwrap() }
}

fn reads(_: ()) -> anyhow::Result<u64> {
    Ok(READ.load(Relaxed))
}

#[test]
fn environment_is_read_once_in_each_worker_and_shared_by_all_items() {
    watched(|| {
        let pool = Pool::new(2).unwrap();
        let weighed: Vec<_> = pool.map_with(environment(3), weigh, 0..500).unwrap().collect();
        for (item, weighed) in weighed.into_iter().enumerate() {
            assert_eq!(weighed.unwrap(), 3 * item as u64 + 3);
        }
        // Two at a time, turn by turn: each worker has both, and no item gets the other's.
        let mut maps = [5, 7].map(|factor| pool.map_with(environment(factor), weigh, 0..300).unwrap());
        for item in 0..300 {
            assert_eq!(maps[0].next().unwrap().unwrap(), 5 * item + 5);
            assert_eq!(maps[1].next().unwrap().unwrap(), 7 * item + 7);
        }
        for task in pool.broadcast(reads, ()).unwrap() {
            let read = task.join().unwrap();
            assert!((1..=3).contains(&read), "{read} times");
        }
    });
}

#[test]
fn workers_forget_the_environment_of_a_map_that_is_gone() {
    watched(|| {
        let pool = Pool::new(2).unwrap();
        let shared = Tensor::<u64>::zeros(&[1 << 20]).unwrap();
        let touch = |shared: &Tensor<u64>, item: u64| {
            shared.set(item as usize, 1)?;
            anyhow::Ok(std::process::id())
        };
        let pids: Vec<_> =
            pool.map_with(shared.clone(), touch, 0..1000).unwrap().map(Result::unwrap).collect();
        // The segment is mapped by a worker as long as it has the environment, though it waits for a call meanwhile.
        await_that(|| pids.iter().all(|pid| !maps_of(*pid, 8 << 20)));
    });
}

/// Whether a process has a shared mapping of at least this many bytes.
fn maps_of(pid: u32, bytes: u64) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.lines().any(|line| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (begin, end) = range.split_once('-').unwrap();
        let [begin, end] = [begin, end].map(|at| u64::from_str_radix(at, 16).unwrap());
        rest.contains("s ") && rest.contains("memfd") && end - begin >= bytes
    })
}

#[test]
fn item_in_an_environment_dies_alone_and_the_next_worker_gets_the_environment_too() {
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        // The fork server stays.
        let nothing = |_, ()| anyhow::Ok(());
        common::alone(|| phalanx::start_processes(nothing, (), common::by(method, 1)).unwrap().join())
            .unwrap();
        watched(|| {
            let pool = Pool::options(common::by(method, 2)).build().unwrap();
            let fragile = |environment: &Counted, item: u64| {
                if item % 50 == 13 {
                    kill_self();
                }
                weigh(environment, item)
            };
            let results: Vec<_> = pool.map_with(environment(3), fragile, 0..200).unwrap().collect();
            for (item, result) in results.into_iter().enumerate() {
                match result {
                    Ok(weighed) => assert_eq!(weighed, 3 * item as u64 + 3),
                    Err(failed) => {
                        assert_eq!((item % 50, failed.item()), (13, Some(item as u64)), "{failed}")
                    }
                }
            }
        });
    }
}

#[test]
fn environment_that_is_refused_says_which_side_and_why() {
    watched(|| {
        let pool = Pool::new(2).unwrap();
        let shard = Tensor::<u8>::zeros(&[4]).unwrap().into_shards(1).unwrap().remove(0);
        let refused = pool.map_with(shard, |_: &Shard<u8>, _: u64| anyhow::Ok(()), 0..3).unwrap_err();
        assert!(refused.to_string().contains("only one process can have a shard"), "{refused}");

        #[derive(Serialize)]
        struct Unreadable;
        impl<'de> Deserialize<'de> for Unreadable {
            fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
                Err(serde::de::Error::custom("no such thing here"))
            }
        }
        let map = pool.map_with(Unreadable, |_: &Unreadable, _: u64| anyhow::Ok(()), 0..20).unwrap();
        for result in map {
            let failed = result.unwrap_err();
            let TaskFailure::Arguments(reason) = failed.failure() else { panic!("{failed}") };
            assert!(reason.contains("environment") && reason.contains("no such thing here"), "{reason}");
            assert!(!failed.began());
        }
        assert_eq!(pool.submit(double, 2).unwrap().join().unwrap(), 4);
    });
}

#[test]
fn broadcast_comes_to_each_worker_once_whatever_it_does() {
    watched(|| {
        let (pool, told) = (Pool::new(3).unwrap(), Queue::bounded(8).unwrap());
        for _ in 0..200 {
            let tasks = pool.broadcast(own_pid, ()).unwrap();
            let pids: std::collections::BTreeSet<_> =
                tasks.into_iter().map(|task| task.join().unwrap()).collect();
            assert_eq!(pids.len(), 3);
        }
        // One worker is busy: the others do not wait for it, and it does its own before the calls that are queued.
        let busy = pool.submit(tell_and_wait_politely, told.clone()).unwrap();
        told.get().unwrap();
        let tasks = pool.broadcast(own_pid, ()).unwrap();
        await_that(|| tasks.iter().filter(|task| task.is_finished()).count() == 2);
        assert_eq!(pool.map(|x: u64| anyhow::Ok(x), 0..100).unwrap().filter(Result::is_ok).count(), 100);
        assert!(busy.kill());
        assert_eq!(busy.join().unwrap(), "as you wish");
        assert_eq!(tasks.into_iter().filter_map(|task| task.join().ok()).count(), 3);
    });
}

/// Ends the process that reads it.
#[derive(Serialize)]
struct Deadly;

impl<'de> Deserialize<'de> for Deadly {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        kill_self()
    }
}

#[test]
fn errand_whose_arguments_kill_its_worker_fails_and_no_other_worker_gets_it() {
    watched(|| {
        let pool = Pool::new(1).unwrap();
        let failed =
            pool.broadcast(|_: Deadly| anyhow::Ok(()), Deadly).unwrap().remove(0).join().unwrap_err();
        assert_eq!(failed.attempts(), 1, "{failed}");
        assert_eq!(pool.join().unwrap().failed, 1);
    });
}

#[test]
fn errand_of_a_worker_that_dies_fails_and_says_that_it_had_not_begun() {
    watched(|| {
        let (pool, told) = (Pool::new(1).unwrap(), Queue::bounded(8).unwrap());
        let die_when_told = |queue: Queue<u32>| -> anyhow::Result<()> {
            queue.put(1)?;
            while !queue.is_empty() {
                std::thread::yield_now();
            }
            kill_self()
        };
        let dying = pool.submit(die_when_told, told.clone()).unwrap();
        await_that(|| told.len() == 1);
        let mut errands = pool.broadcast(own_pid, ()).unwrap();
        let cancelled = pool.broadcast(own_pid, ()).unwrap().remove(0);
        assert!(cancelled.cancel());
        told.get().unwrap();
        assert!(dying.join().unwrap_err().began());
        let failed = errands.remove(0).join().unwrap_err();
        assert!(matches!(failed.failure(), TaskFailure::WorkerEnded(_)) && !failed.began(), "{failed}");
        assert_eq!(cancelled.join().unwrap_err().failure(), &TaskFailure::Cancelled);
        // The next worker is there as soon as it is started.
        await_that(|| pool.workers().len() == 1);
        assert_eq!(pool.broadcast(double, 4).unwrap().remove(0).join().unwrap(), 8);
        assert_eq!(pool.join().unwrap().failed, 3);
    });
}

/// The state of a worker: which one it is in this process, and what it has counted.
#[derive(Default)]
struct Counter {
    made: u64,
    calls: u64,
}

static MADE: AtomicU64 = AtomicU64::new(0);

fn init(from: &u64) -> anyhow::Result<Counter> {
    Ok(Counter { made: from + MADE.fetch_add(1, Relaxed), calls: 0 })
}

fn next(counter: &mut Counter, how: String) -> anyhow::Result<(u64, u64)> {
    counter.calls += 1;
    match how.as_str() {
        "panic" => panic!("with half of the state changed"),
        "error" => anyhow::bail!("an answer"),
        _ => Ok((counter.made, counter.calls)),
    }
}

#[test]
fn state_is_made_once_kept_through_errors_and_made_again_after_a_panic() {
    watched(|| {
        let pool = Pool::options(Options::new(1)).with_state(init, 10).build().unwrap();
        let next = |how: &str| pool.submit(next, how.to_owned()).unwrap().join();
        assert_eq!(next("").unwrap(), (10, 1));
        assert!(next("error").unwrap_err().raised().is_some_and(|raised| !raised.is_panic()));
        assert_eq!(next("").unwrap(), (10, 3));
        assert!(next("panic").unwrap_err().raised().unwrap().is_panic());
        assert_eq!(next("").unwrap(), (11, 1));
        // In the middle of a chunk, too, where calls before and behind the panic go on.
        let items = (0..6).map(|item| if item == 3 { "panic" } else { "" }.to_owned());
        let map = pool.map(self::next, items).unwrap().chunk(6);
        let made: Vec<_> = map.map(|result| result.ok()).collect();
        assert_eq!(made[..3], [Some((11, 2)), Some((11, 3)), Some((11, 4))]);
        assert_eq!(made[3..], [None, Some((12, 1)), Some((12, 2))]);
        assert_eq!(pool.broadcast(self::next, String::new()).unwrap().remove(0).join().unwrap(), (12, 3));
        // Functions without a state work beside.
        assert_eq!(pool.pool().submit(double, 4).unwrap().join().unwrap(), 8);
    });
}

#[test]
fn initialiser_that_fails_breaks_the_pool_with_its_own_words() {
    watched(|| {
        let refuse = |reason: &String| -> anyhow::Result<Counter> { anyhow::bail!("no model: {reason}") };
        let pool =
            Pool::options(Options::new(2)).with_state(refuse, "disk is full".to_owned()).build().unwrap();
        let task = pool.submit(next, String::new());
        let text = match task {
            Ok(task) => task.join().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(text.contains("no model: disk is full"), "{text}");
        await_that(|| matches!(pool.submit(next, String::new()), Err(PoolError::Broken { .. })));
        let broken = pool.join().unwrap_err().to_string();
        assert!(broken.contains("no model: disk is full"), "{broken}");
    });
}

#[test]
fn slow_initialiser_that_fails_is_not_called_for_ever() {
    watched(|| {
        let tries = Queue::bounded(64).unwrap();
        let refuse = |tries: &Queue<u32>| -> anyhow::Result<Counter> {
            tries.put(1)?;
            #[expect(clippy::disallowed_methods, reason = "that time passes is what this is about")]
            std::thread::sleep(std::time::Duration::from_millis(2600));
            anyhow::bail!("no")
        };
        let pool = Pool::options(Options::new(1)).with_state(refuse, tries.clone()).build().unwrap();
        let broken = pool.submit(next, String::new()).unwrap().join().unwrap_err().to_string();
        assert!(broken.contains("no"), "{broken}");
        assert!(matches!(pool.join(), Err(PoolError::Broken { .. })));
        assert_eq!(tries.len(), 3);
    });
}

fn retire(counter: Counter) -> anyhow::Result<()> {
    RETIRED.get().unwrap().put(counter.calls)?;
    Ok(())
}

static RETIRED: std::sync::OnceLock<Queue<u64>> = std::sync::OnceLock::new();

fn remember(queue: &Queue<u64>) -> anyhow::Result<Counter> {
    let _ = RETIRED.set(queue.clone());
    Ok(Counter::default())
}

#[test]
fn state_is_retired_at_the_close_and_by_recycled_workers_and_not_after_a_kill() {
    watched(|| {
        let retired = Queue::bounded(64).unwrap();
        let options = Pool::options(Options::new(2)).recycle_after(2);
        let pool = options.with_state(remember, retired.clone()).on_retire(retire).build().unwrap();
        for _ in 0..8 {
            pool.submit(next, String::new()).unwrap().join().unwrap();
        }
        pool.join().unwrap();
        let calls: Vec<_> = std::iter::from_fn(|| retired.try_get().ok()).collect();
        assert_eq!(calls.iter().sum::<u64>(), 8, "{calls:?}");

        let options = Pool::options(Options::new(1));
        let pool = options.with_state(remember, retired.clone()).on_retire(retire).build().unwrap();
        let stay = |_: &mut Counter, told: Queue<u32>| -> anyhow::Result<()> {
            told.put(1)?;
            common::wait_for_ever()
        };
        // In a call: an idle worker may find the queue closed before its SIGKILL comes, and retire.
        let told = Queue::bounded(1).unwrap();
        let _stays = pool.submit(stay, told.clone()).unwrap();
        told.get().unwrap();
        pool.kill();
        assert_eq!(retired.len(), 0);
    });
}

#[test]
fn state_that_cannot_be_retired_is_told_by_join() {
    watched(|| {
        let fail = |_: Counter| -> anyhow::Result<()> { anyhow::bail!("cannot flush the cache") };
        let pool = Pool::options(Options::new(2)).with_state(init, 0).on_retire(fail).build().unwrap();
        pool.submit(next, String::new()).unwrap().join().unwrap();
        let error = pool.join().unwrap_err();
        assert!(matches!(error, PoolError::Retire(_)), "{error}");
        assert!(error.to_string().contains("cannot flush the cache"), "{error}");
    });
}

#[test]
fn set_gives_results_as_they_come_and_cancels_when_it_is_dropped() {
    watched(|| {
        let (pool, told) = (Pool::new(2).unwrap(), Queue::bounded(8).unwrap());
        let mut set = pool.task_set();
        let wait = |queue: Queue<u32>| anyhow::Ok(u64::from(queue.get()?));
        let slow = set.submit(wait, told.clone()).unwrap();
        let quick = set.submit(double, 4).unwrap();
        let bad = set.submit(|_: u64| -> anyhow::Result<u64> { anyhow::bail!("bad") }, 1).unwrap();
        assert_eq!((slow, quick, bad, set.len()), (0, 1, 2, 3));
        let mut come = [set.next().unwrap(), set.next().unwrap()];
        come.sort_by_key(|(number, _)| *number);
        assert_eq!((come[0].0, come[0].1.as_ref().unwrap()), (quick, &8));
        let failed = come[1].1.as_ref().unwrap_err();
        assert_eq!((come[1].0, failed.item()), (bad, Some(bad)));
        told.put(7).unwrap();
        assert_eq!(set.next().map(|(number, result)| (number, result.unwrap())), Some((slow, 7)));
        assert!(set.next().is_none() && set.is_empty());

        let busy = pool.broadcast(tell_and_wait_politely, told.clone()).unwrap();
        busy.iter().for_each(|_| _ = told.get().unwrap());
        for x in 0..10 {
            set.submit(double, x).unwrap();
        }
        assert_eq!(set.cancel_queued(), 10);
        assert!(set.by_ref().all(|(_, result)| result.unwrap_err().failure() == &TaskFailure::Cancelled));
        set.submit(double, 1).unwrap();
        drop(set);
        await_that(|| pool.stats().outstanding == 2);
        assert!(busy.iter().all(|task| task.kill()));
    });
}

#[test]
fn pool_of_the_default_size_has_a_worker_for_each_processor_and_one_inside_of_a_worker() {
    watched(|| {
        let pool = Pool::with_default_size().unwrap();
        assert_eq!(pool.size(), std::thread::available_parallelism().unwrap().get());
        let inside = pool.submit(|()| anyhow::Ok(Pool::with_default_size()?.size()), ()).unwrap();
        assert_eq!(inside.join().unwrap(), 1);
    });
}
