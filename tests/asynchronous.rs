//! Waiting in asynchronous programs, without a runtime. With tokio's: examples/howto/tests/runtimes.rs.

#[path = "common/block_on.rs"]
mod block_on;
mod common;

use std::pin::pin;
use std::time::Duration;

use block_on::{block_on, poll_once, wakes_itself};
use common::{await_that, raised};
use phalanx::pool::{Pool, TaskFailure};
use phalanx::sync::AbortedBy;
use phalanx::{Error, Options, Queue, QueueError, Shard, Tensor, start_processes};

phalanx::auto_init!();

/// As `common::watched`; in the end the thread that wakes futures has to go.
fn watched(test: impl FnOnce()) {
    common::watched(|| {
        test();
        await_that(|| !is_awaiting());
    });
}

/// Whether the thread is there that wakes futures.
fn is_awaiting() -> bool {
    let names = std::fs::read_dir("/proc/self/task").unwrap();
    let mut names = names.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.any(|name| name.trim_end() == "phalanx-async")
}

fn send<T: Send>(value: T) -> T {
    value
}

fn echo(_rank: usize, (there, back): (Queue<u64>, Queue<u64>)) -> anyhow::Result<()> {
    for value in there {
        back.put(value?)?;
    }
    Ok(())
}

#[test]
fn values_come_and_go_while_nobody_is_blocked_and_the_thread_ends_after_it() {
    watched(|| {
        let (there, back) = (Queue::bounded(4).unwrap(), Queue::bounded(4).unwrap());
        let context = start_processes(echo, (there.clone(), back.clone()), Options::new(1)).unwrap();
        assert!(!is_awaiting());
        let trips = async {
            for value in 0..2000 {
                there.put_async(value).await.unwrap();
                assert_eq!(back.get_async().await.unwrap(), value);
            }
            there.close().unwrap();
        };
        block_on(send(trips));
        context.join().unwrap();
    });
}

#[test]
fn full_queue_has_a_put_wait_for_the_consumer_and_all_arrives_in_order() {
    watched(|| {
        let (there, back) = (Queue::bounded(1).unwrap(), Queue::bounded(4096).unwrap());
        let context = start_processes(echo, (there.clone(), back.clone()), Options::new(1)).unwrap();
        block_on(async {
            for value in 0..3000 {
                there.put_async(&value).await.unwrap();
            }
        });
        there.close().unwrap();
        context.join().unwrap();
        assert_eq!(back.try_iter().collect::<Result<Vec<_>, _>>().unwrap(), (0..3000).collect::<Vec<_>>());
    });
}

#[test]
fn dropped_futures_have_taken_nothing_and_put_nothing() {
    watched(|| {
        let queue = Queue::bounded(1).unwrap();
        {
            let mut get = pin!(queue.get_async());
            poll_once(get.as_mut());
            queue.put(1_u8).unwrap();
        }
        let shards = Tensor::<u8>::zeros(&[4]).unwrap().into_shards(1).unwrap();
        {
            let mut put = pin!(queue.put_async(2));
            poll_once(put.as_mut());
            assert_eq!(queue.get().unwrap(), 1);
        }
        assert!(matches!(queue.try_get(), Err(QueueError::Empty)));
        let queue = Queue::<Shard<u8>>::bounded(1).unwrap();
        queue.put(&shards[0]).unwrap_or_else(|error| panic!("{error}"));
        let more = Tensor::<u8>::zeros(&[4]).unwrap().into_shards(1).unwrap();
        {
            let mut put = pin!(queue.put_async(&more[0]));
            poll_once(put.as_mut());
        }
        assert_eq!(more[0].len(), 4, "a shard that was not put is still here");
        drop(queue.get().unwrap());
        queue.put(&more[0]).unwrap();
    });
}

#[test]
fn future_that_waits_for_an_event_does_not_have_itself_polled_meanwhile() {
    watched(|| {
        let queue = Queue::<Vec<u8>>::bounded(8).unwrap();
        assert!(!wakes_itself(pin!(queue.get_async())));
        // There is room for a small value, and not for one as large as this.
        let large = vec![1; 15 << 10];
        while queue.try_put(&large).is_ok() {}
        assert!(!queue.is_full());
        {
            let mut put = pin!(queue.put_async(&large));
            assert!(!wakes_itself(put.as_mut()));
            // Nor when another producer sleeps in wait for room, with the mutex of that side.
            std::thread::scope(|scope| {
                let (tells, tid) = std::sync::mpsc::channel();
                let (queue, large) = (&queue, &large);
                let blocked = scope.spawn(move || {
                    tells.send(nix::unistd::gettid().as_raw() as u32).unwrap();
                    queue.put(large).unwrap();
                });
                common::await_asleep(tid.recv().unwrap());
                assert!(!wakes_itself(put.as_mut()));
                queue.get().unwrap();
                blocked.join().unwrap();
            });
            queue.get().unwrap();
            block_on(put).unwrap();
        }
        queue.close().unwrap();
    });
}

