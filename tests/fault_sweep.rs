//! Faults at the library's own points: whatever happens to a worker there, and at which of them, the error names that worker and what it was,
//! nothing hangs, and nothing is left.

mod common;

use std::collections::BTreeMap;

use common::watched;
use phalanx::fault::{self, Faults};
use phalanx::pool::{Pool, TaskFailure};
use phalanx::sync::{Barrier, Lock};
use phalanx::{Error, Options, Queue, Shard, StartMethod, Tensor, start_processes};
use serde::{Deserialize, Serialize};

phalanx::auto_init!();

const RANKS: usize = 4;
const ROUNDS: usize = 2;

/// What the ranks share.
#[derive(Clone, Serialize, Deserialize)]
struct Shared {
    plain: Queue<u64>,
    tensors: Queue<Tensor<u64>>,
    sum: Lock<u64>,
    barrier: Barrier,
}

impl Shared {
    fn new() -> Self {
        Self {
            // Of one: producers wait for room.
            plain: Queue::bounded(1).unwrap(),
            tensors: Queue::bounded(RANKS).unwrap(),
            sum: Lock::new(0).unwrap(),
            barrier: Barrier::new(RANKS).unwrap(),
        }
    }
}

/// Each rank puts and takes, with something beside the message and without, owns the lock, and comes to the barrier.
fn work(rank: usize, shared: Shared) -> anyhow::Result<Tensor<u64>> {
    let own = Tensor::from_slice(&[rank as u64], &[1])?;
    for _ in 0..ROUNDS {
        shared.plain.put(rank as u64)?;
        shared.tensors.put(own.clone())?;
        let got = shared.plain.get()? + shared.tensors.get()?.get(0)?;
        *shared.sum.lock()? += got;
        shared.barrier.wait()?;
    }
    Ok(own)
}

/// Before the test that counts what is left: the fork server stays.
fn start_server() {
    common::alone(|| start_processes(|_, ()| anyhow::Ok(()), (), common::served(1)).unwrap().join().unwrap());
}

fn job(method: StartMethod) -> impl Fn(&Faults) -> Result<(), Error> {
    move |faults| {
        let options = Options::new(RANKS).start_method(method).faults(faults).abort_on_failure(true);
        let context = start_processes(work, Shared::new(), options)?;
        context.join().map(drop)
    }
}

