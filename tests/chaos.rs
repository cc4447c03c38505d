//! Workers that are killed at random moments and replaced, for PHALANX_RACE_SECONDS: nobody hangs, and all counts are right.

#![expect(clippy::print_stdout, reason = "how much was survived is worth knowing")]

mod common;

use std::time::{Duration, Instant};

use common::{await_that, kill, race_time, watched};
use phalanx::sync::{Array, Barrier, Event, Lock, RLock, RwLock, Semaphore, SyncError, Value};
use phalanx::{Options, ProcessContext, start_processes_with};
use serde::Serialize;
use serde::de::DeserializeOwned;

phalanx::auto_init!();

/// Each of the tests has its part of the time.
fn deadline() -> Instant {
    Instant::now() + race_time() / 4
}

/// Workers, each in a context of its own, so that each can be killed alone.
struct Crew<A, F> {
    given: A,
    work: F,
    /// What each has done since it was started.
    done: Array<u64>,
    workers: Vec<Option<ProcessContext<()>>>,
    random: u64,
    /// Nobody sets it: it is waited for when one waits for nothing.
    never: Event,
    kills: usize,
}

/// What a worker is given: its number, where to count what it has done, and the rest.
type Given<A> = (usize, Array<u64>, A);

impl<A, F> Crew<A, F>
where
    A: Clone + Serialize + DeserializeOwned,
    F: Fn(usize, Given<A>) -> anyhow::Result<()> + Copy + Send + 'static,
{
    fn start(size: usize, given: A, work: F) -> Self {
        let done = Array::zeros(size).unwrap();
        let (random, never) = (u64::from(std::process::id()) | 1, Event::new().unwrap());
        let mut crew = Self { given, work, done, workers: Vec::new(), random, never, kills: 0 };
        crew.workers.resize_with(size, || None);
        (0..size).for_each(|number| crew.start_one(number));
        crew
    }

    fn start_one(&mut self, number: usize) {
        self.done.set(number, 0).unwrap();
        let given = |_| (number, self.done.clone(), self.given.clone());
        self.workers[number] = Some(start_processes_with(self.work, given, Options::new(1)).unwrap());
    }

    /// Below a bound; xorshift.
    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// Waits until a worker has done something since it was started.
    fn await_progress(&mut self, number: usize) {
        let before = self.done.get(number).unwrap();
        await_that(|| {
            let context = self.workers[number].as_mut().unwrap();
            assert!(!context.join_timeout(Duration::ZERO).unwrap_or_else(|error| panic!("{error}")));
            let now = self.done.get(number).unwrap();
            now > before || now == ALL
        });
    }

    /// Kills a worker that has done something, at a random moment soon after; returns its number.
    fn kill_one(&mut self) -> usize {
        let number = self.random(self.workers.len() as u64) as usize;
        self.await_progress(number);
        let moment = Duration::from_micros(self.random(1500));
        let _ = self.never.wait_timeout(moment);
        kill(self.workers[number].take().unwrap());
        self.kills += 1;
        number
    }

    /// Sees that all go on, and kills all.
    fn end(mut self) -> (A, usize) {
        (0..self.workers.len()).for_each(|number| self.await_progress(number));
        self.workers.drain(..).flatten().for_each(|context| _ = kill(context));
        (self.given, self.kills)
    }
}

/// What is counted when a worker has done all that it was to do.
const ALL: u64 = u64::MAX;

/// Kills and replaces until the time is up.
fn rage<A, F>(size: usize, given: A, work: F) -> (A, usize)
where
    A: Clone + Serialize + DeserializeOwned,
    F: Fn(usize, Given<A>) -> anyhow::Result<()> + Copy + Send + 'static,
{
    let (mut crew, end) = (Crew::start(size, given, work), deadline());
    while Instant::now() < end {
        let number = crew.kill_one();
        crew.start_one(number);
    }
    crew.end()
}

type Locks = (Lock<[u64; 2]>, RwLock<[u64; 2]>, RLock, Array<u64>);

