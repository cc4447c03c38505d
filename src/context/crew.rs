//! The workers of one context: watched, ended and reaped. The decisions are made in `verdict`, `diagnose` and
//! `stop`; here they are carried out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::postmortem::{self, Baseline, End, Known};
use super::verdict::{self, Failing, Sent};
use crate::error::{Error, Outcome, Status, Story};
use crate::start::Started;
use crate::supervise::child::Child;
use crate::supervise::stop::{Action, Stop};
use crate::supervise::watch::WatchSet;
use crate::sys::clock::Moment;
use crate::sys::signal::Signal;

/// How late the launcher may notice that a worker has ended while it waits for that.
const WAKE_UP: Duration = Duration::from_millis(50);

/// One worker of a crew.
#[derive(Debug)]
struct Worker {
    pid: u32,
    started: Moment,
    /// `None` once it has been reaped or left behind.
    child: Option<Child>,
    sent_by_program: Option<Signal>,
    sent_by_teardown: Option<Sent>,
    end: Option<End>,
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
    running: usize,
    /// Ranks in the order of their ends.
    order: Vec<usize>,
    /// Until then those who run are known to have run.
    alive: Moment,
    stop: Option<Stop>,
    /// What is reported once all have ended, the same at every call.
    failure: Option<Story>,
    daemon: bool,
    grace: Option<Duration>,
    baseline: Baseline,
}

