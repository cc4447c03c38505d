//! The signals of this process while a job runs, and its terminal: what they say is done.
//!
//! A handler writes each signal into a pipe, which the attempt's epoll watches; nothing is done in the handler itself. Each worker leads
//! a process group, so the terminal sends its signals (Ctrl-C, Ctrl-Z) to the launcher alone, which passes them on. Only the worker that
//! reads stdin may have the terminal's foreground, and gives it back when it stops or ends (tcsetpgrp(3)).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::descendants::{self, Orphans};
use super::error::{LaunchError, Result};
use super::files::JobDir;
use super::guardian::Guardian;
use super::options::Launch;
use super::people::Wish;
use super::plan::Plan;
use crate::supervise::group::Group;
use crate::sys::clock::Moment;
use crate::sys::pipe::{foreground, is_terminal, set_foreground};
use crate::sys::signal::{self, Signal};
use crate::sys::signal_pipe::SignalPipe;
use crate::sys::{fd, fork, prctl, wait};

/// What the attempt is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Pass the signal on, and end all after a time.
    Stop(Signal),
    /// End all now: it was told to stop a second time.
    Kill,
    /// Pass the signal on.
    Pass(Signal),
}

/// Passed on without stopping the job.
const PASSED: [Signal; 3] = [Signal::USR1, Signal::USR2, Signal::WINCH];

/// What this process has taken over for the job; nothing if it is not to handle signals.
#[derive(Debug)]
pub(super) struct Control {
    /// Where this process's signals arrive; `None`: it is not to handle signals.
    signals: Option<SignalPipe>,
    /// Ends the job's descendants when this process is killed.
    _guardian: Option<Guardian>,
    /// The orphans that this process adopts; `None`: it adopts none.
    orphans: Option<Orphans>,
    /// Each of these ends the job.
    stop_signals: Vec<Signal>,
    /// How often it was told to stop.
    stops: usize,
    /// The terminal, the rank of the worker that reads from it, and whether that has it now. A process that is not in the
    /// terminal's foreground is stopped when it reads.
    terminal: Option<(usize, OwnedFd)>,
    worker_has_terminal: bool,
    /// For how long the job was stopped by Ctrl-Z, and its timers have not been told.
    suspended: Duration,
}

impl Control {
    /// Takes over the signals, and becomes the parent of orphans. One of the stop signals that is ignored stays so.
    ///
    /// # Errors
    /// When this process has several threads, or the system refuses a process, a handler or a descriptor.
    pub(super) fn take_over(launch: &Launch, plan: &Plan, dir: &JobDir) -> Result<Self> {
        let mut control = Self {
            signals: None,
            _guardian: None,
            orphans: None,
            stop_signals: launch.stop_signals.clone(),
            stops: 0,
            terminal: None,
            worker_has_terminal: false,
            suspended: Duration::ZERO,
        };
        if !launch.handles_signals {
            return Ok(control);
        }
        let failed = |what: &str| LaunchError::system(what.to_owned());
        // First: it is forked, and this process may have no second thread, nor a handler that the fork would have too.
        let mut orphans = Orphans::begin();
        let guardian =
            Guardian::start(&plan.token, dir.temporary()).map_err(failed("starting the guardian"))?;
        orphans.spare(guardian.pid());
        (control._guardian, control.orphans) = (Some(guardian), Some(orphans));
        prctl::set_subreaper(true).map_err(failed("becoming the parent of orphans"))?;
        let others = PASSED.into_iter().chain([Signal::TSTP, Signal::CHLD]);
        let all: Vec<_> = launch.stop_signals.iter().copied().chain(others).collect();
        control.signals = Some(SignalPipe::take_over(&all).map_err(failed("taking over signals"))?);
        control.terminal = plan.stdin_rank.and_then(|rank| Some((rank, fd::copy_of_stdio(0).ok()?)));
        control.terminal.take_if(|(_, stdin)| !is_terminal(stdin));
        Ok(control)
    }

