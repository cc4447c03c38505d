//! Waiting for results. One of the threads that wait takes results out of the queue, for all of them; so no thread of the pool's
//! stands between a worker and the thread that wants its result.
//!
//! # One pumps, the others sleep
//!
//! At most one thread at a time *pumps*: it has set `pumps` in the pool's state, blocks in the queue of results, and gives each result to
//! the inbox that it is for. All others that wait are in `sleepers`, and parked. A sleeper wakes for one of two reasons: its inbox has
//! got something, or it is to pump.
//!
//! No wake-up is lost, since a thread's park token stays until it parks, and since each of the two orders is right:
//!
//! - A sleeper enters the list under the lock, and looks there whether anybody pumps. A pump that stops clears `pumps` under the same lock, and
//!   unparks the first of the list. So either the sleeper sees that nobody pumps, or the pump sees the sleeper.
//! - A sleeper names itself to its inbox before it looks into that for the last time. What comes later unparks it.
//! - A sleeper that was woken to pump and goes away instead, as its result or its timeout has come, wakes the next one.
//!
//! # What is counted
//!
//! Each message that is taken out counts in `delivered`, whatever it says, and the queue counts what was put. So [`Hub::drain`] knows,
//! without looking at the messages, when all that a dead worker had put before its end has been taken in.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::fence;
use std::sync::{Arc, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use super::delivery::{Delivery, Results, Several};
use super::error::{TaskFailed, TaskFailure};
use super::hub::{Hub, State};
use super::inbox::Inbox;
use super::label::{Kind, ResultLabel, Ticket};
use super::ledger;
use super::tray;
use crate::error::{Raised, RaisedError};
use crate::queue::{Incoming, Outgoing, QueueError};
use crate::sync::wait_policy::WaitPolicy;
use crate::sys::clock::Moment;
use crate::wire::codec;
use crate::worker::entry::Entry;

/// How long a thread sleeps for the end of a chunk before it has workers tell of each item: chunks are made to take half as long.
const SOON: Duration = Duration::from_millis(1);

impl Hub {
    /// Waits until `ready` has something. One of the threads that wait takes results out of the queue, for all of them; the others
    /// sleep. `register` names the thread that is to be woken when `ready` may have something.
    ///
    /// Called without the pool's lock, by threads of the program alone. `ready` may take the lock, and runs the program's code nowhere.
    /// It is called before `policy` is looked at, so that what is there is given even where no time is left.
    ///
    /// # Errors
    /// As those of a wait in a queue: the time is up, the wait was aborted, or the pool has ended, which closes the queue of results.
    pub(super) fn wait<T>(
        &self,
        policy: &WaitPolicy,
        mut ready: impl FnMut() -> Option<T>,
        register: impl Fn(Thread),
    ) -> Result<T, QueueError> {
        loop {
            if let Some(value) = ready() {
                return Ok(value);
            }
            policy.check().map_err(QueueError::not_got("no worker handed in a result"))?;
            if let Some(_pumping) = self.begin_to_pump() {
                loop {
                    // Once more, now that nobody else takes results out: the pool's thread may have told a failure, and taken out its own
                    // nudge, since this thread has looked.
                    if let Some(value) = ready() {
                        return Ok(value);
                    }
                    match self.next_result(policy) {
                        Ok(Some(result)) => self.deliver(result),
                        Ok(None) => {}
                        // The pool has ended, and nothing more will come: all that was outstanding has been told.
                        Err(QueueError::Closed) => return ready().ok_or(QueueError::Closed),
                        Err(error) => return Err(error),
                    }
                }
            }
            let _asleep = self.fall_asleep();
            register(thread::current());
            // What came before the registration has woken no thread.
            if let Some(value) = ready() {
                return Ok(value);
            }
            match policy.end() {
                Some(end) => thread::park_timeout(end.since(Moment::now())),
                None => thread::park(),
            }
        }
    }

    /// Makes this thread the one that takes results out, until what it returns is dropped. `None`: another one does.
    pub(super) fn begin_to_pump(&self) -> Option<Pumping<'_>> {
        let mut state = self.lock();
        (!std::mem::replace(&mut state.pumps, true)).then(|| Pumping(self))
    }

    /// Enters this thread among the sleepers, until what it returns is dropped.
    fn fall_asleep(&self) -> Asleep<'_> {
        let mut state = self.lock();
        state.sleepers.push_back(thread::current());
        // The last one may have stopped pumping since this thread looked.
        if !state.pumps {
            thread::current().unpark();
        }
        Asleep(self)
    }

    /// Waits for the next message of a worker. `None`: what came lay in a tray, and has been delivered.
    ///
    /// Where chunks are on their way it waits for a millisecond first as if there were no trays: workers then put a message for each
    /// chunk, and not one for each item. Only then it says that it sleeps ([`Awaiting`]), looks into the trays, and sleeps for as long as
    /// `policy` says.
    fn next_result(&self, policy: &WaitPolicy) -> Result<Option<Incoming>, QueueError> {
        let results = self.results.core();
        let soon = WaitPolicy::of(SOON);
        if self.has_chunks() && policy.end().is_none_or(|end| soon.end() < Some(end)) {
            // The end of a chunk is a message, and will come soon, unless an item takes long.
            match results.get(&soon) {
                Err(QueueError::TimedOut { .. }) => {}
                came => return came.map(Some),
            }
        }
        let _awaiting = Awaiting::begin(self);
        // A chunk that is not counted yet when this looks begins after the word was set: its worker finds the word.
        if self.has_chunks() && self.look_into_trays() {
            return Ok(None);
        }
        results.get(policy).map(Some)
    }

    /// Gives the results of a message to the inbox that they are for.
    ///
    /// The thread that pumps calls it, without the lock. The occupant is changed under the lock; what is the program's own is decoded
    /// later, by the thread that wants it.
    pub(super) fn deliver(&self, message: Incoming) {
        let label = ResultLabel::read(&message.bytes);
        let Some((inbox, make)) = self.accept(label) else { return };
        let delivery = make(message);
        inbox.put(delivery);
        inbox.tell();
    }

    /// Counts the results of a message, and finds their inbox. `None`: the task is over, or nothing is to be told.
    ///
    /// What it returns beside the inbox makes the delivery of the message, without the lock. A result whose ticket is over, of a task
    /// that was cancelled or failed meanwhile, counts as delivered and nothing else.
    fn accept(
        &self,
        label: Option<ResultLabel>,
    ) -> Option<(Arc<Inbox>, impl FnOnce(Incoming) -> Delivery + use<>)> {
        let mut state = self.lock();
        state.delivered = state.delivered.wrapping_add(1);
        self.tell_drains(&state);
        let label = label.filter(|label| label.kind != Kind::Nudge)?;
        let occupant = state.occupant(label.ticket)?;
        let (items, entry, first, earlier) =
            (occupant.items, occupant.entry, occupant.first, occupant.earlier.clone());
        let deadline = occupant.times.deadline.map_or(Duration::ZERO, |deadline| deadline.after);
        // The first of several may have been found in the tray before.
        let (item, skipped, results) = occupant.take_in(label.item, label.items)?;
        let inbox = occupant.inbox.clone();
        let is_last = label.kind == Kind::Dropped || occupant.delivered >= items;
        if is_last {
            self.end_task_of(&mut state, label.ticket);
        }
        match label.kind {
            Kind::Dropped => return None,
            Kind::Returned | Kind::Several => state.done += u64::from(results),
            _ => state.failed += 1,
        }
        let chunk = (is_last && items > 0).then(|| (items, Duration::from_nanos(label.busy)));
        let late = move || TaskFailure::DeadlinePassed { deadline, outcome: None };
        let make = move |message: Incoming| {
            let failed = |began, failure| {
                TaskFailed::new(entry.name(), first.map(|_| item), began, failure).after(earlier)
            };
            let results = if label.kind == Kind::Several {
                Results::Several(Several::new(message.bytes, ResultLabel::LEN, skipped, results))
            } else {
                outcome_of(label.kind, message, entry, failed, late)
            };
            Delivery { item, results, chunk }
        };
        Some((inbox, make))
    }

    /// Gives up the cell of a task that has ended.
    ///
    /// Called with the last result, or the last in a dead worker's tray. The worker has changed the word to Sending, which nothing but
    /// this changes, or is dead.
    fn end_task_of(&self, state: &mut State, ticket: Ticket) {
        let cell = self.cell(ticket);
        ledger::take_back(&cell.word, cell.standing(), false);
        self.vacate(state, ticket);
    }

    /// Takes in what the workers have in their trays. True: there was something.
    pub(super) fn look_into_trays(&self) -> bool {
        let found = (0..self.ledger.desks().len()).filter(|&seat| self.take_tray(seat, false));
        found.count() > 0
    }

    /// Delivers the results in a worker's tray. True: there were some. The caller takes results out of the queue for all, and has
    /// found it empty; or the worker `is_dead`, and all that it had put has been delivered.
    pub(super) fn take_tray(&self, seat: usize, is_dead: bool) -> bool {
        let Some(found) = self.ledger.tray(seat).read() else { return false };
        let mut state = self.lock();
        let Some(occupant) = state.occupant(found.ticket).filter(|occupant| occupant.is_chunk()) else {
            return false;
        };
        // The result of the last item comes as a message, which says that the task has ended; from a dead worker it does not.
        let items = found.items.min((occupant.items - u32::from(!is_dead)).saturating_sub(found.first));
        let Some((item, skipped, results)) = occupant.take_in(found.first, items) else { return false };
        let inbox = occupant.inbox.clone();
        if occupant.delivered >= occupant.items {
            self.end_task_of(&mut state, found.ticket);
        }
        state.done += u64::from(results);
        drop(state);
        let results = Results::Several(Several::new(found.bytes, 0, skipped, results));
        inbox.put(Delivery { item, results, chunk: None });
        inbox.tell();
        true
    }

    /// Takes in the results that are there, without waiting, unless another thread does.
    pub(super) fn look(&self) {
        if let Some(_pumping) = self.begin_to_pump() {
            while let Ok(result) = self.results.core().get(&WaitPolicy::Never) {
                self.deliver(result);
            }
        }
    }

    /// Takes in all results that have been put.
    ///
    /// The pool's thread calls it, before it says what a dead worker had in its hands, and a handle that is dropped. It waits for what
    /// has been put up to now, and for nothing that workers put meanwhile. While another thread pumps it sleeps until that has delivered
    /// something or has stopped.
    pub(super) fn drain(&self) {
        let put = self.results.core().put_count();
        let mut state = self.lock();
        while put.wrapping_sub(state.delivered).cast_signed() > 0 {
            if state.pumps {
                // One thread at a time, so that the results of a chunk are delivered in their order.
                state.drain += 1;
                state = self.delivered.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.drain -= 1;
                continue;
            }
            drop(state);
            self.look();
            state = self.lock();
        }
    }

    /// Wakes the threads in [`drain`](Self::drain).
    fn tell_drains(&self, state: &State) {
        if state.drain > 0 {
            self.delivered.notify_all();
        }
    }

    /// Wakes the thread that waits for results: what it waits for may have come otherwise.
    ///
    /// A message, since the thread that pumps sleeps in the queue and cannot be unparked. Threads that wait for room, or for the end of
    /// all tasks, are unparked.
    pub(super) fn nudge(&self) {
        let ticket = Ticket { cell: 0, generation: 0 };
        let label = ResultLabel::of(ticket, Kind::Nudge, 0);
        let results = self.results.core();
        // Where the queue is full the thread is awake.
        let _ = Outgoing::labelled(&label.to_bytes(), &(), results.inline())
            .and_then(|message| results.put(message, &WaitPolicy::Never));
        self.lock().without_room.drain(..).for_each(|thread| thread.unpark());
    }
}

