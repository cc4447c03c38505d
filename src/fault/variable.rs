//! The variables of the environment that trials look at. None of them puts a plan in force by itself.

use super::{Plan, PlanError};

/// The plan that is run instead of that of the program, to repeat a trial that has failed.
pub(super) const PLAN: &str = "PHALANX_FAULTS";
/// How long a run may take, in seconds.
pub(super) const SECONDS: &str = "PHALANX_FAULTS_SECONDS";
/// The seed of plans that are drawn.
pub(super) const SEED: &str = "PHALANX_FAULTS_SEED";

/// The plan that is to be run instead of the program's, if there is one.
pub(super) fn plan() -> Result<Option<Plan>, PlanError> {
    value(PLAN).map(|plan| plan.parse()).transpose()
}

/// A number, if there is one.
///
/// # Errors
/// When the value is none: a seed that was mistyped must not draw other plans.
pub(super) fn number(name: &'static str) -> Result<Option<u64>, PlanError> {
    let parse = |value: String| value.parse().map_err(|_| PlanError::Variable { name, value });
    value(name).map(parse).transpose()
}

/// What is no UTF-8 is shown as it can be, and refused as what it then is.
fn value(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}
