//! What phalanx can await, in tokio's runtimes: of several threads, and of one.

use std::time::Duration;

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
