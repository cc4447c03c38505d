//! How far a map is: as data, in words, and as a line at the bottom of the terminal.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::supervise::pump::{Console, Pump, clock};
use crate::sys::clock::Moment;
use crate::sys::fd;
use crate::sys::forks::Here;
use crate::sys::pipe::is_terminal;

/// How far a [`Map`](super::Map) is, at one moment: [`Map::progress`](super::Map::progress).
///
/// Its text is what [`Map::status_line`](super::Map::status_line) shows: `120 of 1000 done, 2 failed, 4 running, 35.2/s, 0:00:25 left`.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::pool::Pool;
///
/// # fn main() -> anyhow::Result<()> {
/// let pool = Pool::new(2)?;
/// let mut squares = pool.map(|x: u64| anyhow::Ok(x * x), 0..10)?;
/// squares.by_ref().take(3).try_for_each(|square| square.map(drop))?;
/// let progress = squares.progress();
/// assert!(progress.rate() > 0.0 && progress.time_left().is_some());
/// assert!(progress.to_string().contains("of 10 done"), "{progress}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// How many items have returned or failed, as far as this process has taken that in.
    pub done: u64,
    /// How many of these have failed.
    pub failed: u64,
    /// How many calls workers are at now: a worker that has a chunk is at one of its items.
    pub running: usize,
    /// How many items there are; `None`: the iterator of the items does not know ([`Iterator::size_hint`]), and has not ended.
    pub total: Option<u64>,
    /// How long ago the first item was given to the pool, by CLOCK_MONOTONIC.
    pub elapsed: Duration,
}

impl Progress {
    /// How many items a second are done, on average since the first one was given to the pool; 0 before one is done.
    #[must_use]
    pub fn rate(&self) -> f64 {
        if self.done == 0 {
            0.0
        } else {
            self.done as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
        }
    }

    /// How long the rest takes at that rate; `None`: that is not known yet.
    ///
    /// Items that are quick at first and slow at the end make it too short: the average is over all.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        let left = self.total?.saturating_sub(self.done);
        if left == 0 {
            return Some(Duration::ZERO);
        }
        Duration::try_from_secs_f64(left as f64 / self.rate()).ok()
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.done)?;
        if let Some(total) = self.total {
            write!(f, " of {total}")?;
        }
        f.write_str(" done")?;
        if self.failed > 0 {
            write!(f, ", {} failed", self.failed)?;
        }
        write!(f, ", {} running, {:.1}/s", self.running, self.rate())?;
        self.time_left().map_or(Ok(()), |left| write!(f, ", {} left", clock(left)))
    }
}

/// How often the line is drawn anew, at most: reading what it says takes a look at each task that is on its way.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// The line of one map.
#[derive(Debug)]
pub(super) struct Line {
    label: String,
    /// The thread that carries what the pool's workers print, which then draws the line too, so that neither writes over the other.
    of_pool: Weak<Pump>,
    /// `None`: the pool has one; or stderr is no terminal, or the system refuses a thread: then there is no line.
    own: Option<Arc<Pump>>,
    shown: Option<Moment>,
    process: Here,
}

impl Line {
    pub(super) fn new(label: String, of_pool: Weak<Pump>) -> Self {
        let own = if of_pool.strong_count() == 0 { own_pump() } else { None };
        Self { label, of_pool, own, shown: None, process: Here::now() }
    }

    /// Shows what `progress` returns, if it was not asked within the last [`TICK`].
    pub(super) fn show(&mut self, progress: impl FnOnce() -> Progress) {
        let now = Moment::now();
        if self.shown.is_some_and(|shown| now.since(shown) < TICK) {
            return;
        }
        self.shown = Some(now);
        if let Some(pump) = self.pump() {
            pump.status(Some(format!("{}: {}", self.label, progress())));
        }
    }

    fn pump(&self) -> Option<Arc<Pump>> {
        self.own.clone().or_else(|| self.of_pool.upgrade())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // In a fork of the process the thread is not there, and its line is not this process's.
        if !self.process.is_now() {
            return std::mem::forget(self.own.take());
        }
        if let Some(pump) = self.pump() {
            pump.status(None);
        }
    }
}

fn own_pump() -> Option<Arc<Pump>> {
    let stderr = fd::copy_of_stdio(2).ok().filter(is_terminal)?;
    let stdout = fd::copy_of_stdio(1).ok()?;
    Pump::start(Console::new(stdout, stderr)).ok().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_what_is_known() {
        let begin = Progress { done: 0, failed: 0, running: 2, total: None, elapsed: Duration::ZERO };
        assert_eq!((begin.to_string(), begin.time_left()), ("0 done, 2 running, 0.0/s".to_owned(), None));
        let known = Progress { total: Some(10), ..begin };
        assert_eq!(
            (known.to_string(), known.time_left()),
            ("0 of 10 done, 2 running, 0.0/s".to_owned(), None)
        );
        let middle =
            Progress { done: 100, failed: 3, total: Some(8000), elapsed: Duration::from_secs(50), ..begin };
        assert_eq!(middle.to_string(), "100 of 8000 done, 3 failed, 2 running, 2.0/s, 1:05:50 left");
        let end =
            Progress { done: 10, running: 0, total: Some(10), elapsed: Duration::from_secs(5), ..begin };
        assert_eq!(end.to_string(), "10 of 10 done, 0 running, 2.0/s, 0:00:00 left");
    }
}
