//! The workers of one context: watched, ended and reaped. The decisions are made in `verdict`, `diagnose` and
//! `stop`; here they are carried out.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use super::blame::Ends;
use super::member::Worker;
use super::oom::OomCounts;
use super::postmortem::{self, End, Known};
use super::returned::Returned;
use super::verdict::{Failing, Weight};
use crate::error::{Callee, Error, Outcome, Standing, Status, Story};
use crate::memory::storage::Loan;
use crate::start::Started;
use crate::supervise::child::Child;
use crate::supervise::stop::{Action, Stop};
use crate::supervise::watch::{Event, WatchSet};
use crate::sys::clock::Moment;
use crate::sys::forks::Here;
use crate::sys::signal::Signal;
use crate::wire::abort::{Abort, Blame};
use crate::wire::result_channel::ResultChannel;
use crate::wire::roster::Roster;

/// How long taking in reports may go on when the caller's time is up already.
const TAKING_IN: Duration = Duration::from_millis(10);

/// When to ask again after a worker that has ended but cannot be reaped yet, since a debugger holds it: there is
/// no event for that.
const HELD_RETRY: Duration = Duration::from_millis(100);

/// How long a worker may take to exit when its report is whole and no grace period was set.
const EXIT: Duration = Duration::from_secs(30);
/// The least that it may take: also with a short grace period its exit handlers are to have their time.
const LEAST_EXIT: Duration = Duration::from_secs(5);

/// What the launcher wants of its crew, and knows before it starts.
#[derive(Debug)]
pub(super) struct Orders {
    pub(super) daemon: bool,
    pub(super) grace: Option<Duration>,
    /// The user's function.
    pub(super) callee: Callee,
    /// By what the workers are told to wait for one another no longer, if they are to be.
    pub(super) abort: Option<Abort>,
    /// By it this process knows the ranks of those it waits for, as long as there is one.
    #[expect(dead_code, reason = "it is there to be known")]
    pub(super) roster: Arc<Roster>,
}

/// How far a crew is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Running,
    Finished,
}

#[derive(Debug)]
pub(super) struct Crew {
    workers: Vec<Worker>,
    watch: WatchSet,
    result_channel: ResultChannel,
    /// What the workers were given to write to, until all have ended.
    loans: Vec<Loan>,
    orders: Orders,
    oom: OomCounts,
    /// The process that started them, and its pid for an error. A fork of it has a copy of this, but not the children.
    owner: (Here, u32),
    running: usize,
    /// Ranks in the order of their ends.
    order: Vec<usize>,
    /// Ranks that have ended, but are not taken in yet.
    ended: VecDeque<usize>,
    /// Ranks that have ended, but that a debugger keeps from being reaped.
    held: Vec<usize>,
    /// When the first of them was started.
    begin: Moment,
    /// Until then those who run are known to have run.
    alive: Moment,
    /// How all were before the teardown, if the failure was that of one who had waited for others.
    standings: Vec<Standing>,
    stop: Option<Stop>,
    /// How those are ended, by rank, that have reported but do not exit.
    lingering: BTreeMap<usize, Stop>,
    /// When to look who has reported but does not exit, of which there is no event.
    next_look: Option<Moment>,
    /// Whether somebody is to blame.
    failing: bool,
    closed: bool,
    /// What is reported once all have ended, the same at every call.
    failure: Option<Story>,
}

impl Crew {
    pub(super) fn new(started: Started, orders: Orders, oom: OomCounts) -> Self {
        let Started { children, watch, result_channel, loans } = started;
        // One that failed early may have ended before this line.
        let begin = children.first().map_or_else(Moment::now, Child::started);
        let workers: Vec<_> = children.into_iter().map(Worker::new).collect();
        Self {
            orders,
            oom,
            owner: (Here::now(), std::process::id()),
            running: workers.len(),
            order: Vec::with_capacity(workers.len()),
            ended: VecDeque::new(),
            held: Vec::new(),
            workers,
            watch,
            result_channel,
            loans,
            begin,
            alive: begin,
            standings: Vec::new(),
            stop: None,
            lingering: BTreeMap::new(),
            next_look: None,
            failing: false,
            closed: false,
            failure: None,
        }
    }

