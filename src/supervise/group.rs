//! Children that are watched, reaped and ended together.
//!
//! A group tells what has happened to its children ([`Group::next`]). What an end means, and whether the other children are
//! to be ended because of it, is the caller's decision; the group carries it out ([`Group::stop`], [`Group::carry_on`]).

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::child::Child;
use super::diagnose::{OomKills, is_kill};
use super::member::Member;
use super::oom::OomCounts;
use super::parent::ParentThread;
use super::stop::{Action, Stop};
use super::verdict::Sent;
use super::watch::WatchSet;
use crate::sys::clock::Moment;
use crate::sys::forks::Here;
use crate::sys::signal::{Signal, Signals};
use crate::sys::wait::{self, Exit, Reaped};

/// When to ask again after a child that has ended but cannot be reaped yet, since a debugger holds it: there is no event for
/// that.
const HELD_RETRY: Duration = Duration::from_millis(100);

/// The caller's tokens begin here in the watch; below are the numbers of the children.
const CALLERS: u64 = 1 << 32;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The child of that number has ended. Each call says so until [`Group::reap`] has reaped it.
    Ended(usize),
    /// The caller's descriptor with that token is readable.
    Readable(u32),
    /// Nothing has happened that was not told yet.
    Idle,
}

/// How a child ended, and what its group knows about that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndedChild {
    /// `None`: other code of this process took its status.
    pub(crate) exit: Option<Exit>,
    /// Until this moment the child is known to have run.
    pub(crate) alive: Moment,
    /// What its parent had resident at the start, in KiB: the kernel's peak of the child begins there.
    pub(crate) rss_floor_kib: u64,
    pub(crate) sent_by_program: Signals,
    pub(crate) sent_by_teardown: Option<Sent>,
    /// Kills for want of memory that the kernel has counted, of which its end may be one.
    pub(crate) oom: Option<OomKills>,
}

/// Why a child was left behind.
#[derive(Debug)]
pub(crate) enum LeftBehind {
    /// SIGKILL did not end it.
    Survived,
    /// This process may not signal it.
    Refused { signal: Signal, os: io::Error },
}

/// Children with the numbers 0, 1, 2 … in the order in which they were added. Dropping the group kills and reaps them.
#[derive(Debug)]
pub(crate) struct Group {
    /// Above `parent`, as fields are dropped in their order: when that thread ends, children that still run get their death signal.
    members: Vec<Member>,
    watch: WatchSet,
    oom: OomCounts,
    /// The process that started the children, and its pid. A fork of it has a copy of the group, but not the children.
    owner: (Here, u32),
    parent: Option<ParentThread>,
    /// The numbers of those that were seen ended or were left behind, in the order of their ends. It is not the order in which they
    /// are reaped: the fork server, which reaps its workers, may be slow with the first and fast with the next.
    order: Vec<usize>,
    /// How many of them have been reaped or left behind.
    settled: usize,
    /// Tokens of the watch that are not told or not dealt with yet.
    events: VecDeque<u64>,
    /// Children that have ended, but that a debugger keeps from being reaped.
    held: Vec<usize>,
    /// The last moment at which all children that had not ended were seen to run.
    alive: Moment,
    /// How all are ended, if they are.
    stop: Option<Stop>,
    /// How single children are ended.
    stops: BTreeMap<usize, Stop>,
}