/// How often a fault has happened at each of the library's points.
#[derive(Default)]
struct Table(BTreeMap<&'static str, u64>);

impl Table {
    fn sweep(&mut self, method: StartMethod, action: &str, sites: &[&str], conditions: &str) {
        for site in sites {
            let plan = format!("{action}@{site}:{conditions}");
            let swept =
                fault::sweep(&plan, job(method)).unwrap_or_else(|error| panic!("{method:?}: {error}"));
            for swept in swept.points() {
                *self.0.entry(swept.point).or_default() += swept.hits;
            }
        }
    }

    /// All points below these prefixes have been met.
    fn assert_complete(&self, sites: &[&str]) {
        self.0.iter().for_each(|(point, hits)| print(&format!("{point:24} {hits:>5}")));
        let names = fault::points().iter().map(|point| point.name());
        let wanted = names.filter(|name| sites.iter().any(|site| name.starts_with(site)));
        let missing: Vec<_> = wanted.filter(|name| self.0.get(name).is_none_or(|hits| *hits == 0)).collect();
        assert!(missing.is_empty(), "no fault has happened at {missing:?}");
    }
}

#[expect(clippy::print_stdout, reason = "what has happened where is for people")]
fn print(line: &str) {
    println!("{line}");
}

const SITES: [&str; 6] = ["start", "worker.", "queue.", "lock.", "end", "report."];

#[test]
fn deaths_at_all_points_are_told_by_rank_and_kind() {
    watched(|| {
        let mut table = Table::default();
        table.sweep(StartMethod::Spawn, "kill", &SITES, "rank=1:hit=1..2");
        table.sweep(StartMethod::Spawn, "segv", &SITES, "rank=0:hit=1..1");
        table.sweep(StartMethod::Spawn, "exit=7", &SITES, "rank=3:hit=1..1");
        table.sweep(StartMethod::Spawn, "overflow", &["start", "lock.", "end"], "rank=2:hit=1..1");
        table.assert_complete(&SITES);
    });
}

#[test]
fn deaths_of_workers_of_the_fork_server_are_told_by_rank_and_kind() {
    start_server();
    watched(|| {
        let mut table = Table::default();
        table.sweep(StartMethod::ForkServer, "kill", &SITES, "rank=2:hit=1..2");
        table.sweep(StartMethod::ForkServer, "abort", &SITES, "rank=0:hit=1..1");
        table.assert_complete(&SITES);
    });
}

#[test]
fn panics_and_errors_at_the_begin_and_the_end_of_the_function_are_told_as_its_own() {
    watched(|| {
        let mut table = Table::default();
        for action in ["panic", "error=ENOMEM"] {
            table.sweep(StartMethod::Spawn, action, &["start", "end"], "rank=2");
        }
        assert_eq!(table.0, BTreeMap::from([("start", 2), ("end", 2)]));
    });
}

#[test]
fn delays_at_all_points_are_no_failure() {
    watched(|| {
        let mut table = Table::default();
        table.sweep(StartMethod::Spawn, "slow=2ms", &SITES, "rank=2:hit=1..2");
        table.sweep(StartMethod::Spawn, "deaf", &SITES, "rank=1:hit=1..1:for=5ms");
        table.assert_complete(&SITES);
    });
}

/// What the kernel may refuse to a worker, by which error, and what is told then if that is not got over.
const CALLS: [(&str, &str, &str); 5] = [
    ("sys.memfd-create", "EMFILE", "memory"),
    ("sys.fallocate", "ENOSPC", "cannot get 256.0 KiB"),
    ("sys.mmap", "ENOMEM", "mapp"),
    ("sys.sendmsg", "ENOMEM", "sen"),
    ("sys.recvmsg", "ENOMEM", "received"),
];

#[test]
fn system_call_that_fails_is_got_over_or_told_of_its_rank() {
    start_server();
    watched(|| {
        for (method, (call, errno, expected)) in [StartMethod::Spawn, StartMethod::ForkServer]
            .into_iter()
            .flat_map(|method| CALLS.map(|call| (method, call)))
        {
            for hit in 1.. {
                let plan = format!("error={errno}@{call}:rank=1:hit={hit}");
                let trial = fault::observe(&plan, job(method)).unwrap();
                if trial.fired().is_empty() {
                    assert!(hit > 1 && trial.result().is_ok(), "{method:?} {call} is not reached");
                    break;
                }
                trial.check().unwrap_or_else(|error| panic!("{method:?}: {error}"));
                let text = trial.result().err().map(ToString::to_string);
                assert!(
                    text.is_none_or(|text| text.contains(expected)),
                    "{method:?} {plan}: {:?}",
                    trial.result()
                );
            }
        }
    });
}

/// Two at once: the kernel may end them in either order, and one of the two is told first, with what has ended it.
#[test]
fn of_two_deaths_at_once_one_is_told_first_and_both_are_told() {
    watched(|| {
        for (first, second) in [("kill", "segv"), ("exit=3", "kill"), ("abort", "exit=0"), ("panic", "kill")]
        {
            let plan = format!("{first}@start:rank=1,{second}@start:rank=2");
            let trial = fault::observe(&plan, job(StartMethod::Spawn)).unwrap();
            trial.verdict().unwrap_or_else(|wrong| panic!("{plan}: {wrong}"));
            assert!(trial.result().is_err() && !trial.fired().is_empty());
        }
    });
}

/// A worker that reports its failure is killed in the middle of that, which the teardown of another one has begun.
#[test]
fn death_during_the_teardown_of_another_is_told_as_what_it_was() {
    watched(|| {
        let points = ["report.begin", "report.protected", "report.written", "worker.exit"];
        for (action, point) in
            ["kill", "abort"].into_iter().flat_map(|action| points.map(|point| (action, point)))
        {
            let plan = format!("exit=9@start:rank=0,{action}@{point}:rank=2");
            let trial = fault::observe(&plan, |faults| {
                let options = Options::new(RANKS).faults(faults).abort_on_failure(true);
                let grace = options.grace_period(std::time::Duration::from_secs(60));
                start_processes(work, Shared::new(), grace)?.join().map(drop)
            });
            let trial = trial.unwrap();
            trial.verdict().unwrap_or_else(|wrong| panic!("{plan}: {wrong}"));
            let Err(Error::ProcessExited(exception)) = trial.result() else { panic!("{:?}", trial.result()) };
            assert_eq!((exception.error_index(), exception.exit_code()), (0, Some(9)), "{plan}: {exception}");
            assert_eq!(trial.fired().len(), 2, "{plan}");
        }
    });
}

fn fill((item, mut part): (u64, Shard<u64>)) -> anyhow::Result<u64> {
    part.as_mut_slice()?.fill(item);
    Ok(2 * item)
}

#[test]
fn worker_of_a_pool_that_dies_at_any_point_costs_the_call_that_it_ran_and_no_other() {
    watched(|| {
        let mut met = BTreeMap::new();
        let sites = ["pool.", "queue.", "lock."];
        let names = fault::points().iter().map(|point| point.name());
        for point in names.filter(|name| sites.iter().any(|site| name.starts_with(site))) {
            for hit in [1, 4] {
                let plan = format!("kill@{point}:rank=0:hit={hit}");
                *met.entry(point).or_insert(0) += run_pool(&plan);
            }
        }
        let missing: Vec<_> = met.iter().filter(|(_, met)| **met == 0).collect();
        // A worker puts nothing beside its results here, and owns no queue's end alone.
        assert!(missing.is_empty(), "no fault has happened at {missing:?}");
    });
}

/// How many faults have happened.
fn run_pool(plan: &str) -> u64 {
    let faults = Faults::new(plan).unwrap();
    let pool = Pool::options(Options::new(2).faults(&faults)).build().unwrap();
    let mut parts = Tensor::<u64>::zeros(&[20]).unwrap().into_shards(20).unwrap().into_iter();
    let alone: Vec<_> =
        (0..20).map(|item| pool.submit(fill, (item, parts.next().unwrap())).unwrap()).collect();
    let mapped: Vec<_> = pool.map(|x: u64| anyhow::Ok(2 * x), 0..200).unwrap().collect();
    let alone: Vec<_> = alone.into_iter().map(|task| task.join()).collect();
    let mut failed = 0;
    for (item, result) in (0..20).zip(alone).chain((0..200).zip(mapped)) {
        match result {
            Ok(value) => assert_eq!(value, 2 * item, "{plan}"),
            Err(error) => {
                let TaskFailure::WorkerEnded(outcome) = error.failure() else { panic!("{plan}: {error}") };
                assert_eq!(outcome.pid(), faults.fired()[0].pid, "{plan}: {error}");
                failed += 1;
            }
        }
    }
    assert!(failed <= faults.count(), "{plan}: {failed} calls failed");
    pool.join().unwrap();
    faults.count()
}

#[test]
fn faults_that_are_drawn_are_told_as_what_they_were() {
    start_server();
    watched(|| {
        for method in [StartMethod::Spawn, StartMethod::ForkServer] {
            let menu = fault::Menu::new(RANKS).sites(SITES).time(common::race_time());
            let chaos =
                fault::chaos(&menu, job(method)).unwrap_or_else(|error| panic!("{method:?}: {error}"));
            print(&format!("{method:?}: {chaos}"));
        }
    });
}
