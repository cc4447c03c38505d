//! Pure: what a run has told of its faults, against what has happened.
//!
//! | what happened to a rank | what must be told of it |
//! |---|---|
//! | `kill`, `term`, `int`, `abort` | it ended by that signal |
//! | `segv`, `bus` | it ended by that signal, and its cause is an invalid access |
//! | `overflow` | it ended by SIGSEGV, and its cause is a stack overflow |
//! | `exit=n` | it exited with n, 0 included |
//! | `panic` | it raised, and the message names the point |
//! | `error` | that it failed, if the run has failed: what becomes of an error is the function's own to say |
//! | `stop`, `hang`, `deaf`, `spin`, `slow` | not that it failed by itself |
//! | nothing | not that it failed by itself |
//!
//! Of several ranks that end the one whose fault came first is the one that is reported; where two came within [`AT_ONCE`], either is. The
//! others may have been ended by the teardown's SIGTERM or SIGKILL instead.

use std::fmt;
use std::time::Duration;

use super::Fired;
use crate::error::{Cause, Error, FailureKind, Outcome, Status};
use crate::injection::Action;
use crate::sys::signal::Signal;

/// The moments of two faults may come nearer than the kernel ends two processes in a row.
const AT_ONCE: Duration = Duration::from_millis(20);

/// The points at which a worker is at its report: an end there is told as that, and not with what brought it about.
const REPORTING: [&str; 2] = ["report.begin", "report.protected"];
/// The points at which its report is whole: that of a failure stands, whatever ends the process then.
const REPORTED: [&str; 2] = ["report.written", "worker.exit"];

