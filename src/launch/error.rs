//! LaunchError: why a job could not be run.

use std::io;

use crate::error::{Error, limit_met};
use crate::supervise::prefix::PrefixError;

/// Why a job could not be run. That a worker failed is no error of the launch: the [`Summary`](super::Summary) tells of it.
///
/// When [`Launch::run`](super::Launch::run) returns it, no worker is left: those that had been started were killed.
///
/// `source()` is the system's error, if there is one. `phalanx run` exits with 2 for [`Invalid`](Self::Invalid), with 127 or 126 for
/// [`Program`](Self::Program), as a shell does, and else with 1.
///
/// ```
/// use phalanx::launch::{Command, Launch, LaunchError};
///
/// let error = Launch::new(Command::new("no-such-program")).run().unwrap_err();
/// assert!(matches!(&error, LaunchError::Program { program, .. } if program == "no-such-program"));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// An option has a value that means nothing here, or that contradicts another one. Nothing was started.
    #[error("{what}; {hint}")]
    Invalid {
        /// What is wrong, with the value in quotes.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// The program is not there or cannot be executed: no worker was started, or those that had been were ended.
    #[error("cannot run {program}: {os}{}", hint_of(hint))]
    Program {
        /// The program's path, or the name that was looked for in `PATH`.
        program: String,
        /// What to do about it, where that is known.
        hint: Option<String>,
        /// The system's error.
        #[source]
        os: io::Error,
    },
    /// A function of this program cannot be run in workers; none was started.
    #[error("cannot launch {function}: {error}")]
    Function {
        /// Its path.
        function: String,
        /// Why.
        #[source]
        error: Box<Error>,
    },
    /// The system refused something that a job needs: a process, a descriptor, a file. Where a limit was met, its name and value stand
    /// in the text.
    #[error("{what}: {os}")]
    System {
        /// What was being done, as `making the directory /logs/x`.
        what: String,
        /// The system's error.
        #[source]
        os: io::Error,
    },
}

/// The hint as the end of a text.
fn hint_of(hint: &Option<String>) -> String {
    hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default()
}

impl LaunchError {
    /// An option that is refused: what is wrong, and what to do about it.
    pub(super) fn invalid(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), hint: hint.into() }
    }

    /// Names what was being done when the system refused.
    pub(super) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |os| match limit_met(&os) {
            Some(limit) => Self::System { what: format!("{what} ({limit})"), os },
            None => Self::System { what, os },
        }
    }
}

impl From<PrefixError> for LaunchError {
    fn from(error: PrefixError) -> Self {
        Self::invalid(error.what(), PrefixError::hint())
    }
}

/// What a launch returns.
pub(super) type Result<T> = std::result::Result<T, LaunchError>;
