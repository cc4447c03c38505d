//! The Fork start method, in a process that has a single thread: no harness of threads.

#![expect(unsafe_code, reason = "one worker hurts itself")]

mod common;
#[path = "common/harness.rs"]
mod harness;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::{
    assert_fresh_signals, await_end, await_post, board, children, descriptors, kill_self, post, trees,
    under_both_strategies, wait_for_ever, watched,
};
use phalanx::sync::Lock;
use phalanx::{
    Cause, Connection, Descriptor, Error, Options, ProcessContext, Queue, Shard, SharingStrategy,
    StartMethod, Status, Tensor, pipe, set_sharing_strategy, spawn, start_processes,
};

fn forked(nprocs: usize) -> Options {
    Options::new(nprocs).start_method(StartMethod::Fork)
}

fn main() -> ExitCode {
    phalanx::init();
    let tests = harness::tests![watched:
        results_come_by_rank,
        memory_of_the_launcher_is_seen_as_it_was,
        worker_has_only_its_own_descriptors_and_signals,
        environment_is_set_in_the_worker_only,
        failures_are_told_as_with_spawn,
        exit_handlers_of_the_launcher_do_not_run_in_workers,
        contexts_do_not_hold_each_other_up,
        nested_by_both_methods,
        children_of_a_worker_go_with_it,
        handlers_of_the_launcher_do_not_run_in_workers,
        descriptor_that_came_by_the_fork_is_neither_sent_nor_closed,
        queue_that_came_by_the_fork_is_refused_and_a_lock_is_shared,
        tree_that_a_worker_begins_goes_with_it,
        threads_are_refused,
    ];
    let tests_of_memory = harness::tests![under_both_strategies:
        tensors_are_shared,
        tensors_in_results_arrive,
        what_came_by_the_fork_can_be_used_but_not_sent,
        what_a_worker_has_by_its_fork_is_not_divided_in_place,
        shard_is_of_one_process_only,
    ];
    harness::run(&[&tests[..], &tests_of_memory].concat())
}

fn start<R>(
    f: impl Fn(usize, ()) -> anyhow::Result<R> + Copy + Send + 'static,
    nprocs: usize,
) -> ProcessContext<R>
where
    R: serde::Serialize + serde::de::DeserializeOwned,
{
    start_processes(f, (), forked(nprocs)).unwrap()
}

/// Elements of a tensor of bytes that has a segment of its own.
const LARGE: usize = 300 << 10;

fn tensors_in_results_arrive() {
    let work = |rank, given: Tensor<u8>| -> anyhow::Result<(Tensor<u8>, Tensor<u8>)> {
        given.set(rank, 1)?;
        Ok((given, Tensor::from_slice(&vec![rank as u8; LARGE], &[LARGE])?))
    };
    let given = Tensor::<u8>::zeros(&[3]).unwrap();
    let results = start_processes(work, given.clone(), forked(3)).unwrap().join().unwrap();
    assert_eq!(given.to_vec(), [1; 3]);
    for (rank, (same, new)) in results.iter().enumerate() {
        assert!(same.storage().is_same(given.storage()));
        assert_eq!(new.get(LARGE - 1).unwrap(), rank as u8);
    }
}

fn what_came_by_the_fork_can_be_used_but_not_sent() {
    static HELD: Mutex<Option<Tensor<u8>>> = Mutex::new(None);
    *HELD.lock().unwrap() = Some(Tensor::zeros(&[LARGE]).unwrap());
    let write = |rank, ()| Ok(HELD.lock().unwrap().as_ref().unwrap().set(rank, 5)?);
    start(write, 2).join().unwrap();
    let send = |_, ()| Ok(HELD.lock().unwrap().clone().unwrap());
    let error = start(send, 1).join().unwrap_err().to_string();
    assert!(error.contains("it can be used, but not be sent"), "{error}");
    let freeze = |_, ()| Ok(HELD.lock().unwrap().take().unwrap().freeze().map(drop)?);
    let error = start(freeze, 1).join().unwrap_err().to_string();
    assert!(error.contains("can still write to them"), "{error}");
    // Its descriptor's number is another's when it is dropped.
    let drop_late = |_, ()| {
        let files: Vec<_> = (0..64).map(|_| std::fs::File::open("/dev/null")).collect::<Result<_, _>>()?;
        drop(HELD.lock().unwrap().take());
        Ok(files.iter().all(|file| file.metadata().is_ok()))
    };
    assert_eq!(start(drop_late, 1).join().unwrap(), [true]);
    let held = HELD.lock().unwrap().take().unwrap();
    assert_eq!(held.to_vec()[..3], [5, 5, 0]);
}