impl Crew {
    pub(super) fn new(started: Started, daemon: bool, grace: Option<Duration>, baseline: Baseline) -> Self {
        let Started { children, watch } = started;
        // One that failed early may have ended before this line.
        let alive = children.first().map_or_else(Moment::now, Child::started);
        let workers: Vec<_> = children.into_iter().map(Worker::new).collect();
        Self {
            running: workers.len(),
            order: Vec::with_capacity(workers.len()),
            workers,
            watch,
            alive,
            stop: None,
            failure: None,
            daemon,
            grace,
            baseline,
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
        let outcome = |(rank, worker): (usize, &Worker)| Outcome {
            rank,
            pid: worker.pid,
            ended: worker.end.as_ref().map(|end| end.ended.clone()),
        };
        self.workers.iter().enumerate().map(outcome).collect()
    }

    pub(super) fn status(&self, rank: usize) -> Option<Status> {
        let worker = self.workers.get(rank)?;
        Some(worker.end.as_ref().map_or(Status::Running, |end| end.ended.status))
    }

    /// Waits until all have ended or `deadline` has come, and carries a teardown on meanwhile.
    pub(super) fn wait(&mut self, deadline: Option<Moment>) -> Result<Progress, Error> {
        loop {
            if self.step()? == Progress::Finished {
                return Ok(Progress::Finished);
            }
            if deadline.is_some_and(|deadline| deadline <= Moment::now()) {
                return Ok(Progress::Running);
            }
            let alarm = self.stop.as_ref().and_then(Stop::deadline);
            let until = [deadline, alarm].into_iter().flatten().min();
            self.sleep(until)?;
        }
    }

    /// Sleeps until a worker has ended or `until` has come, and notes how long those who run have run for sure.
    fn sleep(&mut self, until: Option<Moment>) -> Result<(), Error> {
        let asleep = Moment::now();
        self.watch.wait_until(until).map_err(Error::system("wait for the workers (ppoll)"))?;
        // Nobody had ended when this sleep began, or it would not have lasted.
        let alive = Moment::now().before(WAKE_UP);
        if alive > asleep {
            self.alive = alive;
        }
        Ok(())
    }

    /// Does all that can be done now, without waiting.
    fn step(&mut self) -> Result<Progress, Error> {
        self.look()?;
        if self.running == 0 {
            self.close()?;
            return Ok(Progress::Finished);
        }
        if self.stop.is_none() && self.first_failure().is_some() {
            self.stop = Some(Stop::after_failure(self.grace, Moment::now()));
        }
        self.carry_on_stop()?;
        Ok(if self.running == 0 { Progress::Finished } else { Progress::Running })
    }

    /// Takes in who has ended.
    pub(super) fn look(&mut self) -> Result<(), Error> {
        loop {
            let looked = Moment::now();
            let ended = self.watch.ended().map_err(Error::system("ask who has ended (epoll_wait)"))?;
            if ended.is_empty() {
                self.alive = looked;
                return Ok(());
            }
            for rank in ended {
                self.take_in(rank)?;
            }
        }
    }

    fn take_in(&mut self, rank: usize) -> Result<(), Error> {
        let Some(child) = self.workers[rank].child.as_mut() else { return Ok(()) };
        let Some(remains) = child.try_reap().map_err(Error::system("reap a worker (waitid)"))? else {
            return Ok(());
        };
        // Closing its pidfd is not enough: a worker that was just forked may still have a copy.
        let removed = self.watch.remove(child);
        self.workers[rank].child = None;
        let worker = &self.workers[rank];
        let known = Known {
            started: worker.started,
            alive: self.alive,
            sent_by_program: worker.sent_by_program,
            sent_by_teardown: worker.sent_by_teardown,
            baseline: self.baseline,
        };
        let end = postmortem::examine(&known, remains);
        self.settle(rank, end);
        removed.map_err(Error::system("watch a worker no more (epoll_ctl)"))
    }

    fn settle(&mut self, rank: usize, end: End) {
        self.workers[rank].end = Some(end);
        self.order.push(rank);
        self.running -= 1;
    }

    /// The rank to blame, of those that have ended.
    fn first_failure(&self) -> Option<usize> {
        let failures: Vec<_> =
            self.order.iter().filter_map(|&rank| self.workers[rank].failing(rank)).collect();
        verdict::first_failure(&failures)
    }

    fn carry_on_stop(&mut self) -> Result<(), Error> {
        let Some(mut stop) = self.stop else { return Ok(()) };
        loop {
            match stop.next(Moment::now()) {
                Action::Wait => break,
                Action::Terminate => self.send_all(Signal::TERM),
                Action::Kill => self.send_all(Signal::KILL),
                Action::GiveUp => {
                    self.leave_survivors();
                    self.close()?;
                    break;
                }
            }
        }
        self.stop = Some(stop);
        self.watch
            .set_alarm(stop.deadline())
            .map_err(Error::system("set the alarm of the teardown (timerfd_settime)"))
    }

    /// Sends a signal of the teardown to all who run.
    fn send_all(&mut self, signal: Signal) {
        let at = Moment::now();
        for worker in &mut self.workers {
            if let Some(child) = &worker.child {
                // Noted first: a worker that ends of it must find it noted. ESRCH means that it has just ended.
                worker.sent_by_teardown.get_or_insert(Sent { at, strongest: signal }).strongest = signal;
                let _ = send(child, signal);
            }
        }
    }

    /// Gives up those whom SIGKILL did not end.
    fn leave_survivors(&mut self) {
        for rank in 0..self.workers.len() {
            let Some(child) = self.workers[rank].child.take() else { continue };
            // Nothing more can be done for it: its pidfd is closed, its pid stays a zombie's when it ends.
            child.leave_behind();
            self.settle(rank, End::survived(self.workers[rank].started));
        }
    }

    /// When all have ended: decides which failure to report, once.
    fn close(&mut self) -> Result<(), Error> {
        if self.failure.is_some() {
            return Ok(());
        }
        self.watch
            .set_alarm(None)
            .map_err(Error::system("clear the alarm of the teardown (timerfd_settime)"))?;
        self.failure = self.first_failure().map(|first| Story::new(first, self.outcomes()));
        Ok(())
    }

    /// The failure to report once all have ended; the same at every call.
    pub(super) fn failure(&self) -> Option<Error> {
        self.failure.clone().map(Error::from)
    }

    /// The bytes that a rank returned; `None` while there are none.
    pub(super) fn result(&self, rank: usize) -> Result<Option<Vec<u8>>, Error> {
        let nprocs = self.nprocs();
        let worker = self.workers.get(rank).ok_or(Error::NoSuchRank { rank, nprocs })?;
        let Some((slot, account)) = worker.end.as_ref().and_then(|end| end.result.as_ref()) else {
            return Ok(None);
        };
        slot.body(account).map(Some).map_err(|reason| Error::Result { rank, reason })
    }

    /// Sends a signal of the program's own to a worker; to one that has ended it is nothing.
    pub(super) fn signal(&mut self, rank: usize, signal: Signal) -> Result<(), Error> {
        let nprocs = self.nprocs();
        let worker = self.workers.get_mut(rank).ok_or(Error::NoSuchRank { rank, nprocs })?;
        let Some(child) = &worker.child else { return Ok(()) };
        worker.sent_by_program = Some(signal);
        send(child, signal).map_err(|os| Error::Signal { signal, rank, pid: worker.pid, os })
    }

    /// Ends all who run and waits for them.
    fn end(&mut self) -> Result<(), Error> {
        let now = Moment::now();
        self.stop = Some(match self.stop {
            _ if self.daemon || std::thread::panicking() => Stop::at_once(now),
            Some(under_way) => under_way,
            None => Stop::on_drop(self.grace, now),
        });
        self.wait(None).map(drop)
    }

    /// Waits for all, ends none: whoever fails, the others go on.
    pub(super) fn outlast(mut self) -> Result<(), Error> {
        while self.running > 0 {
            self.watch.wait_until(None).map_err(Error::system("wait for the workers (ppoll)"))?;
            self.look()?;
        }
        Ok(())
    }
}

/// SIGTERM to a stopped process has no effect before SIGCONT.
fn send(child: &Child, signal: Signal) -> io::Result<()> {
    child.signal(signal)?;
    if signal == Signal::TERM { child.signal(Signal::CONT) } else { Ok(()) }
}

impl AsFd for Crew {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        if self.running > 0 {
            // If the system refuses to let us wait, each child's own drop kills and reaps it.
            let _ = self.end();
        }
    }
}

impl Worker {
    fn new(child: Child) -> Self {
        Self {
            pid: child.pid(),
            started: child.started(),
            child: Some(child),
            sent_by_program: None,
            sent_by_teardown: None,
            end: None,
        }
    }

    fn failing(&self, rank: usize) -> Option<Failing> {
        let end = self.end.as_ref()?;
        let failed = end.ended.status != Status::Succeeded && !end.ended.victim;
        failed.then_some(Failing { rank, recorded: end.recorded, alive: end.alive })
    }
}
