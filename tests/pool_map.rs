//! Maps of a pool: order, windows, chunks, and what ends in the middle.

mod common;

use std::cell::Cell;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use common::{await_that, wait_for_ever, watched};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use phalanx::pool::{self, Pool, TaskFailure};
use phalanx::{Options, Queue, Tensor};

phalanx::auto_init!();

fn double(x: u64) -> anyhow::Result<u64> {
    Ok(2 * x)
}

/// Ends its process at multiples of 10.
fn die_at_tens(x: u64) -> anyhow::Result<u64> {
    if x.is_multiple_of(10) {
        std::process::abort();
    }
    Ok(2 * x)
}

#[test]
fn results_come_in_the_order_of_the_items_whatever_the_chunks() {
    watched(|| {
        let pool = Pool::new(3).unwrap();
        for chunk in [None, Some(1), Some(7), Some(5000)] {
            let map = pool.map(double, 0..2000).unwrap();
            let map = match chunk {
                Some(items) => map.chunk(items),
                None => map,
            };
            let doubled = map.collect::<Result<Vec<_>, _>>().unwrap();
            assert_eq!(doubled, (0..2000).map(|x| 2 * x).collect::<Vec<_>>(), "{chunk:?}");
        }
        let mut found: Vec<_> =
            pool.map(double, 0..2000).unwrap().unordered().map(|(item, x)| (item, x.unwrap())).collect();
        found.sort_unstable();
        assert_eq!(found, (0..2000).map(|x| (x, 2 * x)).collect::<Vec<_>>());
        assert_eq!(pool.map(double, std::iter::empty()).unwrap().count(), 0);
        let lengths =
            pool.map(|(text, n): (String, usize)| anyhow::Ok(text.len() + n), [("a".to_owned(), 2)]);
        assert_eq!(lengths.unwrap().collect::<Result<Vec<_>, _>>().unwrap(), [3]);
    });
}

/// Waits until the FIFO of that item has a writer.
fn wait_for_writer((item, dir): (usize, PathBuf)) -> anyhow::Result<usize> {
    fs::read(dir.join(item.to_string()))?;
    Ok(item)
}

#[test]
fn results_of_a_chunk_are_given_out_while_the_item_behind_them_runs() {
    const ITEMS: usize = 8;
    watched(|| {
        let (pool, dir) = (Pool::new(1).unwrap(), tempfile::tempdir().unwrap());
        let fifo = |item: usize| dir.path().join(item.to_string());
        (0..ITEMS).for_each(|item| mkfifo(&fifo(item), Mode::S_IRWXU).unwrap());
        for is_slow in [false, true].into_iter().cycle().take(40) {
            let items = (0..ITEMS).map(|item| (item, dir.path().to_owned()));
            let results = pool.map(wait_for_writer, items).unwrap().chunk(ITEMS).window(2 * ITEMS);
            let first = fifo(0);
            let writer = thread::spawn(move || {
                if is_slow {
                    // More often than not the thread below sleeps by now, and is told of each item.
                    (0..1000).for_each(|_| thread::yield_now());
                }
                fs::write(first, "").unwrap();
            });
            // No item begins its work before the result of the one before has come.
            for result in results {
                let next = result.unwrap() + 1;
                if next < ITEMS {
                    fs::write(fifo(next), "").unwrap();
                }
            }
            writer.join().unwrap();
        }
    });
}

#[test]
fn death_in_a_chunk_costs_the_item_that_ran_and_no_other() {
    watched(|| {
        let pool = Pool::new(2).unwrap();
        for chunk in [1, 4, 100] {
            let results: Vec<_> = pool.map(die_at_tens, 0..100).unwrap().chunk(chunk).collect();
            assert_eq!(results.len(), 100);
            for (x, result) in results.into_iter().enumerate() {
                match result {
                    Ok(doubled) => assert!(x % 10 != 0 && doubled == 2 * x as u64),
                    Err(failed) => {
                        assert_eq!((x % 10, failed.item(), failed.attempts()), (0, Some(x as u64), 1));
                        assert!(failed.began() && failed.to_string().contains("SIGABRT"), "{failed}");
                        let begin = format!("item {x} of `pool_map::die_at_tens` ended with its worker");
                        assert!(failed.to_string().starts_with(&begin), "{failed}");
                    }
                }
            }
        }
    });
}

#[test]
fn window_is_never_exceeded() {
    watched(|| {
        let pool = Pool::new(2).unwrap();
        for window in [1, 2, 5, 64] {
            let read = Rc::new(Cell::new(0_u64));
            let counted = read.clone();
            let items = (0..300_u64).inspect(move |_| counted.set(counted.get() + 1));
            let map = pool.map(double, items).unwrap().window(window);
            assert_eq!(read.get(), 0, "nothing is read before the first step");
            for (given, result) in map.enumerate() {
                result.unwrap();
                // The result that was just given out had been read, too.
                assert!(read.get() <= (given + window) as u64, "{} of {window} at {given}", read.get());
            }
            assert_eq!(read.get(), 300);
        }
    });
}

