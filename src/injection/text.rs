//! Pure: numbers, times and names in plans.

use std::time::Duration;

use crate::sys::errno;

/// The units of times, from the largest on, in nanoseconds.
const UNITS: [(&str, u64); 4] = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1)];

pub(super) fn number<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, String> {
    // "+1" is a number to Rust, but would be a second way to write one.
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain).ok_or_else(|| format!("`{text}` is no {what}"))
}

/// A time, such as `200ms` or `1.5s`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let refused = || format!("`{text}` is no time: write it as 200ms, 1.5s or 30us");
    let digits = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(refused)?;
    let (number, unit) = text.split_at(digits);
    let &(_, nanos) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refused)?;
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // A part with more digits than the unit has nanoseconds is no time of this clock.
    let scale =
        u32::try_from(part.len()).ok().and_then(|digits| 10_u64.checked_pow(digits)).ok_or_else(refused)?;
    if !is_plain(whole) || !is_plain(part) || !nanos.is_multiple_of(scale) && part != "0" {
        return Err(refused());
    }
    let (whole, part): (u64, u64) =
        (number_of(whole).ok_or_else(refused)?, number_of(part).ok_or_else(refused)?);
    let nanos =
        whole.checked_mul(nanos).and_then(|whole| whole.checked_add(part * (nanos / scale.min(nanos))));
    nanos.map(Duration::from_nanos).ok_or_else(refused)
}

fn number_of(text: &str) -> Option<u64> {
    text.parse().ok()
}

/// A time as [`duration`] reads it: a whole number of the largest unit that fits.
pub(super) fn of_duration(time: Duration) -> String {
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let (unit, size) = UNITS.into_iter().find(|(_, size)| nanos.is_multiple_of(*size)).unwrap_or(("ns", 1));
    format!("{}{unit}", nanos / size)
}

/// The error of a word that is none of those that there are: with the nearest one, or with all.
pub(super) fn unknown<'a>(kind: &str, word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<_> = known.into_iter().collect();
    match nearest(word, known.iter().copied()) {
        Some(nearest) => format!("there is no {kind} `{word}`: did you mean `{nearest}`?"),
        None => format!("there is no {kind} `{word}`; there are {}", known.join(" ")),
    }
}

/// The name that is most like another one; `None`: none is similar.
pub(super) fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distances = known.into_iter().map(|name| (distance(wanted, name), name));
    // More than half of it changed is another word.
    distances.filter(|(distance, _)| 2 * distance <= wanted.len().max(2)).min().map(|(_, name)| name)
}

/// Levenshtein's distance: how many letters are to be added, taken out or changed.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<_> = b.chars().collect();
    let mut row: Vec<_> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The number of an error, by its name in errno(3).
pub(super) fn errno(name: &str) -> Result<i32, String> {
    errno::number(name).ok_or_else(|| unknown("errno", name, errno::names()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_exactly_or_not_at_all() {
        for (text, nanos) in [
            ("200ms", 200_000_000),
            ("1.5s", 1_500_000_000),
            ("0.001s", 1_000_000),
            ("2.000000001s", 2_000_000_001),
            ("30us", 30_000),
            ("7ns", 7),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
            assert_eq!(duration(&of_duration(Duration::from_nanos(nanos))), Ok(Duration::from_nanos(nanos)));
        }
        for text in
            ["", "1", "s", "1 s", "-1s", "1.s", ".5s", "1h", "1.5ns", "99999999999s", "1.0000000001s", "+1s"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nearest_name_is_a_similar_one() {
        let known = ["train.step", "ckpt.write", "loader.next"];
        assert_eq!(nearest("train.stpe", known), Some("train.step"));
        assert_eq!(nearest("ckpt.writ", known), Some("ckpt.write"));
        assert_eq!(nearest("optimizer", known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn errnos_go_by_their_names() {
        assert_eq!(errno("ENOSPC"), Ok(libc::ENOSPC));
        assert_eq!(errno::name(libc::ENOSPC), Some("ENOSPC"));
        assert!(errno("ENOSPCE").unwrap_err().contains("did you mean `ENOSPC`"));
        assert!(errno("28").unwrap_err().contains("EMFILE"));
    }
}
