//! Queues between processes.

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::time::Duration;

use common::{
    SOON, await_post, await_that, board, kill_self, launched, post, served, state_of, wait_for_ever, watched,
};
use nix::sys::signal::Signal;
use phalanx::sync::Lock;
use phalanx::{
    Descriptor, JoinableQueue, Options, ProcessContext, Queue, QueueError, Shard, SimpleQueue, StartMethod,
    Tensor, pipe, spawn, start_processes, start_processes_with, wait,
};
use serde::{Deserialize, Serialize};

phalanx::auto_init!();

/// From whom, and which of its messages.
type Message = (usize, u64);

const PER_PRODUCER: u64 = 5_000;

fn produce(rank: usize, queue: Queue<Message>) -> anyhow::Result<()> {
    (0..PER_PRODUCER).try_for_each(|number| queue.put((rank, number)))?;
    Ok(())
}

/// Takes all there is, and says how many of each producer these were, which must come in order.
fn consume(_rank: usize, queue: Queue<Message>) -> anyhow::Result<BTreeMap<usize, Vec<u64>>> {
    let mut taken = BTreeMap::<usize, Vec<u64>>::new();
    for message in queue {
        let (producer, number) = message?;
        taken.entry(producer).or_default().push(number);
    }
    anyhow::ensure!(taken.values().all(|numbers| numbers.is_sorted()), "out of order");
    Ok(taken)
}

fn all_arrive_once(options: impl Fn(usize) -> Options) {
    let queue = Queue::bounded(100).unwrap();
    let consumers = start_processes(consume, queue.clone(), options(2)).unwrap();
    let producers = start_processes(produce, queue.clone(), options(3)).unwrap();
    producers.join().unwrap();
    queue.close().unwrap();
    let mut all = BTreeMap::<usize, Vec<u64>>::new();
    for (producer, mut numbers) in consumers.join().unwrap().into_iter().flatten() {
        all.entry(producer).or_default().append(&mut numbers);
    }
    assert_eq!(all.len(), 3);
    for mut numbers in all.into_values() {
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..PER_PRODUCER));
    }
}

#[test]
fn messages_of_several_producers_arrive_once_and_in_their_order() {
    watched(|| all_arrive_once(Options::new));
}

#[test]
fn queue_works_by_the_fork_server_and_by_fork() {
    launched(|_, ()| {
        all_arrive_once(served);
        Ok(())
    });
    launched(|_, ()| {
        all_arrive_once(|nprocs| Options::new(nprocs).start_method(StartMethod::Fork));
        Ok(())
    });
}

/// All that can be in a message.
#[derive(Debug, Serialize, Deserialize)]
enum Any {
    Text(String),
    Tensor(Tensor<i64>),
    Shard(Shard<u8>),
    File(Descriptor),
    Lock(Lock<u64>),
    Queue(Queue<Any>),
}

fn work_on_any(_rank: usize, queue: Queue<Any>) -> anyhow::Result<usize> {
    let mut answers = None;
    for (number, any) in queue.into_iter().enumerate() {
        match any? {
            Any::Text(text) => assert!(text.bytes().all(|byte| byte == b'x')),
            Any::Tensor(tensor) => tensor.set(1, 7)?,
            Any::Shard(mut shard) => shard.as_mut_slice()?.fill(5),
            Any::File(file) => File::from(file.into_owned()?).write_all(b"written")?,
            Any::Lock(lock) => *lock.lock()? += 1,
            Any::Queue(other) => answers = Some(other),
        }
        if let Some(answers) = &answers {
            answers.put(Any::Text(number.to_string()))?;
        }
    }
    Ok(0)
}

#[test]
fn whatever_is_in_a_message_is_shared() {
    watched(|| {
        let queue = Queue::bounded(8).unwrap();
        let context = start_processes(work_on_any, queue.clone(), Options::new(1)).unwrap();
        let (tensor, lock) = (Tensor::<i64>::zeros(&[2]).unwrap(), Lock::new(41).unwrap());
        let shard = Tensor::<u8>::zeros(&[3]).unwrap().into_shards(1).unwrap().remove(0);
        let mut file = tempfile::tempfile().unwrap();
        let answers = Queue::bounded(8).unwrap();
        for any in [
            Any::Text("x".repeat(10 << 20)),
            Any::Text("x".repeat(20_000)),
            Any::Text(String::new()),
            Any::Tensor(tensor.clone()),
            Any::Shard(shard),
            Any::File(Descriptor::from(file.try_clone().unwrap())),
            Any::Lock(lock.clone()),
            Any::Queue(answers.clone()),
        ] {
            queue.put(any).unwrap();
        }
        assert!(matches!(answers.get().unwrap(), Any::Text(text) if text == "7"));
        queue.close().unwrap();
        context.join().unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), tensor.get(1).unwrap(), *lock.lock().unwrap()), ("written", 7, 42));
    });
}