#[test]
fn panic_of_the_items_comes_after_all_items_before_it() {
    watched(|| {
        let pool = Pool::new(2).unwrap();
        let items = (0..50_u64).inspect(|&x| assert!(x < 37, "no more items"));
        let mut map = pool.map(double, items).unwrap();
        for x in 0..37 {
            assert_eq!(map.next().unwrap().unwrap(), 2 * x);
        }
        let payload = panic::catch_unwind(AssertUnwindSafe(|| map.next().is_none())).unwrap_err();
        assert_eq!(*payload.downcast::<&str>().unwrap(), "no more items");
        assert!(map.next().is_none());
        // The pool is as good as before.
        assert_eq!(pool.submit(double, 4).unwrap().join().unwrap(), 8);
    });
}

fn wait_from_one_on((number, told): (u64, Queue<u64>)) -> anyhow::Result<()> {
    told.put(number)?;
    while number > 0 && !pool::cancelled() {
        std::thread::yield_now();
    }
    Ok(())
}

#[test]
fn dropped_map_cancels_what_has_not_begun_and_asks_the_rest_to_end() {
    watched(|| {
        let (pool, told) = (Pool::new(1).unwrap(), Queue::bounded(64).unwrap());
        let queue = told.clone();
        // The first item returns at once, so that the first step comes back, and leaves the map in the middle.
        let items = (0..).map(move |number| (number, queue.clone()));
        let mut map = pool.map(wait_from_one_on, items).unwrap().window(8);
        map.next().unwrap().unwrap();
        assert_eq!((told.get().unwrap(), told.get().unwrap()), (0, 1));
        drop(map);
        // Nothing of it keeps the only worker.
        assert_eq!(pool.submit(double, 1).unwrap().join().unwrap(), 2);
        assert!(told.is_empty(), "no other item has begun");
    });
}

#[test]
fn items_that_cannot_travel_fail_alone_and_large_or_shared_ones_travel() {
    watched(|| {
        let pool = Pool::new(2).unwrap();
        let lengths = pool.map(|bytes: Vec<u8>| anyhow::Ok(bytes.len()), (0..40).map(|n| vec![1; n << 12]));
        let lengths = lengths.unwrap().collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(lengths, (0..40).map(|n| n << 12).collect::<Vec<_>>());
        let tensors: Vec<_> = (0..20).map(|n| Tensor::<u32>::from_slice(&[n], &[1]).unwrap()).collect();
        let sums = pool.map(|tensor: Tensor<u32>| anyhow::Ok(tensor.to_vec()[0] + 1), tensors).unwrap();
        assert_eq!(sums.collect::<Result<Vec<_>, _>>().unwrap(), (1..21).collect::<Vec<_>>());
        let failing = |x: u64| {
            anyhow::ensure!(x != 3, "three");
            assert!(x != 4, "four");
            anyhow::Ok(x)
        };
        let results: Vec<_> = pool.map(failing, 0..6).unwrap().chunk(6).collect();
        let raised = |at: usize| results[at].as_ref().unwrap_err().raised().unwrap().message().to_owned();
        assert_eq!((raised(3), raised(4)), ("three".to_owned(), "four".to_owned()));
        assert_eq!(results.iter().flatten().copied().collect::<Vec<_>>(), [0, 1, 2, 5]);
    });
}

#[test]
fn items_with_a_time_limit_are_ended_one_by_one() {
    watched(|| {
        let limit = Duration::from_millis(30);
        let pool = Pool::options(Options::new(2)).timeout(limit).grace(Duration::ZERO).build().unwrap();
        let slow_at_fives = |x: u64| if x.is_multiple_of(5) { wait_for_ever() } else { anyhow::Ok(x) };
        let results: Vec<_> = pool.map(slow_at_fives, 0..20).unwrap().chunk(10).collect();
        for (x, result) in results.iter().enumerate() {
            match result {
                Ok(same) => assert_eq!(*same, x as u64),
                Err(failed) => {
                    assert_eq!((x % 5, failed.item()), (0, Some(x as u64)));
                    assert!(matches!(failed.failure(), TaskFailure::TimedOut { .. }), "{failed}");
                }
            }
        }
    });
}

#[test]
fn maps_of_many_threads_and_calls_beside_them_share_the_pool() {
    watched(|| {
        let pool = Pool::new(2).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let doubled = pool.map(double, 0..3000).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
                    assert_eq!(doubled.len(), 3000);
                });
            }
            scope.spawn(|| {
                for x in 0..200 {
                    assert_eq!(pool.submit(double, x).unwrap().join().unwrap(), 2 * x);
                }
            });
        });
        let summary = pool.join().unwrap();
        assert_eq!((summary.succeeded, summary.failed), (9200, 0));
    });
}

#[test]
fn map_of_a_closed_pool_fails_its_items() {
    watched(|| {
        let pool = Pool::new(1).unwrap();
        pool.close();
        let results: Vec<_> = pool.map(double, 0..5).unwrap().collect();
        assert!(matches!(results[0].as_ref().unwrap_err().failure(), TaskFailure::PoolEnded(_)));
        await_that(|| pool.submit(double, 1).is_err());
    });
}
