//! Pure: which failure came first, and who is only a victim of the teardown.

use crate::error::Status;
use crate::sys::clock::Moment;
use crate::sys::signal::Signal;

/// One failed worker, as far as its time goes. A list of them is in the order of their ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failing {
    pub(super) rank: usize,
    /// The moment of failure that the worker itself recorded.
    pub(super) recorded: Option<Moment>,
    /// Until then the launcher knows that it had not ended.
    pub(super) alive: Moment,
}

/// The rank whose failure came first in time, of failures in the order of the workers' ends.
///
/// A recorded moment is exact. A worker that could not record one (SIGKILL, `_exit`) failed at its end, of which
/// only the order and a lower bound are known: it comes after whoever ended before it, and after whatever was
/// recorded before that bound. Where both leave it open, the order of ends decides.
pub(super) fn first_failure(failures: &[Failing]) -> Option<usize> {
    let recorded = failures.iter().filter_map(|failing| Some((failing.recorded?, failing.rank))).min();
    let Some(silent_at) = failures.iter().position(|failing| failing.recorded.is_none()) else {
        return recorded.map(|(_, rank)| rank);
    };
    let silent = failures[silent_at];
    let ended_before = failures[..silent_at].iter().filter_map(|failing| failing.recorded).max();
    let not_before = ended_before.map_or(silent.alive, |moment| moment.max(silent.alive));
    match recorded {
        Some((moment, rank)) if moment <= not_before => Some(rank),
        _ => Some(silent.rank),
    }
}

/// What the teardown sent to a worker before it ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) at: Moment,
    /// SIGTERM, or SIGKILL if that came after it.
    pub(super) strongest: Signal,
}

/// Whether a failed worker was ended by the teardown, so that it is not to blame.
pub(super) fn is_victim(status: Status, recorded: Option<Moment>, sent: Option<Sent>) -> bool {
    let Some(sent) = sent else { return false };
    if let Some(moment) = recorded {
        return moment >= sent.at;
    }
    match status {
        Status::Signaled { signal, .. } => signal == Signal::TERM || signal == sent.strongest,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Moment {
        Moment::from_nanos(nanos)
    }

    fn failing(rank: usize, recorded: Option<u64>, alive: u64) -> Failing {
        Failing { rank, recorded: recorded.map(at), alive: at(alive) }
    }

    #[test]
    fn nobody_failed_means_no_first() {
        assert_eq!(first_failure(&[]), None);
    }

    #[test]
    fn earlier_recorded_moment_wins_over_rank_and_order_of_ends() {
        let failures = [failing(0, Some(30), 0), failing(2, Some(10), 0), failing(1, Some(20), 0)];
        assert_eq!(first_failure(&failures), Some(2));
    }

    #[test]
    fn silent_ends_go_by_their_order() {
        assert_eq!(first_failure(&[failing(3, None, 0), failing(0, None, 0)]), Some(3));
    }

    #[test]
    fn recorded_before_a_silent_end_when_it_ended_before_it() {
        assert_eq!(first_failure(&[failing(1, Some(10), 0), failing(0, None, 0)]), Some(1));
    }

    #[test]
    fn recorded_while_the_silent_one_was_still_alive_comes_first() {
        // Rank 1 failed at 10 and took until after rank 0's end to write its report.
        assert_eq!(first_failure(&[failing(0, None, 15), failing(1, Some(10), 15)]), Some(1));
    }

    #[test]
    fn recorded_after_a_silent_end_comes_later() {
        // As when rank 1 failed because rank 0 had been killed.
        assert_eq!(first_failure(&[failing(0, None, 15), failing(1, Some(20), 15)]), Some(0));
    }

    #[test]
    fn earliest_of_all_ended_last_but_failed_before_one_that_ended_first() {
        let failures = [failing(2, Some(20), 0), failing(0, None, 0), failing(1, Some(5), 0)];
        assert_eq!(first_failure(&failures), Some(1));
    }

    #[test]
    fn victims_are_those_whom_the_teardown_ended() {
        let term = Some(Sent { at: at(100), strongest: Signal::TERM });
        let kill = Some(Sent { at: at(100), strongest: Signal::KILL });
        let by = |signal| Status::Signaled { signal, core_dumped: false };
        assert!(is_victim(by(Signal::TERM), None, term));
        assert!(is_victim(by(Signal::KILL), None, kill));
        assert!(is_victim(by(Signal::TERM), None, kill));
        assert!(is_victim(Status::Exited { code: 3 }, None, term));
        assert!(is_victim(Status::Raised, Some(at(101)), term));
        assert!(!is_victim(by(Signal::KILL), None, term), "somebody else killed it");
        assert!(!is_victim(by(Signal::SEGV), Some(at(99)), term));
        assert!(!is_victim(Status::Raised, Some(at(99)), term));
        assert!(!is_victim(by(Signal::TERM), None, None));
    }
}
