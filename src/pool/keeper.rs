//! The thread of a pool: starts its workers, replaces those that end, says what the dead ones had in their hands, and keeps time.
//! Results pass it by: the threads that wait for them take them in.
//!
//! A step goes from what has happened to what is to be done: ends and requests are taken in, tasks are told, alarms are looked at, the
//! phase is entered, and workers are started; then it sleeps in the epoll of its children until the next of these. It holds the pool's
//! lock for moments only, and never while it waits or starts a process.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::alarm::{Alarm, Purpose};
use super::hub::{Hub, Phase};
use super::label::Ticket;
use super::ledger::{self, Standing};
use super::seats::{Seat, Seats};
use crate::context::output::{Output, StderrFile};
use crate::context::postmortem;
use crate::context::{GroupConfig, Planned, postmortem::End};
use crate::error::{Error, Outcome, Status};
use crate::start::Plan;
use crate::supervise::group::{EndedChild, Group, LeftBehind, Step};
use crate::supervise::stop::Stop;
use crate::sys::clock::Moment;
use crate::sys::signal::Signal;
use crate::wire::slot::Slot;

/// The token of the event by which the thread is called.
const CALL: u32 = 0;
/// That of the thread that carries what the workers print.
const OUTPUT: u32 = 1;
/// That of the socket at which workers ask for what the pool has for them alone.
const REQUESTS: u32 = 2;
/// That of the queue of tasks, whose event says that there is room for one again.
const ROOM: u32 = 3;
/// How long workers have to exit when there are no more tasks, unless the options say it.
const EXIT: Duration = Duration::from_secs(30);
/// When tasks are put again for which the queue had no room.
pub(super) const AGAIN: Duration = Duration::from_millis(5);

/// How long the end of a worker waits for what it has printed to be written: no call waits longer for a console that takes nothing.
const PRINTING: Duration = Duration::from_secs(1);

/// The worker of a seat.
#[derive(Debug, Default)]
pub(super) struct Worker {
    /// The number of its process among the children; `None`: there was none at this seat yet.
    pub(super) child: Option<usize>,
    /// `None` when it has ended.
    pub(super) slot: Option<Slot>,
    /// What its desk said at its start: its predecessor's count.
    pub(super) begun: u64,
    /// When it is to have made its state; `None`: it has, or there is no limit.
    pub(super) set_up_until: Option<Moment>,
    /// Whether it was killed because it had not.
    pub(super) is_late: bool,
}

/// A worker that has ended, and whose tasks are told of it once all that it has printed is known.
#[derive(Debug)]
struct Ended {
    seat: usize,
    held: Vec<(Ticket, Standing)>,
    outcome: Outcome,
    /// When that is waited for no longer.
    until: Option<Moment>,
}

pub(super) struct Keeper {
    pub(super) hub: Arc<Hub>,
    /// What each worker is started from.
    pub(super) plan: Plan,
    /// How workers are ended, and which function a traceback shows where none was called.
    config: GroupConfig,
    /// What the workers print, if this process carries it, and the files to which it carries their stderr.
    pub(super) output: Option<Output>,
    pub(super) stderr_files: Vec<StderrFile>,
    /// Workers whose tasks have not been told of their ends.
    ended: Vec<Ended>,
    /// Above `workers`: dropping the group ends the children, which may write into their slots until then.
    pub(super) children: Group,
    /// By seat.
    pub(super) workers: Vec<Worker>,
    /// By the number of the child.
    pub(super) seats_of: Vec<usize>,
    /// Which seats have workers that stay.
    pub(super) seats: Seats,
    /// When it looks whether there were more workers than were needed.
    pub(super) next_look: Option<Moment>,
    began: Moment,
    /// When workers have ended before they began a task, and whether they were setting themselves up.
    pub(super) early: Vec<(Moment, bool)>,
    /// When a start that was refused is tried again.
    pub(super) next_start: Option<Moment>,
    /// How the workers are being ended, once they are.
    ending: Option<Ending>,
}

/// How workers are ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    /// They find the queue closed and empty, and exit.
    Closed,
    /// By SIGTERM.
    Terminated,
    /// By SIGKILL.
    Killed,
}