#[test]
fn value_that_was_not_put_comes_back() {
    watched(|| {
        let queue = Queue::<Shard<u8>>::bounded(1).unwrap();
        let mut shards = Tensor::<u8>::zeros(&[2]).unwrap().into_shards(2).unwrap().into_iter();
        let (first, mut second) = (shards.next().unwrap(), shards.next().unwrap());
        queue.put(&first).unwrap();
        assert!(matches!(queue.try_put(&second), Err(QueueError::Full)));
        assert!(second.as_mut_slice().is_ok());
        queue.get().unwrap();
        queue.close().unwrap();
        assert!(matches!(queue.put(&second), Err(QueueError::Closed)));
        assert!(second.as_mut_slice().is_ok());
    });
}

#[test]
fn calls_wait_as_long_as_they_are_told() {
    watched(|| {
        let queue = Queue::<u8>::bounded(2).unwrap();
        assert!(queue.is_empty() && !queue.is_full() && queue.capacity() == 2);
        assert!(matches!(queue.try_get(), Err(QueueError::Empty)));
        assert!(
            matches!(queue.get_timeout(SOON), Err(QueueError::TimedOut { waited, .. }) if waited == SOON)
        );
        queue.put(1).unwrap();
        queue.try_put(2).unwrap();
        assert!(queue.is_full() && queue.len() == 2);
        assert!(matches!(queue.try_put(3), Err(QueueError::Full)));
        assert!(matches!(queue.put_timeout(3, SOON), Err(QueueError::TimedOut { .. })));
        assert_eq!((queue.get().unwrap(), queue.try_get().unwrap()), (1, 2));
        for bad in [0, usize::MAX] {
            assert!(
                matches!(Queue::<u8>::bounded(bad), Err(QueueError::Bound { capacity }) if capacity == bad)
            );
        }
    });
}

#[test]
fn ring_of_any_fill_keeps_messages_of_any_length() {
    watched(|| {
        let queue = Queue::<String>::bounded(1000).unwrap();
        let message = |number: usize| number.to_string().repeat(number * 11 % 8_000);
        let (mut put, mut got) = (0, 0);
        while got < 3000 {
            while put < 3000 && queue.try_put(message(put)).is_ok() {
                put += 1;
            }
            for _ in 0..=got % 7 {
                if got < put {
                    assert_eq!(queue.try_get().unwrap(), message(got));
                    got += 1;
                }
            }
        }
    });
}

/// Waits for a value, or for room, until the queue is closed.
fn wait_in_queue(_rank: usize, (queue, puts, ready): (Queue<u8>, bool, Tensor<i64>)) -> anyhow::Result<bool> {
    post(&ready, 0, std::process::id());
    let ended = if puts { queue.put(1) } else { queue.get().map(drop) };
    Ok(matches!(ended, Err(QueueError::Closed)))
}

/// Starts one that waits, in a queue with a value for who is to wait for room, and waits until it does.
fn one_who_waits(puts: bool) -> (ProcessContext<bool>, Queue<u8>, u32) {
    let (queue, ready) = (Queue::<u8>::bounded(1).unwrap(), board(1));
    if puts {
        queue.put(9).unwrap();
    }
    let args = (queue.clone(), puts, ready.clone());
    let context = start_processes(wait_in_queue, args, Options::new(1)).unwrap();
    let pid = await_post(&ready, 0);
    await_that(|| state_of(pid) == Some('S'));
    (context, queue, pid)
}

#[test]
fn close_wakes_who_waits_and_what_is_in_it_can_be_taken() {
    watched(|| {
        for puts in [false, true] {
            let (context, queue, _) = one_who_waits(puts);
            queue.close().unwrap();
            assert_eq!(context.join().unwrap(), [true]);
            assert!(queue.is_closed() && matches!(queue.put(1), Err(QueueError::Closed)));
            let left = if puts { &[9][..] } else { &[] };
            assert_eq!(queue.iter().map(Result::unwrap).collect::<Vec<_>>(), left);
            assert!(matches!(queue.try_get(), Err(QueueError::Closed)));
        }
    });
}