impl Group {
    /// A group without children. Kills for want of memory are counted from now on.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            members: Vec::new(),
            watch: WatchSet::new()?,
            oom: OomCounts::take(),
            owner: (Here::now(), std::process::id()),
            parent: None,
            order: Vec::new(),
            settled: 0,
            events: VecDeque::new(),
            held: Vec::new(),
            alive: Moment::now(),
            stop: None,
            stops: BTreeMap::new(),
        })
    }

    /// Adds a child. Ends come in their order only for children that are watched by then, so each is added before the next
    /// is started.
    ///
    /// # Errors
    /// When the child cannot be watched. It is in the group all the same, and ends with it.
    pub(crate) fn add(&mut self, child: Child) -> io::Result<()> {
        let watched = self.watch.add(child.as_fd(), self.members.len() as u64);
        self.members.push(Member::new(child));
        watched
    }

    /// Puts a new child in the place of one that has ended or was left behind. [`order`](Self::order) then tells of the new one only.
    ///
    /// # Errors
    /// As those of [`add`](Self::add).
    pub(crate) fn replace(&mut self, number: usize, child: Child) -> io::Result<()> {
        debug_assert!(self.members[number].child.is_none(), "child {number} has not ended");
        self.order.retain(|&ended| ended != number);
        self.settled -= 1;
        let watched = self.watch.add(child.as_fd(), number as u64);
        self.members[number] = Member::new(child);
        watched
    }

    /// Watches a descriptor of the caller's too; [`Step::Readable`] is told until it is read.
    pub(crate) fn watch_too(&self, fd: BorrowedFd<'_>, token: u32) -> io::Result<()> {
        self.watch.add(fd, CALLERS + u64::from(token))
    }

    /// Has the thread that started the children live as long as one of them does: their death signal comes when it ends.
    pub(crate) fn keep_parent(&mut self, parent: ParentThread) {
        self.parent = Some(parent);
    }

    /// How many have neither ended nor been left behind.
    pub(crate) fn running(&self) -> usize {
        self.members.len() - self.settled
    }

    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        self.members.iter().map(|member| member.pid)
    }

    /// When a child was started.
    pub(crate) fn started(&self, number: usize) -> Moment {
        self.members[number].started
    }

    /// The numbers of those that have ended or were left behind, in the order of their ends. One that cannot be reaped yet is
    /// among them.
    pub(crate) fn order(&self) -> &[usize] {
        &self.order
    }

    /// The pid of the process whose children these are, if this process is a fork of that one.
    pub(crate) fn foreign_owner(&self) -> Option<u32> {
        (!self.owner.0.is_now()).then_some(self.owner.1)
    }

    /// What has happened, without waiting.
    pub(crate) fn next(&mut self) -> io::Result<Step> {
        loop {
            match self.events.front() {
                // It stays in front until it is reaped: its pidfd may have told of the end for the last time.
                Some(&token) if token < CALLERS => return Ok(Step::Ended(token as usize)),
                Some(&token) => {
                    self.events.pop_front();
                    return Ok(Step::Readable((token - CALLERS) as u32));
                }
                None => {}
            }
            // The clock is read before the kernel is asked: a child that ends in between has run at this moment.
            let looked = Moment::now();
            self.events.extend(self.watch.ready()?);
            if self.events.is_empty() {
                if self.held.is_empty() {
                    self.alive = looked;
                }
                // Held children are asked again when the caller looks the next time.
                self.events.extend(self.held.drain(..).map(|number| number as u64));
                return Ok(Step::Idle);
            }
        }
    }

    /// Kills what is left of the process group of a child that has ended, and reaps the child. `None`: it cannot be reaped
    /// yet, and is told again at a later look.
    pub(crate) fn reap(&mut self, number: usize) -> io::Result<Option<EndedChild>> {
        let member = &mut self.members[number];
        let Some(child) = &mut member.child else { return Ok(None) };
        if !member.is_seen_ended {
            member.is_seen_ended = true;
            self.order.push(number);
        }
        let (pid, oom, mut ended_in) = (child.pid(), &self.oom, None);
        // Only an end by SIGKILL can be a kill for want of memory, so the kernel is asked for no other. It is asked now: once the child
        // is reaped, its control group cannot be found.
        let found = child.try_reap(|status| {
            if is_kill(status) {
                ended_in = oom.group_of_ended(pid);
            }
        })?;
        // Closing its pidfd would not be enough: a child that was just forked may still have a copy. For a held child this
        // fails, since it was removed before.
        let _ = self.watch.remove(child.as_fd());
        self.events.retain(|&token| token != number as u64);
        let exit = match found {
            Reaped::Exit(exit) => Some(exit),
            Reaped::ByOthers => None,
            Reaped::Running => {
                self.held.push(number);
                return Ok(None);
            }
        };
        let killed = exit.is_some_and(|exit| is_kill(exit.status));
        let ended = EndedChild {
            exit,
            alive: self.alive,
            rss_floor_kib: member.rss_floor_kib,
            sent_by_program: member.sent_by_program,
            sent_by_teardown: member.sent_by_teardown,
            oom: killed.then(|| oom.since(number, ended_in.as_ref())).flatten(),
        };
        member.child = None;
        self.note_end(number);
        Ok(Some(ended))
    }

    fn note_end(&mut self, number: usize) {
        if !std::mem::replace(&mut self.members[number].is_seen_ended, true) {
            self.order.push(number);
        }
        self.settled += 1;
        self.stops.remove(&number);
        if self.running() == 0 {
            self.parent = None;
        }
    }

    /// Sends a signal of the program's own to a child. For one that has ended this does nothing.
    pub(crate) fn signal(&mut self, number: usize, signal: Signal) -> io::Result<()> {
        self.members[number].send_by_program(signal)
    }

    /// Sends a signal to the process of a child alone, as a stranger would: nothing of it is noted for the diagnosis of its end. Says
    /// whether the process was there.
    pub(crate) fn strike(&self, number: usize, signal: Signal) -> io::Result<bool> {
        self.members[number].child.as_ref().map_or(Ok(false), |child| child.strike(signal))
    }

    /// The signal by which a child has been stopped since the last time that this was asked.
    pub(crate) fn stopped_by(&self, number: usize) -> Option<Signal> {
        // An error means that it has ended, which `next` tells.
        wait::stopped_by(self.members.get(number)?.child.as_ref()?.as_fd()).unwrap_or(None)
    }

    /// Sends a signal of the program's own to all children.
    ///
    /// # Errors
    /// The first refusal, after all have been tried.
    pub(crate) fn signal_all(&mut self, signal: Signal) -> io::Result<()> {
        let sent: Vec<_> = self.members.iter_mut().map(|member| member.send_by_program(signal)).collect();
        sent.into_iter().collect()
    }

    /// Puts off the signals that are to come.
    pub(crate) fn put_off(&mut self, by: Duration) {
        self.stop = self.stop.map(|stop| stop.put_off(by));
        self.stops.values_mut().for_each(|stop| *stop = stop.put_off(by));
    }

    /// The teardown of all children, if one is under way.
    pub(crate) fn stopping(&self) -> Option<Stop> {
        self.stop
    }

    /// Ends all children step by step, as [`carry_on`](Self::carry_on) is called. `None` ends no child any more, single ones neither.
    pub(crate) fn stop(&mut self, stop: Option<Stop>) {
        self.stop = stop;
        if stop.is_none() {
            self.stops.clear();
        }
    }

    /// Ends one child, too, unless that is under way.
    pub(crate) fn stop_one(&mut self, number: usize, stop: Stop) {
        if self.members[number].child.is_some() {
            self.stops.entry(number).or_insert(stop);
        }
    }

    /// Sends the signals that are due; returns the children that were left behind, as no signal ends them.
    pub(crate) fn carry_on(&mut self) -> Vec<(usize, LeftBehind)> {
        let mut left = Vec::new();
        if let Some(mut stop) = self.stop {
            self.carry_out(&mut stop, 0..self.members.len(), &mut left);
            self.stop = Some(stop);
        }
        for (number, mut stop) in std::mem::take(&mut self.stops) {
            self.carry_out(&mut stop, number..number + 1, &mut left);
            self.stop_one(number, stop);
        }
        left
    }

    fn carry_out(&mut self, stop: &mut Stop, numbers: Range<usize>, left: &mut Vec<(usize, LeftBehind)>) {
        loop {
            let signal = match stop.next(Moment::now()) {
                Action::Wait => return,
                Action::Terminate => Signal::TERM,
                Action::Kill => Signal::KILL,
                Action::GiveUp => {
                    let given_up = numbers.filter(|&number| self.leave(number));
                    return left.extend(given_up.map(|number| (number, LeftBehind::Survived)));
                }
            };
            // Once for all, before the first is sent: a failure that a child records after another's death by the signal may be
            // the effect of that death, though its own signal has not come yet.
            let at = Moment::now();
            for number in numbers.clone() {
                // A signal that was not sent has no effect to wait for, and another one would not be sent either.
                if let Err(os) = self.members[number].send_by_teardown(signal, at) {
                    self.leave(number);
                    left.push((number, LeftBehind::Refused { signal, os }));
                }
            }
        }
    }

    /// Gives up a child if it runs: its pidfd is closed, and its pid stays a zombie's when it ends.
    fn leave(&mut self, number: usize) -> bool {
        let Some(child) = self.members[number].child.take() else { return false };
        // A held one is not in the epoll any more.
        let _ = self.watch.remove(child.as_fd());
        child.leave_behind();
        self.held.retain(|&held| held != number);
        self.events.retain(|&token| token != number as u64);
        self.note_end(number);
        true
    }

    /// When [`carry_on`](Self::carry_on) has something to do, if no child ends before.
    pub(crate) fn alarm(&self) -> Option<Moment> {
        let held = !self.held.is_empty() || !self.events.is_empty();
        let retry = if held { Moment::now().checked_add(HELD_RETRY) } else { None };
        let stop = self.stop.as_ref().and_then(Stop::deadline);
        let single = self.stops.values().filter_map(Stop::deadline).min();
        [stop, single, retry].into_iter().flatten().min()
    }

    /// Makes the group's descriptor readable at `at`, too; `None`: no longer.
    pub(crate) fn set_alarm(&mut self, at: Option<Moment>) -> io::Result<()> {
        self.watch.set_alarm(at)
    }

    /// Sleeps until something happens or is due, or `deadline` has come.
    pub(crate) fn wait_until(&mut self, deadline: Option<Moment>) -> io::Result<()> {
        self.oom.note(self.members.iter().map(|member| member.pid));
        self.watch.wait_until([deadline, self.alarm()].into_iter().flatten().min())
    }
}

impl AsFd for Group {
    /// Readable when something has happened, or at the moment that was set.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let children = self.members.iter_mut().filter_map(|member| member.child.take());
        if !self.owner.0.is_now() {
            // In a fork of the owner they are not this process's children, and the epoll is shared with the owner.
            return children.for_each(Child::leave_behind);
        }
        let children: Vec<_> = children.collect();
        // All are killed before the first is waited for. Where a signal is refused, the child's own drop tries again.
        for child in &children {
            let _ = child.signal(Signal::KILL);
        }
    }
}