fn what_a_worker_has_by_its_fork_is_not_divided_in_place() {
    static HELD: Mutex<Option<Tensor<u8>>> = Mutex::new(None);
    *HELD.lock().unwrap() = Some(Tensor::from_slice(&vec![1; LARGE], &[LARGE]).unwrap());
    let board = board(2);
    let write = |_, board: Tensor<i64>| -> anyhow::Result<()> {
        post(&board, 0, 1);
        await_post(&board, 1);
        Ok(HELD.lock().unwrap().as_ref().unwrap().set(0, 9)?)
    };
    let context = start_processes(write, board.clone(), forked(1)).unwrap();
    await_post(&board, 0);
    let mut shards = HELD.lock().unwrap().take().unwrap().into_shards(1).unwrap();
    post(&board, 1, 1);
    context.join().unwrap();
    assert_eq!(shards[0].as_mut_slice().unwrap()[0], 1, "the worker wrote to the shard");
}

fn descriptor_that_came_by_the_fork_is_neither_sent_nor_closed() {
    static HELD: Mutex<Option<Descriptor>> = Mutex::new(None);
    *HELD.lock().unwrap() = Some(tempfile::tempfile().unwrap().into());
    let send = |_, ()| Ok(HELD.lock().unwrap().clone().unwrap());
    let error = start(send, 1).join().unwrap_err().to_string();
    assert!(error.contains("it cannot be sent; give it to the worker in its arguments"), "{error}");
    let take = |_, ()| Ok(HELD.lock().unwrap().take().unwrap().into_owned().map(drop)?);
    let error = start(take, 1).join().unwrap_err().to_string();
    assert!(error.contains("by its fork, which closed it"), "{error}");
    // Its number is another's when it is dropped.
    let drop_late = |_, ()| {
        let files: Vec<_> = (0..64).map(|_| std::fs::File::open("/dev/null")).collect::<Result<_, _>>()?;
        drop(HELD.lock().unwrap().take());
        Ok(files.iter().all(|file| file.metadata().is_ok()))
    };
    assert_eq!(start(drop_late, 1).join().unwrap(), [true]);
    static END: Mutex<Option<Connection<u8, u8>>> = Mutex::new(None);
    let (end, _other) = pipe::<u8, u8>().unwrap();
    *END.lock().unwrap() = Some(end);
    let send = |_, ()| Ok(END.lock().unwrap().as_ref().unwrap().send(1)?);
    let error = start(send, 1).join().unwrap_err().to_string();
    assert!(
        error.contains(
            "this connection or queue is not in this process: it came into this worker by its fork"
        ),
        "{error}"
    );
    drop(END.lock().unwrap().take());
    // What it is given is its own.
    let work = |_, given: Descriptor| {
        anyhow::Ok((std::fs::File::from(given.clone().into_owned()?).set_len(3)?, given).1)
    };
    let held = HELD.lock().unwrap().take().unwrap();
    let back = start_processes(work, held.clone(), forked(1)).unwrap().join().unwrap().remove(0);
    for same in [back, held] {
        assert_eq!(std::fs::File::from(same.into_owned().unwrap()).metadata().unwrap().len(), 3);
    }
}

fn queue_that_came_by_the_fork_is_refused_and_a_lock_is_shared() {
    static HELD: Mutex<Option<(Queue<u8>, Lock<u64>)>> = Mutex::new(None);
    *HELD.lock().unwrap() = Some((Queue::bounded(2).unwrap(), Lock::new(0).unwrap()));
    let put = |_, ()| Ok(HELD.lock().unwrap().as_ref().unwrap().0.put(1)?);
    let error = start(put, 1).join().unwrap_err().to_string();
    assert!(
        error.contains(
            "this connection or queue is not in this process: it came into this worker by its fork"
        ),
        "{error}"
    );
    let wait = |_, ()| Ok(phalanx::wait(&[&HELD.lock().unwrap().as_ref().unwrap().0], None).map(drop)?);
    assert!(start(wait, 1).join().unwrap_err().to_string().contains("is not in this process"));
    let count = |_, ()| {
        let held = HELD.lock().unwrap();
        for _ in 0..1000 {
            *held.as_ref().unwrap().1.lock()? += 1;
        }
        Ok(())
    };
    start(count, 2).join().unwrap();
    let (queue, lock) = HELD.lock().unwrap().take().unwrap();
    assert_eq!((queue.len(), *lock.lock().unwrap()), (0, 2000));
}

fn tree_that_a_worker_begins_goes_with_it() {
    let begin = |_, ()| {
        set_sharing_strategy(SharingStrategy::FileSystem);
        std::mem::forget(Tensor::<u8>::zeros(&[LARGE])?);
        Ok(())
    };
    start(begin, 2).join().unwrap();
    assert!(trees().is_empty(), "{:?}", trees());
}

