//! What is known of the tasks of a queue: how many are done, and which threads hold the others.
//!
//! A thread that takes tasks owns a place, in which it counts the tasks that it holds: one more before it takes one, one less after
//! it has said that one is done. So a task that was taken, and is neither done nor held by a living thread, is lost. `join` loads
//! these counts in an order in which it never finds a loss that there is none of.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::core::Core;
use super::error::QueueError;
use crate::error::MemoryError;
use crate::sync::awaited::Awaited;
use crate::sync::event_count::EventCount;
use crate::sync::owner_table::{self, OwnerTable, Slot};
use crate::sync::wait_policy::{Interrupted, WaitPolicy};
use crate::sys::atomic_record::atomic_record;
use crate::sys::robust::{self, RobustWord};
use crate::transfer::record::{Handle, Record, TypeTag};

atomic_record! {
    /// The place of a thread that takes tasks.
    pub(super) struct TakerSlot {
        taker: RobustWord,
        /// How many tasks its owner has in its hands.
        held: AtomicU32,
    }
}

impl Slot for TakerSlot {
    #[inline]
    fn robust(&self) -> &RobustWord {
        &self.taker
    }
}

atomic_record! {
    struct TaskFields {
        /// Counts the tasks that are done.
        done: EventCount,
        /// How many places of the table have ever been taken: see [`OwnerTable`].
        used: AtomicU32,
        /// 1 once a thread has found no place. What it holds is not known, so no loss is reported from then on.
        crowded: AtomicU32,
    }
}

/// How many threads can hold tasks of a queue so that their death is reported.
//
// More than `join` can sleep on at once (FUTEX_WAITV_MAX, 128 words): the death of the others is found when it looks again.
const PLACES: usize = 256;
const KIND: &str = "tasks";

/// The record of a queue's tasks.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Tasks {
    shared: Record<TaskFields>,
}

impl Tasks {
    pub(super) fn new() -> Result<Self, MemoryError> {
        let shared = Record::new(TypeTag::of::<()>(KIND), PLACES * size_of::<TakerSlot>())?;
        Ok(Self { shared })
    }

    fn fields(&self) -> &TaskFields {
        self.shared.fields()
    }

