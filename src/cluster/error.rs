//! ClusterError: why an engine's variables tell no place.

/// Why the variables of an engine tell no place. Each text names the variable, its value, and what to do.
///
/// ```
/// use phalanx::cluster::{ClusterError, detect};
///
/// let half = [("PHALANX_NNODES".to_owned(), "2".to_owned())].into();
/// let error = detect(&half).unwrap_err();
/// assert!(matches!(&error, ClusterError::Missing { variable, .. } if variable.contains("NODE_RANK")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// The engine is recognized by one variable, and another one that is needed is not set.
    #[error("{variable} is not set, though {because} is; {hint}")]
    Missing {
        /// The name of the missing variable; of several that would do, all.
        variable: String,
        /// The variable by which the engine was recognized.
        because: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// A variable has a value that cannot be read, or a number that is too small or too large.
    #[error("{variable} is {value:?}, which is no {expected}; {hint}")]
    Invalid {
        /// The variable's name.
        variable: String,
        /// Its value.
        value: String,
        /// What it should be, as `number below 3`.
        expected: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// Two variables cannot both be right, or they describe a start that gives each node no place of its own.
    #[error("{what}; {hint}")]
    Contradictory {
        /// The variables, with their values.
        what: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A list of hosts cannot be read.
    #[error("host list {list:?}: {what} at byte {at}; write it as node[01-04,7],other")]
    Hosts {
        /// The list; of a long one, its begin.
        list: String,
        /// What is wrong.
        what: &'static str,
        /// Where, in bytes from the begin of the list.
        at: usize,
    },
}

/// What this room's functions return.
pub(super) type Result<T> = std::result::Result<T, ClusterError>;