#[test]
fn close_ends_a_get_and_a_put_after_what_is_in_the_queue() {
    watched(|| {
        let (empty, full) = (Queue::<u8>::bounded(1).unwrap(), Queue::bounded(1).unwrap());
        full.put(1_u8).unwrap();
        std::thread::scope(|scope| {
            let got = scope.spawn(|| block_on(empty.get_async()));
            let put = scope.spawn(|| block_on(full.put_async(2)));
            await_that(is_awaiting);
            empty.close().unwrap();
            full.close().unwrap();
            assert!(matches!(got.join().unwrap(), Err(QueueError::Closed)));
            assert!(matches!(put.join().unwrap(), Err(QueueError::Closed)));
        });
        assert_eq!(block_on(full.get_async()).unwrap(), 1);
        assert!(matches!(block_on(full.get_async()), Err(QueueError::Closed)));
    });
}

#[test]
fn each_value_comes_once_to_futures_and_blocking_calls_of_several_processes_together() {
    watched(|| {
        let (there, back) = (Queue::bounded(2).unwrap(), Queue::bounded(2).unwrap());
        let context = start_processes(echo, (there.clone(), back.clone()), Options::new(2)).unwrap();
        let found = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for part in 0..3_u64 {
                let there = &there;
                scope.spawn(move || {
                    block_on(async {
                        for value in 0..500 {
                            there.put_async(part * 500 + value).await.unwrap();
                        }
                    });
                });
            }
            for _ in 0..3 {
                scope.spawn(|| {
                    block_on(async {
                        while let Ok(value) = back.get_async().await {
                            found.lock().unwrap().push(value);
                        }
                    })
                });
            }
            await_that(|| found.lock().unwrap().len() == 1500);
            there.close().unwrap();
            context.join().unwrap();
            back.close().unwrap();
        });
        let mut found = found.into_inner().unwrap();
        found.sort_unstable();
        assert_eq!(found, (0..1500).collect::<Vec<_>>());
    });
}

fn end_as_told(rank: usize, go: Queue<String>) -> anyhow::Result<usize> {
    match go.get()?.as_str() {
        "panic" => panic!("as told"),
        "kill" => common::kill_self(),
        _ => Ok(rank),
    }
}

#[test]
fn context_is_joined_with_its_results_or_its_failure() {
    watched(|| {
        let join = |words: [&str; 2]| -> Result<Vec<usize>, Error> {
            let go = Queue::bounded(8).unwrap();
            let mut context = start_processes(end_as_told, go.clone(), Options::new(2))?;
            // Not ready at first: only then is there anything to be woken by.
            poll_once(pin!(context.join_async()).as_mut());
            std::thread::scope(|scope| {
                scope.spawn(|| words.map(|word| go.put(word.to_owned()).unwrap()));
                block_on(send(context.join_async()))
            })?;
            context.into_results()
        };
        assert_eq!(join(["", ""]).unwrap(), [0, 1]);
        assert!(raised(join(["panic", ""]).unwrap_err()).to_string().contains("as told"));
        assert_eq!(common::exited(join(["kill", ""]).unwrap_err()).signal_name().as_deref(), Some("SIGKILL"));
    });
}

fn fail_or_await(rank: usize, (never, told): (Queue<u8>, Queue<String>)) -> anyhow::Result<()> {
    if rank == 0 {
        let mut get = pin!(never.get_async());
        poll_once(get.as_mut());
        told.put("awaits".to_owned())?;
        let aborted = block_on(get).unwrap_err();
        told.put(aborted.to_string())?;
        return Err(aborted.into());
    }
    told.get()?;
    anyhow::bail!("rank 1 does not feel well")
}

#[test]
fn failure_of_another_rank_ends_what_a_worker_awaits() {
    common::watched(|| {
        let (never, told) = (Queue::bounded(1).unwrap(), Queue::bounded(8).unwrap());
        let options = Options::new(2).abort_on_failure(true).grace_period(Duration::from_secs(100));
        let context = start_processes(fail_or_await, (never, told.clone()), options).unwrap();
        let failure = raised(context.join().unwrap_err());
        assert_eq!(failure.error_index(), 1, "{failure}");
        let text = told.get().unwrap();
        assert!(text.contains("rank 1"), "{text}");
    });
}

fn await_in_task((never, told): (Queue<u8>, Queue<u32>)) -> anyhow::Result<bool> {
    let mut get = pin!(never.get_async());
    poll_once(get.as_mut());
    told.put(std::process::id())?;
    Ok(matches!(block_on(get), Err(QueueError::Aborted { by: AbortedBy::Pool })))
}

