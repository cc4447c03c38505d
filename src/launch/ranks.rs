//! Lists of ranks, and values that differ from rank to rank.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use super::error::LaunchError;

/// A set of ranks, as a list such as `0-3,12`: ranks, and ranges of them with both their ends.
///
/// [`Launch::show_ranks`](super::Launch::show_ranks) takes it. It is what torchrun's `--local-ranks-filter` has, and ranges.
///
/// Parsing fails with [`LaunchError::Invalid`], which quotes what is no rank; ranks from 1,048,576 on are refused as typing errors.
///
/// ```
/// use phalanx::launch::RankList;
///
/// let ranks: RankList = "0-2,12".parse()?;
/// assert!(ranks.contains(2) && ranks.contains(12) && !ranks.contains(3));
/// assert!("3-1".parse::<RankList>().is_err());
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankList(BTreeSet<usize>);

/// Far more workers than a node can have: `0-99999999999` is a typing error, and no reason to fill the memory.
const MOST_RANKS: usize = 1 << 20;

impl RankList {
    /// Whether the rank is in the set.
    #[must_use]
    pub fn contains(&self, rank: usize) -> bool {
        self.0.contains(&rank)
    }

    /// The ranks in ascending order, each once.
    ///
    /// ```
    /// use phalanx::launch::RankList;
    ///
    /// let even: RankList = (0..6).step_by(2).collect();
    /// assert!(even.iter().eq([0, 2, 4]));
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().copied()
    }
}

impl FromIterator<usize> for RankList {
    fn from_iter<I: IntoIterator<Item = usize>>(ranks: I) -> Self {
        Self(ranks.into_iter().collect())
    }
}

impl FromStr for RankList {
    type Err = LaunchError;

    fn from_str(text: &str) -> Result<Self, LaunchError> {
        let mut ranks = BTreeSet::new();
        for part in text.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
                (Ok(first), Ok(last)) if first <= last && last < MOST_RANKS => ranks.extend(first..=last),
                _ => {
                    let what = format!("{part:?} in {text:?} is no rank and no range of ranks");
                    return Err(LaunchError::invalid(what, "write a list such as 0-3,12"));
                }
            }
        }
        Ok(Self(ranks))
    }
}

/// A choice among a worker's two output streams: torchrun's numbers 0 (none), 1 (stdout), 2 (stderr) and 3 (both), of which one is
/// its text.
///
/// Where the ranks of a job differ, there is [`RankStreams`].
///
/// ```
/// use phalanx::launch::Streams;
///
/// let errors = Streams { stderr: true, ..Streams::NONE };
/// assert_eq!(errors.to_string(), "2");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// Whether stdout is among them.
    pub stdout: bool,
    /// Whether stderr is among them.
    pub stderr: bool,
}

impl Streams {
    /// Neither stream: torchrun's 0, and the default.
    pub const NONE: Self = Self { stdout: false, stderr: false };
    /// Both streams: torchrun's 3.
    pub const BOTH: Self = Self { stdout: true, stderr: true };

    /// The streams of torchrun's number.
    fn of_number(text: &str) -> Option<Self> {
        let number: u8 = text.trim().parse().ok().filter(|&number| number <= 3)?;
        Some(Self { stdout: number & 1 != 0, stderr: number & 2 != 0 })
    }
}

impl fmt::Display for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", u8::from(self.stdout) + 2 * u8::from(self.stderr))
    }
}

/// The streams of each rank: the same for all ranks, or those of some of them.
///
/// [`Launch::redirects`](super::Launch::redirects) and [`Launch::tee`](super::Launch::tee) take it. The text is torchrun's: a number
/// as of [`Streams`], or a list of `RANK:NUMBER`, in which a range of ranks may stand too. Parsing fails with
/// [`LaunchError::Invalid`], which quotes the item.
///
/// ```
/// use phalanx::launch::{RankStreams, Streams};
///
/// let all: RankStreams = "3".parse()?;
/// assert_eq!(all.of(7), Streams::BOTH);
/// // Stdout of rank 0, both of ranks 8 to 11, nothing of others.
/// let some: RankStreams = "0:1,8-11:3".parse()?;
/// assert_eq!((some.of(9), some.of(1)), (Streams::BOTH, Streams::NONE));
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RankStreams {
    /// Those of the ranks that are not in `some`.
    all: Streams,
    some: BTreeMap<usize, Streams>,
}

impl RankStreams {
    /// The streams of a rank; [`Streams::NONE`] if a list does not name it.
    #[must_use]
    pub fn of(&self, rank: usize) -> Streams {
        self.some.get(&rank).copied().unwrap_or(self.all)
    }
}

impl From<Streams> for RankStreams {
    /// The same for all ranks.
    fn from(all: Streams) -> Self {
        Self { all, some: BTreeMap::new() }
    }
}

impl FromStr for RankStreams {
    type Err = LaunchError;

    fn from_str(text: &str) -> Result<Self, LaunchError> {
        if let Some(all) = Streams::of_number(text) {
            return Ok(all.into());
        }
        let mut some = BTreeMap::new();
        // `0:1,8-11:3`: each part is a rank, or a range of them.
        for part in text.split(',') {
            let streams = part.split_once(':').and_then(|(_, number)| Streams::of_number(number));
            let ranks = part.split(':').next().unwrap_or_default().parse::<RankList>();
            let (Some(streams), Ok(ranks)) = (streams, ranks) else {
                let what = format!("{part:?} in {text:?} names no streams of ranks");
                let hint =
                    "write 0 (none), 1 (stdout), 2 (stderr) or 3 (both), for all ranks or as 0:1,8-11:3";
                return Err(LaunchError::invalid(what, hint));
            };
            some.extend(ranks.iter().map(|rank| (rank, streams)));
        }
        Ok(Self { all: Streams::NONE, some })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_ranks_have_ranges_of_many_digits() {
        let list: RankList = "0-3, 12,10-11".parse().unwrap();
        assert!(list.iter().eq([0, 1, 2, 3, 10, 11, 12]));
        for wrong in ["", "x", "1,", "-1", "2-1", "0-99999999999", "1048576"] {
            let error = wrong.parse::<RankList>().unwrap_err().to_string();
            assert!(error.contains("write a list such as 0-3,12"), "{wrong}: {error}");
        }
    }

    #[test]
    fn streams_are_torchruns_numbers_for_all_or_some_ranks() {
        let of = |text: &str| text.parse::<RankStreams>().unwrap();
        assert_eq!(of("1").of(40), Streams { stdout: true, stderr: false });
        assert_eq!(of("2").of(0), Streams { stdout: false, stderr: true });
        // torchrun takes ranks of one digit only.
        assert_eq!(of("10:3,11:1").of(10), Streams::BOTH);
        assert_eq!(of("0-9:3").of(9), Streams::BOTH);
        // The last one counts.
        assert_eq!(of("0:3,0:0").of(0), Streams::NONE);
        for wrong in ["4", "0", "0:4", "0:1,", "a:1", "0:1:2x"] {
            assert_eq!(wrong.parse::<RankStreams>().is_ok(), wrong == "0", "{wrong}");
        }
    }
}