#[test]
fn who_dies_while_it_waits_is_in_nobodys_way() {
    watched(|| {
        for puts in [false, true] {
            let (mut context, queue, pid) = one_who_waits(puts);
            // It sleeps inside: who asks without waiting must not wait for it, not even for one that is stopped.
            common::send(pid, Signal::SIGSTOP);
            if puts {
                assert!(matches!(queue.try_put(1), Err(QueueError::Full)));
                assert!(matches!(queue.put_timeout(1, SOON), Err(QueueError::TimedOut { .. })));
            } else {
                assert!(matches!(queue.try_get(), Err(QueueError::Empty)));
                assert!(matches!(queue.get_timeout(SOON), Err(QueueError::TimedOut { .. })));
            }
            context.kill().unwrap();
            context.join().unwrap_err();
            if puts {
                assert_eq!(queue.get().unwrap(), 9);
            }
            queue.put(4).unwrap();
            assert_eq!(queue.get().unwrap(), 4);
        }
    });
}

/// Puts one message after another that counts what is in the queue for certain, until it is killed.
fn put_and_die(_rank: usize, (queue, put): (Queue<u64>, Tensor<u64>)) -> anyhow::Result<()> {
    queue.put(put.get(0)?)?;
    put.set(0, put.get(0)? + 1)?;
    kill_self()
}

#[test]
fn what_was_put_is_there_when_its_producer_is_killed() {
    watched(|| {
        let (queue, put) = (Queue::bounded(10).unwrap(), Tensor::zeros(&[1]).unwrap());
        for number in 0..5 {
            spawn(put_and_die, (queue.clone(), put.clone()), 1).unwrap_err();
            assert_eq!((queue.len(), put.get(0).unwrap()), (number + 1, number as u64 + 1));
        }
        queue.close().unwrap();
        assert!(queue.into_iter().map(Result::unwrap).eq(0..5));
    });
}

fn do_tasks(_rank: usize, tasks: JoinableQueue<u64>) -> anyhow::Result<u64> {
    let mut sum = 0;
    for task in tasks.iter() {
        sum += task?;
        tasks.task_done()?;
    }
    Ok(sum)
}

#[test]
fn join_waits_until_all_tasks_are_done() {
    watched(|| {
        let tasks = JoinableQueue::<u64>::bounded(4).unwrap();
        tasks.join().unwrap();
        assert!(matches!(tasks.task_done(), Err(QueueError::TooManyDone)));
        tasks.put(0).unwrap();
        assert!(matches!(tasks.join_timeout(SOON), Err(QueueError::TimedOut { .. })));
        let context = start_processes(do_tasks, tasks.clone(), Options::new(2)).unwrap();
        (1..=1000).for_each(|task| tasks.put(task).unwrap());
        tasks.join().unwrap();
        assert_eq!((tasks.unfinished(), tasks.len()), (0, 0));
        tasks.close().unwrap();
        assert_eq!(context.join().unwrap().iter().sum::<u64>(), 500_500);
    });
}

/// The first takes two tasks, does one and dies; the second is busy with another; the third waits for one that never comes.
fn die_with_a_task(rank: usize, (tasks, ready): (JoinableQueue<u64>, Tensor<i64>)) -> anyhow::Result<()> {
    if rank > 0 {
        await_post(&ready, rank - 1);
    }
    if rank < 2 {
        tasks.get()?;
    }
    if rank == 0 {
        tasks.get()?;
        tasks.task_done()?;
    }
    post(&ready, rank, std::process::id());
    match rank {
        0 => {
            await_post(&ready, 3);
            kill_self()
        }
        1 => {
            await_post(&ready, 4);
            tasks.task_done()?;
        }
        _ => assert!(matches!(tasks.get(), Err(QueueError::Closed))),
    }
    Ok(())
}

#[test]
fn tasks_of_a_killed_worker_are_told_once_and_nobody_waits_for_them() {
    watched(|| {
        let (tasks, ready) = (JoinableQueue::<u64>::bounded(4).unwrap(), board(5));
        (0..3).for_each(|task| tasks.put(task).unwrap());
        let args = (tasks.clone(), ready.clone());
        // A context of its own for each: the death of one is not the end of the others.
        let worker = |rank| start_processes_with(as_rank, |_| (rank, args.clone()), Options::new(1)).unwrap();
        let mut workers: Vec<_> = (0..3).map(worker).collect();
        let pid = await_post(&ready, 0);
        await_post(&ready, 2);
        assert!(
            matches!(tasks.join_timeout(SOON), Err(QueueError::TimedOut { .. })),
            "all are in living hands"
        );
        post(&ready, 3, 1);
        match tasks.join() {
            Err(QueueError::TasksLost { count: 1, pids }) => assert_eq!(pids, [pid]),
            other => panic!("{other:?}"),
        }
        workers.remove(0).join().unwrap_err();
        assert!(matches!(tasks.join_timeout(SOON), Err(QueueError::TimedOut { .. })), "one is busy");
        post(&ready, 4, 1);
        tasks.join().unwrap();
        tasks.close().unwrap();
        workers.into_iter().for_each(|worker| drop(worker.join().unwrap()));
    });
}

