//! Loops over the values of queues, and what ends them.

mod common;

use std::time::Duration;

use common::{kill_self, wait_for_ever, watched};
use phalanx::{JoinableQueue, Options, Queue, spawn, start_processes};
use serde::{Deserialize, Serialize};

phalanx::auto_init!();

#[test]
fn values_of_workers_come_until_the_last_has_ended_however_it_ends() {
    fn work(rank: usize, values: Queue<u32>) -> anyhow::Result<()> {
        (0..100).try_for_each(|number| values.put(number))?;
        if rank == 1 {
            kill_self();
        }
        Ok(())
    }
    watched(|| {
        let values = Queue::bounded(4).unwrap();
        // Rank 0 is given all the time that it needs to put its own.
        let options = Options::new(2).grace_period(Duration::MAX);
        let mut context = start_processes(work, values.clone(), options).unwrap();
        let sum = context.values_from(&values).sum::<Result<u32, _>>().unwrap();
        assert_eq!(sum, 2 * 4950);
        assert!(context.join().unwrap_err().to_string().contains("SIGKILL"));
        // A queue that was closed ends it too.
        values.put(7).unwrap();
        values.close().unwrap();
        let mut context = start_processes(
            |_, ()| -> anyhow::Result<()> { wait_for_ever() },
            (),
            Options::new(1).daemon(true),
        )
        .unwrap();
        assert_eq!(context.values_from(&values).collect::<Result<Vec<_>, _>>().unwrap(), [7]);
    });
}

#[test]
fn error_between_two_values_is_an_item_and_not_the_end() {
    watched(|| {
        let values = Queue::<Picky>::bounded(4).unwrap();
        (0..3).for_each(|number| values.put(Picky(number)).unwrap());
        let items: Vec<_> = values.try_iter().map(|item| item.map(|picky| picky.0).ok()).collect();
        assert_eq!(items, [Some(0), None, Some(2)]);
        let tasks = JoinableQueue::<Picky>::bounded(4).unwrap();
        (0..3).for_each(|number| tasks.put(Picky(number)).unwrap());
        spawn(take_all, tasks, 1).unwrap();
    });
}

fn take_all(_: usize, tasks: JoinableQueue<Picky>) -> anyhow::Result<()> {
    anyhow::ensure!(tasks.try_iter().filter(Result::is_ok).count() == 2);
    tasks.close()?;
    anyhow::ensure!((&tasks).into_iter().count() == 0);
    Ok(())
}

/// Refuses to be read where it is 1.
#[derive(Serialize, Deserialize)]
#[serde(try_from = "u8")]
struct Picky(u8);

impl TryFrom<u8> for Picky {
    type Error = &'static str;

    fn try_from(number: u8) -> Result<Self, Self::Error> {
        if number == 1 { Err("not one") } else { Ok(Self(number)) }
    }
}
