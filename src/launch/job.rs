//! What lives as long as a job: its plan, files, output, and what it has taken over of this process.

use std::os::fd::AsFd;
use std::time::Duration;

use super::error::{LaunchError, Result};
use super::event::Event;
use super::faults::Faults;
use super::files::JobDir;
use super::options::Launch;
use super::people::People;
use super::plan::Plan;
use super::ranks::Streams;
use super::stdio::Logs;
use super::stopping::{Control, Order};
use super::summary::Summary;
use super::timers::{self, Timers};
use crate::supervise::group::Group;
use crate::supervise::pump::{Console, Pump};
use crate::sys::clock::Moment;
use crate::sys::epoll::{Readiness, wait_any};
use crate::sys::signal::Signal;
use crate::sys::{fd, limits};

/// Descriptors that a worker costs its launcher: a pidfd, two pipes, two files, and some while it is started.
const DESCRIPTORS: usize = 8;

/// What lives as long as the job.
pub(super) struct Job {
    pub(super) plan: Plan,
    /// What happens on purpose.
    pub(super) faults: Faults,
    pub(super) logs: Logs,
    /// Whether any output goes to files.
    pub(super) has_logs: bool,
    pub(super) dir: JobDir,
    /// What was taken over of this process: signals, the terminal, orphans.
    pub(super) control: Control,
    /// The thread that carries output.
    pub(super) pump: Pump,
    /// torch's file timers; `None`: the workers' environment asks for none.
    pub(super) timers: Option<Timers>,
    pub(super) shutdown_timeout: Duration,
    /// `None`: each attempt has a free port.
    pub(super) master_port: Option<u16>,
    /// The first signal by which the launcher was told to stop.
    pub(super) stopped_by: Option<Signal>,
    /// What could not be written any more, in sentences.
    pub(super) lost_output: Vec<String>,
    /// Whether the console takes nothing more, so that the thread that writes to it is not waited for.
    gives_up_output: bool,
    announces: bool,
    on_event: Box<dyn FnMut(&Event)>,
    /// The last field, so that it is dropped last: visitors that wait for the job's end see by that that nothing of it is left.
    pub(super) people: People,
}

impl Job {
    /// Tells the caller of an event, and the console if it is announced there.
    pub(super) fn tell(&mut self, event: &Event) {
        if self.announces && event.is_announced() {
            self.pump.say(format!("phalanx: {event}"));
        }
        self.people.hear(event);
        (self.on_event)(event);
    }

    /// Takes what the pump has told: outputs that could not be written any more.
    pub(super) fn hear_pump(&mut self) {
        self.pump.clear();
        for broken in self.pump.take_broken() {
            self.tell(&Event::Note(broken.clone()));
            self.lost_output.push(broken);
        }
    }

    /// Waits no longer for a console that takes nothing.
    pub(super) fn give_up_output(&mut self) {
        self.gives_up_output = true;
        self.lost_output
            .push("the console took nothing more after the stop: the last lines are lost".to_owned());
    }

    /// Answers the visitors of the job's socket; returns what they want of the job.
    pub(super) fn attend(&mut self) -> Result<Vec<Order>> {
        let wishes = self.people.turn(&self.pump)?;
        Ok(wishes.into_iter().flat_map(|wish| self.control.grant(wish)).collect())
    }

    /// Waits between two attempts; the signal by which the job was told to stop meanwhile. No time passes while it is stopped by Ctrl-Z.
    pub(super) fn pause(&mut self, mut until: Option<Moment>) -> Result<Option<Signal>> {
        let mut nobody = Group::new().map_err(LaunchError::system("making an epoll for the pause"))?;
        loop {
            let mut orders = self.control.orders(&mut nobody)?;
            orders.extend(self.attend()?);
            let stop = |order: &Order| if let Order::Stop(signal) = order { Some(*signal) } else { None };
            if let Some(signal) = orders.iter().find_map(stop) {
                return Ok(Some(signal));
            }
            let suspended = self.control.take_suspended();
            until = until.and_then(|until| until.checked_add(suspended));
            if until.is_some_and(|until| Moment::now() >= until) {
                return Ok(None);
            }
            let watched = self.control.signals().into_iter().chain([self.people.as_fd()]);
            let watched: Vec<_> = watched.map(|fd| (fd, Readiness::Readable)).collect();
            let next = [until, self.people.next()].into_iter().flatten().min();
            wait_any(&watched, next).map_err(LaunchError::system("waiting before the next attempt"))?;
        }
    }
}

/// Takes over what the job needs of this process, and makes its directory.
///
/// # Errors
/// When the system refuses it. What was taken over is given back.
pub(super) fn start(launch: Launch, mut plan: Plan) -> Result<Job> {
    limits::make_room_for_descriptors(DESCRIPTORS * plan.nproc);
    let people = People::open(&launch, &mut plan)?;
    let has_logs = has_logs(&launch.logs, plan.nproc);
    let mut dir = JobDir::choose(launch.logs.dir.as_deref(), &plan.run_id, has_logs)?;
    // The guardian is forked in here: the pump's thread comes after it, and so does the directory, which it removes when this process
    // is killed.
    let control = Control::take_over(&launch, &plan, &dir)?;
    dir.make()?;
    let timers = Timers::make(&plan.base, dir.path())?;
    if let Some(timers) = &timers {
        plan.base.insert(timers::FILE.into(), timers.path().into());
    }
    let output = |number| fd::copy_of_stdio(number).map_err(LaunchError::system("copying stdout and stderr"));
    let console = Console::new(output(1)?, output(2)?);
    Ok(Job {
        pump: Pump::start(console).map_err(LaunchError::system("starting the thread that carries output"))?,
        timers,
        faults: Faults::new(launch.faults, plan.nproc),
        plan,
        has_logs,
        dir,
        control,
        logs: launch.logs,
        shutdown_timeout: launch.shutdown_timeout,
        master_port: launch.master_port,
        stopped_by: None,
        lost_output: Vec::new(),
        gives_up_output: false,
        announces: launch.announces,
        on_event: launch.on_event,
        people,
    })
}

/// Whether any stream of any rank goes to a file.
fn has_logs(logs: &Logs, nproc: usize) -> bool {
    let has_file = |streams: Streams| streams != Streams::NONE;
    let filters = !logs.stdout_needles.is_empty() || !logs.stderr_needles.is_empty();
    filters || (0..nproc).any(|rank| has_file(logs.redirects.of(rank)) || has_file(logs.tee.of(rank)))
}

/// Gives back what was taken over.
pub(super) fn close(mut job: Job, summary: &Summary) {
    job.people.end(summary);
    if job.control.is_hurried() || job.gives_up_output {
        job.pump.abandon();
    }
}
