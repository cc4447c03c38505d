//! What can go wrong with a pool, and with one task of it.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, MemoryError, Outcome, RaisedError};
use crate::queue::QueueError;

/// Why a pool does not start, or takes no task.
///
/// What becomes of a task that a pool has taken is told by [`TaskFailed`].
///
/// All but [`Full`](Self::Full) hold for the next call too, except that [`Arguments`](Self::Arguments), [`Function`](Self::Function) are about this
/// one. After [`Broken`](Self::Broken) and [`Closed`](Self::Closed) a program needs another pool.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::pool::{Pool, PoolError};
///
/// # fn main() -> anyhow::Result<()> {
/// let pool = Pool::new(1)?;
/// pool.close();
/// let reply = match pool.submit(|x: u64| anyhow::Ok(x), 1) {
///     Ok(task) => format!("200: {}", task.join()?),
///     Err(PoolError::Full { queued }) => format!("429: {queued} calls wait"),
///     Err(error @ (PoolError::Closed | PoolError::Broken { .. })) => format!("503: {error}"),
///     Err(error) => return Err(error.into()),
/// };
/// assert_eq!(reply, "503: the pool was closed: it takes no more tasks");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The pool cannot be as it was asked for.
    #[error("cannot make the pool: {0}")]
    InvalidOption(String),

    /// Its first workers could not be started; none is left.
    #[error(transparent)]
    Start(Box<Error>),

    /// The shared memory of the pool could not be made.
    #[error(transparent)]
    Memory(#[from] MemoryError),

    /// A queue of the pool could not be made, or does not work.
    #[error("the queue of the pool's tasks: {0}")]
    Queue(#[source] QueueError),

    /// The system refused something that the pool needs.
    #[error("cannot {doing}: {os}")]
    System {
        /// What the pool was doing.
        doing: &'static str,
        /// The system's error.
        #[source]
        os: std::io::Error,
    },

    /// The function cannot be found again in another process: it lies in a shared object.
    #[error(transparent)]
    Function(Box<Error>),

    /// The arguments could not be serialised. Nothing was sent, and what is exclusive in them is still here.
    #[error("cannot serialise the arguments of `{function}`: {reason}")]
    Arguments {
        /// The path of the function.
        function: &'static str,
        /// What serde or the type said.
        reason: String,
    },

    /// There is no room for a task at the moment, and the time that the call might wait is up. Nothing was sent, and what is
    /// exclusive in the arguments is still here.
    #[error("the pool has no room for one more task: {queued} wait for a worker")]
    Full {
        /// How many tasks have not ended.
        queued: usize,
    },

    /// The pool was closed, and takes no more tasks.
    #[error("the pool was closed: it takes no more tasks")]
    Closed,

    /// The pool cannot keep its workers: they end before they have begun a task, or cannot be started any more.
    #[error("the pool is broken: {reason}")]
    Broken {
        /// How its last worker ended, or why none could be started.
        reason: String,
    },

    /// A worker could not give up its state: what [`StateOptions::on_retire`](super::StateOptions::on_retire) names has failed there. All
    /// calls were done.
    #[error("a worker of the pool could not give up its state: worker {} {}", .0.rank(), Death(.0))]
    Retire(Box<Outcome>),

    /// This process is a fork of the one that the pool belongs to, and has a copy of the handle, but not the workers.
    #[error("this pool belongs to process {owner}: this process is a fork of it; make a pool here")]
    Forked {
        /// The pid of the process that made the pool.
        owner: u32,
    },
}

impl PoolError {
    pub(super) fn system(doing: &'static str) -> impl Fn(std::io::Error) -> Self + Copy {
        move |os| Self::System { doing, os }
    }
}

/// A task, or an item of a map, that did not return: which, and why.
///
/// Its text names the function, the item, what happened, and the traceback where there is one.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::pool::Pool;
///
/// fn root(x: f64) -> anyhow::Result<f64> {
///     anyhow::ensure!(x >= 0.0, "{x} has no root");
///     Ok(x.sqrt())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let pool = Pool::new(1)?;
/// let mut results = pool.map(root, [4.0, -1.0])?;
/// assert_eq!(results.next().transpose()?, Some(2.0));
/// let failed = results.next().expect("there are two items").unwrap_err();
/// // Which call, and how far it came.
/// assert_eq!((failed.item(), failed.began(), failed.attempts()), (Some(1), true, 1));
/// assert!(failed.function().ends_with("root"));
/// // Why: the error of the function, and no worker has ended.
/// assert_eq!(failed.raised().map(|raised| raised.message()), Some("-1 has no root"));
/// assert!(failed.outcome().is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct TaskFailed(Box<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    function: &'static str,
    item: Option<u64>,
    /// How the attempts before the last one have ended.
    earlier: Vec<TaskFailure>,
    /// Whether the last one had begun.
    began: bool,
    failure: TaskFailure,
    /// What in the arguments forbids a further attempt, as a noun: only one process can have it.
    exclusive: Option<&'static str>,
}

