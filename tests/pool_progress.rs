//! What a pool tells of its tasks, its workers and its maps while they run.

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::thread;
use std::time::Duration;

use calls::double;
use common::{await_that, send, watched};
use nix::sys::signal::Signal;
use phalanx::Queue;
use phalanx::pool::{self, Pool};
use phalanx::sync::Event;

phalanx::auto_init!();

/// Says how far it is, tells its number, and waits.
fn advance((part, told, go): (f64, Queue<usize>, Event)) -> anyhow::Result<()> {
    pool::progress(part);
    told.put(pool::worker().expect("a worker of a pool").rank)?;
    Ok(go.wait()?)
}

#[test]
fn task_says_how_far_it_is_and_the_next_one_begins_anew() {
    watched(|| {
        let (pool, told, go) = (Pool::new(1).unwrap(), Queue::bounded(8).unwrap(), Event::new().unwrap());
        let said = [(0.25, 0.25), (-1.0, 0.0), (7.0, 1.0), (f64::NAN, 0.0)];
        for (part, expected) in said {
            let task = pool.submit(advance, (part, told.clone(), go.clone())).unwrap();
            assert_eq!(told.get().unwrap(), 0);
            assert_eq!((task.progress(), pool.workers()[0].progress), (Some(expected), Some(expected)));
            go.set();
            await_that(|| task.is_finished());
            assert_eq!((task.progress(), pool.workers()[0].progress), (None, None));
            go.clear();
        }
        let wait = |(told, go): (Queue<usize>, Event)| {
            told.put(0)?;
            anyhow::Ok(go.wait()?)
        };
        let silent = pool.submit(wait, (told.clone(), go.clone())).unwrap();
        told.get().unwrap();
        assert_eq!((silent.progress(), pool.workers()[0].progress), (None, None));
        go.set();
        silent.join().unwrap();
        pool::progress(0.5);
        assert!(pool::worker().is_none());
    });
}

#[test]
fn workers_tell_what_they_run_since_when_and_what_they_use() {
    watched(|| {
        let (pool, told, go) = (Pool::new(2).unwrap(), Queue::bounded(8).unwrap(), Event::new().unwrap());
        let task = pool.submit(advance, (0.5, told.clone(), go.clone())).unwrap();
        let number = told.get().unwrap();
        let workers = pool.workers();
        let (busy, idle) = (&workers[number], &workers[1 - number]);
        assert!(busy.running.as_deref().unwrap().contains("advance"), "{busy:?}");
        assert!(busy.share > 0.0 && busy.share <= 1.0 && busy.memory.unwrap() > 0, "{busy:?}");
        assert_eq!((busy.begun, busy.failed, busy.item), (1, 0, None));
        assert_eq!((idle.running.as_ref(), idle.since, idle.begun, idle.share), (None, None, 0, 0.0));
        await_that(|| pool.workers()[number].since > busy.since);
        go.set();
        task.join().unwrap();
        await_that(|| pool.workers()[number].running.is_none());
        assert!(pool.workers()[number].busy > busy.since.unwrap());
    });
}

#[test]
fn stopped_worker_is_seen_and_the_pool_goes_on_when_it_is_continued() {
    watched(|| {
        let pool = Pool::new(1).unwrap();
        pool.submit(double, 1).unwrap().join().unwrap();
        let pid = pool.workers()[0].pid;
        assert!(!pool.workers()[0].stopped);
        send(pid, Signal::SIGSTOP);
        await_that(|| pool.workers()[0].stopped);
        let task = pool.submit(double, 2).unwrap();
        assert!(task.join_timeout(Duration::from_millis(5)).is_none());
        send(pid, Signal::SIGCONT);
        assert_eq!(task.join().unwrap(), 4);
        assert!(!pool.workers()[0].stopped);
    });
}

#[test]
fn map_tells_its_progress_and_workers_their_items() {
    watched(|| {
        let (pool, told, go) = (Pool::new(1).unwrap(), Queue::bounded(8).unwrap(), Event::new().unwrap());
        let step = |(item, told, go): (u64, Queue<u64>, Event)| {
            anyhow::ensure!(item != 1, "not today");
            if item == 2 {
                told.put(item)?;
                go.wait()?;
            }
            anyhow::Ok(item)
        };
        let items = (0..4).map(|item| (item, told.clone(), go.clone()));
        let mut map = pool.map(step, items).unwrap();
        assert_eq!((map.progress().total, map.progress().done), (Some(4), 0));
        assert_eq!(map.next().unwrap().unwrap(), 0);
        map.next().unwrap().unwrap_err();
        told.get().unwrap();
        let middle = map.progress();
        assert_eq!((middle.done, middle.failed, middle.running, middle.total), (2, 1, 1, Some(4)));
        assert!(middle.rate() > 0.0 && middle.time_left().is_some());
        assert_eq!(pool.workers()[0].item, Some(2));
        go.set();
        assert_eq!(map.by_ref().map(Result::unwrap).sum::<u64>(), 5);
        let end = map.progress();
        assert_eq!((end.done, end.failed, end.running, end.total), (4, 1, 0, Some(4)));
        // Also of a chunk it is the item that runs.
        let until_cancelled = |item: u64| {
            while item == 2 && !pool::cancelled() {
                thread::yield_now();
            }
            anyhow::Ok(item)
        };
        let mut map = pool.map(until_cancelled, 0..4).unwrap().chunk(4);
        assert_eq!((map.next().unwrap().unwrap(), map.next().unwrap().unwrap()), (0, 1));
        await_that(|| pool.workers()[0].item == Some(2));
        drop(map);
        // How many pass a filter is known at the end.
        let mut map = pool.map(double, (0..9).filter(|x| x % 2 == 0)).unwrap().unordered();
        assert_eq!(map.progress().total, None);
        assert_eq!(map.by_ref().count(), 5);
        assert_eq!(map.progress().total, Some(5));
    });
}

#[test]
fn line_of_a_map_needs_a_terminal_and_changes_no_result() {
    watched(|| {
        let pool = Pool::new(2).unwrap();
        let threads = || thread::scope(|_| std::fs::read_dir("/proc/self/task").unwrap().count());
        let before = threads();
        // libtest keeps this process's stderr, which is no terminal in tests that run by themselves.
        let mut map = pool.map(double, 0..50).unwrap().status_line("doubled");
        assert_eq!(map.next().unwrap().unwrap(), 0);
        if !std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            assert_eq!(threads(), before);
        }
        assert_eq!(map.map(Result::unwrap).sum::<u64>(), 2450);
        assert_eq!(threads(), before);
    });
}