    fn table(&self) -> OwnerTable<'_, TakerSlot> {
        OwnerTable::new(self.shared.beside(), &self.fields().used)
    }

    fn own(&self) -> Option<&TakerSlot> {
        self.table().own(robust::me().ok()?)
    }

    /// The place of this thread; takes one if it has none. `None`: all are taken, and losses are not reported any more.
    ///
    /// # Errors
    /// [`QueueError::Aborted`] and [`QueueError::System`], the latter also when this thread owns too many robust words.
    pub(super) fn sit_down(&self) -> Result<Option<Seat<'_>>, QueueError> {
        // A seat is given up with the last task in it. A thread can own 1,000 words (`sys::robust`), so one that has taken a task
        // from each of many queues would else soon be unable to lock anything.
        if let Some(place) = self.own() {
            return Ok(Some(Seat(place)));
        }
        // A place with tasks and without an owner is that of a dead thread whose loss was not reported yet: a new owner would
        // hide it, since its tasks would count as held by a living thread.
        let is_free = |slot: &TakerSlot| !owner_table::is_owned(slot) && slot.held.load(Relaxed) == 0;
        while let Some(number) = self.table().first(is_free) {
            match self.table().take(number, || self.shared.map_pin()) {
                Ok(slot) => return Ok(Some(Seat(slot))),
                // Another thread was faster.
                Err(Interrupted::WouldBlock) => {}
                Err(stop) => return Err(QueueError::not_got("no place for its tasks became free")(stop)),
            }
        }
        self.fields().crowded.store(1, Release);
        Ok(None)
    }

    /// Says that one more task is done, whichever of the tasks that this process holds it was.
    ///
    /// # Errors
    /// [`QueueError::TooManyDone`] when all tasks that were put are done.
    pub(super) fn task_done(&self, queue: &Core) -> Result<(), QueueError> {
        let mut counted = None;
        self.fields().done.notify_if(|done| {
            counted = count_done(done, || queue.put_count());
            // The last task wakes the joiners.
            counted == Some(true)
        });
        if counted.is_none() {
            return Err(QueueError::TooManyDone);
        }
        // After `done` has advanced. In between the task counts twice, as done and as held, which makes a loss look smaller. In
        // the other order it would count as neither, and `join` would report it lost.
        self.hold_one_less();
        Ok(())
    }

    /// Takes one task off the places of this process, this thread's first.
    fn hold_one_less(&self) {
        // Dropped at the end: it frees this thread's place if that was its last task.
        let _seat = self.own().map(Seat);
        let pid = std::process::id();
        // A thread may hand a task to another one of its process, which then says that it is done, and has no place, or none with
        // tasks.
        let of_process = self.table().used().iter().filter(|slot| slot.taker.owner_pid.load(Relaxed) == pid);
        for place in self.own().into_iter().chain(of_process) {
            let less = |held: u32| held.checked_sub(1);
            if owner_table::is_owned(place) && place.held.fetch_update(Release, Relaxed, less).is_ok() {
                return;
            }
        }
    }

    /// How many tasks were put and are not done.
    pub(super) fn unfinished(&self, queue: &Core) -> u32 {
        let done = self.fields().done.epoch();
        queue.put_count().wrapping_sub(done)
    }

    /// Waits until all tasks that were put are done, or some never will be, since their takers are dead.
    ///
    /// # Errors
    /// [`QueueError::TasksLost`] to one joiner, which has counted these tasks as done; [`QueueError::TimedOut`] with the
    /// processes that hold tasks; [`QueueError::Aborted`] and [`QueueError::System`] of the wait.
    pub(super) fn join(&self, queue: &Core, policy: &WaitPolicy) -> Result<(), QueueError> {
        loop {
            // Before all counts: the death of a thread that is counted as living below changes its word (FUTEX_OWNER_DIED), so
            // that this thread is woken, or does not fall asleep on the old value.
            let watched: Vec<_> = self.table().used().iter().filter_map(owner_table::watch).collect();
            // In this order: taken, held, done. A task taken after the first load is in `held` at most, one that is finished
            // after the second is in `held` and in `done`. Both make `lost` too small, never too large, and the next look finds
            // what was missed. A task in `taken` has its place's count visible: `hold` comes before the swap that takes it out
            // (`Core::get_noted`, Release), and `taken_count` is an Acquire load.
            let taken = queue.taken_count();
            let (held, dead) = self.hands();
            let done = self.fields().done.epoch();
            if queue.put_count() == done {
                return Ok(());
            }
            let lost = taken.wrapping_sub(done).wrapping_sub(held).cast_signed();
            if lost <= 0 || self.fields().crowded.load(Acquire) != 0 {
                // For a moment only, since not all that matters wakes it: a thread that sits down from now on is not watched; a
                // thread that was about to take a task when it was counted may hide a loss; and the kernel wakes one waiter of a
                // dead thread's word, which may be another joiner that is killed in turn.
                let moment = policy.for_a_moment();
                let heard = self.fields().done.wait_once(done, &watched, &moment);
                heard.map_err(|stop| QueueError::stopped(stop, QueueError::Empty, || self.holders()))?;
            } else if self.count_as_done(done, lost.cast_unsigned()) {
                return Err(told(lost.cast_unsigned(), &dead));
            }
        }
    }

    /// How many tasks living threads hold, and the places of those that have died with some.
    fn hands(&self) -> (u32, Vec<&TakerSlot>) {
        let (mut held, mut dead) = (0_u32, Vec::new());
        for place in self.table().used() {
            if owner_table::is_owned(place) {
                held = held.wrapping_add(place.held.load(Acquire));
            } else if place.held.load(Acquire) > 0 {
                dead.push(place);
            }
        }
        (held, dead)
    }

    /// The processes that hold unfinished tasks.
    fn holders(&self) -> Awaited {
        let busy = |place: &&TakerSlot| owner_table::is_owned(*place) && place.held.load(Acquire) > 0;
        Awaited::holders(
            "unfinished tasks are",
            self.table().used().iter().filter(busy).map(|place| place.taker.owner_pid.load(Relaxed)),
        )
    }

    /// Counts lost tasks as done. False if the count is not `done` any more: another joiner may have been faster.
    fn count_as_done(&self, done: u32, count: u32) -> bool {
        // By compare-and-swap: of several joiners that find the same loss, one reports it.
        let next = done.wrapping_add(count);
        self.fields().done.notify_if(|known| known.compare_exchange(done, next, AcqRel, Relaxed).is_ok())
    }
}

/// Counts one more task as done; says whether it was the last of those that were put. `None`: all of them are done already.
fn count_done(done: &AtomicU32, put_count: impl Fn() -> u32) -> Option<bool> {
    let mut put = 0;
    // Release: a joiner that reads this count (`epoch`, Acquire) sees what was done in the task.
    let before = done.fetch_update(AcqRel, Acquire, |done| {
        // Loaded after `done`, and anew for each attempt. A count from before could miss a task that was put and done meanwhile: then
        // it equals `done`, although this thread holds a task. The Acquire loads of `done` make it no older: each task in `done` was
        // put before.
        put = put_count();
        (done != put).then(|| done.wrapping_add(1))
    });
    Some(before.ok()?.wrapping_add(1) == put)
}

/// The error for lost tasks, which it takes out of the places of the dead.
fn told(count: u32, dead: &[&TakerSlot]) -> QueueError {
    let (mut left, mut pids) = (count, Vec::new());
    for place in dead {
        // At most as many as are lost: a thread that died between `hold` and the swap has counted a task that is in the queue still.
        let of_place = place.held.load(Relaxed).min(left);
        if of_place > 0 {
            place.held.fetch_sub(of_place, Relaxed);
            left -= of_place;
            pids.push(place.taker.owner_pid.load(Relaxed));
        }
    }
    QueueError::tasks_lost(count as usize, pids)
}

