//! Pure: whether a failed attempt is followed by another one, and when.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

use super::error::LaunchError;
use super::summary::{Ending, POINTLESS};
use crate::sys::signal::Signal;

/// A worker that fails sooner has failed at once.
const AT_ONCE: Duration = Duration::from_secs(5);
/// The number of attempts in a row that fail at once and in the same way, after which there is no further one.
const EQUAL_FAILURES: usize = 3;
/// The pause after one failure at once; each further one in a row doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The pause does not grow beyond this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// After which failures there is another attempt: exit codes and signals, as a list such as `1,100-120,SIGKILL`.
///
/// An item is an exit code from 1 to 255, a range of them with both its ends, or a signal by its name. How the root cause ended
/// decides. [`Launch::restart_on`](super::Launch::restart_on) takes it; torchrun has no such option, `phalanx run` has
/// `--restart-on`.
///
/// Parsing fails with [`LaunchError::Invalid`], which quotes the item.
///
/// ```
/// use phalanx::launch::{Command, Launch, RestartOn};
///
/// let after: RestartOn = "1,SIGKILL,100-120".parse()?;
/// let launch = Launch::new(Command::new("sh").args(["-c", "exit 2"]));
/// let summary = launch.max_restarts(3).restart_on(after).run()?;
/// assert_eq!(summary.attempts.len(), 1);
/// let why = "exited with code 2 is not among the failures to restart after (1, ";
/// assert!(summary.no_restart.unwrap().starts_with(why));
///
/// assert!("SIGNOTHING".parse::<RestartOn>().is_err());
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestartOn {
    codes: BTreeSet<i32>,
    signals: BTreeSet<Signal>,
}

impl FromStr for RestartOn {
    type Err = LaunchError;

    fn from_str(text: &str) -> Result<Self, LaunchError> {
        let mut chosen = Self::default();
        for part in text.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.parse::<u8>(), last.parse::<u8>(), Signal::from_name(part)) {
                (Ok(first), Ok(last), _) if 0 < first && first <= last => {
                    chosen.codes.extend((first..=last).map(i32::from));
                }
                (Err(_), Err(_), Some(signal)) => _ = chosen.signals.insert(signal),
                _ => {
                    let what = format!("{part:?} in {text:?} is neither an exit code nor a signal");
                    return Err(LaunchError::invalid(what, "write a list such as 1,100-120,SIGKILL"));
                }
            }
        }
        Ok(chosen)
    }
}

impl RestartOn {
    /// Whether there is another attempt after a root cause that ended so. One that has no status is in no list.
    fn takes(&self, ending: Ending) -> bool {
        match ending {
            Ending::Exited { code } => self.codes.contains(&code),
            Ending::Signaled { signal, .. } => self.signals.contains(&signal),
            _ => false,
        }
    }
}

/// The root cause of one failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) rank: usize,
    pub(super) ending: Ending,
    /// From its start to its failure.
    pub(super) lifetime: Duration,
}

/// What comes after a failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another attempt, after a pause.
    Attempt(Duration),
    /// None: all that were allowed have failed, or none was.
    Exhausted,
    /// None though some are left, for this reason; and whether it would fail again for sure.
    Refused { why: String, pointless: bool },
}

/// Decides what follows, from all attempts so far, the last one last.
pub(super) fn next(failed: &[Failed], max_restarts: usize, on: Option<&RestartOn>) -> Next {
    let Some(last) = failed.last().filter(|_| failed.len() <= max_restarts) else { return Next::Exhausted };
    if last.ending == (Ending::Exited { code: POINTLESS }) {
        let why =
            format!("rank {} says by exit code {POINTLESS} that another attempt would fail too", last.rank);
        return Next::Refused { why, pointless: true };
    }
    if let Some(on) = on.filter(|on| !on.takes(last.ending)) {
        let why = format!("{} is not among the failures to restart after ({})", last.ending, on.text());
        return Next::Refused { why, pointless: false };
    }
    let equal = |one: &&Failed| one.ending == last.ending && one.lifetime < AT_ONCE;
    if failed.iter().rev().take_while(equal).count() >= EQUAL_FAILURES {
        let (seconds, ending) = (AT_ONCE.as_secs(), last.ending);
        let why =
            format!("{EQUAL_FAILURES} attempts in a row {ending} within {seconds} s: the next one would too");
        return Next::Refused { why, pointless: true };
    }
    // 0.5 s, 1 s, 2 s …: only failures at once are slowed down.
    let hasty = failed.iter().rev().take_while(|one| one.lifetime < AT_ONCE).count();
    let doublings = u32::try_from(hasty.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
    let pause = if hasty == 0 { Duration::ZERO } else { FIRST_PAUSE * 2_u32.pow(doublings) };
    Next::Attempt(pause.min(LONGEST_PAUSE))
}

impl RestartOn {
    /// The list for people, with each code of a range.
    fn text(&self) -> String {
        let codes = self.codes.iter().map(ToString::to_string);
        codes.chain(self.signals.iter().map(ToString::to_string)).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(code: i32, millis: u64) -> Failed {
        Failed { rank: 0, ending: Ending::Exited { code }, lifetime: Duration::from_millis(millis) }
    }

    fn pause(millis: u64) -> Next {
        Next::Attempt(Duration::from_millis(millis))
    }

    #[test]
    fn there_are_as_many_attempts_as_were_allowed() {
        assert_eq!(next(&[failed(1, 9_000)], 0, None), Next::Exhausted);
        assert_eq!(next(&[failed(1, 9_000)], 1, None), pause(0));
        assert_eq!(next(&[failed(1, 9_000), failed(1, 9_000)], 1, None), Next::Exhausted);
    }

    #[test]
    fn failures_at_once_are_slowed_down_and_then_refused() {
        let mut all = vec![failed(1, 10)];
        assert_eq!(next(&all, 9, None), pause(500));
        all.push(failed(2, 10));
        assert_eq!(next(&all, 9, None), pause(1_000));
        all.extend([failed(2, 10), failed(2, 10)]);
        let Next::Refused { why, pointless: true } = next(&all, 9, None) else { panic!() };
        assert_eq!(why, "3 attempts in a row exited with code 2 within 5 s: the next one would too");
        // One that had worked for a while is worth another try.
        all.push(failed(2, 60_000));
        assert_eq!(next(&all, 9, None), pause(0));
    }

    #[test]
    fn worker_can_say_that_it_is_pointless() {
        let Next::Refused { why, pointless: true } = next(&[failed(93, 60_000)], 3, None) else { panic!() };
        assert!(why.contains("rank 0 says by exit code 93"), "{why}");
    }

    #[test]
    fn only_chosen_failures_are_tried_again() {
        let on: RestartOn = "7,SIGKILL".parse().unwrap();
        assert_eq!(next(&[failed(7, 9_000)], 3, Some(&on)), pause(0));
        let Next::Refused { why, pointless: false } = next(&[failed(1, 9_000)], 3, Some(&on)) else {
            panic!()
        };
        assert_eq!(why, "exited with code 1 is not among the failures to restart after (7, SIGKILL)");
        let ending = Ending::Signaled { signal: Signal::KILL, core_dumped: false };
        assert_eq!(next(&[Failed { ending, ..failed(0, 9_000) }], 3, Some(&on)), pause(0));
        for wrong in ["0", "256", "5-1", "SIGX", ""] {
            assert!(wrong.parse::<RestartOn>().is_err(), "{wrong}");
        }
    }
}
