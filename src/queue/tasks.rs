//! What is known of the tasks of a queue: how many are done, and who has the others.
//!
//! A thread that takes tasks owns a place, in which it counts those that it holds: one more before it takes one, one less after
//! it has said that one is done. So what was taken, and is neither done nor held by a living thread, is lost; whoever
//! asks in the right order never finds too much.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::core::Core;
use super::error::QueueError;
use crate::error::MemoryError;
use crate::sync::awaited::Awaited;
use crate::sync::event_count::EventCount;
use crate::sync::owner_table::{self, OwnerTable};
use crate::sync::wait_policy::{Interrupted, WaitPolicy};
use crate::sys::atomic_record::atomic_record;
use crate::sys::robust::{self, RobustWord};
use crate::transfer::record::{Handle, Record, TypeTag};

atomic_record! {
    struct TaskFields {
        /// Counts the tasks that are done.
        done: EventCount,
        /// Of the table of threads that have tasks: see [`OwnerTable`].
        used: AtomicU32,
        /// Set when a thread found no place: what it holds is not known.
        crowded: AtomicU32,
    }
}

/// How many threads can hold tasks of a queue for whose death anybody is told.
const PLACES: usize = 256;
const KIND: &str = "tasks";

/// The record of a queue's tasks. In a place the `mark` is how many its owner holds.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Tasks {
    shared: Record<TaskFields>,
}

impl Tasks {
    pub(super) fn new() -> Result<Self, MemoryError> {
        let shared = Record::new(TypeTag::of::<()>(KIND), PLACES * size_of::<RobustWord>())?;
        Ok(Self { shared })
    }

    fn fields(&self) -> &TaskFields {
        self.shared.fields()
    }

