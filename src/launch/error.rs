//! LaunchError.

use std::io;

use crate::error::limit_met;

/// Why a job could not be run. That a worker failed is no error of the launch: the [`Summary`](super::Summary) tells of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// An option that means nothing here, or contradicts another one.
    #[error("{what}; {hint}")]
    Invalid {
        /// What is wrong, with the value.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// The program cannot be run; no worker was started, or those before it were ended.
    #[error("cannot run {program}: {os}{}", hint_of(hint))]
    Program {
        /// Its path, or the name that was looked for.
        program: String,
        /// What to do about it, where that is known.
        hint: Option<String>,
        /// The system's error.
        #[source]
        os: io::Error,
    },
    /// The system refused something that a job needs.
    #[error("{what}: {os}")]
    System {
        /// What was being done.
        what: String,
        /// The system's error.
        #[source]
        os: io::Error,
    },
}

fn hint_of(hint: &Option<String>) -> String {
    hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default()
}

impl LaunchError {
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

/// What a launch returns.
pub(super) type Result<T> = std::result::Result<T, LaunchError>;
