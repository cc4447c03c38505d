//! Where the results of one task or one map arrive, in the process of the pool.
//!
//! A delivery is put by the thread that pumps, or by whichever fails a task, with or without the pool's lock; it is taken by the owner of
//! the handle alone. One waiter is enough for that: a delivery wakes the thread that named itself last, and the future that was polled
//! last.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::task::Waker;
use std::thread::Thread;

use super::delivery::Delivery;

/// The handle and the task's occupant have it. It is also what tells tasks of one handle from those of another: by `Arc::ptr_eq`.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    contents: Mutex<Contents>,
    /// Whether the handle is gone that would take what arrives.
    is_abandoned: AtomicBool,
}

#[derive(Debug, Default)]
struct Contents {
    arrived: VecDeque<Delivery>,
    /// The thread that sleeps until something arrives.
    waiter: Option<Thread>,
    /// The task of an asynchronous program that awaits something.
    task: Option<Waker>,
}

impl Inbox {
    fn lock(&self) -> std::sync::MutexGuard<'_, Contents> {
        // No user code runs with the lock held, so that a panic leaves nothing half done.
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a delivery behind the others, and wakes the thread that waits. What nobody wants is dropped.
    pub(super) fn put(&self, delivery: Delivery) {
        if !self.is_wanted() {
            return;
        }
        let mut contents = self.lock();
        contents.arrived.push_back(delivery);
        if let Some(waiter) = contents.waiter.take() {
            waiter.unpark();
        }
    }

    /// Notes that the handle is gone, so that what arrives is dropped.
    pub(super) fn abandon(&self) {
        self.is_abandoned.store(true, Relaxed);
    }

    /// Whether the handle is there. It may go at any moment after this: then what arrives is dropped with the inbox.
    pub(super) fn is_wanted(&self) -> bool {
        !self.is_abandoned.load(Relaxed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().arrived.is_empty()
    }

    pub(super) fn take(&self) -> Option<Delivery> {
        self.lock().arrived.pop_front()
    }

    /// Takes all that has arrived, behind what `into` has. False: nothing had.
    pub(super) fn take_all(&self, into: &mut VecDeque<Delivery>) -> bool {
        let mut contents = self.lock();
        into.append(&mut contents.arrived);
        !into.is_empty()
    }

    /// Has the next [`tell`](Self::tell) wake this task, instead of the one before.
    pub(super) fn wake_task(&self, task: Waker) {
        let earlier = self.lock().task.replace(task);
        // Without the lock, as all code of the program: the last waker of a task drops the task, and what it holds.
        drop(earlier);
    }

    /// Wakes the task that awaits something. Called without any lock.
    pub(super) fn tell(&self) {
        let task = self.lock().task.take();
        task.into_iter().for_each(Waker::wake);
    }

    /// Has the next delivery wake this thread, instead of the one before.
    pub(super) fn wake(&self, waiter: Thread) {
        self.lock().waiter = Some(waiter);
    }
}