    fn table(&self) -> OwnerTable<'_> {
        OwnerTable::new(self.shared.beside(), &self.fields().used)
    }

    fn own(&self) -> Option<&RobustWord> {
        self.table().own(robust::me().ok()?)
    }

    /// The place of this thread; takes one if it has none. It is given up with the last task in it, so that a thread which has
    /// been at many queues does not own a word of each. `None`: all are taken.
    pub(super) fn sit_down(&self) -> Result<Option<Seat<'_>>, QueueError> {
        if let Some(place) = self.own() {
            return Ok(Some(Seat(place)));
        }
        // A slot with tasks is that of a dead thread whose loss was not reported yet.
        let is_free = |slot: &RobustWord| !owner_table::is_owned(slot) && slot.mark.load(Relaxed) == 0;
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

    /// Says that one more task is done.
    pub(super) fn task_done(&self, queue: &Core) -> Result<(), QueueError> {
        let (put, mut too_many) = (queue.put_count(), false);
        self.fields().done.notify_if(|done| {
            let next = |done: u32| (done != put).then(|| done.wrapping_add(1));
            match done.fetch_update(AcqRel, Relaxed, next) {
                // The last task wakes the joiners.
                Ok(before) => before.wrapping_add(1) == put,
                Err(_) => {
                    too_many = true;
                    false
                }
            }
        });
        if too_many {
            return Err(QueueError::TooManyDone);
        }
        self.hold_one_less();
        Ok(())
    }

    /// One that this thread holds, or another one of this process: it may have been handed over.
    fn hold_one_less(&self) {
        let _seat = self.own().map(Seat);
        let pid = std::process::id();
        let of_process = self.table().used().iter().filter(|slot| slot.holder.load(Relaxed) == pid);
        for place in self.own().into_iter().chain(of_process) {
            let less = |held: u32| held.checked_sub(1);
            if owner_table::is_owned(place) && place.mark.fetch_update(Release, Relaxed, less).is_ok() {
                return;
            }
        }
    }

    /// How many tasks were put and are not done.
    pub(super) fn unfinished(&self, queue: &Core) -> u32 {
        let done = self.fields().done.epoch();
        queue.put_count().wrapping_sub(done)
    }

    /// Waits until all tasks that were put are done, or some never will be.
    pub(super) fn join(&self, queue: &Core, policy: &WaitPolicy) -> Result<(), QueueError> {
        loop {
            // Watched from now on: who dies after the count changes a word.
            let watched: Vec<_> = self.table().used().iter().filter_map(owner_table::watch).collect();
            let taken = queue.taken_count();
            let (held, dead) = self.hands();
            let done = self.fields().done.epoch();
            if queue.put_count() == done {
                return Ok(());
            }
            let lost = taken.wrapping_sub(done).wrapping_sub(held).cast_signed();
            if lost <= 0 || self.fields().crowded.load(Acquire) != 0 {
                // Not all that matters wakes it: who sits down from now on is not watched, one that was about to take a task when
                // it was counted may hide a loss, and of several who join the one that a death wakes may be killed itself.
                let moment = policy.for_a_moment();
                let heard = self.fields().done.wait_once(done, &watched, &moment);
                heard.map_err(|stop| QueueError::stopped(stop, QueueError::Empty, || self.holders()))?;
            } else if self.count_as_done(done, lost.cast_unsigned()) {
                return Err(told(lost.cast_unsigned(), &dead));
            }
        }
    }

    /// How many tasks living threads hold, and the places of those that have died with some.
    fn hands(&self) -> (u32, Vec<&RobustWord>) {
        let (mut held, mut dead) = (0_u32, Vec::new());
        for place in self.table().used() {
            if owner_table::is_owned(place) {
                held = held.wrapping_add(place.mark.load(Acquire));
            } else if place.mark.load(Acquire) > 0 {
                dead.push(place);
            }
        }
        (held, dead)
    }

    /// Those who have taken tasks that are not done.
    fn holders(&self) -> Awaited {
        let busy = |place: &&RobustWord| owner_table::is_owned(place) && place.mark.load(Acquire) > 0;
        Awaited::holders(
            "unfinished tasks are",
            self.table().used().iter().filter(busy).map(|place| place.holder.load(Relaxed)),
        )
    }

    /// Says whether it could, so that lost tasks are told once.
    fn count_as_done(&self, done: u32, count: u32) -> bool {
        let next = done.wrapping_add(count);
        self.fields().done.notify_if(|known| known.compare_exchange(done, next, AcqRel, Relaxed).is_ok())
    }
}

/// The error for lost tasks. It takes them out of the slots of the dead, so that they are reported once.
fn told(count: u32, dead: &[&RobustWord]) -> QueueError {
    let (mut left, mut pids) = (count, Vec::new());
    for place in dead {
        let of_place = place.mark.load(Relaxed).min(left);
        if of_place > 0 {
            place.mark.fetch_sub(of_place, Relaxed);
            left -= of_place;
            pids.push(place.holder.load(Relaxed));
        }
    }
    QueueError::tasks_lost(count as usize, pids)
}

impl<'de> Deserialize<'de> for Tasks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (handle, room) = (Handle::deserialize(deserializer)?, PLACES * size_of::<RobustWord>());
        let shared = Record::receive(handle, TypeTag::of::<()>(KIND), room).map_err(D::Error::custom)?;
        Ok(Self { shared })
    }
}

/// The place of this thread, which it gives up when it goes and holds no task.
pub(super) struct Seat<'a>(&'a RobustWord);

impl Seat<'_> {
    /// One task more is in the hands of this thread.
    pub(super) fn hold(&self) {
        self.0.mark.fetch_add(1, Relaxed);
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if self.0.mark.load(Relaxed) == 0 {
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
        queue.get_noted(&WaitPolicy::Forever, || seat.hold()).unwrap();
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
            // As in the middle of a get: it is noted, but not taken yet.
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
        for _ in 0..1010 {
            give.send(std::sync::Arc::new(queue(1))).unwrap();
            drop(back.recv().expect("the worker can take nothing any more"));
        }
        drop(give);
        worker.join().unwrap();
    }
}
