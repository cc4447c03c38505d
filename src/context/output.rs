//! What the workers print: which of it this process carries, on its way to the console, and what is kept.

use std::fs::File;
use std::path::PathBuf;

use crate::error::Error;
use crate::start::PipeEnds;
use crate::supervise::prefix::Prefix;
use crate::supervise::pump::{Console, Pump, Route, SourceId, Stream, last_lines};
use crate::sys::fd;

/// What is wanted of the workers' output; nothing: they have this process's stdout and stderr.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Before each line on the console.
    pub(super) prefix: Option<Prefix>,
    /// How many of the last lines of stderr are kept.
    pub(super) tail: usize,
}

impl Wanted {
    /// Whether stdout and stderr have to be pipes.
    pub(super) fn pipes(&self) -> [bool; 2] {
        [self.prefix.is_some(), self.prefix.is_some() || self.tail > 0]
    }

    pub(super) fn descriptors(&self) -> usize {
        self.pipes().into_iter().filter(|&is_pipe| is_pipe).count()
    }
}

/// The files to which the launcher carries a rank's stderr, as it keeps the end of it too.
pub(super) type StderrFile = Option<(File, PathBuf)>;

/// The output of all workers.
#[derive(Debug)]
pub(super) struct Output {
    /// `None`: all has been carried.
    pump: Option<Pump>,
    /// By rank.
    ranks: Vec<RankOutput>,
    /// How many lines are kept.
    lines: usize,
}

#[derive(Debug)]
struct RankOutput {
    sources: Vec<SourceId>,
    stderr: Option<SourceId>,
    /// The last lines of its stderr, once all has been carried.
    tail: Vec<String>,
}

impl Output {
    /// Carries what comes out of the pipes of each rank. `None`: there are none.
    pub(super) fn carry(
        wanted: &Wanted,
        role: &str,
        readers: Vec<PipeEnds>,
        files: Vec<StderrFile>,
    ) -> Result<Option<Self>, Error> {
        if wanted.descriptors() == 0 || readers.is_empty() {
            return Ok(None);
        }
        let started = fd::copy_of_stdio(1)
            .and_then(|stdout| Ok(Console::new(stdout, fd::copy_of_stdio(2)?)))
            .and_then(Pump::start);
        let pump = started.map_err(Error::system("start the thread that carries what the workers print"))?;
        let files = files.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let ranks = readers.into_iter().zip(files).enumerate().map(|(rank, ([stdout, stderr], file))| {
            let prefix = wanted.prefix.as_ref().map_or(Vec::new(), |prefix| prefix.of(role, rank));
            let stdout = stdout.map(|pipe| {
                let console = Some((Stream::Stdout, prefix.clone()));
                pump.add(pipe, Route { console, ..Route::default() })
            });
            let stderr = stderr.map(|pipe| {
                let file = file.flatten();
                let console = file.is_none().then_some((Stream::Stderr, prefix));
                let channel = (wanted.tail > 0).then_some(rank as u64);
                pump.add(pipe, Route { file, console, channel, filter: None })
            });
            RankOutput { sources: stdout.into_iter().chain(stderr).collect(), stderr, tail: Vec::new() }
        });
        let ranks = ranks.collect();
        Ok(Some(Self { pump: Some(pump), ranks, lines: wanted.tail }))
    }

    /// What is watched: readable when there is something to [`hear`](Self::hear).
    pub(super) fn pump(&self) -> Option<&Pump> {
        self.pump.as_ref()
    }

    /// Takes what is in the pipes of a worker that has ended: a process that it has left behind holds nobody up.
    pub(super) fn finish(&self, rank: usize) {
        if let Some(pump) = &self.pump {
            self.ranks[rank].sources.iter().for_each(|&source| pump.finish(source));
        }
    }

    /// Takes what the pump tells: whatever has been lost is said where it can be.
    pub(super) fn hear(&self) {
        let Some(pump) = &self.pump else { return };
        pump.clear();
        pump.take_broken().into_iter().for_each(|broken| pump.say(format!("phalanx: {broken}")));
    }

    /// Whether all that came from the workers has been written.
    pub(super) fn is_carried(&self) -> bool {
        let closed =
            |pump: &Pump| self.ranks.iter().flat_map(|rank| &rank.sources).all(|&id| pump.is_closed(id));
        self.pump.as_ref().is_none_or(closed)
    }

    /// The last lines of a rank's stderr, as far as they have come.
    pub(super) fn tail(&self, rank: usize) -> Vec<String> {
        match (&self.pump, self.ranks[rank].stderr) {
            (Some(pump), Some(source)) if self.lines > 0 => last_lines(&pump.tail(source), self.lines),
            _ => self.ranks[rank].tail.clone(),
        }
    }

    /// Ends the thread, when all has been carried.
    pub(super) fn close(&mut self) {
        self.hear();
        for rank in 0..self.ranks.len() {
            self.ranks[rank].tail = self.tail(rank);
        }
        self.pump = None;
    }

    /// In a fork of the launcher: the thread, and what is locked by it, is the launcher's.
    pub(super) fn forget(self) {
        std::mem::forget(self.pump);
    }
}