    /// Readable when a signal has come.
    pub(super) fn signals(&self) -> Option<BorrowedFd<'_>> {
        self.signals.as_ref().map(AsFd::as_fd)
    }

    /// Whether it was told to stop a second time.
    pub(super) fn is_hurried(&self) -> bool {
        self.stops > 1
    }

    /// Whether orphans among the job's descendants become this process's children.
    pub(super) fn adopts_orphans(&self) -> bool {
        self.signals.is_some()
    }

    /// The orphans among this process's children, if it adopts any.
    pub(super) fn orphans(&self) -> Option<&Orphans> {
        self.orphans.as_ref()
    }

    /// Whether descendants may be left when all workers have ended. Where this process adopts orphans, they are its children.
    pub(super) fn may_have_descendants(&self) -> bool {
        !self.adopts_orphans() || wait::has_children()
    }

    /// What the signals that have come since the last look say. Ctrl-Z has been carried out then.
    pub(super) fn orders(&mut self, group: &mut Group) -> Result<Vec<Order>> {
        let mut orders = Vec::new();
        while let Some(signal) = self.next()? {
            match signal {
                Signal::CHLD => self.look_after_children(group)?,
                Signal::TSTP => self.suspend(group)?,
                signal if PASSED.contains(&signal) && !self.stop_signals.contains(&signal) => {
                    orders.push(Order::Pass(signal))
                }
                signal => orders.push(self.stop(signal)),
            }
        }
        Ok(orders)
    }

    /// The next signal that has come, without waiting.
    fn next(&self) -> Result<Option<Signal>> {
        let signals = self.signals.as_ref().map(SignalPipe::next).transpose();
        Ok(signals.map_err(LaunchError::system("reading signals"))?.flatten())
    }

    /// What a stop signal means: the second one is in a hurry.
    fn stop(&mut self, signal: Signal) -> Order {
        self.stops += 1;
        if self.stops > 1 { Order::Kill } else { Order::Stop(signal) }
    }

    /// What a wish of people means, after the signals that have come: it counts as a signal to stop, if none has come.
    pub(super) fn grant(&mut self, wish: Wish) -> Vec<Order> {
        let stop = (self.stops == 0).then_some(Order::Stop(Signal::TERM));
        self.stops = self.stops.max(if wish == Wish::Kill { 2 } else { 1 });
        stop.into_iter().chain((wish == Wish::Kill).then_some(Order::Kill)).collect()
    }

    /// Looks for a worker that was stopped because it wants the terminal, and reaps orphans.
    fn look_after_children(&mut self, group: &mut Group) -> Result<()> {
        let reader = self.terminal.as_ref().map(|(rank, _)| *rank);
        match reader.and_then(|rank| group.stopped_by(rank)) {
            // It asked for the terminal a moment before it was given it.
            Some(Signal::TTIN | Signal::TTOU) if self.worker_has_terminal => {
                let _ = group.signal(reader.unwrap_or(0), Signal::CONT);
            }
            // It asks for the terminal from the background, or Ctrl-Z at the terminal went to it alone.
            Some(Signal::TTIN | Signal::TTOU) => self.suspend(group)?,
            Some(_) if self.worker_has_terminal => self.suspend(group)?,
            _ => {}
        }
        descendants::reap_strangers(&group.pids().collect::<Vec<_>>());
        Ok(())
    }

    /// Stops the job and this process until it is continued. No time passes for the job meanwhile.
    fn suspend(&mut self, group: &mut Group) -> Result<()> {
        let failed = || LaunchError::system("stopping the job, as Ctrl-Z says");
        let before = Moment::now();
        // One that has ended takes no signal; one that refuses it goes on.
        let _ = group.signal_all(Signal::STOP);
        let had_terminal = self.take_terminal();
        signal::raise(Signal::STOP).map_err(failed())?;
        // Here it has been continued, by `fg`, by `bg`, or by `kill -CONT`.
        let stopped = Moment::now().since(before);
        group.put_off(stopped);
        self.suspended += stopped;
        if had_terminal && self.is_in_foreground() {
            self.give_terminal(group);
        }
        let _ = group.signal_all(Signal::CONT);
        Ok(())
    }

    /// For how long the job was stopped by Ctrl-Z since the last call. The caller puts off by that what is still to come.
    pub(super) fn take_suspended(&mut self) -> Duration {
        std::mem::take(&mut self.suspended)
    }

    /// Whether this process's group has the terminal.
    fn is_in_foreground(&self) -> bool {
        let terminal = self.terminal.as_ref().and_then(|(_, terminal)| foreground(terminal.as_fd()));
        terminal == Some(fork::group_id())
    }

    /// Gives the terminal to the worker that reads from it, if this process has it.
    pub(super) fn give_terminal(&mut self, group: &Group) {
        let Some((rank, terminal)) = self.terminal.as_ref().filter(|_| self.is_in_foreground()) else {
            return;
        };
        let Some(pid) = group.pids().nth(*rank) else { return };
        // It may have ended already.
        self.worker_has_terminal = set_foreground(terminal.as_fd(), pid).is_ok();
    }

    /// Takes it back if the worker of that rank has it.
    pub(super) fn take_terminal_of(&mut self, ended: usize) {
        if self.terminal.as_ref().is_some_and(|(rank, _)| *rank == ended) {
            self.take_terminal();
        }
    }

    /// Takes it back; says whether the worker had it.
    fn take_terminal(&mut self) -> bool {
        let had = std::mem::take(&mut self.worker_has_terminal);
        if let Some((_, terminal)) = self.terminal.as_ref().filter(|_| had) {
            // An error means that the terminal is gone.
            let _ = set_foreground(terminal.as_fd(), fork::group_id());
        }
        had
    }
}

/// Ends this process by a signal, as if it had never handled it: a shell, and any other parent, sees why it ended.
///
/// It is for a program whose [`Summary`](super::Summary) says that a signal has [stopped](super::Summary::stopped_by) the job. A shell
/// that runs a script stops the script after Ctrl-C only if the program died of SIGINT.
///
/// It returns if the signal ends no process: one that is ignored by default (SIGCHLD), or that this thread has blocked.
///
/// ```no_run
/// use phalanx::launch::{Command, Launch, die_of};
///
/// let summary = Launch::new(Command::new("train.py")).handle_signals(true).run()?;
/// if let Some(signal) = summary.stopped_by {
///     die_of(signal);
/// }
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
pub fn die_of(signal: Signal) {
    // Where the signal is ignored or blocked it does nothing, and the caller exits by itself.
    if signal::reset(signal).is_ok() {
        let _ = signal::raise(signal);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.take_terminal();
        if self.adopts_orphans() {
            // It can only refuse where it is not known, and then it was not set.
            let _ = prctl::set_subreaper(false);
        }
    }
}
