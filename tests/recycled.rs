//! TensorPool: when the memory of a tensor is used again, whoever had it and however that ended.

mod common;

use common::{
    await_that, by, by_each_method, kill_and_join, launched, under_both_strategies, wait_for_ever, watched,
    with_worker,
};
use phalanx::shm::StorageId;
use phalanx::{Connection, Options, Queue, Shard, StartMethod, Tensor, TensorPool, pipe, start_processes};

phalanx::auto_init!();

const LEN: usize = 100_000;

fn id_of_next(pool: &TensorPool) -> StorageId {
    pool.tensor::<u8>(&[LEN]).unwrap().storage_id()
}

#[test]
fn tensor_that_another_process_has_is_not_made_again_until_it_has_dropped_it() {
    fn work(_: usize, launcher: Connection<u8, Option<Tensor<u8>>>) -> anyhow::Result<()> {
        let mut held = None;
        loop {
            let next = launcher.recv()?;
            let ends = next.is_none() && held.is_none();
            held = next;
            launcher.send(held.as_ref().map_or(Ok(0), |tensor| tensor.get(7))?)?;
            if ends {
                return Ok(());
            }
        }
    }
    under_both_strategies(|| {
        with_worker(work, |worker| {
            let pool = TensorPool::new(4);
            let tensor = pool.tensor::<u8>(&[LEN]).unwrap();
            tensor.set(7, 9).unwrap();
            let id = tensor.storage_id();
            worker.send(Some(tensor)).unwrap();
            assert_eq!(worker.recv().unwrap(), 9);
            assert_ne!(id_of_next(&pool), id);
            worker.send(None).unwrap();
            worker.recv().unwrap();
            let again = pool.tensor::<u8>(&[LEN]).unwrap();
            assert_eq!((again.storage_id(), again.get(7).unwrap(), pool.made()), (id, 9, 2));
            worker.send(None).unwrap();
            worker.recv().unwrap();
        });
    });
}

#[test]
fn message_that_nobody_has_received_keeps_its_memory_until_it_is_gone() {
    under_both_strategies(|| {
        let (pool, queue) = (TensorPool::new(4), Queue::<Tensor<u8>>::bounded(4).unwrap());
        let tensor = pool.tensor::<u8>(&[LEN]).unwrap();
        let id = tensor.storage_id();
        queue.put(&tensor).unwrap();
        drop(tensor);
        assert_ne!(id_of_next(&pool), id);
        // It comes back to the process that has sent it.
        let back = queue.get().unwrap();
        assert_eq!(back.storage_id(), id);
        assert_ne!(id_of_next(&pool), id);
        queue.put(back).unwrap();
        drop(queue);
        assert_eq!(id_of_next(&pool), id);
    });
}

fn hold(_: usize, (from, told): (Queue<Tensor<u8>>, Queue<u32>)) -> anyhow::Result<()> {
    let _held = from.get()?;
    told.put(std::process::id())?;
    wait_for_ever()
}

#[test]
fn memory_of_a_process_that_is_killed_is_used_again_by_each_start_method() {
    launched(|_, ()| {
        by_each_method(|method| {
            // What is made before a fork is not used again after it, so the worker is there first.
            let (to, told) = (Queue::bounded(4).unwrap(), Queue::bounded(1).unwrap());
            let held = start_processes(hold, (to.clone(), told.clone()), by(method, 1)).unwrap();
            let pool = TensorPool::new(4);
            let tensor = pool.tensor::<u8>(&[LEN]).unwrap();
            let id = tensor.storage_id();
            to.put(tensor).unwrap();
            told.get().unwrap();
            assert_ne!(id_of_next(&pool), id);
            assert!(kill_and_join(held));
            assert_eq!(id_of_next(&pool), id);
        })
    });
}

#[test]
fn process_that_got_it_from_another_one_is_counted_too() {
    fn pass_on(_: usize, (from, to): (Queue<Tensor<u8>>, Queue<Tensor<u8>>)) -> anyhow::Result<()> {
        to.put(from.get()?)?;
        Ok(())
    }
    watched(|| {
        let pool = TensorPool::new(4);
        let (first, second, told) =
            (Queue::bounded(1).unwrap(), Queue::bounded(1).unwrap(), Queue::bounded(1).unwrap());
        let passes = start_processes(pass_on, (first.clone(), second.clone()), Options::new(1)).unwrap();
        let tensor = pool.tensor::<u8>(&[LEN]).unwrap();
        let id = tensor.storage_id();
        first.put(tensor).unwrap();
        passes.join().unwrap();
        // In a message of a process that has ended.
        assert_ne!(id_of_next(&pool), id);
        let holds = start_processes(hold, (second, told.clone()), Options::new(1)).unwrap();
        told.get().unwrap();
        assert_ne!(id_of_next(&pool), id);
        drop(holds);
        await_that(|| id_of_next(&pool) == id);
    });
}

#[test]
fn arguments_and_results_are_counted() {
    fn give_back(_: usize, tensor: Tensor<u8>) -> anyhow::Result<Tensor<u8>> {
        Ok(tensor)
    }
    under_both_strategies(|| {
        let pool = TensorPool::new(4);
        let tensor = pool.tensor::<u8>(&[LEN]).unwrap();
        let id = tensor.storage_id();
        let results = start_processes(give_back, tensor, Options::new(1)).unwrap().join().unwrap();
        assert_eq!(results[0].storage_id(), id);
        assert_ne!(id_of_next(&pool), id);
        drop(results);
        assert_eq!(id_of_next(&pool), id);
    });
}

#[test]
fn shards_of_it_are_exclusive_each_time() {
    fn fill(_: usize, (shards, back): (Queue<Shard<u8>>, Queue<Shard<u8>>)) -> anyhow::Result<()> {
        for shard in shards {
            let mut shard = shard?;
            shard.as_mut_slice()?.fill(3);
            back.put(shard)?;
        }
        Ok(())
    }
    watched(|| {
        let pool = TensorPool::new(4);
        let (to, back) = (Queue::bounded(2).unwrap(), Queue::bounded(2).unwrap());
        let filler = start_processes(fill, (to.clone(), back.clone()), Options::new(1)).unwrap();
        for _ in 0..20 {
            for shard in pool.tensor::<u8>(&[LEN]).unwrap().into_shards(2).unwrap() {
                to.put(shard).unwrap();
            }
            let shards = (0..2).map(|_| back.get().unwrap()).collect();
            assert!(Tensor::from_shards(shards).unwrap().to_vec().iter().all(|&element| element == 3));
        }
        to.close().unwrap();
        filler.join().unwrap();
        assert!(pool.made() <= 2, "{pool:?}");
        // Frozen, it is a copy, and the memory is free again.
        let tensor = pool.tensor::<u8>(&[LEN]).unwrap();
        let id = tensor.storage_id();
        assert_ne!(tensor.freeze().unwrap().storage_id(), id);
        assert!((0..2).any(|_| id_of_next(&pool) == id));
    });
}

#[test]
fn memory_that_a_forked_worker_may_have_is_not_used_again() {
    launched(|_, ()| {
        let pool = TensorPool::new(4);
        let before = id_of_next(&pool);
        assert_eq!(id_of_next(&pool), before);
        let (ours, theirs) = pipe::<(), ()>().unwrap();
        let work = |_, end: Connection<(), ()>| anyhow::Ok(end.recv()?);
        let options = Options::new(1).start_method(StartMethod::Fork);
        let forked = start_processes(work, theirs, options).unwrap();
        assert_ne!(id_of_next(&pool), before);
        ours.send(()).unwrap();
        forked.join().unwrap();
        Ok(())
    });
}
