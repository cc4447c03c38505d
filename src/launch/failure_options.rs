//! Launch: failures and stops of the job.

use std::time::Duration;

use super::options::Launch;
use super::restart::RestartOn;
use crate::injection::Plan;
use crate::sys::signal::Signal;

impl Launch {
    /// Sets how often all workers are started anew after a failure; 0 without this call. torchrun's `--max-restarts`.
    ///
    /// There are at most this number of attempts and one. The next attempt begins when no process of the last one is left, and after
    /// a pause if the root cause failed within 5 s of its start: 0.5 s, then 1 s, 2 s and so on, at most 30 s.
    ///
    /// The job ends earlier, with [`no_restart`](super::Summary::no_restart) set, when a worker has exited with code 93, or when the
    /// root causes of three attempts in a row have ended in the same way and within 5 s. Its exit code is 93 then.
    ///
    /// ```
    /// use phalanx::launch::{Command, Launch};
    ///
    /// let launch = Launch::new(Command::new("sh").args(["-c", "exit 93"])).max_restarts(5);
    /// let summary = launch.run()?;
    /// assert_eq!(summary.attempts.len(), 1);
    /// assert!(summary.is_pointless && summary.no_restart.is_some());
    /// # Ok::<(), phalanx::launch::LaunchError>(())
    /// ```
    pub fn max_restarts(self, most: usize) -> Self {
        Self { max_restarts: most, ..self }
    }

    /// Restarts after these failures only; without this call, after all. torchrun has no such option; `phalanx run` has
    /// `--restart-on`.
    ///
    /// How the root cause ended decides. It changes nothing where [`max_restarts`](Self::max_restarts) is 0.
    pub fn restart_on(self, failures: RestartOn) -> Self {
        Self { restart_on: Some(failures), ..self }
    }

    /// Sets how long workers have to end after SIGTERM, or after the signal that was passed on to them, before SIGKILL; 30 s without
    /// this call. torchrun's `--shutdown-timeout` and `TORCH_ELASTIC_SHUTDOWN_TIMEOUT`.
    ///
    /// A worker that has written an error file and does not end has this time to end by itself, then SIGTERM, then the time again.
    pub fn shutdown_timeout(self, timeout: Duration) -> Self {
        Self { shutdown_timeout: timeout, ..self }
    }

    /// Sets the signals that end the job, if [`handle_signals`](Self::handle_signals) is on; without this call, SIGTERM, SIGINT,
    /// SIGHUP and SIGQUIT. torchrun's `--signals-to-handle` and `TORCHELASTIC_SIGNALS_TO_HANDLE`.
    ///
    /// The first such signal is passed on to the workers; after [`shutdown_timeout`](Self::shutdown_timeout) they are killed. A second
    /// one kills them at once. A signal that this process ignores, as SIGHUP under nohup(1), stays ignored.
    ///
    /// [`run`](Self::run) refuses SIGKILL and SIGSTOP.
    pub fn stop_signals(self, signals: impl IntoIterator<Item = Signal>) -> Self {
        Self { stop_signals: signals.into_iter().collect(), ..self }
    }

    /// Gives this process to the job while it runs, as the program `phalanx run` does; off without this call.
    ///
    /// - The [stop signals](Self::stop_signals) are passed on to the workers and end the job; SIGUSR1, SIGUSR2 and SIGWINCH are
    ///   passed on and end nothing.
    /// - Ctrl-Z (SIGTSTP) stops the workers and this process; no time passes for the job until it is continued.
    /// - Orphans among the workers' descendants become this process's children and are reaped; when all workers have ended, those in a
    ///   session of their own are killed.
    /// - A small process, the guardian, ends all descendants if this process is killed by SIGKILL, and removes the job's directory for
    ///   error files, which such an end leaves otherwise.
    ///
    /// After the run all dispositions are what they were. A program whose job was stopped by a signal should end by
    /// [`die_of`](super::die_of).
    ///
    /// This process must have one thread when the job is run, else [`run`](Self::run) refuses; and it must have no other children,
    /// since it reaps each child that ends.
    pub fn handle_signals(self, handles: bool) -> Self {
        Self { handles_signals: handles, ..self }
    }

    /// Has faults happen on purpose: for the CI of a training program, which is to survive them, or to fail as it should. None without this
    /// call. `phalanx run` has `--faults`, and no variable of the environment for it.
    ///
    /// The launcher makes them happen by signals to the process of a worker, whatever its program is: at its `start`, at a `time=`, when it prints
    /// a `line=`, when a `file=` appears ([`Site`](crate::fault::Site)). They are not told to what finds out how the worker has ended.
    /// [`Summary::faults`](super::Summary::faults) has what has come of each. A job of which one has not happened has succeeded in
    /// vain: its [exit code](super::Summary::exit_code) is 1.
    ///
    /// | part of a rule | what a launcher knows |
    /// |---|---|
    /// | action | `kill`, `term`, `int`, `abort`, `segv`, `bus`: the signal; `stop`, and with `for=2s` SIGCONT after that time; `limit=nofile/64`: prlimit(2) |
    /// | site | `start`: all workers run; `time=5s` after the worker's start; `line=step_100`: it has printed a line with "step 100"; `file=ckpt/1.pt`: the file has appeared, wherever it came from |
    /// | `rank=` | as everywhere; without it the rank that prints the line, else the lowest one that runs |
    /// | `hit=` | which of the lines of a rank that have the text, or which time that the file appears |
    /// | `attempt=` | in which attempts; 0 without it |
    /// | `role=launcher` | the launcher itself, in place of a rank |
    ///
    /// [`run`](Self::run) refuses a plan of which a rule would never happen: another action than a signal, a point of a program, a rank that there
    /// is not.
    ///
    /// ```
    /// use phalanx::launch::{Command, Launch};
    ///
    /// // The first attempt is killed at its second step. The next one is left alone.
    /// let script = "for step in 1 2 3; do echo step $step; sleep 0.1; done";
    /// let job = Launch::new(Command::new("sh").args(["-c", script])).max_restarts(1);
    /// let summary = job.faults("kill@line=step_2".parse()?).run()?;
    /// assert_eq!((summary.attempts.len(), summary.exit_code()), (2, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn faults(self, plan: Plan) -> Self {
        Self { faults: Some(plan), ..self }
    }
}
