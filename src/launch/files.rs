//! Where a job's files lie: as torchrun lays them out, `DIR/RUN_ID_RANDOM/attempt_N/RANK/{stdout.log,stderr.log,error.json}`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::error::{LaunchError, Result};

/// The directory of a job. One that only error files needed is removed with this.
#[derive(Debug)]
pub(super) struct JobDir {
    path: PathBuf,
    /// Whether others may not read it: many users share the directory for temporary files.
    is_private: bool,
    /// Whether it is removed when the job is over.
    is_temporary: bool,
    is_made: bool,
}

impl JobDir {
    /// Chooses its name, in `log_dir`, or in the directory for temporary files, where it stays if it is to have logs. It is not made yet:
    /// who is to remove it must know it before.
    ///
    /// # Errors
    /// When `log_dir` is a file, or cannot be made.
    pub(super) fn choose(log_dir: Option<&Path>, run_id: &str, has_logs: bool) -> Result<Self> {
        if let Some(dir) = log_dir
            && fs::metadata(dir).is_ok_and(|found| !found.is_dir())
        {
            let what = format!("the log directory {} is a file", dir.display());
            return Err(LaunchError::invalid(what, "give a directory; it is made if it is not there"));
        }
        let parent = log_dir.map_or_else(std::env::temp_dir, Path::to_owned);
        let failed =
            |os| LaunchError::system(format!("making a directory for logs in {}", parent.display()))(os);
        if log_dir.is_some() {
            fs::create_dir_all(&parent).map_err(failed)?;
        }
        // A run id may have any letters; those of a path are not taken for one.
        let name: String =
            run_id.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).take(100).collect();
        let random = crate::sys::dir::unguessable().map_err(failed)?;
        let name = if log_dir.is_some() { name } else { format!("phalanx-run-{name}") };
        let path = parent.join(format!("{name}_{}", &random[..random.len().min(8)]));
        Ok(Self {
            path,
            is_private: log_dir.is_none(),
            is_temporary: log_dir.is_none() && !has_logs,
            is_made: false,
        })
    }

    /// Makes it.
    ///
    /// # Errors
    /// When the system refuses it.
    pub(super) fn make(&mut self) -> Result<()> {
        let mut builder = fs::DirBuilder::new();
        if self.is_private {
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        }
        let made = builder.create(&self.path);
        made.map_err(LaunchError::system(format!("making the directory {}", self.path.display())))?;
        self.is_made = true;
        Ok(())
    }

    /// The job's own directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is to be removed when the job is over, however it ends.
    pub(super) fn temporary(&self) -> Option<&Path> {
        self.is_temporary.then_some(&self.path)
    }

    /// Makes the directories of an attempt: one for each rank if there are logs; else one, for error files alone.
    ///
    /// # Errors
    /// When one cannot be made.
    pub(super) fn attempt(&self, number: usize, nproc: usize) -> Result<AttemptDir> {
        let path = self.path.join(format!("attempt_{number}"));
        let dir = AttemptDir { path, has_logs: !self.is_temporary };
        for path in dir.all(nproc) {
            let made = fs::create_dir_all(&path);
            made.map_err(LaunchError::system(format!("making the directory {}", path.display())))?;
        }
        Ok(dir)
    }
}

impl Drop for JobDir {
    fn drop(&mut self) {
        if self.is_temporary && self.is_made {
            // The run is over, so an error has no place to be told.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The directory of an attempt.
#[derive(Clone, Debug)]
pub(super) struct AttemptDir {
    path: PathBuf,
    /// Whether each rank has a directory in it.
    has_logs: bool,
}

impl AttemptDir {
    /// The attempt's own directory, in the job's.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The directories in which workers make files: those of the ranks, or the attempt's own. The inotify of error files watches them.
    pub(super) fn all(&self, nproc: usize) -> Vec<PathBuf> {
        if self.has_logs { (0..nproc).map(|rank| self.of(rank)).collect() } else { vec![self.path.clone()] }
    }

    /// The directory of a rank.
    fn of(&self, rank: usize) -> PathBuf {
        self.path.join(rank.to_string())
    }

    /// Where a rank writes why it failed: its `TORCHELASTIC_ERROR_FILE`.
    pub(super) fn error_file(&self, rank: usize) -> PathBuf {
        if self.has_logs {
            self.of(rank).join("error.json")
        } else {
            self.path.join(format!("error_{rank}.json"))
        }
    }

    /// A new file of a rank, to which each write is appended, and its path.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn create(&self, rank: usize, name: &str) -> Result<(File, PathBuf)> {
        create(self.of(rank).join(name))
    }
}

/// A new file, to which each write is appended (O_APPEND), so that several processes may share it.
///
/// # Errors
/// When it cannot be made; the text has its path.
pub(super) fn create(path: PathBuf) -> Result<(File, PathBuf)> {
    let opened = File::options().create(true).append(true).open(&path);
    let file = opened.map_err(LaunchError::system(format!("making the log file {}", path.display())))?;
    Ok((file, path))
}

/// The last bytes of a file, at most `most`. They may begin within a line, and within a character.
///
/// # Errors
/// When it cannot be read, or is not there.
pub(super) fn tail(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_torchruns_and_stays() {
        let parent = tempfile::tempdir().unwrap();
        let logs = parent.path().join("logs");
        let mut job = JobDir::choose(Some(&logs), "my/job", true).unwrap();
        job.make().unwrap();
        let attempt = job.attempt(2, 11).unwrap();
        let (_, path) = attempt.create(10, "stdout.log").unwrap();
        let below = path.strip_prefix(&logs).unwrap().to_str().unwrap().to_owned();
        assert!(below.starts_with("my_job_") && below.ends_with("/attempt_2/10/stdout.log"), "{below}");
        drop(job);
        assert!(path.exists());
        let file = JobDir::choose(Some(&path), "x", true).unwrap_err().to_string();
        assert!(file.contains("is a file"), "{file}");
    }

    #[test]
    fn directory_for_error_files_alone_is_removed() {
        let mut job = JobDir::choose(None, "none", false).unwrap();
        job.make().unwrap();
        let path = job.path.clone();
        job.attempt(0, 2).unwrap();
        assert!(path.join("attempt_0").is_dir());
        drop(job);
        assert!(!path.exists());
    }

    #[test]
    fn tail_is_the_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "0123456789").unwrap();
        assert_eq!(tail(file.path(), 3).unwrap(), b"789");
        assert_eq!(tail(file.path(), 30).unwrap(), b"0123456789");
    }
}
