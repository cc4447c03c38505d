//! Producers and consumers of one queue are killed at random moments and replaced: nobody hangs, nothing is damaged or comes
//! twice, and nothing whose `put` has returned is lost but what a killed consumer had taken.

mod common;

use std::time::{Duration, Instant, SystemTime};

use common::{launched, race_time, served};
use phalanx::{JoinableQueue, ProcessContext, Queue, QueueError, Tensor, start_processes, wait};
use serde::{Deserialize, Serialize};

phalanx::auto_init!();

/// Of so many messages of a producer it is written down who has taken them.
const PER_PRODUCER: u64 = 4096;
/// Small, so that producers wait for room too.
const CAPACITY: usize = 32;

/// A message of each kind: in the ring, in a memfd, and with memory beside it.
#[derive(Debug, Serialize, Deserialize)]
enum Load {
    Text(String),
    Tensor(Tensor<u64>),
}

#[derive(Debug, Serialize, Deserialize)]
struct Message {
    producer: usize,
    number: u64,
    load: Load,
}

impl Message {
    fn new(producer: usize, number: u64) -> Self {
        let load = match number % 64 {
            31 => Load::Text("large".repeat(20_000)),
            7 => Load::Tensor(Tensor::from_slice(&[number; 100], &[100]).unwrap()),
            length => Load::Text("text".repeat(length as usize)),
        };
        Self { producer, number, load }
    }

    fn check(&self) {
        let right = match (&self.load, self.number % 64) {
            (Load::Text(text), 31) => *text == "large".repeat(20_000),
            (Load::Tensor(tensor), 7) => tensor.to_vec() == [self.number; 100],
            (Load::Text(text), length) => *text == "text".repeat(length as usize),
            _ => false,
        };
        assert!(right, "{self:?}");
    }
}

/// What all tell each other.
#[derive(Clone, Serialize, Deserialize)]
struct Books {
    queue: Queue<Message>,
    /// How many of each producer's puts have returned.
    put: Tensor<u64>,
    /// How often each message was taken.
    taken: Tensor<u8>,
}

impl Books {
    fn new(producers: usize) -> Self {
        Self {
            queue: Queue::bounded(CAPACITY).unwrap(),
            put: Tensor::zeros(&[producers]).unwrap(),
            taken: Tensor::zeros(&[producers * PER_PRODUCER as usize]).unwrap(),
        }
    }

    fn take(&self, message: &Message) {
        message.check();
        let place = message.producer * PER_PRODUCER as usize + message.number as usize;
        assert_eq!(self.taken.fetch_add(place, 1).unwrap(), 0, "{message:?} came twice");
    }
}

fn produce(_rank: usize, (producer, books): (usize, Books)) -> anyhow::Result<()> {
    for number in 0..PER_PRODUCER {
        books.queue.put(Message::new(producer, number))?;
        books.put.set(producer, number + 1)?;
    }
    Ok(())
}

