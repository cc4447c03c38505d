//! What happens in a worker at no point: a thread of its own waits for a time, and for files that appear.
//!
//! The thread takes no signals but those of its own mistakes, so that no handler of the program's runs on it. A worker in which it runs has a
//! thread more than without faults.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::plan::Rule;
use super::site::Site;
use crate::sys::clock::Moment;
use crate::sys::epoll::{pause, wait_readable};
use crate::sys::inotify::FileWatch;
use crate::sys::signal;

/// A time that has not come.
struct Timed {
    at: Moment,
    number: usize,
    rule: &'static Rule,
}

/// A file that may appear, and how often it has.
struct Awaited {
    path: PathBuf,
    appeared: u64,
    number: usize,
    rule: &'static Rule,
}

struct Waiting<F> {
    timed: Vec<Timed>,
    awaited: Vec<Awaited>,
    /// `None`: no rule has a file.
    files: Option<FileWatch>,
    /// Called with a rule's number, the rule, and the hit.
    happen: F,
}

/// Has the rules happen at their times, which count from `begin`, and when their files appear. Without such rules there is no thread.
///
/// # Errors
/// When a file's directory is not there, or there is no room for a thread or an inotify.
pub(super) fn start(
    rules: Vec<(usize, &'static Rule)>,
    begin: Moment,
    happen: impl Fn(usize, &'static Rule, u64) + Send + 'static,
) -> io::Result<()> {
    if rules.is_empty() {
        return Ok(());
    }
    let mut waiting = Waiting { timed: Vec::new(), awaited: Vec::new(), files: None, happen };
    for (number, rule) in rules {
        match rule.site() {
            Site::Time(time) => {
                waiting.timed.extend(begin.checked_add(*time).map(|at| Timed { at, number, rule }));
            }
            Site::File(path) => {
                let files = match &mut waiting.files {
                    Some(files) => files,
                    none => none.insert(FileWatch::new()?),
                };
                waiting.awaited.push(Awaited { path: watch(files, path)?, appeared: 0, number, rule });
            }
            Site::Point(_) | Site::Line(_) => {}
        }
    }
    let thread = std::thread::Builder::new().name("phalanx-fault".to_owned());
    thread.spawn(move || waiting.run()).map(drop)
}

/// Watches the directory of a file that is to appear; the path by which the watch tells of it.
///
/// # Errors
/// When the directory is not there, or the system has no watch left.
pub(crate) fn watch(files: &mut FileWatch, path: &Path) -> io::Result<PathBuf> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A directory has one watch, whose events have the path by which it was first added: so each has one path.
    let watched = directory.canonicalize().and_then(|canonical| {
        files.add_new(&canonical)?;
        Ok(canonical.join(path.file_name().unwrap_or_default()))
    });
    watched.map_err(|os| {
        io::Error::new(os.kind(), format!("watching {} for the file of a fault: {os}", directory.display()))
    })
}

impl<F: Fn(usize, &'static Rule, u64)> Waiting<F> {
    fn run(mut self) {
        // Refused for no set of signals (pthread_sigmask(3)).
        let _ = signal::block_all_but_faults();
        loop {
            self.meet_times();
            self.meet_files();
            let next = self.timed.iter().map(|timed| timed.at).min();
            // An error of poll(2) would be want of memory in the kernel: the next turn asks again.
            let _ = match (&self.files, next) {
                (Some(files), next) => wait_readable(files.as_fd(), next).map(drop),
                (None, Some(next)) => pause(next.since(Moment::now())),
                (None, None) => return,
            };
        }
    }

    fn meet_times(&mut self) {
        let now = Moment::now();
        let (due, later): (Vec<_>, Vec<_>) = self.timed.drain(..).partition(|timed| timed.at <= now);
        self.timed = later;
        due.into_iter().for_each(|timed| (self.happen)(timed.number, timed.rule, 1));
    }

    fn meet_files(&mut self) {
        // Reading an inotify is refused for no reason that lasts (inotify(7)); what has appeared is read at the next turn.
        let told = self.files.as_ref().map(FileWatch::written).transpose().ok().flatten();
        for path in told.unwrap_or_default() {
            for awaited in self.awaited.iter_mut().filter(|awaited| path == awaited.path) {
                awaited.appeared += 1;
                if awaited.rule.hits().has(awaited.appeared) {
                    (self.happen)(awaited.number, awaited.rule, awaited.appeared);
                }
            }
        }
    }
}