/// Reads what came of a task, as far as it is no business of its type's.
///
/// A result that a worker has written wrongly, or that did not arrive whole, is a failure of its task ([`TaskFailure::Result`]) and of
/// nothing else.
fn outcome_of(
    kind: Kind,
    message: Incoming,
    entry: &'static Entry,
    failed: impl FnOnce(bool, TaskFailure) -> TaskFailed,
    late: impl Fn() -> TaskFailure,
) -> Results {
    let read = |message: Incoming| {
        message.open(ResultLabel::LEN, |bytes, _| codec::decode_plain::<String>(bytes)).and_then(|text| text)
    };
    let text = |message| read(message).unwrap_or_else(|reason| reason);
    let failed = match kind {
        Kind::Returned => return Results::One(message),
        Kind::Late => failed(false, late()),
        Kind::Arguments => failed(false, TaskFailure::Arguments(text(message))),
        Kind::Raised => {
            let raised = message.open(ResultLabel::LEN, |bytes, received| match received {
                None => codec::decode_plain::<Raised>(bytes),
                Some(received) => codec::decode::<Raised>(bytes, received).0,
            });
            match raised.and_then(|raised| raised) {
                Ok(raised) => failed(true, TaskFailure::Raised(RaisedError::new(raised, entry.callee(None)))),
                Err(reason) => failed(true, TaskFailure::Result(reason)),
            }
        }
        Kind::Result | Kind::Dropped | Kind::Nudge | Kind::Several => {
            failed(true, TaskFailure::Result(text(message)))
        }
    };
    Results::Failed(failed)
}

