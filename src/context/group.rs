//! The workers of one context: a [`Group`] of children, and what their ends mean. The decisions are made in `verdict`,
//! `diagnose` and `stop`; here they are carried out.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::blame::Ends;
use super::output::Output;
use super::postmortem::{self, End};
use super::returned::Returned;
use super::worker::Worker;
use crate::error::{Callee, Error, FailureReport, Outcome, Standing, Status};
use crate::memory::storage::Loan;
use crate::start::Started;
use crate::supervise::group::{Group, LeftBehind, Step};
use crate::supervise::stop::Stop;
use crate::supervise::verdict::{Failing, Weight};
use crate::sys::clock::Moment;
use crate::sys::signal::Signal;
use crate::wire::result_channel::ResultChannel;
use crate::wire::stop_word::StopWord;

/// The token of the thread that carries the output; the socket for results has 0.
const OUTPUT: u32 = 1;

/// How long ends may be taken in when the caller's time is up already.
const REAPING: Duration = Duration::from_millis(10);

/// How long a worker may take to exit when its report is whole and no grace period was set.
const EXIT: Duration = Duration::from_secs(30);
/// The least that it may take: also with a short grace period its exit handlers are to have their time.
const LEAST_EXIT: Duration = Duration::from_secs(5);

/// What `Options` asks of a running group.
#[derive(Debug)]
pub(crate) struct GroupConfig {
    pub(crate) daemon: bool,
    pub(crate) grace: Option<Duration>,
    /// The user's function.
    pub(crate) callee: Callee,
    /// By it the workers are told that they are being ended, and because of which rank. It keeps their roster, by which this process
    /// knows the ranks of the processes it waits for, as long as there is one.
    pub(crate) stop: StopWord,
}

/// Whether workers still run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Running,
    Finished,
}

/// How far a group is.
#[derive(Debug)]
enum State {
    /// No worker has failed.
    Running,
    /// One has, but nothing was done about that yet: only a call that joins ends the others.
    Failing,
    /// The others are being ended. With how all were before, if the failure was that of a worker that had waited for others.
    Stopping(Vec<Standing>),
    /// All have ended. With what is reported, the same at every call.
    Closed(Option<FailureReport>),
}

#[derive(Debug)]
pub(super) struct WorkerGroup {
    /// By rank.
    workers: Vec<Worker>,
    children: Group,
    result_channel: ResultChannel,
    /// What the workers print, if this process carries it.
    output: Option<Output>,
    /// What the workers were given to write to, until all have ended.
    loans: Vec<Loan>,
    config: GroupConfig,
    state: State,
    /// When to look for workers that have reported but do not exit, of which there is no event.
    next_look: Option<Moment>,
}

impl WorkerGroup {
    /// # Errors
    /// When the thread that carries the output cannot be watched. The workers are killed then.
    pub(super) fn new(started: Started, output: Option<Output>, config: GroupConfig) -> Result<Self, Error> {
        let Started { children, slots, result_channel, loans, .. } = started;
        if let Some(pump) = output.as_ref().and_then(Output::pump) {
            let watched = children.watch_too(pump.as_fd(), OUTPUT);
            watched.map_err(Error::system("watch what the workers print (epoll_ctl)"))?;
        }
        let workers = children.pids().zip(slots).map(|(pid, slot)| Worker::new(pid, slot)).collect();
        let state = State::Running;
        Ok(Self { workers, children, result_channel, output, loans, config, state, next_look: None })
    }

    pub(super) fn nprocs(&self) -> usize {
        self.workers.len()
    }

    pub(super) fn running(&self) -> usize {
        self.children.running()
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.children.pids().collect()
    }

