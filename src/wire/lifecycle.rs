//! Pure: the states of a worker, and which may follow which.

/// How far a worker has come, as the first word of its report slot has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub(crate) enum State {
    /// The worker has not reached `init`.
    Empty = 0,
    /// The worker has reached `init` and sets itself up.
    Begun = 1,
    /// The worker could not set itself up; the note in the slot says why.
    Refused = 2,
    /// The user's function runs.
    Running = 3,
    /// The function has ended and the report is being written.
    Reporting = 4,
    /// The body is a whole result.
    Returned = 5,
    /// The body is a whole error.
    Raised = 6,
}

impl State {
    const ALL: [Self; 7] = [
        Self::Empty,
        Self::Begun,
        Self::Refused,
        Self::Running,
        Self::Reporting,
        Self::Returned,
        Self::Raised,
    ];

    /// The state that a word of the slot means. A word that a worker has damaged counts as nothing reached.
    pub(super) fn from_word(word: u32) -> Self {
        Self::ALL.into_iter().find(|&state| state as u32 == word).unwrap_or(Self::Empty)
    }

    /// Whether a worker in this state may go on to that one.
    pub(super) fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Empty, Self::Begun)
                | (Self::Begun, Self::Refused | Self::Running)
                | (Self::Running, Self::Reporting)
                | (Self::Reporting, Self::Returned | Self::Raised)
        )
    }

    /// Whether the body of the report is complete.
    pub(super) fn is_whole(self) -> bool {
        matches!(self, Self::Returned | Self::Raised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_goes_forward_only_and_stops_at_one_of_three_ends() {
        for from in State::ALL {
            let next: Vec<_> = State::ALL.into_iter().filter(|&to| from.may_become(to)).collect();
            assert!(next.iter().all(|&to| to > from), "{from:?} -> {next:?}");
            let is_end = matches!(from, State::Refused | State::Returned | State::Raised);
            assert_eq!(next.is_empty(), is_end, "{from:?} -> {next:?}");
        }
    }

    #[test]
    fn a_report_is_whole_only_after_it_was_begun() {
        let whole = State::ALL.into_iter().filter(|state| state.is_whole());
        for state in whole {
            let before: Vec<_> = State::ALL.into_iter().filter(|from| from.may_become(state)).collect();
            assert_eq!(before, [State::Reporting]);
        }
    }

    #[test]
    fn a_word_that_is_no_state_counts_as_none_reached() {
        assert!(State::ALL.into_iter().all(|state| State::from_word(state as u32) == state));
        assert_eq!(State::from_word(7), State::Empty);
    }
}
