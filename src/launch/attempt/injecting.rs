//! The faults of the job's plan, while an attempt runs: at a time, at a line, when a file appears.
//!
//! The launcher does to its workers what another process would: it sends a signal to the worker's process alone, and notes nothing of it
//! where it finds out how a worker has ended. So the report cannot know the answer.

use std::time::Duration;

use super::super::error::{LaunchError, Result};
use super::super::event::Event;
use super::super::faults::HappenedFault;
use super::Running;
use super::planned::Due;
use crate::injection::{Action, Rule, Site};
use crate::sys::clock::Moment;
use crate::sys::limits;
use crate::sys::pidfd;
use crate::sys::signal::Signal;

impl Running<'_> {
    /// Notes when the rules with a time are to happen, which counts from each worker's start.
    pub(super) fn arrange_faults(&mut self) {
        let nproc = self.workers.len();
        for (&number, rule) in &self.planned.rules {
            let after = match rule.site() {
                Site::Time(time) => *time,
                // It is at no other point than the start.
                Site::Point(_) => Duration::ZERO,
                _ => continue,
            };
            let ranks = (0..nproc).map(|rank| (self.group.started(rank), Some(rank)));
            let targets = ranks.chain([(self.started.0, None)]);
            let due = targets
                .filter(|(_, rank)| self.job.faults.is_due((number, rule), self.planned.attempt, *rank, 1));
            self.planned.due.extend(
                due.filter_map(|(from, rank)| Some((from.checked_add(after)?, Due::Fault(number, rank)))),
            );
        }
    }

    /// Does what is due.
    pub(super) fn inject_due(&mut self) {
        for due in self.planned.take_due(Moment::now()) {
            match due {
                Due::Fault(number, rank) => self.inject(number, rank, 1),
                // Refused only where it was refused to stop it.
                Due::Continue(rank) => drop(self.group.strike(rank, Signal::CONT)),
            }
        }
    }

    /// Has happen what the lines say that the pump has seen. Each line counts for its rank, and so for rules of the launcher too.
    pub(super) fn inject_at_lines(&mut self) {
        for (source, text) in self.job.pump.take_seen() {
            let rank = self.workers.iter().position(|worker| worker.outputs.sources.contains(&source));
            // A source of the attempt before.
            let Some(rank) = rank else { continue };
            let rules = self.planned.rules.iter();
            let text = self.job.faults.lines()[text].clone();
            let is_meant = |rule: &Rule| matches!(rule.site(), Site::Line(line) if *line == text);
            let numbers: Vec<_> =
                rules.filter(|(_, rule)| is_meant(rule)).map(|(number, _)| *number).collect();
            for number in numbers {
                let hit = self.planned.hit(number, Some(rank));
                self.inject(number, Some(rank), hit);
                self.inject(number, None, hit);
            }
        }
    }

    /// Has happen what the files say that have appeared: to all ranks of the rule, or to the first of them that runs.
    pub(super) fn inject_at_files(&mut self) -> Result<()> {
        let Some(files) = &self.planned.files else { return Ok(()) };
        for path in files.written().map_err(LaunchError::system("reading the inotify of faults"))? {
            let awaited = self.planned.awaited.iter().filter(|(_, awaited)| *awaited == path);
            let numbers: Vec<_> = awaited.map(|(number, _)| *number).collect();
            for number in numbers {
                let hit = self.planned.hit(number, None);
                (0..self.workers.len())
                    .map(Some)
                    .chain([None])
                    .for_each(|rank| self.inject(number, rank, hit));
            }
        }
        Ok(())
    }

    /// Has a rule happen to a rank, or to the launcher, if it is due and the process runs.
    ///
    /// It is noted once it is done. A refusal of the system is told to people, and the rule has not happened. A worker that ends between the
    /// look at its pidfd and the signal is taken for one that was met.
    fn inject(&mut self, number: usize, rank: Option<usize>, hit: u64) {
        let Some(rule) = self.planned.rules.get(&number) else { return };
        let is_due = self.job.faults.is_due((number, rule), self.planned.attempt, rank, hit);
        if !is_due || rank.is_some_and(|rank| self.workers[rank].ended.is_some()) {
            return;
        }
        let (now, action, continues, rule) = (Moment::now(), rule.action(), rule.lasts(), rule.to_string());
        let (pid, from) = match rank {
            Some(rank) => {
                (self.group.pids().nth(rank).expect("each worker is in the group"), self.group.started(rank))
            }
            None => (std::process::id(), self.started.0),
        };
        let fault = HappenedFault {
            attempt: self.planned.attempt,
            rank,
            pid,
            // As of a worker's end: it does not jump when the clock is set.
            at: self.started.1 + now.since(self.started.0),
            after: now.since(from),
        };
        let done = match (action, action.signal(), rank) {
            (Action::Limit(resource, most), ..) => {
                limits::lower(rank.map(|_| pid), resource.number(), most).map(|()| true)
            }
            (_, Some(signal), Some(rank)) => self.group.strike(rank, signal),
            (_, Some(signal), None) => pidfd::signal_own_process(signal).map(|()| true),
            // The plan was checked for actions that are neither.
            _ => Ok(false),
        };
        match done {
            Ok(true) => {}
            // It has ended a moment ago: the fault has not happened.
            Ok(false) => return,
            Err(error) => {
                let text = format!("{rule} could not be done to the process {pid}: {error}");
                return self.job.tell(&Event::Note(text));
            }
        }
        self.job.faults.note(number, fault);
        let goes_on = continues.and_then(|time| now.checked_add(time)).zip(rank);
        self.planned.due.extend(goes_on.map(|(at, rank)| (at, Due::Continue(rank))));
    }
}
