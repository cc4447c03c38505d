//! One pipe, and where its bytes go.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::console::{Console, Stream, Turn};
use super::lines::{Lines, Piece};
use super::{Channel, SourceId};
use crate::sys::clock::Moment;

/// How long a part of a line waits for its end, since it came and since another's line.
const PART_WAITS: Duration = Duration::from_millis(100);
/// How long a state of a progress bar waits for a newer one where each takes a line of its own.
const STATE_WAITS: Duration = Duration::from_secs(1);
/// How long a part of a line stays the last on the console, before another's part may end it.
const TURN: Duration = Duration::from_secs(1);

/// A file that all sources share, with those of their lines that contain one of some texts.
#[derive(Debug)]
pub(crate) struct Filter {
    pub(crate) needles: Vec<Vec<u8>>,
    pub(crate) file: Arc<File>,
    pub(crate) path: PathBuf,
}

impl Filter {
    fn takes(&self, line: &[u8]) -> bool {
        self.needles.iter().any(|needle| memchr::memmem::find(line, needle).is_some())
    }
}

/// Where the bytes of a source go.
#[derive(Debug, Default)]
pub(crate) struct Route {
    /// Every byte as it comes.
    pub(crate) file: Option<(File, PathBuf)>,
    /// Whole lines, each behind a prefix.
    pub(crate) console: Option<(Stream, Vec<u8>)>,
    pub(crate) filter: Option<Arc<Filter>>,
    /// Texts whose lines are told as they come, by [`Pump::take_seen`](super::Pump::take_seen).
    pub(crate) watched: Option<Arc<[String]>>,
    /// Where the last bytes are kept; `None`: nowhere.
    pub(crate) channel: Option<Channel>,
}

/// A pipe that is open.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) id: SourceId,
    pipe: OwnedFd,
    route: Route,
    lines: Lines,
    /// For the filter and the texts that are watched for: whole lines, whatever the console was shown of them.
    whole: Lines,
    /// The texts that were seen, by number, each as often as a line has had it.
    seen: Vec<usize>,
    /// Since when a part of a line waits.
    waiting_since: Option<Moment>,
}

impl Source {
    pub(super) fn new(id: SourceId, pipe: OwnedFd, route: Route) -> Self {
        let (lines, whole) = (Lines::default(), Lines::default());
        Self { id, pipe, route, lines, whole, seen: Vec::new(), waiting_since: None }
    }

    pub(super) fn pipe(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    pub(super) fn channel(&self) -> Option<Channel> {
        self.route.channel
    }

    /// Carries bytes that were read; returns what could not be written any more.
    pub(super) fn carry(&mut self, bytes: &[u8], console: &mut Console, now: Moment) -> Vec<String> {
        let mut broken = self.write_file(bytes);
        if let Some((stream, prefix)) = &self.route.console {
            self.lines.push(bytes, |piece| console.tell(*stream, (self.id, prefix), piece, now));
            if !self.lines.is_waiting() {
                self.waiting_since = None;
            } else {
                self.waiting_since.get_or_insert(now);
            }
        }
        broken.extend(self.take_lines(|lines, tell| lines.push(bytes, tell)));
        broken
    }

    /// The texts that were watched for and have come since the last call, by number, in their order.
    pub(super) fn take_seen(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.seen)
    }

    fn write_file(&mut self, bytes: &[u8]) -> Vec<String> {
        let Some((file, path)) = &mut self.route.file else { return Vec::new() };
        let Err(error) = file.write_all(bytes) else { return Vec::new() };
        let text = format!("{}: {error}; the rest of this worker's output is not in it", path.display());
        self.route.file = None;
        vec![text]
    }

    /// Gives the whole lines that a step of the lines tells to the filter and to the watch; returns what could not be written any more.
    fn take_lines(&mut self, step: impl FnOnce(&mut Lines, &mut dyn FnMut(Piece<'_>))) -> Vec<String> {
        let (filter, watched) = (self.route.filter.clone(), self.route.watched.clone());
        if filter.is_none() && watched.is_none() {
            return Vec::new();
        }
        let (mut found, seen) = (Vec::new(), &mut self.seen);
        step(&mut self.whole, &mut |piece| {
            let (Piece::Line { rest: line, .. } | Piece::LastProgress(line)) = piece else { return };
            if filter.as_ref().is_some_and(|filter| filter.takes(line)) {
                found.extend_from_slice(line);
                found.push(b'\n');
            }
            let texts = watched.iter().flat_map(|texts| texts.iter().enumerate());
            let in_line = texts.filter(|(_, text)| memchr::memmem::find(line, text.as_bytes()).is_some());
            seen.extend(in_line.map(|(number, _)| number));
        });
        filter.map_or(Vec::new(), |filter| self.write_filtered(&filter, &found))
    }

    fn write_filtered(&mut self, filter: &Filter, lines: &[u8]) -> Vec<String> {
        // O_APPEND: the kernel puts each write at the end as a whole, also when other sources write (open(2)).
        let Err(error) = (&*filter.file).write_all(lines) else { return Vec::new() };
        self.route.filter = None;
        vec![format!("{}: {error}; filtered lines of one worker are missing in it", filter.path.display())]
    }

    /// When to show the part of a line that has come so far. It waits while other sources write lines, which would part it from its
    /// end; where other sources have parts to show too, each has the console for a turn.
    pub(super) fn part_is_due(&self, console: &Console) -> Option<Moment> {
        let (stream, _) = self.route.console.as_ref()?;
        let since = self.waiting_since?;
        let turn = console.turn(*stream, self.id);
        if self.lines.is_progress() {
            let is_in_place = console.is_terminal(*stream) && turn == Turn::Own;
            let due = since.checked_add(if is_in_place { PART_WAITS } else { STATE_WAITS })?;
            return Some(turn_over(turn).map_or(due, |over| over.max(due)));
        }
        match turn {
            Turn::OthersLine(at) => since.max(at).checked_add(PART_WAITS),
            Turn::Own | Turn::OthersPart(_) => since.checked_add(PART_WAITS).max(turn_over(turn)),
        }
    }

    fn show_part(&mut self, console: &mut Console, now: Moment) {
        self.waiting_since = None;
        if let Some((stream, prefix)) = &self.route.console {
            self.lines.show(|piece| console.tell(*stream, (self.id, prefix), piece, now));
        }
    }

    /// Tells the end of the last line, which has no newline.
    pub(super) fn finish(&mut self, console: &mut Console, now: Moment) -> Vec<String> {
        if let Some((stream, prefix)) = &self.route.console {
            self.lines.finish(|piece| console.tell(*stream, (self.id, prefix), piece, now));
        }
        self.take_lines(|lines, tell| lines.finish(tell))
    }
}

/// When the turn of another source's part is over; `None`: no such part stands on the console.
fn turn_over(turn: Turn) -> Option<Moment> {
    match turn {
        Turn::OthersPart(at) => at.checked_add(TURN),
        Turn::Own | Turn::OthersLine(_) => None,
    }
}

/// Shows the parts of lines that are due. The one that has waited longest comes first: while it has its turn, the others wait.
pub(super) fn show_parts(sources: &mut BTreeMap<SourceId, Source>, console: &mut Console, now: Moment) {
    let is_due =
        |source: &Source, console: &Console| source.part_is_due(console).is_some_and(|due| due <= now);
    while let Some(source) = sources
        .values_mut()
        .filter(|source| is_due(source, console))
        .min_by_key(|source| source.waiting_since)
    {
        source.show_part(console, now);
    }
}