    pub(super) fn outcomes(&self) -> Vec<Outcome> {
        let tail = |rank| self.output.as_ref().map_or(Vec::new(), |output| output.tail(rank));
        let outcomes = self.workers.iter().enumerate().map(|(rank, worker)| worker.outcome(rank, tail(rank)));
        self.ends().mark_consequences(outcomes.collect())
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
            self.sleep(deadline)?;
        }
    }

    fn sleep(&mut self, deadline: Option<Moment>) -> Result<(), Error> {
        let until = [deadline, self.next_look].into_iter().flatten().min();
        self.children.wait_until(until).map_err(Error::system("wait for the workers (ppoll)"))
    }

    /// Does all that can be done now, without waiting.
    fn step(&mut self, deadline: Option<Moment>) -> Result<Progress, Error> {
        let all = self.reap_ended(deadline)?;
        if self.running() == 0 {
            return self.finish();
        }
        // No worker is ended before all are known that have ended by themselves: they are no victims.
        if all && matches!(self.state, State::Failing) {
            self.begin_teardown();
        }
        self.hurry_teardown();
        self.watch_exits();
        for (rank, why) in self.children.carry_on() {
            self.give_up_on(rank, &why);
        }
        if self.running() == 0 {
            return self.finish();
        }
        // Who polls the descriptor comes back for those that were not taken in yet.
        self.set_alarm(if all { self.alarm() } else { Some(Moment::now()) })?;
        Ok(Progress::Running)
    }

    /// When all have ended: closes the group, once all that they have printed is written.
    fn finish(&mut self) -> Result<Progress, Error> {
        if self.output.as_ref().is_some_and(|output| !output.is_carried()) {
            self.set_alarm(None)?;
            return Ok(Progress::Running);
        }
        self.close()?;
        Ok(Progress::Finished)
    }

    fn begin_teardown(&mut self) {
        let first = self.first_failure();
        let waited = first.is_some_and(|first| first.weight == Weight::Consequence);
        let standings = if waited { self.workers.iter().map(Worker::standing).collect() } else { Vec::new() };
        self.config.stop.raise(first.map(|first| first.rank));
        let after = if waited { Stop::after_consequence } else { Stop::after_failure };
        self.children.stop(Some(after(self.config.grace, Moment::now())));
        self.state = State::Stopping(standings);
    }

    /// Goes on at once when a worker has failed by itself of which, so far, only the consequences for others were known. A grace period that
    /// the program has set stays.
    fn hurry_teardown(&mut self) {
        let is_known = || self.first_failure().is_some_and(|first| first.weight == Weight::Own);
        let is_waiting = matches!(&self.state, State::Stopping(standings) if !standings.is_empty());
        if let Some(stop) =
            self.children.stopping().filter(|_| self.config.grace.is_none() && is_waiting && is_known())
        {
            self.children.stop(Some(stop.hurry(Moment::now())));
        }
    }

    /// Reaps the workers that have ended, and ends none. A caller that polls the descriptor is woken if there is something to do.
    pub(super) fn refresh(&mut self) -> Result<(), Error> {
        self.reap_ended(None)?;
        let due = match self.state {
            State::Closed(_) => false,
            State::Failing => true,
            State::Running | State::Stopping(_) => self.running() == 0,
        };
        self.set_alarm(if due { Some(Moment::now()) } else { self.alarm() })
    }

    /// Reaps the workers that have ended; says whether that were all. With a deadline it may leave some for the next call.
    fn reap_ended(&mut self, deadline: Option<Moment>) -> Result<bool, Error> {
        self.check_owner()?;
        let start = Moment::now();
        let until = deadline.map(|deadline| deadline.max(start.checked_add(REAPING).unwrap_or(deadline)));
        loop {
            match self.children.next().map_err(Error::system("ask which workers have ended (epoll_wait)"))? {
                Step::Ended(rank) => self.reap(rank)?,
                Step::Readable(OUTPUT) => self.output.iter().for_each(Output::hear),
                Step::Readable(_) => self.drain_results()?,
                Step::Idle => return Ok(true),
            }
            if until.is_some_and(|until| until <= Moment::now()) {
                return Ok(false);
            }
        }
    }

    fn drain_results(&mut self) -> Result<(), Error> {
        self.result_channel.drain().map_err(Error::system("receive what workers return (recvmsg)"))
    }

    /// Refuses in a fork of the launcher.
    pub(super) fn check_owner(&self) -> Result<(), Error> {
        match self.children.foreign_owner() {
            Some(owner) => Err(Error::ForeignContext { owner, pid: std::process::id() }),
            None => Ok(()),
        }
    }

    fn reap(&mut self, rank: usize) -> Result<(), Error> {
        // What it sent is in the socket by now, whether or not the socket was told of yet. Before it is reaped: an error here
        // is tried again at the next call, but an end is told only once.
        self.drain_results()?;
        let ended = self.children.reap(rank).map_err(Error::system("reap a worker (waitid)"))?;
        let slot = &mut self.workers[rank].slot;
        if let Some((ended, slot)) = ended.and_then(|ended| Some((ended, slot.take()?))) {
            let (times, descriptors) = (self.times(rank), self.result_channel.take(rank));
            let end = postmortem::examine(slot, &ended, times, self.config.callee, descriptors);
            self.note_end(rank, end);
        }
        Ok(())
    }

    /// When the first worker was started, and when this one was.
    fn times(&self, rank: usize) -> (Moment, Moment) {
        (self.children.started(0), self.children.started(rank))
    }

    fn note_end(&mut self, rank: usize, end: End) {
        if end.has_failed() && matches!(self.state, State::Running) {
            self.state = State::Failing;
        }
        self.workers[rank].end = Some(end);
        // What is left of its process group was killed before it was reaped, so all that it has printed is in the pipes.
        self.output.iter().for_each(|output| output.finish(rank));
    }

    /// Notes the end of a worker that no signal ends.
    fn give_up_on(&mut self, rank: usize, why: &LeftBehind) {
        self.workers[rank].slot = None;
        self.note_end(rank, End::left_behind(why, self.times(rank)));
    }

    /// The failure to report, of those that have ended.
    fn first_failure(&self) -> Option<Failing> {
        self.ends().first_failure(self.children.order())
    }

    /// Looks from time to time for workers that have reported but do not exit, and begins to end them.
    fn watch_exits(&mut self) {
        let patience = self.config.grace.map_or(EXIT, |grace| grace.max(LEAST_EXIT));
        let now = Moment::now();
        let Some(next) = now.checked_add(patience) else { return };
        if *self.next_look.get_or_insert(next) <= now {
            for (rank, _) in self.workers.iter().enumerate().filter(|(_, worker)| worker.has_reported()) {
                self.children.stop_one(rank, Stop::after_failure(Some(patience), now));
            }
            self.next_look = Some(next);
        }
    }

    /// When something is to be done if no worker ends before.
    fn alarm(&self) -> Option<Moment> {
        [self.children.alarm(), self.next_look].into_iter().flatten().min()
    }

    fn set_alarm(&mut self, at: Option<Moment>) -> Result<(), Error> {
        self.children.set_alarm(at).map_err(Error::system("set the alarm of a context (timerfd_settime)"))
    }

    /// When all have ended: decides which failure to report, once.
    fn close(&mut self) -> Result<(), Error> {
        let standings = match &mut self.state {
            State::Closed(_) => return Ok(()),
            State::Stopping(standings) => std::mem::take(standings),
            State::Running | State::Failing => Vec::new(),
        };
        self.loans.clear();
        self.output.iter_mut().for_each(Output::close);
        let ends = self.ends();
        let report = |first: Failing| {
            FailureReport::new(first.rank, ends.culprits(&first, &standings), self.outcomes())
        };
        self.state = State::Closed(ends.first_failure(self.children.order()).map(report));
        self.set_alarm(None)
    }

    /// The failure to report once all have ended; the same at every call.
    pub(super) fn failure(&self) -> Option<Error> {
        match &self.state {
            State::Closed(failure) => failure.clone().map(Error::from),
            State::Running | State::Failing | State::Stopping(_) => None,
        }
    }

    /// What a rank returned; `None` while there is nothing.
    pub(super) fn result(&self, rank: usize) -> Result<Option<&Returned>, Error> {
        let nprocs = self.nprocs();
        let worker = self.workers.get(rank).ok_or(Error::NoSuchRank { rank, nprocs })?;
        Ok(worker.end.as_ref().and_then(|end| end.result.as_ref()))
    }

    /// Sends a signal of the program's own to a worker; for one that has ended this does nothing.
    pub(super) fn signal(&mut self, rank: usize, signal: Signal) -> Result<(), Error> {
        self.check_owner()?;
        let nprocs = self.nprocs();
        let pid = self.workers.get(rank).ok_or(Error::NoSuchRank { rank, nprocs })?.pid;
        self.children.signal(rank, signal).map_err(|os| Error::Signal { signal, rank, pid, os })
    }

    /// Ends all workers that run and waits for them.
    fn end(&mut self) -> Result<(), Error> {
        let now = Moment::now();
        self.config.stop.raise(self.first_failure().map(|first| first.rank));
        self.children.stop(Some(match self.children.stopping() {
            _ if self.config.daemon || std::thread::panicking() => Stop::at_once(now),
            Some(under_way) => under_way.hurry(now),
            None => Stop::terminate(self.config.grace, now),
        }));
        self.state = State::Stopping(Vec::new());
        self.wait(None).map(drop)
    }

    /// Waits for all, ends none: whoever fails, the others go on.
    pub(super) fn wait_without_ending(mut self) -> Result<(), Error> {
        self.children.stop(None);
        self.next_look = None;
        self.set_alarm(None)?;
        while self.running() > 0 {
            self.sleep(None)?;
            self.reap_ended(None)?;
        }
        Ok(())
    }
}

impl AsFd for WorkerGroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.children.as_fd()
    }
}

impl Drop for WorkerGroup {
    fn drop(&mut self) {
        // In a fork of the launcher the workers are not this process's children.
        if self.children.foreign_owner().is_some() {
            self.output.take().into_iter().for_each(Output::forget);
        } else if self.running() > 0 {
            // If the system refuses to let us wait, the drop of the group kills and reaps them.
            let _ = self.end();
        }
    }
}
