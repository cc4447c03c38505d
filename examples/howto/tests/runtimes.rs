//! What phalanx can await, in tokio's runtimes: of several threads, and of one.

use std::time::Duration;

use futures_util::StreamExt;
use phalanx::pool::Pool;
use phalanx::{Options, Queue, QueueError, start_processes};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout;

phalanx::auto_init!();

/// After this time a test is taken to hang.
const WATCHDOG: Duration = Duration::from_secs(120);

fn in_each_runtime(test: impl AsyncFn()) {
    let runtimes: [fn() -> Builder; 2] = [Builder::new_multi_thread, Builder::new_current_thread];
    for runtime in runtimes {
        let runtime: Runtime = runtime().enable_all().build().unwrap();
        runtime.block_on(async { timeout(WATCHDOG, test()).await.expect("it hangs") });
    }
}

fn echo(_rank: usize, (there, back): (Queue<u64>, Queue<u64>)) -> anyhow::Result<u64> {
    let mut count = 0;
    for value in there {
        back.put(value?)?;
        count += 1;
    }
    Ok(count)
}

#[test]
fn tasks_put_and_get_and_the_workers_are_joined_beside_them() {
    in_each_runtime(async || {
        let (there, back) = (Queue::bounded(4).unwrap(), Queue::bounded(4).unwrap());
        let mut context = start_processes(echo, (there.clone(), back.clone()), Options::new(2)).unwrap();
        let mut tasks = JoinSet::new();
        for part in 0..4 {
            let (there, back) = (there.clone(), back.clone());
            tasks.spawn(async move {
                let mut sum = 0;
                for value in 0..250 {
                    there.put_async(part * 250 + value).await.unwrap();
                    sum += back.get_async().await.unwrap();
                }
                sum
            });
        }
        let close = async {
            let sum: u64 = tasks.join_all().await.into_iter().sum();
            there.close().unwrap();
            sum
        };
        let (sum, joined) = tokio::join!(close, context.join_async());
        joined.unwrap();
        assert_eq!((sum, context.into_results().unwrap().into_iter().sum()), (999 * 1000 / 2, 1000));
    });
}

#[test]
fn time_limit_of_the_runtime_ends_a_wait_and_the_value_that_comes_later_is_there() {
    in_each_runtime(async || {
        let queue = Queue::bounded(1).unwrap();
        assert!(timeout(Duration::from_millis(5), queue.get_async()).await.is_err());
        queue.put(1_u8).unwrap();
        assert!(timeout(Duration::from_millis(5), queue.put_async(2)).await.is_err());
        assert_eq!(queue.get_async().await.unwrap(), 1);
        assert!(matches!(queue.try_get(), Err(QueueError::Empty)));
    });
}

fn fail_or_wait(rank: usize, never: Queue<u8>) -> anyhow::Result<()> {
    anyhow::ensure!(rank != 1, "rank 1 does not feel well");
    never.get()?;
    Ok(())
}

#[test]
fn failure_of_a_worker_ends_the_wait_for_all_and_others_of_the_runtime_go_on_meanwhile() {
    in_each_runtime(async || {
        let options = Options::new(3).grace_period(Duration::from_millis(10));
        let mut context = start_processes(fail_or_wait, Queue::bounded(1).unwrap(), options).unwrap();
        let (ticks, joined) = tokio::join!(
            async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                1
            },
            context.join_async()
        );
        assert_eq!(ticks, 1);
        assert!(joined.unwrap_err().to_string().contains("rank 1 does not feel well"));
    });
}

fn square(x: u64) -> anyhow::Result<u64> {
    anyhow::ensure!(x != 13, "unlucky");
    Ok(x * x)
}

#[test]
fn tasks_of_a_pool_are_awaited_in_tasks_of_the_runtime() {
    in_each_runtime(async || {
        let pool = Pool::new(2).unwrap();
        let mut tasks = JoinSet::new();
        for x in 0..200 {
            let pool = pool.clone();
            tasks.spawn(async move { (x, pool.submit(square, x).unwrap().await) });
        }
        for (x, squared) in tasks.join_all().await {
            match squared {
                Ok(squared) => assert_eq!(squared, x * x),
                Err(failed) => assert!(x == 13 && failed.to_string().contains("unlucky"), "{failed}"),
            }
        }
    });
}

fn slow(x: u64) -> anyhow::Result<u64> {
    // Longer than a chunk is made to take, so that results come one by one.
    #[expect(clippy::disallowed_methods, reason = "that time passes is what this is about")]
    std::thread::sleep(Duration::from_millis(3));
    square(x)
}

#[test]
fn maps_are_streams_in_order_and_in_any_order() {
    in_each_runtime(async || {
        let pool = Pool::new(2).unwrap();
        let squares: Vec<_> = pool.map(square, 0..5000).unwrap().into_stream().collect().await;
        let (good, bad): (Vec<_>, Vec<_>) = squares.into_iter().partition(Result::is_ok);
        assert_eq!((good.len(), bad[0].as_ref().unwrap_err().item()), (4999, Some(13)));
        let mut stream = pool.map(slow, 100..140).unwrap().chunk(5).window(20).unordered().into_stream();
        let mut found = Vec::new();
        while let Some((item, squared)) = stream.next().await {
            assert_eq!(squared.unwrap(), (item + 100).pow(2));
            found.push(item);
        }
        found.sort_unstable();
        assert_eq!(found, (0..40).collect::<Vec<_>>());
        assert_eq!(stream.get_ref().progress().done, 40);
    });
}

#[test]
fn dropped_stream_and_a_pool_without_room_leave_the_runtime_alone() {
    in_each_runtime(async || {
        let pool = Pool::options(Options::new(1)).capacity(2).build().unwrap();
        let mut streams = [(); 3].map(|()| pool.map(slow, 20..30).unwrap().chunk(1).window(8).into_stream());
        for _ in 0..10 {
            for stream in &mut streams {
                stream.next().await.unwrap().unwrap();
            }
        }
        for stream in &mut streams {
            assert!(stream.next().await.is_none());
        }
        let mut dropped = pool.map(slow, 20..).unwrap().into_stream();
        dropped.next().await.unwrap().unwrap();
        drop(dropped);
        assert_eq!(pool.submit(square, 2).unwrap().await.unwrap(), 4);
    });
}

fn end_sometimes(x: u64) -> anyhow::Result<u64> {
    if x % 150 == 149 {
        std::process::abort();
    }
    Ok(x)
}

#[test]
fn deaths_of_workers_cost_a_stream_their_items_and_no_others() {
    in_each_runtime(async || {
        let pool = Pool::new(3).unwrap();
        let mut stream = pool.map(end_sometimes, 0..1500).unwrap().into_stream();
        for item in 0..1500 {
            match stream.next().await.unwrap() {
                Ok(x) => assert!(x == item && x % 150 != 149),
                Err(failed) => assert!(item % 150 == 149 && failed.outcome().is_some(), "{item}: {failed}"),
            }
        }
        assert!(stream.next().await.is_none());
    });
}
