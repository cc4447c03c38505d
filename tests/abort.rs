//! Workers whose sibling fails stop waiting.

mod common;

use std::time::Duration;

use common::{await_post, board, ignore_term, launched, post, raised, served, watched};
use phalanx::sync::{AbortedBy, Lock, SyncError};
use phalanx::{Connection, Options, Queue, QueueError, StartMethod, Tensor, start_processes, wait};

phalanx::auto_init!();

type Args = (Queue<u8>, Queue<u8>, Lock<u8>, Tensor<i64>);

/// The last rank fails when all others wait, each in another way; they tell by what their wait was ended.
fn work(rank: usize, (empty, full, lock, ready): Args) -> anyhow::Result<()> {
    post(&ready, rank, 1);
    match rank {
        0 => {
            let aborted = matches!(empty.get(), Err(QueueError::Aborted { by: AbortedBy::Rank(5) }));
            // Nor is anything waited for after that; what can be had is had.
            let again = matches!(empty.get(), Err(QueueError::Aborted { .. }));
            let own = Queue::bounded(1)?;
            own.put(7)?;
            note(&ready, rank, aborted && again && own.get()? == 7);
        }
        1 => note(&ready, rank, matches!(full.put(1), Err(QueueError::Aborted { by: AbortedBy::Rank(5) }))),
        2 => {
            let told = wait(&[&empty], Some(Duration::from_secs(100)));
            note(&ready, rank, matches!(told, Err(QueueError::Aborted { by: AbortedBy::Rank(5) })));
        }
        3 => {
            let (ours, _theirs): (Connection<u8, u8>, Connection<u8, u8>) = phalanx::pipe()?;
            note(&ready, rank, matches!(ours.recv(), Err(QueueError::Aborted { by: AbortedBy::Rank(5) })));
        }
        4 => note(&ready, rank, matches!(lock.lock(), Err(SyncError::Aborted { by: AbortedBy::Rank(5) }))),
        _ => {
            for rank in 0..5 {
                await_post(&ready, rank);
            }
            anyhow::bail!("out of luck")
        }
    }
    Ok(())
}

fn note(ready: &Tensor<i64>, rank: usize, right: bool) {
    ready.set(rank, if right { 100 } else { -1 }).unwrap();
}

fn siblings_are_told(options: Options) {
    let (empty, full) = (Queue::bounded(1).unwrap(), Queue::bounded(1).unwrap());
    full.put(1).unwrap();
    let (lock, ready) = (Lock::new(0).unwrap(), board(6));
    let held = lock.lock().unwrap();
    let args = (empty, full, lock.clone(), ready.clone());
    let options = options.abort_on_failure(true).grace_period(Duration::from_secs(3600));
    let error = start_processes(work, args, options).unwrap().join().unwrap_err();
    drop(held);
    let exception = raised(error);
    assert_eq!((exception.error_index(), exception.chain()), (5, &["out of luck".to_owned()][..]));
    assert_eq!(ready.to_vec()[..5], [100; 5]);
}

#[test]
fn who_waits_is_told_who_failed() {
    watched(|| siblings_are_told(Options::new(6)));
    launched(|_, ()| {
        siblings_are_told(served(6));
        siblings_are_told(Options::new(6).start_method(StartMethod::Fork));
        Ok(())
    });
}

/// Waits for what never comes; the program ends it, which also sends it SIGTERM.
fn wait_in_vain(_rank: usize, (queue, ready): (Queue<u8>, Tensor<i64>)) -> anyhow::Result<()> {
    ignore_term();
    post(&ready, 0, 1);
    let told = matches!(queue.get(), Err(QueueError::Aborted { by: AbortedBy::Launcher }));
    ready.set(1, i64::from(told))?;
    Ok(())
}

#[test]
fn drop_of_the_context_ends_the_wait_without_a_rank_to_blame() {
    watched(|| {
        let (queue, ready) = (Queue::bounded(1).unwrap(), board(2));
        let options = Options::new(1).abort_on_failure(true).grace_period(Duration::from_secs(3600));
        let context = start_processes(wait_in_vain, (queue, ready.clone()), options).unwrap();
        await_post(&ready, 0);
        drop(context);
        assert_eq!(ready.get(1).unwrap(), 1);
    });
}

#[test]
fn without_the_option_nobody_is_told() {
    watched(|| {
        let (queue, ready) = (Queue::bounded(1).unwrap(), board(2));
        let options = Options::new(1).grace_period(Duration::from_millis(50));
        let context = start_processes(wait_in_vain, (queue, ready.clone()), options).unwrap();
        await_post(&ready, 0);
        drop(context);
        assert_eq!(ready.get(1).unwrap(), 0);
    });
}