fn as_rank(_: usize, (rank, args): (usize, (JoinableQueue<u64>, Tensor<i64>))) -> anyhow::Result<()> {
    die_with_a_task(rank, args)
}

fn echo_simply(_rank: usize, (from, to): (SimpleQueue<String>, SimpleQueue<String>)) -> anyhow::Result<()> {
    to.put(from.get()? + "!")?;
    Ok(())
}

#[test]
fn simple_queue_carries_values() {
    watched(|| {
        let (from, to) = (SimpleQueue::new().unwrap(), SimpleQueue::new().unwrap());
        let context = start_processes(echo_simply, (from.clone(), to.clone()), Options::new(1)).unwrap();
        from.put("hello".to_owned()).unwrap();
        assert_eq!((to.get().unwrap().as_str(), to.is_empty()), ("hello!", true));
        context.join().unwrap();
    });
}

/// Does what it is told, one thing after the other.
fn obey(_rank: usize, (orders, queue): (Queue<u8>, Queue<u8>)) -> anyhow::Result<()> {
    for order in orders {
        queue.put(order?)?;
    }
    wait_for_ever()
}

#[test]
fn wait_tells_which_of_several_things_has_something() {
    watched(|| {
        let [orders, queue, silent] = [(); 3].map(|()| Queue::<u8>::bounded(10).unwrap());
        let (ours, theirs) = pipe::<u8, u8>().unwrap();
        let mut context = start_processes(obey, (orders.clone(), queue.clone()), Options::new(1)).unwrap();
        for round in 0..50 {
            let at_once = wait(&[&silent, &queue, &ours, &context], Some(Duration::ZERO)).unwrap();
            assert!(at_once.is_empty(), "{at_once:?}");
            orders.put(round).unwrap();
            // The same queue twice is fine; it may have been empty when it was asked first.
            let told = wait(&[&silent, &queue, &ours, &context, &queue], None).unwrap();
            assert!([&[1, 4][..], &[4]].contains(&&told[..]), "{told:?}");
            assert_eq!(queue.try_get().unwrap(), round);
        }
        assert!(wait(&[&silent, &ours], Some(SOON)).unwrap().is_empty());
        theirs.send(1).unwrap();
        silent.close().unwrap();
        assert_eq!(wait(&[&silent, &queue, &ours, &context], None).unwrap(), [0, 2]);
        context.kill().unwrap();
        assert_eq!(wait(&[&queue, &context], None).unwrap(), [1]);
        context.join().unwrap_err();
    });
}

/// Waits for one of many queues, and tells which it was.
fn watch_many(_rank: usize, (queues, told): (Vec<Queue<u8>>, Queue<usize>)) -> anyhow::Result<()> {
    let all: Vec<&dyn phalanx::Waitable> = queues.iter().map(|queue| queue as _).collect();
    loop {
        for place in wait(&all, None)? {
            match queues[place].try_get() {
                Ok(_) => told.put(place)?,
                Err(QueueError::Closed) => return Ok(()),
                // Another one was faster.
                Err(error) => anyhow::ensure!(matches!(error, QueueError::Empty), "{error}"),
            }
        }
    }
}

#[test]
fn several_who_wait_for_the_same_queues_miss_nothing() {
    watched(|| {
        let queues: Vec<_> = (0..100).map(|_| Queue::bounded(4).unwrap()).collect();
        let told = Queue::bounded(1000).unwrap();
        let context = start_processes(watch_many, (queues.clone(), told.clone()), Options::new(3)).unwrap();
        for round in 0..1000 {
            queues[round * 7 % 100].put(1).unwrap();
            if round % 3 == 0 {
                let _ = told.get().unwrap();
            }
        }
        for _ in 0..666 {
            let _ = told.get().unwrap();
        }
        queues[0].close().unwrap();
        context.join().unwrap();
    });
}