/// Changes two numbers that must agree, by each kind of lock in turn.
fn exclude(_: usize, (own, done, (lock, rwlock, rlock, pair)): Given<Locks>) -> anyhow::Result<()> {
    loop {
        match lock.lock() {
            Ok(mut guard) => change(&mut guard)?,
            Err(SyncError::Poisoned { .. }) => mend(&mut lock.recover()?.0),
            Err(error) => return Err(error.into()),
        }
        match rwlock.read() {
            Ok(guard) => anyhow::ensure!(guard[0] == guard[1], "read {guard:?}"),
            Err(SyncError::Poisoned { .. }) => mend(&mut rwlock.recover()?.0),
            Err(error) => return Err(error.into()),
        }
        match rwlock.write() {
            Ok(mut guard) => change(&mut guard)?,
            Err(SyncError::Poisoned { .. }) => mend(&mut rwlock.recover()?.0),
            Err(error) => return Err(error.into()),
        }
        let (_guard, poison) = rlock.recover()?;
        let _again = rlock.lock()?;
        let mut numbers = [pair.get(0)?, pair.get(1)?];
        if poison.is_some() {
            mend(&mut numbers)
        } else {
            change(&mut numbers)?
        }
        pair.set(0, numbers[0])?;
        pair.set(1, numbers[1])?;
        done.fetch_add(own, 1)?;
    }
}

fn change(pair: &mut [u64; 2]) -> anyhow::Result<()> {
    anyhow::ensure!(pair[0] == pair[1], "{pair:?}");
    pair[0] += 1;
    // As long as it takes others to come.
    (0..pair[0] % 500).for_each(|_| std::hint::spin_loop());
    pair[1] += 1;
    Ok(())
}

fn mend(pair: &mut [u64; 2]) {
    pair[1] = pair[0];
}

#[test]
fn locks_exclude_and_nobody_hangs() {
    watched(|| {
        let locks = (
            Lock::new([0; 2]).unwrap(),
            RwLock::new([0; 2]).unwrap(),
            RLock::new().unwrap(),
            Array::zeros(2).unwrap(),
        );
        let ((lock, rwlock, rlock, _), kills) = rage(4, locks, exclude);
        let (guard, poison) = lock.recover().unwrap();
        println!("{kills} holders of locks were killed; {} changes", guard[0]);
        assert!(poison.is_some() || guard[0] == guard[1]);
        let (guard, poison) = rwlock.recover().unwrap();
        assert!(poison.is_some() || guard[0] == guard[1]);
        drop(rlock.recover().unwrap());
    });
}

const PERMITS: u32 = 2;
const HOLDERS: usize = 5;

#[derive(Clone, Serialize, serde::Deserialize)]
struct Doors {
    doors: Semaphore,
    /// Each holder's own, which has its process in it. What the dead had is freed in no certain order.
    inside: Vec<Lock<u32>>,
    pids: Array<u32>,
    /// Every coming and going.
    moves: Value<u64>,
}

/// Holds permits, and sees that never more than there are do.
fn hold(_: usize, (own, done, Doors { doors, inside, pids, moves }): Given<Doors>) -> anyhow::Result<()> {
    pids.set(own, std::process::id())?;
    loop {
        let permit = doors.acquire()?;
        moves.fetch_add(1);
        let (guard, _) = inside[own].recover()?;
        let before = moves.get();
        let within: Vec<_> = (0..HOLDERS).filter(|&holder| inside[holder].is_locked()).collect();
        if within.len() > PERMITS as usize {
            let living =
                within.iter().filter(|&&holder| !common::is_ending(pids.get(holder).unwrap())).count();
            // If nobody came or went meanwhile, they were all there at the same time.
            anyhow::ensure!(moves.get() != before || living <= PERMITS as usize, "{living} are inside");
        }
        moves.fetch_add(1);
        drop(guard);
        drop(permit);
        done.fetch_add(own, 1)?;
    }
}

