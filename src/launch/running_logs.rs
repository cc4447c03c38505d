//! What the workers of a running job have printed and print, seen from outside: from their files, and from their launcher's memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{LaunchError, Result};
use super::protocol::{Answer, Ask, Chunk, LONGEST_ANSWER, Places};
use super::ranks::RankList;
use super::running::{Connection, RunningJob};
use crate::supervise::prefix::Prefix;
use crate::supervise::pump::Packet;
use crate::sys::clock::Moment;
use crate::sys::epoll::{Readiness, wait_any};
use crate::sys::inotify::FileWatch;

/// How long a launcher may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How much of a file is shown before what follows, in bytes.
const TAIL: u64 = 64 * 1024;
/// How much of a file is read at once.
const CHUNK: usize = 64 * 1024;

// What the pump sends fits into what is received.
const _: () = assert!(Packet::LONGEST <= LONGEST_ANSWER);

/// Some bytes that a worker has printed: what [`RunningJob::logs`] tells. They may begin and end within a line, and within a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogPiece<'a> {
    /// The rank of the worker.
    pub rank: usize,
    /// Whether they are from stderr; else from stdout.
    pub is_stderr: bool,
    /// What stands before its lines on the console of its launcher: the job's [`Prefix`](super::Prefix), for this rank.
    pub prefix: &'a [u8],
    /// How many bytes before these are not there, since they were not fetched in time.
    pub skipped: u64,
    /// The bytes, as the worker has written them.
    pub bytes: &'a [u8],
}

impl RunningJob {
    /// Tells what its workers have printed, rank by rank, stdout before stderr: the files of the attempt that runs, or the last 64 KiB of
    /// a stream that goes to no file. It ends when all is told, or `tell` breaks.
    ///
    /// With `follow` it tells what they print from then on too, as it comes, and ends with the job; of files the last 64 KiB are told first.
    /// The workers are not slowed down: bytes that are not fetched in time are left out, and the next piece says how many.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use std::sync::mpsc::channel;
    /// use phalanx::launch::{Command, Event, Launch, RunningJob};
    ///
    /// let name = format!("doc-logs-{}", std::process::id());
    /// let (tell, started) = channel();
    /// let job = Launch::new(Command::new("sh").args(["-c", "echo hello; exec sleep 600"])).job_name(&name);
    /// let job = job.on_event(move |event| {
    ///     if let Event::Started { .. } = event {
    ///         tell.send(()).unwrap();
    ///     }
    /// });
    /// let visitor = std::thread::spawn(move || {
    ///     started.recv().unwrap();
    ///     let job = RunningJob::find(&name)?;
    ///     job.logs(None, true, |piece| {
    ///         assert!(b"hello\n".starts_with(piece.bytes) && piece.rank == 0);
    ///         ControlFlow::Break(())
    ///     })?;
    ///     job.stop(false)
    /// });
    /// job.run()?;
    /// visitor.join().unwrap()?;
    /// # Ok::<(), phalanx::launch::LaunchError>(())
    /// ```
    ///
    /// # Errors
    /// [`LaunchError::Invalid`] when the job has no such rank; [`LaunchError::System`] when the launcher does not answer, or a file cannot
    /// be read.
    pub fn logs(
        &self,
        ranks: Option<&RankList>,
        follow: bool,
        mut tell: impl FnMut(LogPiece<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut connection = self.ask(&Ask::Logs { ranks: ranks.map(ranges).unwrap_or_default(), follow })?;
        let (places, kept) = match connection.next(Moment::now().checked_add(ANSWER))? {
            (Answer::Logs(places), message) => (places, message.descriptors.into_iter().next()),
            (other, _) => return Err(connection.unexpected(other)),
        };
        let workers = places.files.len();
        if let Some(rank) = ranks.and_then(|ranks| ranks.iter().find(|&rank| rank >= workers)) {
            let what = format!("rank {rank} is not among the {workers} worker(s) of the job {}", self.name());
            return Err(LaunchError::invalid(what, "ranks begin at 0"));
        }
        let mut reader = Reader::new(places, ranks, &mut tell)?;
        if reader.tell_kept(kept)?.is_break()
            || reader.open_files(follow.then_some(TAIL))?.is_break()
            || !follow
        {
            return Ok(());
        }
        reader.follow(&mut connection)
    }
}

/// `0-2,7` as its runs. Where there are more runs than a request has room for, none, which means all ranks: the reader leaves out those
/// that are not meant.
fn ranges(ranks: &RankList) -> Vec<(usize, usize)> {
    const MOST: usize = 100;
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for rank in ranks.iter() {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == rank => *last = rank,
            _ => runs.push((rank, rank)),
        }
    }
    if runs.len() > MOST { Vec::new() } else { runs }
}

