//! A futex and a word as loom has them, for the models of the algorithms in this room.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::sync::atomic::AtomicU32;
use loom::sync::{Condvar, Mutex};

use super::word::{Park, Word};

/// Tries the orders in which threads may run. More switches than that take hours, and find nothing.
pub(super) fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

impl Word for AtomicU32 {
    fn load(&self, ordering: Ordering) -> u32 {
        Self::load(self, ordering)
    }

    fn swap(&self, new: u32, ordering: Ordering) -> u32 {
        Self::swap(self, new, ordering)
    }

    fn replace(&self, old: u32, new: u32, ordering: Ordering) -> Result<u32, u32> {
        self.compare_exchange(old, new, ordering, Ordering::Relaxed)
    }

    fn add(&self, by: u32, ordering: Ordering) -> u32 {
        self.fetch_add(by, ordering)
    }

    fn barrier_after_change() {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// The kernel's queue of one word: asking for the value and falling asleep are one step.
#[derive(Clone)]
pub(super) struct Futex {
    /// With how many sleep.
    queue: Arc<(Mutex<usize>, Condvar)>,
    /// Wakes by itself, and gives up.
    gives_up: bool,
}

impl Futex {
    pub(super) fn new() -> Self {
        Self { queue: Arc::new((Mutex::new(0), Condvar::new())), gives_up: false }
    }

    /// The same for one whose time is up as soon as it was woken, or was to sleep.
    pub(super) fn impatient(&self) -> Self {
        Self { gives_up: true, ..self.clone() }
    }
}

impl Park<AtomicU32> for Futex {
    type Stop = ();

    fn wait(&self, word: &AtomicU32, expected: u32) -> Result<(), ()> {
        let (lock, woken) = &*self.queue;
        let mut queue = lock.lock().unwrap();
        if word.load(Ordering::SeqCst) == expected {
            *queue += 1;
            drop(woken.wait(queue).unwrap());
        }
        if self.gives_up { Err(()) } else { Ok(()) }
    }

    fn wake(&self, _word: &AtomicU32, count: i32) -> usize {
        let (lock, woken) = &*self.queue;
        let mut queue = lock.lock().unwrap();
        let count = usize::try_from(count).unwrap().min(*queue);
        *queue -= count;
        (0..count).for_each(|_| woken.notify_one());
        count
    }

    fn spins(&self) -> bool {
        false
    }

    fn nanos(&self) -> u64 {
        0
    }
}
