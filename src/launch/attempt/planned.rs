//! What is still to happen on purpose while an attempt runs, and where that has come.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use super::super::error::{LaunchError, Result};
use super::super::job::Job;
use crate::injection::{Rule, watch_for};
use crate::sys::clock::Moment;
use crate::sys::inotify::FileWatch;

/// Something that is to be done at a moment.
#[derive(Debug)]
pub(super) enum Due {
    /// A rule of this number happens to a rank; `None`: to the launcher.
    Fault(usize, Option<usize>),
    /// A rank that was stopped goes on.
    Continue(usize),
}

/// What is still to happen in an attempt.
///
/// Rules with a time are in `due` from the start on. Those with a line or a file come when the pump or the inotify tells of one, and are counted
/// here: an attempt begins to count anew.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) attempt: usize,
    /// The rules in force, by number.
    pub(super) rules: BTreeMap<usize, Rule>,
    pub(super) due: Vec<(Moment, Due)>,
    /// `None`: no rule has a file.
    pub(super) files: Option<FileWatch>,
    /// By rule, under the path that the watch tells.
    pub(super) awaited: Vec<(usize, PathBuf)>,
    /// How often a rule's file has appeared, or its line has come from a rank.
    hits: BTreeMap<(usize, Option<usize>), u64>,
}

impl Planned {
    /// Watches for the files of the rules. Before the workers are started: one may make its file at once.
    ///
    /// # Errors
    /// When the directory of a file is not there, or the system has no watch left.
    pub(super) fn new(job: &Job, attempt: usize) -> Result<Self> {
        let failed = || LaunchError::system("preparing the plan of faults");
        let (mut files, mut awaited) = (None, Vec::new());
        for (number, path) in job.faults.files(attempt) {
            let path = job.plan.directory.as_deref().map_or(path.clone(), |directory| directory.join(&path));
            let watch = match &mut files {
                Some(watch) => watch,
                none => none.insert(FileWatch::new().map_err(failed())?),
            };
            awaited.push((number, watch_for(watch, &path).map_err(failed())?));
        }
        let rules = job.faults.in_force(attempt).into_iter().collect();
        Ok(Self { attempt, rules, due: Vec::new(), files, awaited, hits: BTreeMap::new() })
    }

    /// Readable when a file has appeared; `None`: none is awaited.
    pub(super) fn watch(&self) -> Option<BorrowedFd<'_>> {
        self.files.as_ref().map(AsFd::as_fd)
    }

    /// When something is to be done next; `None`: nothing more at a time.
    /// The wait for the workers' ends goes no further than that.
    pub(super) fn next(&self) -> Option<Moment> {
        self.due.iter().map(|(at, _)| *at).min()
    }

    /// Puts off what is to be done: no time has passed for a job that was stopped by Ctrl-Z.
    pub(super) fn put_off(&mut self, by: Duration) {
        self.due.iter_mut().for_each(|(at, _)| *at = at.checked_add(by).unwrap_or(*at));
    }

    /// Takes out what is due by now, in the order of the moments.
    pub(super) fn take_due(&mut self, now: Moment) -> Vec<Due> {
        let (mut due, later): (Vec<_>, Vec<_>) = self.due.drain(..).partition(|(at, _)| *at <= now);
        self.due = later;
        due.sort_by_key(|(at, _)| *at);
        due.into_iter().map(|(_, due)| due).collect()
    }

    /// Counts a hit of a rule, and returns its number, from 1. `rank`: whose line it was; `None`: it was a file.
    pub(super) fn hit(&mut self, number: usize, rank: Option<usize>) -> u64 {
        let hits = self.hits.entry((number, rank)).or_default();
        *hits += 1;
        *hits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_in_the_order_of_its_moments_and_later_after_a_stop() {
        let at = |millis: u64| Moment::from_nanos(millis * 1_000_000);
        let due = vec![(at(30), Due::Continue(3)), (at(20), Due::Continue(2)), (at(10), Due::Continue(1))];
        let (rules, awaited, hits) = Default::default();
        let mut planned = Planned { attempt: 0, rules, due, files: None, awaited, hits };
        let ranks = |planned: &mut Planned, millis| {
            let due = planned.take_due(at(millis)).into_iter();
            due.map(|due| if let Due::Continue(rank) = due { rank } else { 0 }).collect::<Vec<usize>>()
        };
        assert_eq!((ranks(&mut planned, 9), planned.next()), (vec![], Some(at(10))));
        planned.put_off(Duration::from_millis(5));
        assert!(ranks(&mut planned, 14).is_empty());
        assert_eq!((ranks(&mut planned, 25), planned.next()), (vec![1, 2], Some(at(35))));
        assert_eq!((planned.hit(0, None), planned.hit(0, Some(0)), planned.hit(0, None)), (1, 1, 2));
    }
}
