//! What the workers print: which of it this process carries, on its way to the console, and what is kept.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

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
pub(crate) type StderrFile = Option<(File, PathBuf)>;

/// The output of all workers.
#[derive(Debug)]
pub(crate) struct Output {
    /// `None`: all has been carried.
    pump: Option<Arc<Pump>>,
    /// By rank; of a pool, where two processes of a rank may follow one another closely, by seat.
    ranks: Vec<RankOutput>,
    wanted: Wanted,
    /// What a [`Prefix`] calls the job.
    role: String,
}

/// Of the process that has a rank now, or had it last.
#[derive(Debug, Default)]
struct RankOutput {
    sources: Vec<SourceId>,
    stderr: Option<SourceId>,
    /// The last lines of its stderr, once all has been carried.
    tail: Vec<String>,
}

impl Output {
    /// Starts the thread that carries it. `None`: there is nothing to carry.
    pub(super) fn start(wanted: Wanted, role: String, nprocs: usize) -> Result<Option<Self>, Error> {
        if wanted.descriptors() == 0 || nprocs == 0 {
            return Ok(None);
        }
        let started = fd::copy_of_stdio(1)
            .and_then(|stdout| Ok(Console::new(stdout, fd::copy_of_stdio(2)?)))
            .and_then(Pump::start);
        let pump = started.map_err(Error::system("start the thread that carries what the workers print"))?;
        Ok(Some(Self { pump: Some(Arc::new(pump)), ranks: Vec::new(), wanted, role }))
    }

    /// Carries what comes out of the pipes of a rank: those of its first process, or of one that has taken the place of another. `file`:
    /// where its stderr goes instead of the console. `place`: under which number all else here knows it, and the rank that its prefix names.
    pub(crate) fn carry(&mut self, place: (usize, usize), [stdout, stderr]: PipeEnds, file: StderrFile) {
        let (number, rank) = place;
        let Some(pump) = &self.pump else { return };
        let prefix = self.wanted.prefix.as_ref().map_or(Vec::new(), |prefix| prefix.of(&self.role, rank));
        let stdout = stdout.map(|pipe| {
            let console = Some((Stream::Stdout, prefix.clone()));
            pump.add(pipe, Route { console, ..Route::default() })
        });
        let stderr = stderr.map(|pipe| {
            let console = file.is_none().then_some((Stream::Stderr, prefix));
            let channel = (self.wanted.tail > 0).then_some(number as u64);
            pump.add(pipe, Route { file, console, channel, ..Route::default() })
        });
        let sources = stdout.into_iter().chain(stderr).collect();
        if self.ranks.len() <= number {
            self.ranks.resize_with(number + 1, RankOutput::default);
        }
        let before =
            std::mem::replace(&mut self.ranks[number], RankOutput { sources, stderr, tail: Vec::new() });
        before.sources.into_iter().for_each(|source| pump.forget(source));
    }

    /// What is watched: readable when there is something to [`hear`](Self::hear).
    pub(crate) fn pump(&self) -> Option<&Arc<Pump>> {
        self.pump.as_ref()
    }

    /// Takes what is in the pipes of a worker that has ended: a process that it has left behind holds nobody up.
    pub(crate) fn finish(&self, rank: usize) {
        if let Some(pump) = &self.pump {
            self.ranks[rank].sources.iter().for_each(|&source| pump.finish(source));
        }
    }

    /// Takes what the pump tells: whatever has been lost is said where it can be.
    pub(crate) fn hear(&self) {
        let Some(pump) = &self.pump else { return };
        pump.clear();
        pump.take_broken().into_iter().for_each(|broken| pump.say(format!("phalanx: {broken}")));
    }

    /// Whether all that came from the workers has been written.
    pub(super) fn is_carried(&self) -> bool {
        (0..self.ranks.len()).all(|rank| self.is_carried_of(rank))
    }

    /// Whether all that came from a rank has been written.
    pub(crate) fn is_carried_of(&self, rank: usize) -> bool {
        let closed = |pump: &Arc<Pump>| self.ranks[rank].sources.iter().all(|&id| pump.is_closed(id));
        self.pump.as_ref().is_none_or(closed)
    }

    /// The last lines of a rank's stderr, as far as they have come.
    pub(crate) fn tail(&self, rank: usize) -> Vec<String> {
        match (&self.pump, self.ranks[rank].stderr) {
            (Some(pump), Some(source)) if self.wanted.tail > 0 => {
                last_lines(&pump.tail(source), self.wanted.tail)
            }
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
