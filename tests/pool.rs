//! Calls on a pool: what they return, how they fail, and what a death costs.

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::time::Duration;

use calls::{double, end_by, ended, own_pid, tell_and_wait_politely};
use common::{await_that, watched};
use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
use phalanx::pool::{self, Pool, PoolError, TaskFailure};
use phalanx::{Cause, Connection, Options, Queue, Shard, Signal, StartMethod, Status, Tensor, pipe};

phalanx::auto_init!();

#[test]
fn calls_return_what_their_functions_return_under_each_start_method() {
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        // The fork server stays.
        let nothing = |_, ()| anyhow::Ok(());
        common::alone(|| phalanx::start_processes(nothing, (), common::by(method, 1)).unwrap().join())
            .unwrap();
        watched(|| {
            let pool = Pool::options(common::by(method, 3)).build().unwrap();
            let tasks: Vec<_> = (0..100).map(|x| pool.submit(double, x).unwrap()).collect();
            for (x, task) in tasks.into_iter().enumerate() {
                assert_eq!(task.join().unwrap(), 2 * x as u64);
            }
            let closure = pool.submit(|text: String| anyhow::Ok(text.len()), "four".to_owned()).unwrap();
            assert_eq!(closure.join().unwrap(), 4);
            let summary = pool.join().unwrap();
            assert_eq!((summary.succeeded, summary.failed), (101, 0));
        });
    }
}

#[test]
fn death_costs_exactly_the_call_that_ran() {
    watched(|| {
        let pool = Pool::new(2).unwrap();
        for (how, status) in [
            ("SIGKILL", Status::Signaled { signal: Signal::KILL, core_dumped: false }),
            ("SIGSEGV", Status::Signaled { signal: Signal::SEGV, core_dumped: false }),
            ("abort", Status::Signaled { signal: Signal::ABRT, core_dumped: false }),
            ("exit", Status::Exited { code: 0 }),
        ] {
            let before: Vec<_> = (0..50).map(|x| pool.submit(double, x).unwrap()).collect();
            let bad = pool.submit(end_by, how.to_owned()).unwrap();
            let after: Vec<_> = (0..50).map(|x| pool.submit(double, x).unwrap()).collect();
            let failed = bad.join().unwrap_err();
            match (ended(&failed), status) {
                (Status::Signaled { signal, .. }, Status::Signaled { signal: expected, .. }) => {
                    assert_eq!(signal, expected);
                }
                (ended, expected) => assert_eq!(ended, expected),
            }
            assert!(failed.began() && failed.attempts() == 1, "{failed}");
            assert!(failed.function().ends_with("end_by"), "{failed}");
            for (x, task) in before.into_iter().chain(after).enumerate() {
                assert_eq!(task.join().unwrap(), 2 * (x as u64 % 50), "after {how}");
            }
            let text = failed.to_string();
            assert!(text.contains("`pool::calls::end_by` ended with its worker: worker "), "{text}");
            match how {
                "SIGSEGV" => {
                    let outcome = failed.outcome().unwrap();
                    assert_eq!(outcome.cause(), Some(Cause::InvalidAccess { address: 0 }));
                    assert!(text.contains("write_to"), "{text}");
                    assert!(!text.contains("serve_one"), "the library's frames are cut off: {text}");
                }
                "exit" => assert_eq!(failed.outcome().unwrap().cause(), Some(Cause::ExitedBeforeReturning)),
                _ => {}
            }
        }
        assert_eq!(pool.join().unwrap().failed, 4);
    });
}

#[test]
fn error_and_panic_are_told_and_the_worker_goes_on() {
    watched(|| {
        let pool = Pool::new(1).unwrap();
        let pid = pool.submit(own_pid, ()).unwrap().join().unwrap();
        let failed = pool.submit(end_by, "error".to_owned()).unwrap().join().unwrap_err();
        let error = failed.raised().unwrap();
        assert_eq!((error.message(), error.is_panic()), ("not today", false));
        let failed = pool.submit(end_by, "panic".to_owned()).unwrap().join().unwrap_err();
        let error = failed.raised().unwrap();
        assert_eq!((error.message(), error.is_panic()), ("out of luck", true));
        assert!(error.location().unwrap().starts_with("tests/common/calls.rs:"), "{failed}");
        let text = failed.to_string();
        assert!(text.contains("end_by") && !text.contains("serve_one"), "{text}");
        assert_eq!(pool.submit(own_pid, ()).unwrap().join().unwrap(), pid);
        // What the panic left as a note is not taken for the words of a later death.
        let killed = pool.submit(end_by, "SIGKILL".to_owned()).unwrap().join().unwrap_err();
        assert_eq!(killed.outcome().unwrap().note(), None, "{killed}");
    });
}

/// Serialises, but is refused when it is read, or the other way round.
#[derive(Debug, Clone, Copy)]
struct OneWay(bool);

