//! The options of Launch by which people see and reach a job while it runs.

use super::options::Launch;

/// # For people
///
/// Without these options a job is on its own: it can be stopped by signals, or not at all.
impl Launch {
    /// Gives the job a name, by which other processes of this user reach it while it runs: the commands `phalanx ps`, `phalanx stop` and
    /// `phalanx logs`, and [`RunningJob`](super::RunningJob). [`run`](Self::run) refuses a name that another running job of this user has.
    ///
    /// A name has 1 to 64 letters, digits, and characters of `._-`. It is the [`run_id`](Self::run_id), too, unless another one
    /// was set. `phalanx run` has `--job-name`; torchrun has no counterpart.
    ///
    /// ```
    /// use phalanx::launch::{Command, Launch};
    ///
    /// let error = Launch::new(Command::new("true")).job_name("no name").run().unwrap_err();
    /// assert!(error.to_string().contains("no name"), "{error}");
    /// ```
    pub fn job_name(mut self, name: impl Into<String>) -> Self {
        self.job_name = Some(name.into());
        self.reachable(true)
    }

    /// Sets whether a line at the bottom of the terminal says how the job does, and Enter prints what runs; neither without this call.
    /// `phalanx run` has both, unless it is `--quiet`.
    ///
    /// The line tells how many workers run, the restarts, the time, and the memory and processor time of the worker that has most
    /// memory resident, not counting its children. It is there while stderr is a terminal that this process has in its foreground,
    /// stdout is no pipe, `TERM` is not `dumb`, and no worker has the terminal for itself; it has no colours. Enter is read if stdin
    /// is that terminal and no worker reads it, and then other lines that are typed meanwhile are read, too, and lost. The terminal's
    /// settings are not touched.
    pub fn status_line(self, is_shown: bool) -> Self {
        Self { has_status_line: is_shown, ..self }
    }

    /// Sets whether other processes of this user reach the job by its name; without this call they do only if it has
    /// a [`job_name`](Self::job_name). A job without one is found by its [`run_id`](Self::run_id) if that is a name and no other job has it, else
    /// by four letters.
    ///
    /// The job listens on an abstract socket (unix(7)), which stands in no directory and is gone with this process. It is served while
    /// [`run`](Self::run) waits for workers; visitors of other users, but for root, are turned away. The last 64 KiB of each stream that
    /// goes to no file are kept in memory.
    pub fn reachable(mut self, is_reachable: bool) -> Self {
        self.is_reachable = is_reachable;
        self.logs.keeps_hidden = is_reachable;
        self
    }
}