impl<'de> Deserialize<'de> for Tasks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (handle, room) = (Handle::deserialize(deserializer)?, PLACES * size_of::<TakerSlot>());
        let shared = Record::receive(handle, TypeTag::of::<()>(KIND), room).map_err(D::Error::custom)?;
        Ok(Self { shared })
    }
}

/// The place of this thread, which it gives up when it goes and holds no task.
pub(super) struct Seat<'a>(&'a TakerSlot);

impl Seat<'_> {
    /// One task more is in the hands of this thread.
    pub(super) fn hold(&self) {
        // Relaxed: the swap that takes the task out follows, and publishes this too.
        self.0.held.fetch_add(1, Relaxed);
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if self.0.held.load(Relaxed) == 0 {
            owner_table::free(self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{Scope, ScopedJoinHandle};

    use super::super::message::Outgoing;
    use super::*;
    use crate::sys::futex;

    fn queue(tasks: u8) -> (Core, Tasks) {
        let queue = (Core::new(TypeTag::of::<u8>("test"), 4).unwrap(), Tasks::new().unwrap());
        for task in 0..tasks {
            queue.0.put(Outgoing::of(&task, queue.0.inline()).unwrap(), &WaitPolicy::Forever).unwrap();
        }
        queue
    }

    fn take(queue: &Core, tasks: &Tasks) {
        let seat = tasks.sit_down().unwrap().unwrap();
        queue.get_noted(&WaitPolicy::Forever, |_, _| seat.hold()).unwrap();
    }

    /// Joins on a thread of its own; returns when that sleeps.
    fn begin_to_join<'scope>(
        scope: &'scope Scope<'scope, '_>,
        (queue, tasks): (&'scope Core, &'scope Tasks),
        tid: &'scope AtomicU32,
    ) -> ScopedJoinHandle<'scope, Result<(), QueueError>> {
        let joiner = scope.spawn(move || {
            tid.store(robust::me().unwrap().tid, Release);
            tasks.join(queue, &WaitPolicy::Forever)
        });
        futex::tests::await_asleep(tid);
        joiner
    }

    fn assert_one_lost(told: &Result<(), QueueError>) {
        assert!(matches!(told, Err(QueueError::TasksLost { count: 1, .. })), "{told:?}");
    }

    #[test]
    fn death_of_one_who_sat_down_after_join_began_is_told() {
        let ((queue, tasks), tid) = (queue(1), AtomicU32::new(0));
        std::thread::scope(|scope| {
            // The joiner has no place to watch yet. Only its look after a moment can find this thread, which ends with the task.
            let joiner = begin_to_join(scope, (&queue, &tasks), &tid);
            scope.spawn(|| take(&queue, &tasks));
            assert_one_lost(&joiner.join().unwrap());
        });
    }

    #[test]
    fn loss_is_told_though_another_was_about_to_take_a_task_when_join_looked() {
        let ((queue, tasks), tid) = (queue(2), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| take(&queue, &tasks)).join().unwrap();
            // The middle of a get: the task is counted, and not taken yet.
            let seat = tasks.sit_down().unwrap().unwrap();
            seat.hold();
            let joiner = begin_to_join(scope, (&queue, &tasks), &tid);
            queue.get(&WaitPolicy::Forever).unwrap();
            tasks.task_done(&queue).unwrap();
            // This thread lives on.
            assert_one_lost(&joiner.join().unwrap());
        });
    }

    #[test]
    fn task_is_not_one_too_many_because_another_was_put_and_done_meanwhile() {
        let (put, done) = (AtomicU32::new(1), AtomicU32::new(0));
        let put_count = || {
            let seen = put.load(Acquire);
            if seen == 1 {
                // Another thread puts a task, takes it and has it done, between this load and what follows.
                put.store(2, Release);
                done.fetch_add(1, AcqRel);
            }
            seen
        };
        assert_eq!(count_done(&done, put_count), Some(true));
        assert_eq!(count_done(&done, put_count), None);
    }

    #[test]
    fn thread_that_was_at_many_queues_can_still_take_locks() {
        let (give, given) = std::sync::mpsc::channel::<std::sync::Arc<(Core, Tasks)>>();
        let (give_back, back) = std::sync::mpsc::channel();
        let worker = std::thread::spawn(move || {
            for queue in given {
                take(&queue.0, &queue.1);
                queue.1.task_done(&queue.0).unwrap();
                give_back.send(queue).unwrap();
            }
        });
        // More than the 1,000 words that a thread can own.
        for _ in 0..1010 {
            give.send(std::sync::Arc::new(queue(1))).unwrap();
            drop(back.recv().expect("the worker can take nothing any more"));
        }
        drop(give);
        worker.join().unwrap();
    }
}