#[test]
fn task_of_a_pool_that_is_asked_to_end_awaits_no_more() {
    common::watched(|| {
        let (pool, never, told) =
            (Pool::new(1).unwrap(), Queue::bounded(1).unwrap(), Queue::bounded(1).unwrap());
        // So often that the look of each second cannot do what the event is for.
        for _ in 0..150 {
            let task = pool.submit(await_in_task, (never.clone(), told.clone())).unwrap();
            common::await_asleep(told.get().unwrap());
            assert!(task.kill());
            assert!(task.join().unwrap());
        }
    });
}

fn square(x: u64) -> anyhow::Result<u64> {
    Ok(x * x)
}

fn die(_: u64) -> anyhow::Result<u64> {
    common::kill_self()
}

#[test]
fn tasks_are_awaited_one_after_the_other_and_beside_threads_that_join() {
    watched(|| {
        let pool = Pool::new(2).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    (0..300).for_each(|x| assert_eq!(pool.submit(square, x).unwrap().join().unwrap(), x * x))
                });
                scope.spawn(|| {
                    let calls = async {
                        for x in 0..300 {
                            assert_eq!(pool.submit(square, x).unwrap().await.unwrap(), x * x);
                        }
                    };
                    block_on(send(calls));
                });
            }
        });
    });
}

#[test]
fn awaited_task_tells_deaths_cancels_and_results_once() {
    watched(|| {
        let pool = Pool::new(1).unwrap();
        let failed = block_on(pool.submit(die, 1).unwrap()).unwrap_err();
        assert!(failed.to_string().contains("SIGKILL"), "{failed}");
        let (never, told) = (Queue::bounded(1).unwrap(), Queue::bounded(1).unwrap());
        let busy = pool.submit(await_in_task, (never, told.clone())).unwrap();
        told.get().unwrap();
        let mut queued = pool.submit(square, 7).unwrap();
        poll_once(pin!(&mut queued));
        std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!(pool.cancel_queued(), 1));
            let cancelled = block_on(&mut queued).unwrap_err();
            assert_eq!(cancelled.failure(), &TaskFailure::Cancelled);
        });
        let again = block_on(&mut queued).unwrap_err();
        assert!(matches!(again.failure(), TaskFailure::WaitEnded(_)), "{again}");
        assert!(busy.kill());
        assert!(block_on(busy).unwrap());
    });
}

#[test]
fn thread_that_takes_results_for_all_leaves_them_to_the_futures_when_it_goes() {
    watched(|| {
        let (pool, told) = (Pool::new(2).unwrap(), Queue::bounded(1).unwrap());
        // So often that the look of each second cannot do what a ring is for: it is needed in one round of some twelve.
        for _ in 0..2000 {
            let [first, mut second] =
                [(); 2].map(|()| pool.submit(|go: Queue<u64>| go.get(), told.clone()).unwrap());
            std::thread::scope(|scope| {
                let (tells, tid) = std::sync::mpsc::channel();
                // It takes results, for the future too, until its own is there.
                let joins = scope.spawn(move || {
                    tells.send(nix::unistd::gettid().as_raw() as u32).unwrap();
                    first.join().unwrap()
                });
                common::await_asleep(tid.recv().unwrap());
                poll_once(pin!(&mut second));
                told.put(1).unwrap();
                told.put(1).unwrap();
                assert_eq!(block_on(&mut second).unwrap() + joins.join().unwrap(), 2);
            });
        }
    });
}

#[test]
#[expect(unsafe_code, reason = "a child that no library of ours has made")]
fn fork_awaits_with_a_thread_of_its_own_and_leaves_its_parents_alone() {
    watched(|| {
        let (ours, theirs) = (Queue::bounded(1).unwrap(), Queue::bounded(1).unwrap());
        // So often that the look of each second cannot do what the event is for.
        for round in 0..150 {
            let mut get = Box::pin(ours.get_async());
            poll_once(get.as_mut());
            // SAFETY: the child runs what a child of a process with threads may: glibc's locks are handled by fork(3), and it ends by
            // _exit.
            match unsafe { nix::unistd::fork() }.unwrap() {
                nix::unistd::ForkResult::Child => {
                    drop(get);
                    let is_right = round > 0 || {
                        let mut own = pin!(theirs.get_async());
                        poll_once(own.as_mut());
                        theirs.put(7_u8).unwrap();
                        await_that(is_awaiting);
                        block_on(own).unwrap() == 7
                    };
                    // SAFETY: ends the child at once.
                    unsafe { libc::_exit(i32::from(!is_right)) }
                }
                nix::unistd::ForkResult::Parent { child } => {
                    let ended = nix::sys::wait::waitpid(child, None).unwrap();
                    assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0));
                }
            }
            std::thread::scope(|scope| {
                let waiter = nix::unistd::gettid().as_raw() as u32;
                let ours = &ours;
                scope.spawn(move || {
                    common::await_asleep(waiter);
                    ours.put(8_u8).unwrap();
                });
                assert_eq!(block_on(get).unwrap(), 8);
            });
        }
    });
}
