//! What can be wrong with a plan.

/// Why a plan is none, or does not fit the program.
///
/// ```
/// use phalanx::fault::{Plan, PlanError};
///
/// let error = "kil@train.step".parse::<Plan>().unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "in the plan item `kil@train.step`: there is no action `kil`: did you mean `kill`?"
/// );
/// assert!(matches!(error, PlanError::Syntax { .. }));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The text is no plan.
    #[error("in the plan item `{item}`: {reason}")]
    Syntax {
        /// The item that is wrong.
        item: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The program has no such point.
    #[error("this program has no fault point `{site}`{}", Nearest(.nearest))]
    UnknownPoint {
        /// The point, or the prefix of points, as the plan has it.
        site: String,
        /// The point with the most similar name, if there is a similar one.
        nearest: Option<String>,
    },

    /// The point does not admit such a fault.
    #[error("`{rule}`: the point `{point}` ({location}) admits {admitted}")]
    NotAdmitted {
        /// The rule.
        rule: String,
        /// The point.
        point: &'static str,
        /// Its place in the source, as `file:line`.
        location: String,
        /// What it does admit, in words.
        admitted: &'static str,
    },

    /// The rule would never happen where the plan is to be in force.
    #[error("`{rule}` would never happen: {why}")]
    Never {
        /// The rule.
        rule: String,
        /// Why not.
        why: &'static str,
    },

    /// The rule names a rank that there is not.
    #[error("`{rule}` names rank {rank}, but there are {nprocs} (0 to {})", .nprocs.saturating_sub(1))]
    UnknownRank {
        /// The rule.
        rule: String,
        /// The highest rank that it names.
        rank: usize,
        /// How many ranks the context has.
        nprocs: usize,
    },

    /// A variable of the environment is to be a whole number, and is none.
    #[error("{name}={value}: it is to be a whole number")]
    Variable {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
    },

    /// The system refused something that a plan, or a trial of it, needs.
    #[error("cannot {doing}: {reason}")]
    System {
        /// What was to be done.
        doing: &'static str,
        /// The system's error.
        reason: String,
    },
}

struct Nearest<'a>(&'a Option<String>);

impl std::fmt::Display for Nearest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(nearest) => write!(f, ": did you mean `{nearest}`?"),
            None => f.write_str(": phalanx::fault::points() lists those that it has"),
        }
    }
}