impl serde::Serialize for OneWay {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 { serializer.serialize_bool(true) } else { Err(serde::ser::Error::custom("not writable")) }
    }
}

impl<'de> serde::Deserialize<'de> for OneWay {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("not readable"))
    }
}

#[test]
fn values_that_cannot_travel_are_four_errors_of_their_calls() {
    watched(|| {
        let pool = Pool::new(1).unwrap();
        let pid = pool.submit(own_pid, ()).unwrap().join().unwrap();
        let take = |_: OneWay| anyhow::Ok(());
        let refused = pool.submit(take, OneWay(false)).unwrap_err();
        assert!(matches!(&refused, PoolError::Arguments { reason, .. } if reason.contains("not writable")));
        let failed = pool.submit(take, OneWay(true)).unwrap().join().unwrap_err();
        assert!(
            matches!(failed.failure(), TaskFailure::Arguments(reason) if reason.contains("not readable"))
        );
        assert!(!failed.began(), "{failed}");
        let give = |good: bool| anyhow::Ok(OneWay(good));
        let failed = pool.submit(give, false).unwrap().join().unwrap_err();
        assert!(matches!(failed.failure(), TaskFailure::Result(reason) if reason.contains("not writable")));
        let failed = pool.submit(give, true).unwrap().join().unwrap_err();
        assert!(matches!(failed.failure(), TaskFailure::Result(reason) if reason.contains("not readable")));
        assert!(failed.began(), "{failed}");
        assert_eq!(pool.submit(own_pid, ()).unwrap().join().unwrap(), pid);
    });
}

#[test]
fn memory_descriptors_and_large_values_travel_both_ways() {
    watched(|| {
        let pool = Pool::new(2).unwrap();
        let tensor = Tensor::from_slice(&[1.0_f32, 2.0, 3.0], &[3]).unwrap();
        let fill = |tensor: Tensor<f32>| {
            tensor.fill(7.0)?;
            anyhow::Ok(tensor)
        };
        let back = pool.submit(fill, tensor.clone()).unwrap().join().unwrap();
        assert_eq!((tensor.to_vec(), back.to_vec()), (vec![7.0; 3], vec![7.0; 3]));
        let shards = Tensor::<u8>::zeros(&[8]).unwrap().into_shards(2).unwrap();
        let write = |mut shard: Shard<u8>| {
            shard.as_mut_slice()?.fill(9);
            anyhow::Ok(shard)
        };
        let tasks: Vec<_> = shards.into_iter().map(|shard| pool.submit(write, shard).unwrap()).collect();
        for task in tasks {
            assert_eq!(task.join().unwrap().to_vec().unwrap(), [9; 4]);
        }
        let large = vec![5_u8; 3 << 20];
        let reverse = |mut bytes: Vec<u8>| {
            bytes.push(6);
            bytes.reverse();
            anyhow::Ok(bytes)
        };
        let found = pool.submit(reverse, large.clone()).unwrap().join().unwrap();
        assert_eq!((found.len(), found[0], found[1]), (large.len() + 1, 6, 5));
        let (ours, theirs) = pipe::<u32, u32>().unwrap();
        let echo = |end: Connection<u32, u32>| {
            let got = end.recv()?;
            end.send(got + 1)?;
            anyhow::Ok(())
        };
        let task = pool.submit(echo, theirs).unwrap();
        ours.send(4).unwrap();
        assert_eq!(ours.recv().unwrap(), 5);
        task.join().unwrap();
    });
}

#[test]
fn pool_that_is_full_says_so_and_waits_for_room() {
    watched(|| {
        let (pool, told) =
            (Pool::options(Options::new(1)).capacity(2).build().unwrap(), Queue::bounded(8).unwrap());
        let busy = pool.submit(tell_and_wait_politely, told.clone()).unwrap();
        told.get().unwrap();
        let queued = pool.submit(double, 1).unwrap();
        assert!(matches!(pool.try_submit(double, &2), Err(PoolError::Full { queued: 2 })));
        let waited = pool.submit_timeout(double, &2, Duration::from_millis(5));
        assert!(matches!(waited, Err(PoolError::Full { .. })));
        assert!(busy.kill());
        let third = pool.submit(double, 3).unwrap();
        assert_eq!(
            (queued.join().unwrap(), third.join().unwrap(), busy.join().unwrap()),
            (2, 6, "as you wish".to_owned())
        );
        // Many more than there is room for, from four threads, and none of them is joined.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|x| drop(pool.submit(double, x).unwrap())));
            }
        });
        assert_eq!(pool.join().unwrap().succeeded, 3 + 2000);
    });
}

/// Stops a worker that waits for a task, so that nobody takes messages out of the queue until the end of `meanwhile`.
fn while_it_is_stopped(worker: u32, meanwhile: impl FnOnce()) {
    common::await_asleep(worker);
    common::send(worker, SIGSTOP);
    await_that(|| common::state_of(worker) == Some('T'));
    meanwhile();
    common::send(worker, SIGCONT);
}

