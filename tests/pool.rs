//! Calls on a pool: what they return, and what a death, a kill, a cancel, a time limit and the end of the pool cost.

mod common;

use std::time::Duration;

use common::{await_that, wait_for_ever, watched};
use phalanx::pool::{self, Pool, PoolError, TaskFailed, TaskFailure};
use phalanx::{Cause, Connection, Options, Queue, Shard, Signal, StartMethod, Status, Tensor, pipe};

phalanx::auto_init!();

fn double(x: u64) -> anyhow::Result<u64> {
    Ok(2 * x)
}

fn own_pid(_: ()) -> anyhow::Result<u32> {
    Ok(std::process::id())
}

/// Ends its process in one of many ways.
#[expect(clippy::exit, clippy::disallowed_methods, reason = "that is one of the ways")]
fn end_by(how: String) -> anyhow::Result<()> {
    match how.as_str() {
        "SIGKILL" => kill_self(),
        "SIGSEGV" => crash(),
        "exit" => std::process::exit(0),
        "abort" => std::process::abort(),
        "panic" => panic!("out of luck"),
        "error" => anyhow::bail!("not today"),
        _ => {}
    }
    Ok(())
}

fn kill_self() -> ! {
    nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_for_ever()
}

#[expect(unsafe_code, reason = "nothing else raises a real SIGSEGV")]
fn crash() {
    // SAFETY: none; that is the point.
    unsafe { std::ptr::null_mut::<u8>().write_volatile(1) }
}

/// Tells its pid, and waits for ever.
fn tell_and_wait(told: Queue<u32>) -> anyhow::Result<()> {
    told.put(std::process::id())?;
    wait_for_ever()
}

/// Tells its pid, and waits until it is asked to end.
fn tell_and_wait_politely(told: Queue<u32>) -> anyhow::Result<String> {
    told.put(std::process::id())?;
    while !pool::cancelled() {
        std::thread::yield_now();
    }
    Ok("as you wish".to_owned())
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

fn ended(failed: &TaskFailed) -> Status {
    failed.outcome().unwrap_or_else(|| panic!("{failed}")).status()
}

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
            assert!(text.contains("`pool::end_by` ended with its worker: worker "), "{text}");
            match how {
                "SIGSEGV" => {
                    let outcome = failed.outcome().unwrap();
                    assert_eq!(outcome.cause(), Some(Cause::InvalidAccess { address: 0 }));
                    assert!(text.contains("crash"), "{text}");
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
        assert!(error.location().unwrap().starts_with("tests/pool.rs:"), "{failed}");
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

#[test]
fn retries_begin_a_call_again_after_a_death_and_never_without_leave() {
    watched(|| {
        let (pool, told) =
            (Pool::options(Options::new(2)).retries(2).build().unwrap(), Queue::bounded(8).unwrap());
        // A queue travels beside its message, so this call cannot be given out again.
        let task = pool.submit(tell_and_wait, told.clone()).unwrap();
        kill(told.get().unwrap());
        let failed = task.join().unwrap_err();
        assert_eq!((failed.attempts(), told.len()), (1, 0), "{failed}");
        let failed = pool.submit(end_by, "SIGKILL".to_owned()).unwrap().join().unwrap_err();
        assert_eq!(failed.attempts(), 3, "{failed}");
        assert!(failed.to_string().contains("begun 3 times"), "{failed}");
        let failed = pool.submit(end_by, "error".to_owned()).unwrap().join().unwrap_err();
        assert_eq!(failed.attempts(), 1, "an error is an answer: {failed}");
        // Dies once, by a file that it leaves.
        let dir = tempfile::tempdir().unwrap();
        let once = |path: std::path::PathBuf| {
            if std::fs::File::create_new(path).is_ok() {
                kill_self();
            }
            anyhow::Ok(1)
        };
        assert_eq!(pool.submit(once, dir.path().join("once")).unwrap().join().unwrap(), 1);
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
        // Many more than there is room for, from many threads, with nobody who joins meanwhile.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|x| drop(pool.submit(double, x).unwrap())));
            }
        });
        assert_eq!(pool.join().unwrap().succeeded, 3 + 2000);
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
fn dropped_pool_finishes_what_somebody_waits_for_and_gives_up_the_rest() {
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
        assert!(told.is_empty(), "what nobody waits for has not begun");
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

#[test]
fn fork_of_the_process_has_a_handle_that_does_nothing() {
    watched(|| {
        let pool = Pool::new(1).unwrap();
        let task = pool.submit(double, 4).unwrap();
        #[expect(unsafe_code, reason = "a fork of a process with threads, which only exits")]
        // SAFETY: the child calls what takes no lock that another thread may have had, and ends by _exit.
        let code = match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                let refused = matches!(pool.try_submit(double, &1), Err(PoolError::Forked { .. }));
                let ended = !task.cancel() && !task.kill();
                drop((pool, task));
                // SAFETY: _exit is async-signal-safe.
                unsafe { libc::_exit(i32::from(!(refused && ended))) }
            }
            nix::unistd::ForkResult::Parent { child } => nix::sys::wait::waitpid(child, None).unwrap(),
        };
        assert!(matches!(code, nix::sys::wait::WaitStatus::Exited(_, 0)), "{code:?}");
        assert_eq!(task.join().unwrap(), 8);
        assert_eq!(pool.submit(double, 5).unwrap().join().unwrap(), 10);
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
        assert!(refused(Pool::options(Options::new(0))).contains("1 to 65535 workers, not 0"));
        assert!(refused(Pool::options(Options::new(1)).capacity(0)).contains("not 0"));
        let fork = Options::new(1).start_method(StartMethod::Fork);
        assert!(refused(Pool::options(fork)).contains("Spawn or ForkServer"));
        assert!(refused(Pool::options(Options::new(1).stderr_tail(5))).contains("RankOptions::stderr"));
    });
}