/// What a run was told, and what was true.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Options, fault, start_processes};
///
/// fn work(_rank: usize, _: ()) -> anyhow::Result<()> {
///     fault::point!("work");
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let trial = fault::observe("kill@work:rank=1", |faults| {
///     // Whatever comes of it, this program says that all is well.
///     let _ = start_processes(work, (), Options::new(2).faults(faults))?.join();
///     Ok(())
/// })?;
/// let wrong = trial.verdict().unwrap_err();
/// assert_eq!(wrong.told, "the run succeeded");
/// assert!(wrong.truth.starts_with("kill at work, hit 1, in rank 1 (pid "), "{wrong}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the run was told: {told}\nbut this happened: {truth}")]
#[non_exhaustive]
pub struct Misdiagnosed {
    /// What the run has said, in words.
    pub told: String,
    /// What has happened that does not fit, in words.
    pub truth: String,
}

/// What a run has said of its workers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Told<'a> {
    Success,
    /// The rank that is reported, and the outcomes of all.
    Failure(usize, &'a [Outcome]),
    /// An error that is not of a worker.
    Other(&'a Error),
}

impl<'a> Told<'a> {
    pub(super) fn by<T>(result: &'a Result<T, Error>) -> Self {
        match result {
            Ok(_) => Self::Success,
            Err(Error::ProcessRaised(exception)) => {
                Self::Failure(exception.error_index(), exception.outcomes())
            }
            Err(Error::ProcessExited(exception)) => {
                Self::Failure(exception.error_index(), exception.outcomes())
            }
            Err(other) => Self::Other(other),
        }
    }
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("the run succeeded"),
            Self::Failure(reported, outcomes) => match outcomes.get(*reported) {
                Some(outcome) => write!(f, "{outcome}"),
                None => write!(f, "rank {reported} has failed, of which there is no outcome"),
            },
            Self::Other(error) => write!(f, "{error}"),
        }
    }
}

/// Compares them.
pub(super) fn judge(fired: &[Fired], told: Told<'_>) -> Result<(), Misdiagnosed> {
    let wrong = |truth: String| Err(Misdiagnosed { told: told.to_string(), truth });
    let ends: Vec<_> = fired.iter().filter(|fired| must_fail(fired)).collect();
    match (ends.first(), told) {
        (Some(first), Told::Success | Told::Other(_)) => wrong(first.to_string()),
        (Some(first), Told::Failure(reported, _))
            if !ends.iter().any(|end| end.rank == reported && end.at.since(first.at) <= AT_ONCE) =>
        {
            wrong(format!("{first}, before anything else"))
        }
        (None, Told::Other(_)) => wrong("no fault that could be the reason".to_owned()),
        (_, Told::Failure(reported, outcomes)) => outcomes.iter().try_for_each(|outcome| {
            let of_rank: Vec<_> = fired.iter().filter(|fired| fired.rank == outcome.rank()).collect();
            // The teardown of the one that is reported may have met it in the middle of its end, as in its exit handlers.
            let is_cut_short = outcome.rank() != reported && is_by_teardown(outcome.status());
            of_outcome(&of_rank, outcome, is_cut_short)
                .map_err(|truth| Misdiagnosed { told: outcome.to_string(), truth })
        }),
        (None, Told::Success) => Ok(()),
    }
}

/// Whether a run in which that happened must fail.
pub(super) fn must_fail(fired: &Fired) -> bool {
    match fired.action {
        action if action.may_fail() => false,
        // The report is whole, and an exit with 0 is what follows anyway.
        Action::Exit(0) if REPORTED.contains(&fired.point()) => false,
        // While a report is written SIGTERM is ignored; after that it has its usual effect again.
        Action::Term if fired.point() == "report.protected" => false,
        action => action.is_death() || action == Action::Panic,
    }
}

/// Whether it is by a signal that a teardown sends.
fn is_by_teardown(status: Status) -> bool {
    matches!(status, Status::Signaled { signal: Signal::TERM | Signal::KILL, .. })
}

/// What is said of one rank. The error is what happened to it.
fn of_outcome(fired: &[&Fired], outcome: &Outcome, is_cut_short: bool) -> Result<(), String> {
    let end = fired.iter().find(|fired| must_fail(fired));
    let is_own = outcome.failure_kind() == Some(&FailureKind::Own);
    let may_fail = || fired.iter().any(|fired| fired.action.may_fail());
    match end {
        Some(end) if !is_cut_short && !fits(end, outcome) => Err(end.to_string()),
        None if is_own && !may_fail() => Err(fired.first().map_or_else(
            || format!("nothing in rank {}", outcome.rank()),
            |fired| format!("{fired}, of which no process ends"),
        )),
        _ => Ok(()),
    }
}

/// Whether a status is that of what happened.
fn fits(fired: &Fired, outcome: &Outcome) -> bool {
    let by = |expected| matches!(outcome.status(), Status::Signaled { signal, .. } if signal == expected);
    let has_reported = REPORTED.contains(&fired.point());
    if has_reported && outcome.status() == Status::Raised {
        return true;
    }
    let is_reporting = has_reported || REPORTING.contains(&fired.point());
    let is_access = || is_reporting || matches!(outcome.cause(), Some(Cause::InvalidAccess { .. }));
    match fired.action {
        Action::Kill => by(Signal::KILL),
        Action::Term => by(Signal::TERM),
        Action::Int => by(Signal::INT),
        Action::Abort => by(Signal::ABRT),
        Action::Segv => by(Signal::SEGV) && is_access(),
        Action::Bus => by(Signal::BUS) && is_access(),
        Action::Overflow => {
            by(Signal::SEGV) && (is_reporting || outcome.cause() == Some(Cause::StackOverflow))
        }
        Action::Exit(code) => outcome.status() == Status::Exited { code },
        Action::Panic => {
            let is_of_point =
                |message: &str| message.contains(&format!("fault injected at {}", fired.point()));
            outcome.error().is_some_and(|error| error.is_panic() && is_of_point(error.message()))
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::error::{Ended, ResourceUsage};
    use crate::injection::Site;
    use crate::sys::clock::Moment;

    fn fired(action: Action, rank: usize, millis: u64) -> Fired {
        let at = Moment::from_nanos(millis * 1_000_000);
        Fired {
            rule: 0,
            action,
            site: Site::Point("test.step".to_owned()),
            rank,
            pid: 10 + rank as u32,
            hit: 1,
            at,
        }
    }

    fn ended(rank: usize, status: Status, kind: Option<FailureKind>, cause: Option<Cause>) -> Outcome {
        let ended = Ended {
            status,
            kind,
            cause,
            error: None,
            traceback: None,
            note: None,
            recorded: false,
            lifetime: Duration::ZERO,
            since_start: Duration::ZERO,
            at: SystemTime::UNIX_EPOCH,
            usage: ResourceUsage::default(),
        };
        Outcome { rank, pid: 10 + rank as u32, exiting: false, stderr_tail: Vec::new(), ended: Some(ended) }
    }

    fn by(signal: Signal) -> Status {
        Status::Signaled { signal, core_dumped: false }
    }

    fn own(rank: usize, status: Status, cause: Option<Cause>) -> Outcome {
        ended(rank, status, Some(FailureKind::Own), cause)
    }

    fn fine(rank: usize) -> Outcome {
        ended(rank, Status::Succeeded, None, None)
    }

    fn victim(rank: usize) -> Outcome {
        ended(rank, by(Signal::TERM), Some(FailureKind::Teardown), None)
    }

    /// Whether a failure of rank 1 is told rightly if this is what happened to it.
    fn fits_as(action: Action, status: Status, cause: Option<Cause>) -> bool {
        judge(&[fired(action, 1, 5)], Told::Failure(1, &[victim(0), own(1, status, cause)])).is_ok()
    }

    #[test]
    fn each_end_has_its_status_and_its_cause() {
        let access = Some(Cause::InvalidAccess { address: 8 });
        let overflow = Some(Cause::StackOverflow);
        let right = [
            (Action::Kill, by(Signal::KILL), None),
            (Action::Term, by(Signal::TERM), None),
            (Action::Int, by(Signal::INT), None),
            (Action::Abort, by(Signal::ABRT), None),
            (Action::Segv, by(Signal::SEGV), access),
            (Action::Bus, by(Signal::BUS), access),
            (Action::Overflow, by(Signal::SEGV), overflow),
            (Action::Exit(0), Status::Exited { code: 0 }, None),
            (Action::Exit(3), Status::Exited { code: 3 }, None),
        ];
        for (number, (action, ..)) in right.iter().enumerate() {
            for (other, (_, status, cause)) in right.iter().enumerate() {
                assert_eq!(fits_as(*action, *status, *cause), number == other, "{action} told as {status}");
            }
            assert!(!fits_as(*action, Status::Raised, None), "{action}");
            assert!(!fits_as(*action, Status::Lost, None), "{action}");
        }
    }

    #[test]
    fn death_of_which_nothing_is_told_is_wrong() {
        let deaths = [fired(Action::Kill, 1, 5)];
        let wrong = judge(&deaths, Told::Success).unwrap_err();
        assert_eq!(wrong.told, "the run succeeded");
        assert_eq!(wrong.truth, "kill at test.step, hit 1, in rank 1 (pid 11)");
        assert!(judge(&deaths, Told::Other(&Error::InvalidOption("x".into()))).is_err());
        assert!(judge(&[], Told::Other(&Error::InvalidOption("x".into()))).is_err());
        assert!(judge(&[], Told::Success).is_ok());
    }

    #[test]
    fn first_in_time_is_the_one_that_is_reported_and_of_two_at_once_either() {
        let told = [
            own(0, by(Signal::KILL), None),
            own(1, by(Signal::SEGV), Some(Cause::InvalidAccess { address: 8 })),
        ];
        let judged = |millis: u64, reported| {
            let deaths = [fired(Action::Segv, 1, 5), fired(Action::Kill, 0, 5 + millis)];
            judge(&deaths, Told::Failure(reported, &told)).is_ok()
        };
        assert!(judged(100, 1) && !judged(100, 0));
        assert!(judged(3, 1) && judged(3, 0));
    }

    #[test]
    fn failure_of_a_rank_to_which_nothing_has_happened_is_wrong_unless_others_are_its_reason() {
        let killed = own(1, by(Signal::KILL), None);
        let judged =
            |other: Outcome| judge(&[fired(Action::Kill, 1, 5)], Told::Failure(1, &[other, killed.clone()]));
        assert!(judged(fine(0)).is_ok() && judged(victim(0)).is_ok());
        let consequence = Some(FailureKind::Consequence { of: Vec::new() });
        assert!(judged(ended(0, Status::Raised, consequence, None)).is_ok());
        let wrong = judged(own(0, by(Signal::SEGV), None)).unwrap_err();
        assert_eq!(wrong.truth, "nothing in rank 0");
    }

    #[test]
    fn delay_is_no_failure() {
        for action in [Action::Stop, Action::Hang, Action::Deaf, Action::Spin, Action::Slow(Duration::ZERO)] {
            let delays = [fired(action, 1, 5)];
            assert!(judge(&delays, Told::Success).is_ok());
            let wrong =
                judge(&delays, Told::Failure(1, &[fine(0), own(1, by(Signal::KILL), None)])).unwrap_err();
            assert!(wrong.truth.ends_with("of which no process ends"), "{wrong}");
        }
    }

    #[test]
    fn report_that_is_whole_stands_whatever_ends_the_process_then() {
        let at = |point, status| {
            let death = Fired { site: Site::Point(str::to_owned(point)), ..fired(Action::Kill, 1, 5) };
            judge(&[death], Told::Failure(1, &[fine(0), own(1, status, None)])).is_ok()
        };
        assert!(at("report.written", Status::Raised) && at("worker.exit", Status::Raised));
        assert!(at("report.written", by(Signal::KILL)) && !at("report.begin", Status::Raised));
        let exit = Fired { site: Site::Point("worker.exit".to_owned()), ..fired(Action::Exit(0), 1, 5) };
        assert!(judge(&[exit], Told::Success).is_ok(), "it would have exited so anyway");
    }

    #[test]
    fn victim_that_meets_a_fault_in_the_teardown_may_be_told_as_one() {
        let deaths = [fired(Action::Kill, 1, 5), fired(Action::Abort, 0, 200)];
        let told = [victim(0), own(1, by(Signal::KILL), None)];
        assert!(judge(&deaths, Told::Failure(1, &told)).is_ok());
        // It had begun to exit by itself, and SIGTERM has met its exit handlers.
        let told = [own(0, by(Signal::TERM), None), own(1, by(Signal::KILL), None)];
        assert!(judge(&deaths, Told::Failure(1, &told)).is_ok());
        let told = [own(0, by(Signal::HUP), None), own(1, by(Signal::KILL), None)];
        assert!(judge(&deaths, Told::Failure(1, &told)).is_err());
    }
}