#[test]
fn permits_are_never_more_nor_fewer() {
    watched(|| {
        let inside = std::iter::repeat_with(|| Lock::new(0).unwrap()).take(HOLDERS).collect();
        let doors = Semaphore::new(PERMITS).unwrap();
        let (moves, pids) = (Value::new(0).unwrap(), Array::zeros(HOLDERS).unwrap());
        let given = Doors { doors, inside, pids, moves };
        let (given, kills) = rage(HOLDERS, given, hold);
        println!("{kills} holders of permits were killed; {} moves", given.moves.get());
        assert_eq!(given.doors.value(), PERMITS);
        let permits = [(); PERMITS as usize].map(|()| given.doors.try_acquire().unwrap());
        assert!(matches!(given.doors.try_acquire(), Err(SyncError::WouldBlock)));
        drop(permits);
    });
}

const PARTIES: usize = 3;

#[derive(Clone, Serialize, serde::Deserialize)]
struct Meeting {
    barrier: Barrier,
    /// How many were told that it is broken.
    told: Value<u64>,
    /// How often it was mended.
    resets: Value<u64>,
}

/// Waits round after round, and says when it is told that another is dead.
fn meet(_: usize, (own, done, Meeting { barrier, told, resets }): Given<Meeting>) -> anyhow::Result<()> {
    done.fetch_add(own, 1)?;
    loop {
        let before = resets.get();
        match barrier.wait() {
            Ok(_) => _ = done.fetch_add(own, 1)?,
            Err(SyncError::Broken { pid: Some(_), .. }) => {
                told.fetch_add(1);
                await_that(|| resets.get() > before);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn barrier_tells_every_death_to_all_others() {
    watched(|| {
        let (barrier, told, resets) = (Barrier::new(PARTIES), Value::new(0), Value::new(0));
        let meeting = Meeting { barrier: barrier.unwrap(), told: told.unwrap(), resets: resets.unwrap() };
        let (mut crew, end) = (Crew::start(PARTIES, meeting.clone(), meet), deadline());
        let (mut longest, mut rounds) = (Duration::ZERO, 0);
        while Instant::now() < end {
            let number = crew.kill_one();
            let begin = Instant::now();
            await_that(|| meeting.told.get() == PARTIES as u64 - 1);
            longest = longest.max(begin.elapsed());
            rounds += crew.done.get(number).unwrap();
            meeting.told.set(0);
            meeting.barrier.reset().unwrap();
            meeting.resets.fetch_add(1);
            crew.start_one(number);
        }
        let kills = crew.kills;
        (0..PARTIES).for_each(|number| crew.await_progress(number));
        assert_eq!(meeting.told.get(), 0);
        println!("{kills} members were killed in {rounds} rounds; told within {longest:?}");
        drop(crew);
    });
}

const EVENTS: usize = 512;

type Events = (Vec<Event>, bool);

/// Sets all events, or waits for each; for one that is set the wait must end, though who set it was killed.
fn signal(_: usize, (own, done, (events, sets)): Given<Events>) -> anyhow::Result<()> {
    done.fetch_add(own, 1)?;
    for event in &events {
        if sets {
            event.set()
        } else {
            event.wait()?
        }
        done.fetch_add(own, 1)?;
    }
    done.set(own, ALL)?;
    common::wait_for_ever()
}

#[test]
fn event_wakes_all_though_who_sets_it_is_killed() {
    watched(|| {
        let end = deadline();
        let (mut kills, mut rounds) = (0, 0);
        while Instant::now() < end {
            let events: Vec<_> = std::iter::repeat_with(|| Event::new().unwrap()).take(EVENTS).collect();
            let waiters = Crew::start(3, (events.clone(), false), signal);
            let mut setters = Crew::start(1, (events, true), signal);
            setters.random = setters.random.wrapping_add(rounds) | 1;
            while waiters.done.to_vec() != [ALL; 3] {
                if setters.done.get(0).unwrap() != ALL {
                    setters.kill_one();
                    setters.start_one(0);
                }
            }
            kills += setters.kills;
            rounds += 1;
        }
        println!("{kills} were killed while they set {EVENTS} events, {rounds} times");
    });
}