/// While this is there, workers put each result into the queue before they begin the next item.
#[derive(Debug)]
pub(super) struct Awaiting<H: AsRef<Hub>>(H);

impl<H: AsRef<Hub>> Awaiting<H> {
    pub(super) fn begin(hub: H) -> Self {
        tray::await_results(hub.as_ref().ledger.awaited(), || fence(SeqCst));
        Self(hub)
    }
}

impl<H: AsRef<Hub>> Drop for Awaiting<H> {
    fn drop(&mut self) {
        self.0.as_ref().ledger.awaited().fetch_sub(1, Relaxed);
    }
}

/// The thread that has this takes results out of the queue for all.
pub(super) struct Pumping<'a>(&'a Hub);

impl Drop for Pumping<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.pumps = false;
        self.0.tell_drains(&state);
        if let Some(next) = state.sleepers.front() {
            next.unpark();
        } else if self.0.futures.load(SeqCst) > 0 {
            // What is in the queue has rung already, for polls that left it to this thread.
            self.0.results.core().ring_event(true);
        }
    }
}

/// The thread that has this sleeps while another one takes results out of the queue.
struct Asleep<'a>(&'a Hub);

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        let own = thread::current().id();
        let mut state = self.0.lock();
        state.sleepers.retain(|thread| thread.id() != own);
        // It may have been woken to take over, and have what it waited for: then the next one is to take over.
        if let Some(next) = state.sleepers.front().filter(|_| !state.pumps) {
            next.unpark();
        }
    }
}