/// Takes messages in one of the ways that there are.
fn consume(_rank: usize, (way, books): (usize, Books)) -> anyhow::Result<()> {
    let mut last = std::collections::HashMap::new();
    loop {
        let got = match way % 3 {
            0 => books.queue.get(),
            1 => books.queue.get_timeout(Duration::from_millis(1)),
            _ => wait(&[&books.queue], None).and_then(|_| books.queue.try_get()),
        };
        match got {
            Ok(message) => {
                books.take(&message);
                let earlier = last.insert(message.producer, message.number);
                assert!(earlier < Some(message.number), "{message:?} after {earlier:?}");
            }
            Err(QueueError::TimedOut { .. } | QueueError::Empty) => {}
            Err(QueueError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// xorshift64: which is killed, and after how long.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Ends one worker in the middle of its work; says whether it was: its failure must be that kill.
fn kill(mut context: ProcessContext<()>) -> bool {
    context.kill().unwrap();
    match context.join() {
        Ok(_) => false,
        Err(phalanx::Error::ProcessExited(exception)) => {
            assert_eq!(exception.signal_name().as_deref(), Some("SIGKILL"), "{exception}");
            true
        }
        Err(error) => panic!("{error}"),
    }
}

/// Two producers and two consumers, of whom one at a time is killed and replaced.
struct Crowd {
    books: Books,
    producers: usize,
    consumers: usize,
    producing: Vec<ProcessContext<()>>,
    consuming: Vec<ProcessContext<()>>,
}

impl Crowd {
    fn add_producer(&mut self) {
        let args = (self.producers, self.books.clone());
        self.producers += 1;
        self.producing.push(start_processes(produce, args, served(1)).unwrap());
    }

    fn add_consumer(&mut self) {
        let args = (self.consumers, self.books.clone());
        self.consumers += 1;
        self.consuming.push(start_processes(consume, args, served(1)).unwrap());
    }

    /// Kills one; says whether a consumer was killed.
    fn kill_one(&mut self, dice: &mut Dice) -> bool {
        let victim = dice.roll(2) as usize;
        if dice.roll(2) == 0 {
            kill(self.producing.swap_remove(victim));
            self.add_producer();
            return false;
        }
        let killed = kill(self.consuming.swap_remove(victim));
        self.add_consumer();
        killed
    }
}

/// What must be true at the end; returns how many messages were lost with their consumers.
fn audit(books: &Books, producers: usize) -> u64 {
    let (put, taken) = (books.put.to_vec(), books.taken.to_vec());
    let mut lost = 0;
    for (producer, &returned) in put.iter().enumerate().take(producers) {
        let of_producer = &taken[producer * PER_PRODUCER as usize..][..PER_PRODUCER as usize];
        let (certain, rest) = of_producer.split_at(returned as usize);
        lost += certain.iter().filter(|&&times| times == 0).count() as u64;
        // One more may have got in before it was written down.
        assert!(rest.iter().skip(1).all(|&times| times == 0), "producer {producer}");
    }
    lost
}

#[expect(clippy::print_stdout, reason = "a long run is to show it")]
fn chaos(_rank: usize, (): ()) -> anyhow::Result<()> {
    let seed = SystemTime::UNIX_EPOCH.elapsed()?.as_nanos() as u64 | 1;
    println!("seed {seed}");
    let (mut dice, end) = (Dice(seed), Instant::now() + race_time());
    let most = 200 + 300 * race_time().as_secs() as usize;
    let books = Books::new(most);
    let mut crowd = Crowd {
        books: books.clone(),
        producers: 0,
        consumers: 0,
        producing: Vec::new(),
        consuming: Vec::new(),
    };
    (0..2).for_each(|_| crowd.add_producer());
    (0..2).for_each(|_| crowd.add_consumer());
    let mut killed_consumers = 0;
    while Instant::now() < end && crowd.producers < most {
        let pause = Duration::from_micros(dice.roll(6000));
        // Nothing comes: it is the time that is waited for.
        let _ = wait(&[], Some(pause))?;
        killed_consumers += u64::from(crowd.kill_one(&mut dice));
    }
    for context in crowd.producing.drain(..) {
        kill(context);
    }
    books.queue.close()?;
    for context in crowd.consuming.drain(..) {
        context.join()?;
    }
    let lost = audit(&books, crowd.producers);
    let put: u64 = books.put.to_vec().iter().sum();
    println!(
        "{} producers, {killed_consumers} killed consumers, {put} messages, {lost} lost",
        crowd.producers
    );
    assert!(lost <= killed_consumers, "{lost} messages are gone, with {killed_consumers} consumers");
    Ok(())
}

#[test]
fn killed_producers_and_consumers_lose_and_damage_nothing_of_others() {
    launched(chaos);
}

/// Does tasks, each of which it notes just before it says so.
fn do_tasks(_rank: usize, (tasks, noted): (JoinableQueue<u64>, Tensor<u64>)) -> anyhow::Result<()> {
    for task in tasks.iter() {
        task?;
        noted.fetch_add(0, 1)?;
        tasks.task_done()?;
    }
    Ok(())
}

/// One round: tasks are put while who does them is killed; then all are done, or told to be lost.
fn round_of_tasks(dice: &mut Dice, kills: &mut u64) -> anyhow::Result<()> {
    const TASKS: u64 = 300;
    let (tasks, noted) = (JoinableQueue::bounded(CAPACITY)?, Tensor::zeros(&[1])?);
    let start = || start_processes(do_tasks, (tasks.clone(), noted.clone()), served(1)).unwrap();
    let (mut workers, mut killed) = (vec![start(), start()], 0);
    for task in 0..TASKS {
        tasks.put(task)?;
        if dice.roll(40) == 0 {
            killed += u64::from(kill(workers.swap_remove(dice.roll(2) as usize)));
            workers.push(start());
        }
    }
    let mut lost = 0;
    loop {
        match tasks.join() {
            Ok(()) => break,
            Err(QueueError::TasksLost { count, pids }) => {
                assert!(count >= 1 && !pids.is_empty(), "{count} {pids:?}");
                lost += count as u64;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let noted = noted.get(0)?;
    // One that was noted but not said to be done is lost, too.
    assert!(
        (TASKS..=TASKS + killed).contains(&(noted + lost)),
        "{noted} noted, {lost} lost, {killed} killed"
    );
    tasks.close()?;
    workers.into_iter().for_each(|worker| drop(worker.join().unwrap()));
    *kills += killed;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a long run is to show it")]
fn chaos_of_tasks(_rank: usize, (): ()) -> anyhow::Result<()> {
    let seed = SystemTime::UNIX_EPOCH.elapsed()?.as_nanos() as u64 | 1;
    println!("seed {seed}");
    let (mut dice, end) = (Dice(seed), Instant::now() + race_time());
    let (mut rounds, mut kills) = (0, 0);
    while Instant::now() < end {
        round_of_tasks(&mut dice, &mut kills)?;
        rounds += 1;
    }
    println!("{rounds} rounds of tasks, {kills} killed workers");
    Ok(())
}

#[test]
fn tasks_of_killed_workers_are_all_told_and_nobody_waits_for_them() {
    launched(chaos_of_tasks);
}
