//! Models of the parker: messages that are put as the waiter falls asleep, by producers that may die.

use std::sync::Arc;
use std::sync::atomic::Ordering::Release;

use loom::sync::atomic::AtomicU32;
use loom::thread;

use super::super::model::{FutexModel, KERNELS, Kernel, check};
use super::*;

#[derive(Default)]
struct Words {
    word: AtomicU32,
    waker: AtomicU32,
    last_wake: AtomicU32,
    skip_spin: AtomicU32,
    messages: AtomicU32,
}

/// One waits for a message, and then for another, as the inside of a mutex does.
fn receive(place: &Words, futex: &FutexModel) {
    // Twice: the second wait begins with the sequence number and the `last_wake` that the first has left behind, and
    // must not be taken for a waiter that was woken already.
    for wanted in 1..=2 {
        let look = || (place.messages.load(Acquire) >= wanted).then_some(());
        wait((&place.word, &place.waker, &place.skip_spin), futex, look).unwrap();
    }
}

fn put(place: &Words) {
    // It reads and writes, as `unpark` demands of the change before it: on x86-64 this instruction is the barrier.
    place.messages.fetch_add(1, Release);
}

/// One waits for two messages, and another thread puts them in some way.
fn race(futex: impl Fn() -> FutexModel + Sync + Send + 'static, producer: fn(&Words, &FutexModel)) {
    check(move || {
        let (place, futex) = (Arc::new(Words::default()), futex());
        let sleeper = {
            let (place, futex) = (place.clone(), futex.clone());
            thread::spawn(move || {
                receive(&place, &futex);
                futex.done();
            })
        };
        producer(&place, &futex);
        futex.await_done(1);
        sleeper.join().unwrap();
    });
}

#[test]
fn loom_sleeper_is_woken_for_each_message() {
    for kernel in KERNELS {
        race(
            move || FutexModel::on(kernel),
            |place, futex| {
                for _ in 0..2 {
                    put(place);
                    unpark(&place.word, &place.last_wake, futex);
                }
            },
        );
    }
}

#[test]
fn loom_next_message_wakes_when_the_producer_of_the_last_died_before_it_could() {
    for kernel in KERNELS {
        race(
            move || FutexModel::on(kernel),
            |place, futex| {
                put(place);
                // `last_wake` stays what it was: the next producer must not take the waiter for one that was woken
                // already. It dies in `wake`, after its first step, and the kernel has not noticed yet.
                AtomicU32::barrier_after_change();
                if place.word.load(Relaxed) & PARKED != 0 {
                    place.word.add(STEP, Relaxed);
                }
                put(place);
                unpark(&place.word, &place.last_wake, futex);
            },
        );
    }
}

/// The last producer of all dies as soon as its messages are there, as the owner of a word that is pending.
const DIES: fn(&Words, &FutexModel) = |place, futex| {
    futex_lock::own_unlisted(&place.waker, 1);
    // Both at once, and no wake: no later message comes that would make up for the wake that the death has cost.
    put(place);
    put(place);
    futex.bury(&place.waker, 1);
};

#[test]
fn loom_producer_that_dies_before_it_calls_leaves_nobody_asleep() {
    // Of a word with an owner every kernel tells.
    KERNELS.iter().for_each(|&kernel| race(move || FutexModel::on(kernel).trusting(), DIES));
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_finds_who_sleeps_for_ever_if_the_word_that_is_pending_does_not_change() {
    race(
        || FutexModel::on(Kernel::WakesWithoutOwner).trusting(),
        |place, futex| {
            put(place);
            put(place);
            // Not owned: the kernel wakes those that sleep, but changes no word, so a waiter that has looked already
            // and is about to sleep is not held back.
            futex.bury(&place.waker, 1);
        },
    );
}
