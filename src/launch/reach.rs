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
