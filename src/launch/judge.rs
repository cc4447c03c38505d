//! Pure: what the ends of an attempt's workers mean: which failure came first, which workers were only stopped.

use super::summary::{Ending, Role};
use crate::error::{Cause, ResourceUsage, Status};
use crate::supervise::diagnose;
use crate::supervise::group::EndedChild;
use crate::supervise::verdict::is_victim;
use crate::sys::clock::Moment;
use crate::sys::signal::Signal;

/// How a worker ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) ending: Ending,
    /// Whether it has come as far as to run its function.
    pub(super) has_begun: bool,
    /// When its end was seen.
    pub(super) at: Moment,
    /// When its error file was seen, if it has written one.
    pub(super) failed_at: Option<Moment>,
    /// `None`: it was left behind.
    pub(super) child: Option<EndedChild>,
}

impl Ended {
    /// The moment of its failure; else that of its end.
    pub(super) fn moment(&self) -> Moment {
        self.failed_at.map_or(self.at, |failed| failed.min(self.at))
    }
}

/// What each worker has to do with the failure of the attempt, by rank.
///
/// Error files and ends are told by one epoll, in the order in which they came; so the moments at which they were seen are in the
/// order of the failures.
pub(super) fn roles(workers: &[Ended], stopped_at: Option<Moment>) -> Vec<Option<Role>> {
    let failed = |ended: &Ended| ended.ending != Ending::Succeeded;
    let by_itself = |(_, ended): &(usize, &Ended)| failed(ended) && !was_stopped(ended, stopped_at);
    // One that was only left behind has perhaps not failed at all.
    let key = |(rank, ended): &(usize, &Ended)| (ended.ending == Ending::LeftBehind, ended.moment(), *rank);
    let root = workers.iter().enumerate().filter(by_itself).min_by_key(key).map(|(rank, _)| rank);
    let role = |(rank, ended): (usize, &Ended)| match ended {
        ended if !failed(ended) => None,
        _ if Some(rank) == root => Some(Role::RootCause),
        ended if was_stopped(ended, stopped_at) => Some(Role::Stopped),
        _ => Some(Role::FailedLater),
    };
    workers.iter().enumerate().map(role).collect()
}

/// Whether the teardown, or a stop of the whole job, came before a worker's failure.
fn was_stopped(ended: &Ended, stopped_at: Option<Moment>) -> bool {
    let sent = ended.child.and_then(|child| child.sent_by_teardown);
    is_victim(status(ended.ending), ended.failed_at, sent)
        || stopped_at.is_some_and(|at| ended.moment() >= at)
}

/// The same end in the words of the verdict that Rust functions in workers have.
fn status(ending: Ending) -> Status {
    match ending {
        Ending::Succeeded => Status::Succeeded,
        Ending::Exited { code } => Status::Exited { code },
        Ending::Signaled { signal, core_dumped } => Status::Signaled { signal, core_dumped },
        Ending::Lost => Status::Lost,
        Ending::LeftBehind => Status::Survived,
    }
}

/// Whether a worker died of a signal that the launcher had sent it: in the teardown, or by passing on one of its own.
pub(super) fn is_ended_by_launcher(ended: &Ended) -> bool {
    let Ending::Signaled { signal, .. } = ended.ending else { return false };
    let Some(child) = ended.child else { return false };
    let by_teardown =
        child.sent_by_teardown.is_some_and(|sent| signal == Signal::TERM || signal == sent.strongest);
    by_teardown || child.sent_by_program.contains(signal)
}

/// What probably ended a worker, where there is evidence: a kill for want of memory that the kernel has counted, or an exit before its
/// function.
pub(super) fn cause(ended: &Ended) -> Option<Cause> {
    match ended.ending {
        Ending::Signaled { signal: Signal::KILL, .. } => {}
        Ending::Exited { .. } if !ended.has_begun => return Some(Cause::NeverReachedInit),
        _ => return None,
    }
    let child = ended
        .child
        .filter(|child| child.sent_by_teardown.is_none_or(|sent| sent.strongest != Signal::KILL))?;
    child.oom.map(|oom| Cause::OutOfMemory { kills: oom.count, scope: oom.scope })
}

/// What a worker's process had used, as far as the kernel has told.
pub(super) fn usage(ended: &Ended) -> ResourceUsage {
    let child = ended.child;
    diagnose::usage(child.and_then(|child| child.exit), 0, child.map_or(0, |child| child.rss_floor_kib))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::verdict::Sent;
    use crate::sys::signal::Signals;

    fn at(nanos: u64) -> Moment {
        Moment::from_nanos(nanos)
    }

    fn ended(ending: Ending, moment: u64) -> Ended {
        let child = EndedChild {
            exit: None,
            alive: at(moment - 1),
            rss_floor_kib: 0,
            sent_by_program: Signals::NONE,
            sent_by_teardown: None,
            oom: None,
        };
        Ended { ending, has_begun: true, at: at(moment), failed_at: None, child: Some(child) }
    }

    fn code(code: i32, moment: u64) -> Ended {
        ended(Ending::Exited { code }, moment)
    }

    /// One that the teardown sent SIGTERM at a moment.
    fn sent(ended: Ended, moment: u64) -> Ended {
        let sent_by_teardown = Some(Sent { at: at(moment), strongest: Signal::TERM });
        Ended { child: ended.child.map(|child| EndedChild { sent_by_teardown, ..child }), ..ended }
    }

    #[test]
    fn first_to_end_is_the_root_cause_and_who_was_stopped_is_none() {
        let term = ended(Ending::Signaled { signal: Signal::TERM, core_dumped: false }, 30);
        let workers =
            [sent(term, 20), code(5, 10), ended(Ending::Succeeded, 5), code(6, 15), sent(code(1, 40), 20)];
        use Role::{FailedLater, RootCause, Stopped};
        assert_eq!(
            roles(&workers, None),
            [Some(Stopped), Some(RootCause), None, Some(FailedLater), Some(Stopped)]
        );
    }

    #[test]
    fn error_file_that_came_first_counts_more_than_an_end_that_came_first() {
        let slow = Ended { failed_at: Some(at(3)), ..sent(code(1, 90), 11) };
        assert_eq!(roles(&[code(2, 10), slow], None), [Some(Role::FailedLater), Some(Role::RootCause)]);
        // One that is written in the teardown is no failure of its own.
        let late = Ended { failed_at: Some(at(30)), ..sent(code(1, 90), 11) };
        assert_eq!(roles(&[code(2, 10), late], None), [Some(Role::RootCause), Some(Role::Stopped)]);
        // Both were seen in one look, and the file came first.
        let file = Ended { failed_at: Some(at(9)), ..sent(code(1, 90), 11) };
        let end = Ended { child: ended(Ending::Succeeded, 2).child, ..code(2, 10) };
        assert_eq!(roles(&[end, file], None), [Some(Role::FailedLater), Some(Role::RootCause)]);
    }

    #[test]
    fn nobody_is_to_blame_for_an_end_after_a_stop() {
        let workers = [code(1, 10), code(130, 30)];
        assert_eq!(roles(&workers, Some(at(20))), [Some(Role::RootCause), Some(Role::Stopped)]);
        assert_eq!(roles(&workers[1..], Some(at(20))), [Some(Role::Stopped)]);
    }
}
