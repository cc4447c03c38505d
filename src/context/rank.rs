//! What can be chosen for each rank.

use std::collections::HashMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::output::StderrFile;
use crate::error::Error;
use crate::sys::affinity::Affinity;
use crate::sys::{fd, memfd};
use crate::wire::names::{SERVER, WORKER};
use crate::wire::setup::{OutputPath, RankSetup};

/// What one rank has of its own, beside what [`Options`](crate::Options) says for all:
/// [`Options::rank_options`](crate::Options::rank_options) is given one for each rank.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Options, OutputFile, RankOptions, start_processes};
///
/// fn work(_rank: usize, _: ()) -> anyhow::Result<String> {
///     println!("goes to a file");
///     Ok(std::env::var("SHARD")?)
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let dir = tempfile::tempdir()?;
/// let own = |rank: usize| {
///     let file = dir.path().join(format!("rank-{rank}.log"));
///     RankOptions::new().env("SHARD", format!("{rank} of 2")).stdout(OutputFile::truncate(file))
/// };
/// let shards = start_processes(work, (), Options::new(2).rank_options(own))?.join()?;
/// assert_eq!(shards, ["0 of 2", "1 of 2"]);
/// assert_eq!(std::fs::read_to_string(dir.path().join("rank-1.log"))?, "goes to a file\n");
/// # Ok(())
/// # }
/// ```
///
/// What cannot be (no processor, an empty name of a variable, a directory in which no file can be made) is
/// [`Error::InvalidOption`](crate::Error::InvalidOption) with the rank, before any worker is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct RankOptions {
    pub(super) environment: Vec<(String, String)>,
    directory: Option<PathBuf>,
    processors: Option<Vec<usize>>,
    stdout: Option<OutputFile>,
    stderr: Option<OutputFile>,
}

/// A file that the output of a rank goes to. Each write goes to its end (O_APPEND of open(2)), so a rank's stdout and stderr may share one,
/// but no two ranks may. A file that is none of the disk's, such as `/dev/null`, may be that of many.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct OutputFile {
    path: PathBuf,
    append: bool,
}

impl OutputFile {
    /// A new file, or one that is emptied when the worker starts. A relative path is one in the launcher's working
    /// directory.
    pub fn truncate(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), append: false }
    }

    /// A new file, or one that keeps what is in it.
    pub fn append(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), append: true }
    }

    fn record(&self) -> OutputPath {
        OutputPath { path: self.path.as_os_str().as_bytes().to_vec(), append: self.append }
    }
}

impl RankOptions {
    /// Options by which a rank is as all others.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a variable in the rank's environment, also where [`Options::env`](crate::Options::env) sets it for all. The last value of a
    /// key counts.
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let key = key.into();
        self.environment.retain(|(known, _)| *known != key);
        self.environment.push((key, value.into()));
        self
    }

    /// The rank's working directory; without it, that of the thread that starts the workers. A relative path begins in the launcher's.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// The processors that the rank may run on, by number (sched_setaffinity(2)); without it, those of the thread that starts the
    /// workers. The kernel leaves out those that this process's cpuset does not have.
    pub fn processors(mut self, processors: impl IntoIterator<Item = usize>) -> Self {
        self.processors = Some(processors.into_iter().collect());
        self
    }

    /// Where the rank's standard output goes; to the launcher's without it.
    pub fn stdout(mut self, file: OutputFile) -> Self {
        self.stdout = Some(file);
        self
    }

    /// Where the rank's standard error goes; to the launcher's without it. It may be the file of its standard output.
    pub fn stderr(mut self, file: OutputFile) -> Self {
        self.stderr = Some(file);
        self
    }

    pub(super) fn check(&self, rank: usize) -> Result<(), Error> {
        let refused = |text: String| Error::InvalidOption(format!("rank_options of rank {rank}: {text}"));
        check_environment(&self.environment).map_err(refused)?;
        if self.processors.as_ref().is_some_and(Vec::is_empty) {
            return Err(refused("processors([]): a process cannot run on none".to_owned()));
        }
        match self.processors.iter().flatten().find(|&&number| number >= Affinity::MOST) {
            Some(number) => Err(refused(format!("processors: no kernel has a processor {number}"))),
            None => Ok(()),
        }
    }

    /// Where the launcher is to carry the rank's stderr.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub(super) fn open_stderr(&self, rank: usize) -> Result<StderrFile, Error> {
        let Some(OutputFile { path, append }) = &self.stderr else { return Ok(None) };
        let refused = |error| {
            Error::InvalidOption(format!("rank_options of rank {rank}: stderr: {}: {error}", path.display()))
        };
        let file = fd::open_to_append(path, !append).map_err(refused)?;
        Ok(Some((file.into(), path.clone())))
    }

    /// `carries_stderr`: whether the launcher writes the rank's stderr to its file.
    pub(super) fn record(&self, carries_stderr: bool) -> RankSetup {
        RankSetup {
            environment: self.environment.clone(),
            directory: self.directory.as_ref().map(|path| path.as_os_str().as_bytes().to_vec()),
            processors: self.processors.as_deref().map(Affinity::of_processors),
            stdout: self.stdout.as_ref().map(OutputFile::record),
            stderr: self.stderr.as_ref().filter(|_| !carries_stderr).map(OutputFile::record),
        }
    }

    fn outputs(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let named = [("stdout", &self.stdout), ("stderr", &self.stderr)];
        named.into_iter().filter_map(|(name, file)| Some((name, file.as_ref()?.path.as_path())))
    }
}