impl Keeper {
    /// Starts the first workers, all or none.
    pub(super) fn start(hub: Arc<Hub>, planned: Planned) -> Result<Self, Error> {
        let Planned { plan, config, output, stderr_files } = planned;
        let watched = Group::new().and_then(|children| {
            children.watch_too(hub.call.as_fd(), CALL)?;
            children.watch_too(hub.requests.as_fd(), REQUESTS)?;
            children.watch_too(hub.tasks.core().event().map_err(io::Error::other)?, ROOM)?;
            if let Some(pump) = output.as_ref().and_then(Output::pump) {
                children.watch_too(pump.as_fd(), OUTPUT)?;
            }
            Ok(children)
        });
        let children = watched.map_err(Error::system("watch the workers (epoll_create1, timerfd_create)"))?;
        let count = hub.ledger.desks().len();
        let mut keeper = Self {
            seats: Seats::new(hub.size(), count),
            workers: (0..count).map(|_| Worker::default()).collect(),
            hub,
            plan,
            config,
            output,
            stderr_files,
            ended: Vec::new(),
            children,
            seats_of: Vec::new(),
            next_look: None,
            began: Moment::now(),
            early: Vec::new(),
            next_start: None,
            ending: None,
        };
        for seat in keeper.seats.to_start(keeper.hub.size.min) {
            keeper.start_worker(seat)?;
        }
        keeper.note_size();
        Ok(keeper)
    }

    /// Keeps the pool until it has ended.
    pub(super) fn run(mut self) {
        let failed = loop {
            match self.step() {
                Ok(true) => {}
                Ok(false) => break None,
                Err(error) => break Some(error.to_string()),
            }
        };
        // Without this thread no worker would be ended or replaced, so none is left, and no task is taken.
        if let Some(reason) = &failed {
            self.hub.break_off(reason.clone());
        }
        let reason = failed.unwrap_or_else(|| "the pool has ended".to_owned());
        drop(self.children);
        self.hub.drain();
        self.hub.give_up_all(&reason);
        // Wakes those that wait for a result. A queue that refuses to be closed has no waiters that this process could wake.
        let _ = self.hub.results.core().close();
    }

    /// Does what there is to do, and sleeps until there is more. False: all workers have ended, and none is to come.
    fn step(&mut self) -> io::Result<bool> {
        loop {
            match self.children.next()? {
                Step::Ended(number) => self.take_end(number)?,
                Step::Readable(OUTPUT) => self.output.iter().for_each(Output::hear),
                Step::Readable(REQUESTS) => self.hub.answer_requests(),
                Step::Readable(ROOM) => {
                    self.hub.tasks.core().clear_event();
                    self.hub.nudge();
                }
                Step::Readable(_) => {
                    self.hub.call.clear();
                    self.hub.drain();
                }
                Step::Idle => break,
            }
        }
        self.tell_ends();
        self.look_at_alarms();
        self.look_at_set_ups();
        self.look_for_idle();
        self.put_again();
        self.enter_phase();
        for (number, why) in self.children.carry_on() {
            self.give_up_on(number, &why);
        }
        let wanted = self.wanted();
        if self.children.running() == 0 && self.ended.is_empty() && wanted.is_none() {
            return Ok(false);
        }
        self.look_at_desks();
        self.start_missing(wanted.unwrap_or(0));
        self.note_size();
        self.children.wait_until(self.deadline())?;
        Ok(true)
    }

    fn deadline(&self) -> Option<Moment> {
        let state = self.hub.lock();
        let again = (!state.again.is_empty()).then(|| Moment::now().checked_add(AGAIN)).flatten();
        let printed = self.ended.iter().filter_map(|ended| ended.until).min();
        let set_up = self.workers.iter().filter_map(|worker| worker.set_up_until).min();
        [state.alarms.next(), again, self.next_start, self.next_look, printed, set_up]
            .into_iter()
            .flatten()
            .min()
    }

    /// Takes in the end of a worker.
    ///
    /// The order matters: results that the worker had put, then those of its tray, and only then what it still had in its hands.
    fn take_end(&mut self, number: usize) -> io::Result<()> {
        let Some(known) = self.children.reap(number)? else { return Ok(()) };
        let seat = self.seats_of[number];
        // All that it had put before it died is in the queue, and counts.
        self.hub.drain();
        // … and so do the results in its tray.
        self.hub.take_tray(seat, true);
        let outcome = self.examine(number, &known);
        // One that has returned has handed in all that it had taken, and cells need not be looked through.
        let has_returned = outcome.status() == Status::Succeeded;
        let held = if has_returned { Vec::new() } else { self.hub.seize_from(seat as u16) };
        self.note_early_end(seat, &outcome);
        self.hub.lock().pids[seat] = 0;
        self.hub.drop_errands(seat, &outcome);
        // What is left of its process group was killed before it was reaped, so all that it has printed is in the pipes.
        self.output.iter().for_each(|output| output.finish(seat));
        self.ended.push(Ended { seat, held, outcome, until: Moment::now().checked_add(PRINTING) });
        Ok(())
    }