/// Why a task did not return a value.
///
/// Whether a call may be made again without harm is told by [`TaskFailed::began`], not by this: a `WorkerEnded` may have begun or not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskFailure {
    /// The function returned an error, or panicked. The worker goes on.
    Raised(RaisedError),
    /// The worker ended while it had the task: by a signal, by an exit, for want of memory.
    WorkerEnded(Outcome),
    /// The arguments are no value of the function's type, or did not arrive whole. The function was not called.
    Arguments(String),
    /// What the function returned could not be serialised, or did not arrive whole.
    Result(String),
    /// It was cancelled before it began: the function was not called.
    Cancelled,
    /// It was [killed](super::Task::kill), and its worker was ended.
    Killed(Outcome),
    /// It ran for longer than its [time limit](super::PoolOptions::timeout), and its worker was ended.
    TimedOut {
        /// The time limit.
        limit: Duration,
        /// How the worker ended.
        outcome: Outcome,
    },
    /// Its [deadline](super::PoolOptions::deadline) came before it had ended.
    DeadlinePassed {
        /// How long after its submit.
        deadline: Duration,
        /// How its worker was ended; `None`: it had not begun.
        outcome: Option<Outcome>,
    },
    /// The pool ended or broke before the task began.
    PoolEnded(String),
    /// What becomes of it cannot be waited for here: the wait was aborted, or this process is a fork of the one that has the pool.
    WaitEnded(String),
}

impl TaskFailed {
    pub(super) fn new(function: &'static str, item: Option<u64>, began: bool, failure: TaskFailure) -> Self {
        Self(Box::new(Inner { function, item, earlier: Vec::new(), began, failure, exclusive: None }))
    }

    /// The same, of a task that was begun before.
    pub(super) fn after(mut self, earlier: Vec<TaskFailure>) -> Self {
        self.0.earlier = earlier;
        self
    }

    /// The same, of a task that would have been begun again, were it not for something that only one process can have.
    pub(super) fn not_tried_again(mut self, exclusive: Option<&'static str>) -> Self {
        self.0.exclusive = exclusive;
        self
    }

    /// The path of the function, as the compiler names its type.
    #[must_use]
    pub fn function(&self) -> &str {
        self.0.function
    }

    /// The number of the item in its map, from 0; `None` for a task that was submitted.
    #[must_use]
    pub fn item(&self) -> Option<u64> {
        self.0.item
    }

    /// How often the function has been begun: more than once only where [retries](super::PoolOptions::retries) are allowed.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.0.earlier.len() as u32 + u32::from(self.0.began)
    }

    /// How the attempts before the last one have ended, in their order: each [`TaskFailure::WorkerEnded`] or [`TaskFailure::TimedOut`].
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::Options;
    /// use phalanx::pool::{Pool, TaskFailure};
    ///
    /// fn crash(_: ()) -> anyhow::Result<()> {
    ///     std::process::abort()
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::options(Options::new(2)).retries(1).build()?;
    /// let failed = pool.submit(crash, ())?.join().unwrap_err();
    /// let [TaskFailure::WorkerEnded(first)] = failed.earlier_attempts() else { panic!("{failed}") };
    /// assert_ne!(Some(first.pid()), failed.outcome().map(|last| last.pid()));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn earlier_attempts(&self) -> &[TaskFailure] {
        &self.0.earlier
    }

    /// Whether the function had begun, so that it may have had effects. Exact, also for a worker that was killed.
    #[must_use]
    pub fn began(&self) -> bool {
        self.attempts() > 0
    }

    /// What happened.
    #[must_use]
    pub fn failure(&self) -> &TaskFailure {
        &self.0.failure
    }

    /// How the worker ended, if it did.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.0.failure.outcome()
    }

    /// What the function raised, if it did: by an error or a panic, or by a panic that ended the worker (`panic = "abort"`).
    #[must_use]
    pub fn raised(&self) -> Option<&RaisedError> {
        match &self.0.failure {
            TaskFailure::Raised(raised) => Some(raised),
            _ => self.outcome().and_then(Outcome::error),
        }
    }
}

