//! The options of Launch that concern the standard streams of workers.

use std::path::PathBuf;

use super::options::Launch;
use super::ranks::{RankList, RankStreams};
use super::stdio::Stdin;
use crate::supervise::prefix::Prefix;

/// # Standard streams
///
/// Without these options each line that a worker prints goes, whole and behind a prefix, to the same stream of this process. No
/// worker waits for another one's output.
impl Launch {
    /// Sets which worker reads this process's stdin; without this call, [`Stdin::OnlyWorker`].
    pub fn stdin(self, stdin: Stdin) -> Self {
        Self { stdin, ..self }
    }

    /// Sets the directory for log files; it is made if it is not there. torchrun's `--log-dir`.
    ///
    /// The job makes a directory of its own in it, so that jobs do not share files:
    /// `DIR/RUN_ID_RANDOM/attempt_N/RANK/{stdout.log,stderr.log,error.json}`, as torchrun does. Without this call that directory lies
    /// in the one for temporary files (`TMPDIR`, else `/tmp`), where it stays if [`redirects`](Self::redirects), [`tee`](Self::tee) or
    /// a filter has put logs into it, and is removed after the run if not. [`Attempt::log_dir`](super::Attempt::log_dir) says where the logs are.
    ///
    /// ```
    /// use phalanx::launch::{Command, Launch, Streams};
    ///
    /// let dir = tempfile::tempdir()?;
    /// let hello = Command::new("sh").args(["-c", "echo hello"]);
    /// let summary = Launch::new(hello).log_dir(dir.path()).redirects(Streams::BOTH).run()?;
    /// let logs = summary.attempts[0].log_dir.as_ref().unwrap();
    /// assert_eq!(std::fs::read(logs.join("0/stdout.log"))?, b"hello\n");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn log_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.logs.dir = Some(dir.into());
        self
    }

    /// Sets which streams go to files instead of the console; none without this call. torchrun's `-r`, `--redirects`.
    ///
    /// The files have every byte as it was written. A worker writes to them itself, so this is the fastest way out.
    ///
    /// ```
    /// use phalanx::launch::{Command, Launch, Nproc, RankStreams};
    ///
    /// // Both streams of rank 0 stay on the console; of the others stdout goes to files.
    /// let (dir, streams) = (tempfile::tempdir()?, "1-3:1".parse::<RankStreams>()?);
    /// let launch = Launch::new(Command::new("true")).nproc(Nproc::Count(4)).redirects(streams);
    /// assert!(launch.log_dir(dir.path()).run()?.succeeded());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn redirects(mut self, streams: impl Into<RankStreams>) -> Self {
        self.logs.redirects = streams.into();
        self
    }

    /// Sets which streams go to files and to the console; none without this call. torchrun's `-t`, `--tee`.
    ///
    /// It goes before [`redirects`](Self::redirects) where both name a stream.
    ///
    /// ```
    /// use phalanx::launch::{Command, Launch, Streams};
    ///
    /// let dir = tempfile::tempdir()?;
    /// let train = Command::new("sh").args(["-c", "echo loss 0.5; echo no device >&2"]);
    /// let summary = Launch::new(train).tee(Streams::BOTH).log_dir(dir.path()).run()?;
    /// let logs = summary.attempts[0].log_dir.as_ref().unwrap();
    /// assert_eq!(std::fs::read_to_string(logs.join("0/stdout.log"))?, "loss 0.5\n");
    /// assert_eq!(std::fs::read_to_string(logs.join("0/stderr.log"))?, "no device\n");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn tee(mut self, streams: impl Into<RankStreams>) -> Self {
        self.logs.tee = streams.into();
        self
    }

    /// Shows these ranks only on the console; all without this call. Their files are written all the same. torchrun's
    /// `--local-ranks-filter`.
    ///
    /// The end of each worker's stderr is kept for the report, whether it is shown or not.
    pub fn show_ranks(mut self, ranks: RankList) -> Self {
        self.logs.shown = Some(ranks);
        self
    }

    /// Sets what stands before each line on the console; without this call, torchrun's `[default0]:`. torchrun's
    /// `--log-line-prefix-template` and `TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE`.
    pub fn prefix(mut self, prefix: Prefix) -> Self {
        self.logs.prefix = prefix;
        self
    }

    /// Writes each line of stdout that contains one of these texts to one file for all ranks too: `filtered_stdout.log` in the
    /// attempt's log directory. torchrun's `--duplicate-stdout-filters`.
    ///
    /// The lines have no prefix there, and their letters count as they are. A second call replaces the texts; an empty list
    /// stands for no file.
    ///
    /// ```
    /// use phalanx::launch::{Command, Launch, Nproc};
    ///
    /// let dir = tempfile::tempdir()?;
    /// let train = Command::new("sh").args(["-c", "echo loss 0.$RANK; echo done"]);
    /// let launch = Launch::new(train).nproc(Nproc::Count(2)).log_dir(dir.path());
    /// let summary = launch.filter_stdout(["loss"]).run()?;
    /// let logs = summary.attempts[0].log_dir.as_ref().unwrap();
    /// let text = std::fs::read_to_string(logs.join("filtered_stdout.log"))?;
    /// assert!(text.contains("loss 0.0\n") && text.contains("loss 0.1\n") && !text.contains("done"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn filter_stdout<T: Into<String>>(mut self, texts: impl IntoIterator<Item = T>) -> Self {
        self.logs.stdout_needles = texts.into_iter().map(Into::into).collect();
        self
    }

    /// Writes each line of stderr that contains one of these texts to `filtered_stderr.log` too, as
    /// [`filter_stdout`](Self::filter_stdout) does it for stdout. torchrun's `--duplicate-stderr-filters`.
    pub fn filter_stderr<T: Into<String>>(mut self, texts: impl IntoIterator<Item = T>) -> Self {
        self.logs.stderr_needles = texts.into_iter().map(Into::into).collect();
        self
    }
}