/// A log file. What its descriptor has before its offset was told.
struct LogFile {
    rank: usize,
    is_stderr: bool,
    path: PathBuf,
    file: File,
}

/// Reads what is in files and in memory, and tells it.
struct Reader<'a, F> {
    /// Those of the attempt that runs.
    places: Places,
    /// The ranks that are told; `None`: all.
    ranks: Option<&'a RankList>,
    prefix: Prefix,
    /// The open files of the attempt.
    files: Vec<LogFile>,
    /// The inotify that tells which files have grown.
    growing: FileWatch,
    /// The caller's function.
    tell: F,
}

/// For `map_err`: the error of a log file.
fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> LaunchError {
    LaunchError::system(format!("reading the log file {}", path.display()))
}

impl<'a, F: FnMut(LogPiece<'_>) -> ControlFlow<()>> Reader<'a, F> {
    /// A reader that has told nothing yet.
    fn new(places: Places, ranks: Option<&'a RankList>, tell: F) -> Result<Self> {
        let prefix = places.prefix.parse()?;
        let growing = FileWatch::new().map_err(LaunchError::system("making an inotify for log files"))?;
        Ok(Self { places, ranks, prefix, files: Vec::new(), growing, tell })
    }

    /// Tells some bytes, if the rank is meant and there are any.
    fn piece(&mut self, rank: usize, is_stderr: bool, skipped: u64, bytes: &[u8]) -> ControlFlow<()> {
        let is_meant = self.ranks.is_none_or(|ranks| ranks.contains(rank));
        if !is_meant || (bytes.is_empty() && skipped == 0) {
            return ControlFlow::Continue(());
        }
        let prefix = self.prefix.of(&self.places.role, rank);
        (self.tell)(LogPiece { rank, is_stderr, prefix: &prefix, skipped, bytes })
    }

    /// Tells some bytes of a stream that the pump carries, by the pump's number of it (`workers::channel`).
    fn channel(&mut self, channel: u64, skipped: u64, bytes: &[u8]) -> ControlFlow<()> {
        let rank = usize::try_from(channel / 2).unwrap_or(usize::MAX);
        self.piece(rank, channel % 2 == 1, skipped, bytes)
    }

    /// Tells what the launcher has kept.
    fn tell_kept(&mut self, kept: Option<OwnedFd>) -> Result<ControlFlow<()>> {
        let mut bytes = Vec::new();
        if let Some(kept) = kept {
            let mut file = File::from(kept);
            let read = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
            read.map_err(LaunchError::system("reading what the launcher has kept of the output"))?;
        }
        let mut rest = &bytes[..];
        while let Some((chunk, next)) = Chunk::split(rest) {
            rest = next;
            if self.channel(chunk.channel, 0, chunk.bytes).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Opens the files of an attempt, and tells what is in them, or the last bytes of that.
    fn open_files(&mut self, most: Option<u64>) -> Result<ControlFlow<()>> {
        self.files.clear();
        let Some(dir) = self.places.dir.clone() else { return Ok(ControlFlow::Continue(())) };
        for (rank, files) in self.places.files.clone().into_iter().enumerate() {
            if files == 0 || self.ranks.is_some_and(|ranks| !ranks.contains(rank)) {
                continue;
            }
            let dir = dir.join(rank.to_string());
            if most.is_some() {
                self.growing.add_growing(&dir).map_err(failed(&dir))?;
            }
            for (bit, is_stderr, name) in [(1, false, "stdout.log"), (2, true, "stderr.log")] {
                if files & bit == 0 {
                    continue;
                }
                let path = dir.join(name);
                let file = open(&path, most).map_err(failed(&path))?;
                self.files.push(LogFile { rank, is_stderr, path, file });
                if self.read(self.files.len() - 1)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Tells what has been appended to a file.
    fn read(&mut self, index: usize) -> Result<ControlFlow<()>> {
        let mut bytes = vec![0; CHUNK];
        loop {
            let LogFile { rank, is_stderr, path, file } = &mut self.files[index];
            let (rank, is_stderr) = (*rank, *is_stderr);
            let count = file.read(&mut bytes).map_err(failed(path))?;
            if count == 0 || self.piece(rank, is_stderr, 0, &bytes[..count]).is_break() {
                return Ok(if count == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) });
            }
        }
    }

    /// Tells what has been appended to all files.
    fn read_all(&mut self) -> Result<ControlFlow<()>> {
        for index in 0..self.files.len() {
            if self.read(index)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Tells what comes, until the job has ended.
    fn follow(&mut self, connection: &mut Connection) -> Result<()> {
        loop {
            let growing =
                self.growing.written().map_err(LaunchError::system("reading the inotify of log files"))?;
            let grown = (0..self.files.len()).filter(|&index| growing.contains(&self.files[index].path));
            for index in grown.collect::<Vec<_>>() {
                if self.read(index)?.is_break() {
                    return Ok(());
                }
            }
            match self.hear(connection)? {
                // Nothing is left to be heard now.
                Some(ControlFlow::Continue(())) => {}
                Some(ControlFlow::Break(())) => return Ok(()),
                None => {
                    let watched = [connection.socket().as_fd(), self.growing.as_fd()];
                    let watched = watched.map(|fd| (fd, Readiness::Readable));
                    wait_any(&watched, None).map_err(LaunchError::system("waiting for output of the job"))?;
                }
            }
        }
    }

    /// Takes the next message of the launcher: bytes, or the places of another attempt. `None`: there is none now. It breaks when the job
    /// has ended.
    fn hear(&mut self, connection: &mut Connection) -> Result<Option<ControlFlow<()>>> {
        let message = match connection.receive(Some(Moment::now())) {
            Ok(message) => message,
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                // The job has ended, and its files are complete.
                return self.read_all().map(|_| Some(ControlFlow::Break(())));
            }
            Err(error) => return Err(connection.failed(error)),
        };
        if let Some(packet) = Packet::decode(&message.bytes) {
            return Ok(Some(self.channel(packet.channel, packet.skipped, packet.bytes)));
        }
        match Answer::decode(&message.bytes) {
            Some(Answer::Logs(places)) => {
                // Another attempt: the files of the last one are complete.
                if self.read_all()?.is_break() {
                    return Ok(Some(ControlFlow::Break(())));
                }
                self.places = places;
                self.open_files(Some(u64::MAX)).map(Some)
            }
            other => {
                Err(connection.unexpected(other.unwrap_or(Answer::Refused("it makes no sense".to_owned()))))
            }
        }
    }
}

/// Opens a file at its begin, or at most `most` bytes before its end.
fn open(path: &Path, most: Option<u64>) -> std::io::Result<File> {
    let mut file = File::open(path)?;
    if let Some(most) = most {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_asked_for_as_ranges() {
        let of = |text: &str| ranges(&text.parse().unwrap());
        assert_eq!(of("0-2,7,3"), [(0, 3), (7, 7)]);
        let odd: Vec<_> = (0..202).step_by(2).map(|rank| rank.to_string()).collect();
        assert_eq!(of(&odd.join(",")), []);
    }
}