impl fmt::Display for TaskFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { function, item, earlier, exclusive, .. } = &*self.0;
        match item {
            Some(item) => write!(f, "item {item} of `{function}` ")?,
            None => write!(f, "the task `{function}` ")?,
        }
        self.0.fmt_failure(f)?;
        if let Some(noun) = exclusive {
            write!(
                f,
                "\n\nIt was not tried again: its arguments have a {noun}, which only one process can have."
            )?;
        }
        if !earlier.is_empty() {
            write!(f, "\n\nThe function was begun {} times.", self.attempts())?;
        }
        for (attempt, outcome) in (1..).zip(earlier.iter().filter_map(TaskFailure::outcome)) {
            write!(f, "\nattempt {attempt}: {}", Ended(outcome))?;
        }
        Ok(())
    }
}

impl Inner {
    fn fmt_failure(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let again = if self.earlier.is_empty() { "" } else { " again" };
        match &self.failure {
            TaskFailure::Raised(raised) => write!(f, "failed: {raised}"),
            TaskFailure::WorkerEnded(outcome) if self.began => {
                write!(f, "ended with its worker: {}", Death(outcome))
            }
            TaskFailure::WorkerEnded(outcome) => {
                write!(f, "did not begin{again}, since its worker ended: {}", Death(outcome))
            }
            TaskFailure::Arguments(reason) => {
                write!(f, "did not begin{again}: cannot read its arguments: {reason}")
            }
            TaskFailure::Result(reason) => write!(f, "has run, but its result did not arrive: {reason}"),
            TaskFailure::Cancelled => write!(f, "was cancelled before it began{again}"),
            TaskFailure::Killed(outcome) => write!(f, "was killed with its worker: {}", Death(outcome)),
            TaskFailure::TimedOut { limit, outcome } => {
                write!(f, "ran for longer than {limit:?}, and its worker was ended: {}", Death(outcome))
            }
            TaskFailure::DeadlinePassed { deadline, outcome: None } => {
                write!(f, "did not begin{again}: its deadline, {deadline:?} after its submit, had passed")
            }
            TaskFailure::DeadlinePassed { deadline, outcome: Some(outcome) } => {
                write!(f, "ran at its deadline, {deadline:?} after its submit, and its worker was ended: ")?;
                write!(f, "{}", Death(outcome))
            }
            TaskFailure::PoolEnded(reason) => write!(f, "did not begin{again}: {reason}"),
            TaskFailure::WaitEnded(reason) => write!(f, "cannot be waited for: {reason}"),
        }
    }
}

impl TaskFailure {
    /// How the worker ended, if it did.
    fn outcome(&self) -> Option<&Outcome> {
        match self {
            Self::WorkerEnded(outcome)
            | Self::Killed(outcome)
            | Self::TimedOut { outcome, .. }
            | Self::DeadlinePassed { outcome: Some(outcome), .. } => Some(outcome),
            _ => None,
        }
    }
}

/// Which worker ended, and how, in a line or two.
struct Ended<'a>(&'a Outcome);

impl fmt::Display for Ended<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(outcome) = self;
        write!(f, "worker {} (pid {}) {}", outcome.rank(), outcome.pid(), outcome.status())?;
        outcome.cause().map_or(Ok(()), |cause| write!(f, "\nprobable cause: {cause}"))
    }
}

/// How a worker ended, in the words of `ProcessExitedException`.
struct Death<'a>(&'a Outcome);

impl fmt::Display for Death<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(outcome) = self;
        write!(f, "{}", Ended(outcome))?;
        if let Some(note) = outcome.note() {
            write!(f, "\nits last words: {note}")?;
        }
        outcome.fmt_stderr(f)?;
        if let Some(error) = outcome.error() {
            write!(f, "\n\n{error}")?;
        }
        if let Some(traceback) = outcome.traceback() {
            write!(f, "\n\n{traceback}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for TaskFailed {
    /// The same text: it is what `unwrap` and a main that returns the error show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for TaskFailed {}
