//! The ledger in all orders of its steps, deaths included.
//!
//! Each model is one race between two or three processes, whose steps loom puts into all orders; a death is a process that stops after some step. The
//! models use [`Word`](super::Word) as the library does, with loom's atomics for the words.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::sync::atomic::{AtomicBool, AtomicU64};
use loom::thread;

use super::*;

fn word(state: State, worker: u16) -> Arc<AtomicU64> {
    Arc::new(AtomicU64::new(Standing { generation: 1, worker, state }.to_word()))
}

fn standing(word: &AtomicU64) -> Standing {
    Standing::from_word(word.load(Ordering::SeqCst))
}

#[test]
fn loom_task_that_was_cancelled_never_begins_and_one_that_has_begun_is_not_cancelled() {
    loom::model(|| {
        let word = word(State::Queued, 0);
        let worker = thread::spawn({
            let word = word.clone();
            move || claim(&*word, 1, 7) && begin(&*word, 1, 7)
        });
        let cancelled = cancel(&*word, 1);
        assert_ne!(worker.join().unwrap(), cancelled);
    });
}

#[test]
fn loom_condemned_worker_begins_no_other_task() {
    loom::model(|| {
        let (first, second) = (word(State::Running, 7), word(State::Queued, 0));
        let worker = thread::spawn({
            let (first, second) = (first.clone(), second.clone());
            move || finish(&*first, 1) && claim(&*second, 1, 7) && begin(&*second, 1, 7)
        });
        // The time limit asks, and the grace is over at once.
        ask(&*first, 1);
        let condemned = condemn(&*first, 1);
        let goes_on = worker.join().unwrap();
        assert_ne!(condemned.is_some(), goes_on);
        assert_eq!(standing(&second).state == State::Running, goes_on);
    });
}

#[test]
fn loom_task_whose_worker_died_before_it_took_it_out_has_one_next_owner() {
    loom::model(|| {
        // Worker 7 has claimed it and died; the message is still in the queue, and its bytes are kept.
        let word = word(State::Claimed, 7);
        let next = thread::spawn({
            let word = word.clone();
            move || claim(&*word, 1, 8) && begin(&*word, 1, 8)
        });
        let dead = Standing { generation: 1, worker: 7, state: State::Claimed };
        let given_out_again = take_back(&*word, dead, true);
        assert_ne!(next.join().unwrap(), given_out_again);
        let found = standing(&word);
        let expected = if given_out_again { (2, State::Queued) } else { (1, State::Running) };
        assert_eq!((found.generation, found.state), expected);
    });
}

#[test]
fn loom_worker_that_takes_over_the_claim_of_a_dead_one_is_not_condemned_with_it() {
    loom::model(|| {
        // Worker 7 has claimed it and died; the message is still in the queue.
        let word = word(State::Claimed, 7);
        let next = thread::spawn({
            let word = word.clone();
            move || claim(&*word, 1, 8) && begin(&*word, 1, 8) && finish(&*word, 1)
        });
        // The pool found the dead one's claim a moment ago.
        seize(&*word, 1, 7);
        assert!(next.join().unwrap());
    });
}

#[test]
fn loom_late_result_and_kill_have_one_winner_that_both_see() {
    loom::model(|| {
        let word = word(State::Running, 7);
        let result = Arc::new(AtomicBool::new(false));
        let worker = thread::spawn({
            let (word, result) = (word.clone(), result.clone());
            move || {
                if finish(&*word, 1) {
                    result.store(true, Ordering::SeqCst);
                }
            }
        });
        let killer = thread::spawn({
            let word = word.clone();
            move || condemn(&*word, 1).is_some()
        });
        worker.join().unwrap();
        assert_ne!(killer.join().unwrap(), result.load(Ordering::SeqCst));
    });
}