    pub(super) fn nprocs(&self) -> usize {
        self.workers.len()
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.workers.iter().map(|worker| worker.pid).collect()
    }

    pub(super) fn outcomes(&self) -> Vec<Outcome> {
        let outcomes = self.workers.iter().enumerate().map(|(rank, worker)| worker.outcome(rank));
        self.ends().tell(outcomes.collect())
    }

    fn ends(&self) -> Ends<'_> {
        Ends::new(self.workers.iter().map(|worker| (worker.pid, worker.end.as_ref())).collect())
    }

    pub(super) fn status(&self, rank: usize) -> Option<Status> {
        Some(self.workers.get(rank)?.status())
    }

    /// Waits until all have ended or `deadline` has come, and carries a teardown on meanwhile.
    pub(super) fn wait(&mut self, deadline: Option<Moment>) -> Result<Progress, Error> {
        loop {
            if self.step(deadline)? == Progress::Finished {
                return Ok(Progress::Finished);
            }
            if deadline.is_some_and(|deadline| deadline <= Moment::now()) {
                return Ok(Progress::Running);
            }
            let until = [deadline, self.alarm()].into_iter().flatten().min();
            self.oom.note(self.workers.iter().map(|worker| worker.pid));
            self.watch.wait_until(until).map_err(Error::system("wait for the workers (ppoll)"))?;
        }
    }

    /// Does all that can be done now, without waiting.
    fn step(&mut self, deadline: Option<Moment>) -> Result<Progress, Error> {
        let all = self.look(deadline)?;
        if self.running == 0 {
            self.close()?;
            return Ok(Progress::Finished);
        }
        // Nobody is ended before all are known who have ended by themselves.
        if all && self.is_failing() {
            let first = self.first_failure();
            if first.is_some_and(|first| first.weight == Weight::Consequence) {
                self.standings = self.workers.iter().map(Worker::standing).collect();
            }
            self.abort(first.map(|first| first.rank));
            self.stop = Some(Stop::after_failure(self.orders.grace, Moment::now()));
        }
        self.watch_exits();
        self.carry_on_stop()?;
        if !all {
            // Who polls the descriptor comes back for the rest.
            self.set_alarm(Some(Moment::now()))?;
        }
        Ok(if self.running == 0 { Progress::Finished } else { Progress::Running })
    }

    /// Whether there is a failure after which nothing was done yet.
    fn is_failing(&self) -> bool {
        self.stop.is_none() && self.failing
    }

    /// Takes in who has ended, and ends nobody. Who polls the descriptor is woken if there is something to do.
    pub(super) fn refresh(&mut self) -> Result<(), Error> {
        self.look(None)?;
        let due = !self.closed && (self.running == 0 || self.is_failing());
        self.set_alarm(if due { Some(Moment::now()) } else { self.alarm() })
    }

    /// Takes in who has ended; says whether that were all. With a deadline it may leave some for the next time.
    fn look(&mut self, deadline: Option<Moment>) -> Result<bool, Error> {
        self.check_owner()?;
        let start = Moment::now();
        let until = deadline.map(|deadline| deadline.max(start.checked_add(TAKING_IN).unwrap_or(deadline)));
        let out_of_time = || until.is_some_and(|until| until <= Moment::now());
        self.ended.extend(self.held.drain(..));
        loop {
            while let Some(rank) = self.ended.pop_front() {
                // Its pidfd may have told of it for the last time.
                self.take_in(rank).inspect_err(|_| self.ended.push_front(rank))?;
                if out_of_time() {
                    return Ok(false);
                }
            }
            let looked = Moment::now();
            let events = self.watch.events().map_err(Error::system("ask who has ended (epoll_wait)"))?;
            if events.is_empty() {
                if self.held.is_empty() {
                    self.alive = looked;
                }
                return Ok(true);
            }
            for event in events {
                match event {
                    Event::Ended(rank) => self.ended.push_back(rank),
                    Event::Returned => self.take_returns()?,
                }
            }
        }
    }

    fn take_returns(&mut self) -> Result<(), Error> {
        self.result_channel.drain().map_err(Error::system("receive what workers return (recvmsg)"))
    }

    /// Refuses in a fork of the launcher.
    pub(super) fn check_owner(&self) -> Result<(), Error> {
        let (owner, pid) = self.owner;
        if owner.is_now() {
            Ok(())
        } else {
            Err(Error::ForeignContext { owner: pid, pid: std::process::id() })
        }
    }

    fn take_in(&mut self, rank: usize) -> Result<(), Error> {
        // What it sent is in the socket by now, whether or not that was heard of yet.
        self.take_returns()?;
        let Some(child) = self.workers[rank].child.as_mut() else { return Ok(()) };
        let (pid, mut ended_in) = (child.pid(), None);
        let look = |status| {
            if postmortem::is_kill(status) {
                ended_in = self.oom.group_of_ended(pid);
            }
        };
        let remains = child.try_reap(look).map_err(Error::system("reap a worker (waitid)"))?;
        // Closing its pidfd would not be enough: a worker that was just forked may still have a copy. One that was
        // held has been removed before.
        let _ = self.watch.remove(child);
        let Some(remains) = remains else {
            self.held.push(rank);
            return Ok(());
        };
        let worker = &mut self.workers[rank];
        worker.child = None;
        // Nothing else can be a kill for want of memory, so nothing else asks the kernel.
        let killed = remains.exit.is_some_and(|exit| postmortem::is_kill(exit.status));
        let known = Known {
            started: worker.started,
            begin: self.begin,
            alive: self.alive,
            rss_floor_kib: worker.rss_floor_kib,
            sent_by_program: worker.sent_by_program,
            sent_by_teardown: worker.sent_by_teardown,
            oom: killed.then(|| self.oom.since(rank, ended_in.as_ref())).flatten(),
            callee: self.orders.callee,
        };
        let end = postmortem::examine(&known, remains, self.result_channel.take(rank));
        self.settle(rank, end);
        Ok(())
    }

    fn settle(&mut self, rank: usize, end: End) {
        self.failing |= end.has_failed();
        self.workers[rank].end = Some(end);
        self.order.push(rank);
        self.running -= 1;
    }

    /// The failure to report, of those that have ended.
    fn first_failure(&self) -> Option<Failing> {
        self.ends().first_failure(&self.order)
    }

    /// Now and then looks who has reported but does not exit.
    fn watch_exits(&mut self) {
        let patience = self.orders.grace.map_or(EXIT, |grace| grace.max(LEAST_EXIT));
        let now = Moment::now();
        let Some(next) = now.checked_add(patience) else { return };
        if *self.next_look.get_or_insert(next) <= now {
            for (rank, _) in self.workers.iter().enumerate().filter(|(_, worker)| worker.has_reported()) {
                self.lingering.entry(rank).or_insert_with(|| Stop::after_failure(Some(patience), now));
            }
            self.next_look = Some(next);
        }
    }

    /// Does what is due of ending all who run, and of ending each that does not exit.
    fn carry_on_stop(&mut self) -> Result<(), Error> {
        if let Some(mut stop) = self.stop {
            while self.act(stop.next(Moment::now()), 0..self.nprocs()) {}
            self.stop = Some(stop);
        }
        for (rank, mut stop) in std::mem::take(&mut self.lingering) {
            while self.act(stop.next(Moment::now()), rank..rank + 1) {}
            self.lingering.extend(self.workers[rank].child.is_some().then_some((rank, stop)));
        }
        if self.running == 0 { self.close() } else { self.set_alarm(self.alarm()) }
    }

    /// Does one step of ending some workers; says whether the next may be due already.
    fn act(&mut self, action: Action, ranks: Range<usize>) -> bool {
        match action {
            Action::Wait => return false,
            Action::Terminate => self.send_to(ranks, Signal::TERM),
            Action::Kill => self.send_to(ranks, Signal::KILL),
            Action::GiveUp => {
                ranks.for_each(|rank| self.leave(rank, End::survived));
                return false;
            }
        }
        true
    }

    /// When something is to be done though nobody ends.
    fn alarm(&self) -> Option<Moment> {
        let retry = if self.held.is_empty() { None } else { Moment::now().checked_add(HELD_RETRY) };
        let stop = self.stop.as_ref().and_then(Stop::deadline);
        let lingering = self.lingering.values().filter_map(Stop::deadline).min();
        [stop, lingering, self.next_look, retry].into_iter().flatten().min()
    }

    fn set_alarm(&mut self, at: Option<Moment>) -> Result<(), Error> {
        self.watch.set_alarm(at).map_err(Error::system("set the alarm of a context (timerfd_settime)"))
    }

    /// Ends the waiting of those who run.
    fn abort(&self, blame: Blame) {
        if let Some(abort) = &self.orders.abort {
            abort.say(blame);
        }
    }

    /// Sends a signal of the teardown to those of some workers that run.
    fn send_to(&mut self, ranks: Range<usize>, signal: Signal) {
        let at = Moment::now();
        for rank in ranks {
            if let Err(os) = self.workers[rank].send_by_teardown(signal, at) {
                // To wait for the effect of what was not sent would be in vain, and so would any other signal.
                self.leave(rank, |times| End::abandoned(times, signal, &os));
            }
        }
    }

    /// Gives up a worker if it runs: its pidfd is closed, and its pid stays a zombie's when it ends.
    fn leave(&mut self, rank: usize, end: impl FnOnce((Moment, Moment)) -> End) {
        let Some(child) = self.workers[rank].child.take() else { return };
        // A held one is not in the epoll any more.
        let _ = self.watch.remove(&child);
        child.leave_behind();
        self.held.retain(|&held| held != rank);
        self.settle(rank, end((self.begin, self.workers[rank].started)));
    }

    /// When all have ended: decides which failure to report, once.
    fn close(&mut self) -> Result<(), Error> {
        if !self.closed {
            self.loans.clear();
            self.set_alarm(None)?;
            let ends = self.ends();
            let story = |first: Failing| {
                Story::new(first.rank, ends.culprits(&first, &self.standings), self.outcomes())
            };
            self.failure = ends.first_failure(&self.order).map(story);
            self.closed = true;
        }
        Ok(())
    }

    /// The failure to report once all have ended; the same at every call.
    pub(super) fn failure(&self) -> Option<Error> {
        self.failure.clone().map(Error::from)
    }

    /// What a rank returned; `None` while there is nothing.
    pub(super) fn result(&self, rank: usize) -> Result<Option<&Returned>, Error> {
        let nprocs = self.nprocs();
        let worker = self.workers.get(rank).ok_or(Error::NoSuchRank { rank, nprocs })?;
        Ok(worker.end.as_ref().and_then(|end| end.result.as_ref()))
    }

    /// Sends a signal of the program's own to a worker; to one that has ended it is nothing.
    pub(super) fn signal(&mut self, rank: usize, signal: Signal) -> Result<(), Error> {
        self.check_owner()?;
        let nprocs = self.nprocs();
        let worker = self.workers.get_mut(rank).ok_or(Error::NoSuchRank { rank, nprocs })?;
        worker.send_by_program(signal).map_err(|os| Error::Signal { signal, rank, pid: worker.pid, os })
    }

    /// Ends all who run and waits for them.
    fn end(&mut self) -> Result<(), Error> {
        let now = Moment::now();
        self.abort(self.first_failure().map(|first| first.rank));
        self.stop = Some(match self.stop {
            _ if self.orders.daemon || std::thread::panicking() => Stop::at_once(now),
            Some(under_way) => under_way.hurry(now),
            None => Stop::on_drop(self.orders.grace, now),
        });
        self.wait(None).map(drop)
    }

    /// Waits for all, ends none: whoever fails, the others go on.
    pub(super) fn outlast(mut self) -> Result<(), Error> {
        (self.stop, self.next_look, self.lingering) = (None, None, BTreeMap::new());
        self.set_alarm(None)?;
        while self.running > 0 {
            self.watch.wait_until(self.alarm()).map_err(Error::system("wait for the workers (ppoll)"))?;
            self.look(None)?;
        }
        Ok(())
    }
}

impl AsFd for Crew {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        if !self.owner.0.is_now() {
            // In a fork of the launcher: they are not our children, and the epoll is shared with who has them.
            self.workers.iter_mut().filter_map(|worker| worker.child.take()).for_each(Child::leave_behind);
        } else if self.running > 0 {
            // If the system refuses to let us wait, each child's own drop kills and reaps it.
            let _ = self.end();
        }
    }
}