#[test]
fn cancelled_tasks_that_fill_the_queue_make_room() {
    watched(|| {
        let pool = Pool::options(Options::new(1)).capacity(2).build().unwrap();
        let worker = pool.submit(own_pid, ()).unwrap().join().unwrap();
        let own_thread = || nix::unistd::gettid().as_raw().cast_unsigned();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            // The scope waits for it, and passes its panic on.
            let wait_for_room = || {
                tell.send(own_thread()).unwrap();
                assert_eq!(pool.submit(double, 3).unwrap().join().unwrap(), 6);
            };
            while_it_is_stopped(worker, || {
                for task in [1, 2].map(|x| pool.submit(double, x).unwrap()) {
                    assert!(task.cancel());
                }
                assert!(matches!(pool.try_submit(double, &3), Err(PoolError::Full { queued: 0 })));
                scope.spawn(wait_for_room);
                common::await_asleep(told.recv().unwrap());
            });
        });
    });
}

fn wait_for_the_last(_args: Vec<u8>, (is_last, told): (bool, Queue<()>)) -> anyhow::Result<()> {
    if is_last {
        (0..7).try_for_each(|_| told.put(()))?
    } else {
        told.get()?
    }
    Ok(())
}

#[test]
fn long_arguments_fill_the_queue_until_workers_have_taken_them() {
    watched(|| {
        let (pool, told) = (Pool::new(8).unwrap(), Queue::bounded(8).unwrap());
        // Four of them fill the ring; none ends before the last one runs.
        let args = |n| (vec![0_u8; 16_000], (n == 7, told.clone()));
        let tasks: Vec<_> =
            (0..8).map(|n| pool.submit(|(a, b)| wait_for_the_last(a, b), args(n)).unwrap()).collect();
        tasks.into_iter().for_each(|task| task.join().unwrap());
    });
}

#[test]
fn recycled_workers_are_replaced_and_lose_nothing() {
    watched(|| {
        let pool = Pool::options(Options::new(2)).recycle_after(1).build().unwrap();
        let tasks: Vec<_> = (0..20).map(|_| pool.submit(own_pid, ()).unwrap()).collect();
        let mut pids: Vec<_> = tasks.into_iter().map(|task| task.join().unwrap()).collect();
        pids.sort_unstable();
        pids.dedup();
        assert_eq!(pids.len(), 20);
    });
}

fn refuse_to_start(_: &phalanx::WorkerInfo) -> anyhow::Result<()> {
    anyhow::bail!("no device")
}

#[test]
fn pool_whose_workers_cannot_begin_is_broken_and_says_why() {
    watched(|| {
        let pool = Pool::options(Options::new(1).on_start(refuse_to_start)).build().unwrap();
        let failed = pool.submit(double, 1).map(|task| task.join().unwrap_err().to_string());
        let reason = failed.unwrap_or_else(|error| error.to_string());
        assert!(reason.contains("before they begin a task") && reason.contains("no device"), "{reason}");
        await_that(|| matches!(pool.submit(double, 1), Err(PoolError::Broken { .. })));
        assert!(matches!(pool.join(), Err(PoolError::Broken { .. })));
    });
}

#[test]
fn workers_are_seen_at_work() {
    watched(|| {
        let (pool, told) = (Pool::new(2).unwrap(), Queue::bounded(8).unwrap());
        assert_eq!(pool.size(), 2);
        let task = pool.submit(tell_and_wait_politely, told.clone()).unwrap();
        let pid = told.get().unwrap();
        let workers = pool.workers();
        let at_work: Vec<_> = workers.iter().filter(|worker| worker.running.is_some()).collect();
        assert_eq!((at_work.len(), at_work[0].pid, at_work[0].begun), (1, pid, 1));
        assert!(at_work[0].running.as_ref().unwrap().ends_with("tell_and_wait_politely"));
        assert_eq!(pool.stats().outstanding, 1);
        assert!(task.kill());
        task.join().unwrap();
        pool.submit(end_by, "error".to_owned()).unwrap().join().unwrap_err();
        let stats = pool.stats();
        assert_eq!((stats.outstanding, stats.succeeded, stats.failed), (0, 1, 1));
        assert_eq!(pool.workers().iter().map(|worker| worker.failed).sum::<u64>(), 1);
    });
}

#[test]
fn bad_options_are_refused() {
    watched(|| {
        let refused = |options: pool::PoolOptions| match options.build() {
            Err(PoolError::InvalidOption(reason)) => reason,
            other => panic!("{other:?}"),
        };
        assert!(refused(Pool::options(Options::new(0))).contains("1 to 32767 workers, not 0"));
        assert!(refused(Pool::options(Options::new(1)).capacity(0)).contains("not 0"));
        let fork = Options::new(1).start_method(StartMethod::Fork);
        assert!(refused(Pool::options(fork)).contains("Spawn or ForkServer"));
    });
}
