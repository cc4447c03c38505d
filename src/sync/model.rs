//! A futex and a word as loom has them, for the models of the algorithms in this room.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::sync::atomic::AtomicU32;
use loom::sync::{Condvar, Mutex};

use super::futex_lock::{AtomicWord, Futex};
use crate::sys::robust::{OWNER, OWNER_DIED, WAITERS};

/// Tries the orders in which threads may run. More switches than that take hours, and find nothing.
pub(super) fn check(model: impl Fn() + Sync + Send + 'static) {
    check_switches(3, model);
}

/// As [`check`], with at most `most` switches from a thread that could go on.
pub(super) fn check_switches(most: usize, model: impl Fn() + Sync + Send + 'static) {
    // A preemption is a switch from a thread that could go on; those that sleep or end cost none.
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(most);
    builder.check(model);
}

impl AtomicWord for AtomicU32 {
    fn load(&self, ordering: Ordering) -> u32 {
        Self::load(self, ordering)
    }

    fn store(&self, new: u32, ordering: Ordering) {
        Self::store(self, new, ordering);
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
        // Loom has no processor on which the locked instruction before would be enough.
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// Of which pending words the kernel wakes a sleeper when the thread ends and does not own them (handle_futex_death).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    /// Before Linux 5.5: of none.
    WakesNever,
    /// Of one that is 0.
    WakesAtZero,
    /// Of a word without an owner: since Linux 6.2, and in stable kernels since December 2022.
    WakesWithoutOwner,
}

pub(super) const KERNELS: [Kernel; 3] = [Kernel::WakesNever, Kernel::WakesAtZero, Kernel::WakesWithoutOwner];

/// The kernel's queue of one word: asking for the value and falling asleep are one step.
#[derive(Clone)]
pub(super) struct FutexModel {
    kernel: Kernel,
    queue: Arc<Queue>,
    /// Sleeps no longer than a moment, as `WaitPolicy` where the kernel does not wake of all pending words.
    looks_again: bool,
    /// Wakes by itself, and gives up.
    gives_up: bool,
}

#[derive(Default)]
struct Queue {
    threads: Mutex<Threads>,
    /// Notified for sleepers when some were woken.
    woken: Condvar,
    /// Notified for the thread that lets time pass when another one sleeps or is done.
    changed: Condvar,
}

#[derive(Default)]
struct Threads {
    /// The numbers of the sleepers, in the order in which they are woken.
    asleep: Vec<u32>,
    next: u32,
    /// How many wait for nothing any more.
    done: usize,
}

impl FutexModel {
    pub(super) fn on(kernel: Kernel) -> Self {
        let looks_again = kernel != Kernel::WakesWithoutOwner;
        Self { kernel, queue: Arc::default(), looks_again, gives_up: false }
    }

    /// A sleeper that relies on the kernel to wake it, and does not look again.
    pub(super) fn trusting(self) -> Self {
        Self { looks_again: false, ..self }
    }

    /// The same for one whose time is up as soon as it was woken, or was to sleep.
    pub(super) fn impatient(&self) -> Self {
        Self { gives_up: true, ..self.clone() }
    }

    /// This thread waits for nothing any more.
    pub(super) fn done(&self) {
        self.queue.threads.lock().unwrap().done += 1;
        self.queue.changed.notify_one();
    }

    /// Waits until `count` threads are done. Whenever all others sleep, the sleeps of limited length end.
    pub(super) fn await_done(&self, count: usize) {
        let mut threads = self.queue.threads.lock().unwrap();
        while threads.done < count {
            // Only then: were sleepers to wake at any moment, no model would ever find one that sleeps for ever.
            if self.looks_again && threads.done + threads.asleep.len() == count {
                threads.asleep.clear();
                self.queue.woken.notify_all();
            }
            threads = self.queue.changed.wait(threads).unwrap();
        }
    }

    /// What the kernel does with a word of a thread that has ended with it pending (handle_futex_death).
    pub(super) fn bury(&self, word: &AtomicU32, tid: u32) {
        loop {
            let seen = word.load(Ordering::SeqCst);
            // It owns nothing: the kernel changes nothing, and at most wakes one (`pending_op` of handle_futex_death).
            if seen & OWNER != tid {
                let wakes = match self.kernel {
                    Kernel::WakesNever => false,
                    Kernel::WakesAtZero => seen == 0,
                    Kernel::WakesWithoutOwner => seen & OWNER == 0,
                };
                self.wake(word, wakes.into());
                return;
            }
            // WAITERS stays, for the sleepers that this one wake leaves asleep.
            let dead = (seen & WAITERS) | OWNER_DIED;
            if word.replace(seen, dead, Ordering::SeqCst).is_ok() {
                self.wake(word, (seen & WAITERS != 0).into());
                return;
            }
        }
    }
}

// Nothing spins: loom tries all orders of the steps after a spin anyway. Nor does time pass, so that no guess is made
// by it.
impl Futex<AtomicU32> for FutexModel {
    type Interrupted = ();

    fn wait(&self, words: &[(&AtomicU32, u32)]) -> Result<(), ()> {
        // The mutex stands for the lock of the kernel's hash bucket: to compare the words and to fall asleep is one
        // step for a waker.
        let mut threads = self.queue.threads.lock().unwrap();
        if words.iter().all(|(word, expected)| word.load(Ordering::SeqCst) == *expected) {
            // Never used twice: a thread that sleeps again must not be taken for itself in an earlier sleep.
            let own = threads.next;
            threads.next += 1;
            threads.asleep.push(own);
            self.queue.changed.notify_one();
            // `wake` notifies all, and each sleeper has a number: only those that the waker took out go
            // on.
            while threads.asleep.contains(&own) {
                threads = self.queue.woken.wait(threads).unwrap();
            }
        }
        drop(threads);
        // After the sleep, not instead of it: the wake may have come for this thread.
        if self.gives_up { Err(()) } else { Ok(()) }
    }

    fn wake(&self, _word: &AtomicU32, count: i32) -> usize {
        let mut threads = self.queue.threads.lock().unwrap();
        // Whichever word: each model has one place to sleep, and a wake that comes to the wrong sleeper is a spurious
        // one to it. The first that fell asleep is woken first, as the kernel does it among threads of one priority.
        let count = usize::try_from(count).unwrap().min(threads.asleep.len());
        // Out of the queue under its lock, as the kernel unqueues a waiter before it runs: no second wake counts the
        // same sleeper.
        threads.asleep.drain(..count);
        self.queue.woken.notify_all();
        count
    }

    fn check(&self) -> Result<(), ()> {
        Ok(())
    }

    fn spins(&self) -> bool {
        false
    }

    fn nanos(&self) -> u64 {
        0
    }
}

/// How a thread waits that is killed as soon as it is woken, or was to sleep.
pub(super) struct Doomed {
    pub(super) futex: FutexModel,
    pub(super) tid: u32,
}

impl Futex<AtomicU32> for Doomed {
    type Interrupted = ();

    fn wait(&self, words: &[(&AtomicU32, u32)]) -> Result<(), ()> {
        let _ = self.futex.wait(words);
        // Its last store is behind it: whatever it was woken for, it has not taken the word.
        words.iter().for_each(|(word, _)| self.futex.bury(word, self.tid));
        Err(())
    }

    /// The dead do not.
    fn wake(&self, _word: &AtomicU32, _count: i32) -> usize {
        0
    }

    fn check(&self) -> Result<(), ()> {
        Ok(())
    }

    fn spins(&self) -> bool {
        false
    }

    fn nanos(&self) -> u64 {
        0
    }
}