    /// Tells the tasks of the workers that have ended, once all that these have printed is written.
    fn tell_ends(&mut self) {
        let (now, output) = (Moment::now(), self.output.as_ref());
        let is_known = |ended: &mut Ended| {
            output.is_none_or(|output| output.is_carried_of(ended.seat))
                || ended.until.is_some_and(|until| until <= now)
        };
        let known: Vec<_> = self.ended.extract_if(.., is_known).collect();
        for Ended { seat, held, mut outcome, .. } in known {
            self.seats.set(seat, Seat::Empty);
            outcome.stderr_tail = output.map_or(Vec::new(), |output| output.tail(seat));
            for (ticket, standing) in held {
                self.hub.settle(ticket, standing, &outcome);
            }
            self.hub.nudge();
        }
    }

    fn examine(&mut self, number: usize, known: &EndedChild) -> Outcome {
        let times = (self.began, self.children.started(number));
        let pid = self.children.pids().nth(number).unwrap_or(0);
        // The function whose frames a traceback is to show.
        let seat = self.seats_of[number];
        let callee = self.hub.callee_at(seat).unwrap_or(self.config.callee);
        let ended = match self.workers[seat].slot.take() {
            Some(slot) => postmortem::examine(slot, known, times, callee, Vec::new()).ended,
            None => End::left_behind(&LeftBehind::Survived, times).ended,
        };
        Outcome {
            rank: seat % self.hub.size(),
            pid,
            exiting: false,
            ended: Some(ended),
            stderr_tail: Vec::new(),
        }
    }

    fn give_up_on(&mut self, number: usize, why: &LeftBehind) {
        let times = (self.began, self.children.started(number));
        let pid = self.children.pids().nth(number).unwrap_or(0);
        let ended = End::left_behind(why, times).ended;
        let seat = self.seats_of[number];
        self.workers[seat].slot = None;
        self.seats.set(seat, Seat::Empty);
        let rank = seat % self.hub.size();
        let outcome = Outcome { rank, pid, exiting: false, ended: Some(ended), stderr_tail: Vec::new() };
        self.hub.take_tray(seat, true);
        self.hub.lock().pids[seat] = 0;
        self.hub.drop_errands(seat, &outcome);
        for (ticket, standing) in self.hub.seize_from(seat as u16) {
            self.hub.settle(ticket, standing, &outcome);
        }
    }

    /// Ends what has run for too long.
    fn look_at_alarms(&mut self) {
        let now = Moment::now();
        loop {
            let due = self.hub.lock().alarms.pop_due(now);
            let Some(Alarm { ticket, purpose, .. }) = due else { return };
            match purpose {
                Purpose::Limit => self.hub.look_at_limit(ticket, now),
                Purpose::Deadline => self.hub.look_at_deadline(ticket),
                Purpose::Kill => self.kill(ticket),
                Purpose::Again => self.hub.put_again(&mut self.hub.lock(), ticket),
            }
        }
    }

    /// Kills the worker that runs a task, if it still does.
    ///
    /// The signal goes to the worker of the seat that the word names, which takes no other task once it is condemned.
    fn kill(&mut self, ticket: Ticket) {
        let Some(worker) = ledger::condemn(&self.hub.cell(ticket).word, ticket.generation) else { return };
        let Some(number) = self.workers.get(usize::from(worker)).and_then(|worker| worker.child) else {
            return;
        };
        // Refused: the worker waits for its end, and a later teardown gives it up.
        let _ = self.children.signal(number, Signal::KILL);
    }

    fn put_again(&self) {
        let mut state = self.hub.lock();
        for ticket in std::mem::take(&mut state.again) {
            self.hub.put_again(&mut state, ticket);
        }
    }

    /// Begins to end the workers, once the phase is one in which they are to end.
    fn enter_phase(&mut self) {
        let phase = {
            let state = self.hub.lock();
            match &state.phase {
                Phase::Closing if state.outstanding() > 0 => return,
                phase => phase.clone(),
            }
        };
        let ending = match phase {
            Phase::Open => return,
            Phase::Closing => Ending::Closed,
            Phase::Ending { kills: false } | Phase::Broken(_) => Ending::Terminated,
            Phase::Ending { kills: true } => Ending::Killed,
        };
        // Begun once: a stop that began anew would never come to its end.
        if self.ending >= Some(ending) {
            return;
        }
        self.ending = Some(ending);
        // If the system refuses, the phase keeps tasks out of the queue all the same.
        let _ = self.hub.tasks.core().close();
        if let Phase::Broken(reason) = &phase {
            self.hub.give_up_all(reason);
        }
        let (now, grace) = (Moment::now(), self.config.grace);
        let stop = match ending {
            Ending::Closed => Stop::after_failure(Some(grace.unwrap_or(EXIT)), now),
            Ending::Terminated => Stop::terminate(grace, now),
            Ending::Killed => Stop::at_once(now),
        };
        if ending != Ending::Closed {
            self.config.stop.raise(None);
        }
        self.children.stop(Some(stop));
    }
}