fn shard_is_of_one_process_only() {
    static HELD: Mutex<Option<Shard<i32>>> = Mutex::new(None);
    let mut shards = Tensor::<i32>::zeros(&[2]).unwrap().into_shards(2).unwrap();
    *HELD.lock().unwrap() = Some(shards.remove(0));
    let take = |_, mut given: Shard<i32>| -> anyhow::Result<(String, Shard<i32>)> {
        given.as_mut_slice()?[0] = 8;
        let error = HELD.lock().unwrap().as_mut().unwrap().as_mut_slice().unwrap_err();
        Ok((error.to_string(), given))
    };
    let mut results = start_processes(take, shards.remove(0), forked(1)).unwrap().join().unwrap();
    let (error, given) = results.remove(0);
    assert_eq!(error, "shard 0 of 2 is not here: it belongs to the process of which this one is a fork");
    let held = HELD.lock().unwrap().take().unwrap();
    assert_eq!(Tensor::from_shards(vec![held, given]).unwrap().to_vec(), [0, 8]);
}

fn results_come_by_rank() {
    assert_eq!(start(|rank, ()| Ok(rank * 10), 5).join().unwrap(), [0, 10, 20, 30, 40]);
    let work = |rank, text: String| anyhow::Ok(text.repeat(rank));
    assert_eq!(
        start_processes(work, "ab".to_owned(), forked(3)).unwrap().join().unwrap(),
        ["", "ab", "abab"]
    );
}

fn memory_of_the_launcher_is_seen_as_it_was() {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    COUNTER.store(7, Ordering::Relaxed);
    assert_eq!(start(|_, ()| Ok(COUNTER.fetch_add(1, Ordering::Relaxed)), 3).join().unwrap(), [7, 7, 7]);
}

fn worker_has_only_its_own_descriptors_and_signals() {
    let file = std::fs::File::open("/dev/zero").unwrap();
    let look = |_, ()| {
        Ok((descriptors(), std::fs::read_to_string("/proc/self/status")?, nix::unistd::getpgrp().as_raw()))
    };
    let context = start(look, 2);
    let pids = context.pids();
    for (seen, pid) in context.join().unwrap().into_iter().zip(pids) {
        let others: Vec<_> = seen.0.iter().filter(|(number, _)| *number > 2).collect();
        let is = |what: &str| others.iter().any(|(_, target)| target.contains(what));
        assert!(others.len() == 4 && is("phalanx-report") && is("socket:") && is("eventfd"), "{others:?}");
        assert!(seen.0.contains(&(0, "/dev/null".to_owned())));
        assert_fresh_signals(&seen.1);
        assert_eq!(seen.2.unsigned_abs(), pid);
    }
    drop(file);
}

fn environment_is_set_in_the_worker_only() {
    let look = |_, ()| anyhow::Ok(std::env::var("PHALANX_TEST").ok());
    let context = start_processes(look, (), forked(1).env("PHALANX_TEST", "5")).unwrap();
    assert_eq!(context.join().unwrap(), [Some("5".to_owned())]);
    assert_eq!(std::env::var_os("PHALANX_TEST"), None);
}

fn tensors_are_shared() {
    let sum = Tensor::<f64>::zeros(&[3]).unwrap();
    let add = |rank, sum: Tensor<f64>| Ok::<_, anyhow::Error>(sum.fetch_add(1, rank as f64 + 0.5)?);
    start_processes(add, sum.clone(), forked(4)).unwrap().join().unwrap();
    assert_eq!(sum.to_vec(), [0.0, 8.0, 0.0]);
}

fn failures_are_told_as_with_spawn() {
    let Error::ProcessRaised(raised) =
        start(|_, ()| -> anyhow::Result<()> { panic!("in a fork") }, 2).join().unwrap_err()
    else {
        panic!("expected a raise")
    };
    assert_eq!(raised.chain(), ["in a fork"]);
    assert!(raised.traceback().frames()[0].function.starts_with("fork::failures_are_told_as_with_spawn"));
    let Error::ProcessExited(exited) = start(
        |_, ()| -> anyhow::Result<()> {
            // SAFETY: none: this is the mistake that is tested.
            unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };
            Ok(())
        },
        1,
    )
    .join()
    .unwrap_err() else {
        panic!("expected a signal")
    };
    assert_eq!(exited.exit_code(), Some(-libc::SIGSEGV));
    assert!(exited.traceback().is_some());
    let Error::ProcessExited(killed) =
        start(|_, ()| -> anyhow::Result<()> { kill_self() }, 1).join().unwrap_err()
    else {
        panic!("expected a signal")
    };
    assert_eq!((killed.exit_code(), killed.cause()), (Some(-9), None));
}

