//! Pure: which ranks and which hits a rule is for.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::text::number;

/// Which ranks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ranks {
    /// Whichever comes first.
    #[default]
    Any,
    All,
    /// One that is drawn by the plan's seed.
    One,
    Last,
    /// The lowest ones, fewer than half.
    Minority,
    /// The lowest ones, more than half.
    Majority,
    /// These, and if `open`, all from the last one's begin on.
    List {
        ranges: Vec<RangeInclusive<usize>>,
        open: Option<usize>,
    },
}

const WORDS: [(&str, Ranks); 6] = [
    ("any", Ranks::Any),
    ("all", Ranks::All),
    ("one", Ranks::One),
    ("last", Ranks::Last),
    ("minority", Ranks::Minority),
    ("majority", Ranks::Majority),
];

impl Ranks {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Some((_, ranks)) = WORDS.iter().find(|(word, _)| *word == text) {
            return Ok(ranks.clone());
        }
        let (mut ranges, mut open) = (Vec::new(), None);
        for element in text.split('+') {
            match element.split_once("..") {
                None => {
                    let rank = number(element, "rank")?;
                    ranges.push(rank..=rank);
                }
                Some((first, "")) if open.is_none() => open = Some(number(first, "rank")?),
                Some((_, "")) => return Err(format!("`{text}` has two ranges without an end")),
                Some((first, last)) => {
                    let range = number::<usize>(first, "rank")?..=number(last, "rank")?;
                    if range.is_empty() {
                        return Err(format!("`{element}` has no ranks"));
                    }
                    ranges.push(range);
                }
            }
        }
        Ok(Self::List { ranges, open })
    }

    /// The highest rank that it names by its number.
    pub(super) fn highest(&self) -> Option<usize> {
        match self {
            Self::List { ranges, open } => ranges.iter().map(|range| *range.end()).chain(*open).max(),
            _ => None,
        }
    }

    /// Whether a rank of `nprocs` ranks is one of them; `drawn`: a number of the plan's seed.
    pub(super) fn has(&self, rank: usize, nprocs: usize, drawn: u64) -> bool {
        match self {
            Self::Any | Self::All => true,
            Self::One => rank as u64 == drawn % nprocs.max(1) as u64,
            Self::Last => rank + 1 == nprocs,
            Self::Minority => rank < nprocs.saturating_sub(1) / 2,
            Self::Majority => rank <= nprocs / 2,
            Self::List { ranges, open } => {
                ranges.iter().any(|range| range.contains(&rank)) || open.is_some_and(|first| rank >= first)
            }
        }
    }

    /// For how many of `nprocs` ranks a fault is; one, for `Any`.
    pub(super) fn count(&self, nprocs: usize) -> usize {
        match self {
            Self::Any | Self::One => 1,
            _ => (0..nprocs).filter(|&rank| self.has(rank, nprocs, 0)).count(),
        }
    }
}

impl fmt::Display for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((word, _)) = WORDS.iter().find(|(_, ranks)| ranks == self) {
            return f.write_str(word);
        }
        let Self::List { ranges, open } = self else { return Ok(()) };
        let range = |range: &RangeInclusive<usize>| match (range.start(), range.end()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}..{last}"),
        };
        let elements = ranges.iter().map(range).chain(open.map(|first| format!("{first}..")));
        f.write_str(&elements.collect::<Vec<_>>().join("+"))
    }
}

/// Which attempts of a job that is restarted, from 0 on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attempts(Ranks);

impl Attempts {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match Ranks::parse(text) {
            Ok(set @ (Ranks::All | Ranks::List { .. })) => Ok(Self(set)),
            _ => Err(format!("`{text}` are no attempts: write 1, 0..2, 3.. or all")),
        }
    }

    pub(super) fn has(&self, number: usize) -> bool {
        // As of ranks: how many there are is asked only for sets that are none here.
        self.0.has(number, 0, 0)
    }
}

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which of the hits of a point in one process, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hits {
    pub(super) first: u64,
    /// `None`: all that follow.
    pub(super) last: Option<u64>,
    pub(super) step: u64,
}

impl Hits {
    pub(super) const FIRST: Self = Self { first: 1, last: Some(1), step: 1 };
    pub(super) const ALL: Self = Self { first: 1, last: None, step: 1 };

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (range, step) = match text.split_once('/') {
            Some((range, step)) => (range, number(step, "step")?),
            None => (text, 1),
        };
        let (first, last) = match range.split_once("..") {
            None => (number(range, "hit")?, Some(number(range, "hit")?)),
            Some((first, "")) => (number(first, "hit")?, None),
            Some((first, last)) => (number(first, "hit")?, Some(number(last, "hit")?)),
        };
        if first == 0 || step == 0 || last.is_some_and(|last| last < first) {
            return Err(format!("`{text}` has no hits: they count from 1, and steps too"));
        }
        Ok(Self { first, last, step })
    }

    pub(super) fn has(self, hit: u64) -> bool {
        hit >= self.first
            && self.last.is_none_or(|last| hit <= last)
            && (hit - self.first).is_multiple_of(self.step)
    }

    /// How many there are; `None`: no end of them.
    pub(super) fn count(self) -> Option<u64> {
        self.last.map(|last| (last - self.first) / self.step + 1)
    }
}

impl fmt::Display for Hits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.last {
            Some(last) if last == self.first => write!(f, "{last}")?,
            Some(last) => write!(f, "{}..{last}", self.first)?,
            None => write!(f, "{}..", self.first)?,
        }
        if self.step == 1 { Ok(()) } else { write!(f, "/{}", self.step) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(text: &str, nprocs: usize) -> Vec<usize> {
        let set = Ranks::parse(text).unwrap();
        (0..nprocs).filter(|&rank| set.has(rank, nprocs, 6)).collect()
    }

    #[test]
    fn sets_of_ranks() {
        assert_eq!(ranks("all", 3), [0, 1, 2]);
        assert_eq!(ranks("last", 3), [2]);
        assert_eq!(ranks("one", 4), [2]);
        assert_eq!((ranks("minority", 4), ranks("majority", 4)), (vec![0], vec![0, 1, 2]));
        assert_eq!((ranks("minority", 5), ranks("majority", 5)), (vec![0, 1], vec![0, 1, 2]));
        assert_eq!(ranks("0+2..3+6..", 9), [0, 2, 3, 6, 7, 8]);
        assert_eq!(Ranks::parse("0+2..3+6..").unwrap().count(9), 6);
        for bad in ["", "x", "1..0", "1+", "1..+2..", "-1", "some"] {
            assert!(Ranks::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hits_count_from_one() {
        let hits = |text: &str| {
            let hits = Hits::parse(text).unwrap();
            (1..=9).filter(|&hit| hits.has(hit)).collect::<Vec<_>>()
        };
        assert_eq!((hits("3"), hits("2..4"), hits("7..")), (vec![3], vec![2, 3, 4], vec![7, 8, 9]));
        assert_eq!((hits("2../3"), hits("1..8/2")), (vec![2, 5, 8], vec![1, 3, 5, 7]));
        assert_eq!(["1..8/2", "4"].map(|text| Hits::parse(text).unwrap().count()), [Some(4), Some(1)]);
        for bad in ["0", "", "3..2", "1/0", "..3", "x"] {
            assert!(Hits::parse(bad).is_err(), "{bad}");
        }
    }
}