/// Makes the files that output goes to, and sees to it that no two ranks have the same one. Nothing is emptied yet.
pub(super) fn make_outputs(ranks: &[RankOptions]) -> Result<(), Error> {
    let mut owners = HashMap::new();
    for (rank, options) in ranks.iter().enumerate() {
        for (name, path) in options.outputs() {
            let refused = |text: String| {
                Error::InvalidOption(format!(
                    "rank_options of rank {rank}: {name}: {}: {text}",
                    path.display()
                ))
            };
            // One that is no regular file, such as /dev/null, may be that of many.
            let Some(file) = make(path).map_err(|error| refused(error.to_string()))? else { continue };
            let owner = *owners.entry(file).or_insert(rank);
            if owner != rank {
                let text = format!("it is rank {owner}'s file too: give each rank a file of its own");
                return Err(refused(text));
            }
        }
    }
    Ok(())
}

/// The identity of a regular file.
fn make(path: &Path) -> io::Result<Option<(u64, u64)>> {
    use std::os::fd::AsFd;
    let file = fd::open_to_append(path, false)?;
    Ok(memfd::identity(file.as_fd()).ok().map(|(identity, _)| identity))
}

/// What is wrong with a change of the environment, if something is.
pub(super) fn check_environment(changes: &[(String, String)]) -> Result<(), String> {
    let bad_key = |key: &str| key.is_empty() || key.contains(['=', '\0']);
    for (key, value) in changes {
        let reason = if bad_key(key) {
            "an environment variable's name must not be empty, nor have '=' or NUL in it"
        } else if value.contains('\0') {
            "an environment variable's value must not have NUL in it"
        } else if key == WORKER || key == SERVER {
            "this environment variable is the library's own"
        } else {
            continue;
        };
        return Err(format!("env({key:?}, {value:?}): {reason}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_refuses_what_no_worker_can_have() {
        for bad in [
            RankOptions::new().env("A=B", ""),
            RankOptions::new().processors([]),
            RankOptions::new().processors([0, usize::MAX]),
        ] {
            let error = bad.check(3).unwrap_err().to_string();
            assert!(error.contains("rank_options of rank 3"), "{error}");
        }
        assert!(RankOptions::new().env("A", "").processors([0]).check(0).is_ok());
    }

    #[test]
    fn two_ranks_have_no_file_in_common_by_whatever_name() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "kept").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let to = |path: &Path| RankOptions::new().stdout(OutputFile::truncate(path));
        let error = make_outputs(&[to(&file), to(&link)]).unwrap_err().to_string();
        assert!(error.contains("rank 1: stdout: ") && error.contains("rank 0's file too"), "{error}");
        let both = to(&file).stderr(OutputFile::append(&link));
        make_outputs(&[both, to(&dir.path().join("other")), RankOptions::new()]).unwrap();
        let null = Path::new("/dev/null");
        make_outputs(&[to(null), to(null)]).unwrap();
        let error = make_outputs(&[to(&dir.path().join("none/file"))]).unwrap_err().to_string();
        assert!(error.contains("none/file: No such file"), "{error}");
        assert_eq!(std::fs::read_to_string(file).unwrap(), "kept");
    }
}