fn exit_handlers_of_the_launcher_do_not_run_in_workers() {
    static RAN: AtomicU32 = AtomicU32::new(0);
    extern "C" fn note() {
        RAN.store(1, Ordering::Relaxed);
        // A handler that ends the process with another status would show in the outcome.
        if std::env::var_os("PHALANX_IN_WORKER").is_some() {
            // SAFETY: ends the process.
            unsafe { libc::_exit(77) };
        }
    }
    // SAFETY: registers a function of this program.
    unsafe { libc::atexit(note) };
    let context =
        start_processes(|_, ()| anyhow::Ok(1), (), forked(2).env("PHALANX_IN_WORKER", "1")).unwrap();
    assert_eq!(context.join().unwrap(), [1, 1]);
}

fn contexts_do_not_hold_each_other_up() {
    let gate = board(2);
    let wait = |rank, gate: Tensor<i64>| anyhow::Ok(await_post(&gate, rank));
    let mut first = start_processes(wait, gate.clone(), forked(2)).unwrap();
    // The second one's workers were forked with copies of the first one's descriptors.
    let second =
        start_processes(|_, ()| -> anyhow::Result<()> { wait_for_ever() }, (), forked(2).daemon(true))
            .unwrap();
    post(&gate, 0, 1);
    while first.status(0).unwrap() != Status::Succeeded {}
    assert!(!first.join_timeout(Duration::from_millis(20)).unwrap());
    post(&gate, 1, 2);
    assert_eq!(first.join().unwrap(), [1, 2]);
    drop(second);
}

fn nested_by_both_methods() {
    let work = |rank, ()| {
        let spawned = spawn(|inner, ()| anyhow::Ok(inner), (), 2)?;
        let forked = start_processes(|inner, ()| anyhow::Ok(inner * 10), (), forked(2))?.join()?;
        Ok((rank, spawned, forked))
    };
    assert_eq!(start(work, 2).join().unwrap(), [(0, vec![0, 1], vec![0, 10]), (1, vec![0, 1], vec![0, 10])]);
    // A forked worker of a forked worker leaves its crash in its own slot, not in its parent's.
    let outer = |_, ()| {
        let inner = |_, ()| -> anyhow::Result<()> { std::process::abort() };
        let Err(Error::ProcessExited(exited)) = start_processes(inner, (), forked(1))?.join() else {
            anyhow::bail!("expected an abort")
        };
        anyhow::ensure!(exited.traceback().is_some(), "no traceback");
        Ok(exited.exit_code())
    };
    assert_eq!(start(outer, 1).join().unwrap(), [Some(-libc::SIGABRT)]);
}

fn children_of_a_worker_go_with_it() {
    let pids = board(1);
    let work = |_, pids: Tensor<i64>| -> anyhow::Result<()> {
        let child = std::process::Command::new("sleep").arg("1000").spawn()?;
        post(&pids, 0, child.id());
        std::mem::forget(child);
        kill_self()
    };
    let context = start_processes(work, pids.clone(), forked(1)).unwrap();
    let Error::ProcessExited(exited) = context.join().unwrap_err() else { panic!("expected a signal") };
    assert_ne!(exited.cause(), Some(Cause::NeverReachedInit));
    await_end(await_post(&pids, 0));
}

fn handlers_of_the_launcher_do_not_run_in_workers() {
    let hits = board(1);
    let counter = hits.clone();
    // SAFETY: an addition to shared memory is async-signal-safe.
    let handler = unsafe {
        signal_hook::low_level::register(libc::SIGTERM, move || {
            let _ = counter.fetch_add(0, 1);
        })
    };
    for _ in 0..30 {
        // SIGTERM comes while the worker still is what it was forked from. Should it be swallowed, the endless grace
        // period meets the watchdog.
        let options = forked(2).grace_period(Duration::MAX);
        drop(start_processes(|_, ()| -> anyhow::Result<()> { wait_for_ever() }, (), options).unwrap());
    }
    signal_hook::low_level::unregister(handler.unwrap());
    assert_eq!(hits.get(0).unwrap(), 0);
}

fn threads_are_refused() {
    let gate = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while gate.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
        });
        let error = start_processes(|_, ()| anyhow::Ok(()), (), forked(2)).unwrap_err();
        gate.store(1, Ordering::Relaxed);
        assert!(matches!(error, Error::ForkWithThreads { threads: 2 }), "{error}");
        assert!(error.to_string().contains("this process has 2 threads"), "{error}");
        assert!(children().is_empty());
    });
}
