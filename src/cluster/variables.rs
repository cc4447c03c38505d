//! Values out of an environment, with errors that name the variable.

use std::collections::BTreeMap;

use super::error::{ClusterError, Result};

/// More nodes or processes than any job has: a number that is larger is a mistake.
const MOST: usize = 1 << 20;

/// An environment, and the variable by which its engine was recognized.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variables<'a> {
    pub(super) all: &'a BTreeMap<String, String>,
    pub(super) because: &'static str,
}

impl<'a> Variables<'a> {
    /// The first of these variables that is set and not empty, and its name.
    pub(super) fn first<'n>(self, names: &[&'n str]) -> Option<(&'n str, &'a str)> {
        let of = |name: &&'n str| self.all.get(*name).map(|value| (*name, value.trim()));
        names.iter().filter_map(of).find(|(_, value)| !value.is_empty())
    }

    /// The value of the first of these variables that is set.
    pub(super) fn text(self, names: &[&str]) -> Option<&'a str> {
        self.first(names).map(|(_, value)| value)
    }

    /// A number out of the first of these variables that is set, at least `least` and below `end`.
    ///
    /// # Errors
    /// [`ClusterError::Invalid`] for another value.
    pub(super) fn number(
        self,
        names: &[&str],
        (least, end): (usize, usize),
        hint: &'static str,
    ) -> Result<Option<usize>> {
        let Some((name, value)) = self.first(names) else { return Ok(None) };
        match value.parse() {
            Ok(number) if (least..end).contains(&number) => Ok(Some(number)),
            _ => Err(ClusterError::Invalid {
                variable: name.to_owned(),
                value: value.to_owned(),
                expected: format!("number from {least} to {}", end - 1),
                hint,
            }),
        }
    }

    /// How many of something there are, at least one.
    ///
    /// # Errors
    /// As [`number`](Self::number), and [`ClusterError::Missing`].
    pub(super) fn count(self, names: &[&str], hint: &'static str) -> Result<usize> {
        self.number(names, (1, MOST), hint)?.ok_or_else(|| self.missing(names, hint))
    }

    /// An index below `end`.
    ///
    /// # Errors
    /// As [`count`](Self::count).
    pub(super) fn index(self, names: &[&str], end: usize, hint: &'static str) -> Result<usize> {
        self.number(names, (0, end), hint)?.ok_or_else(|| self.missing(names, hint))
    }

    fn missing(self, names: &[&str], hint: &'static str) -> ClusterError {
        ClusterError::Missing { variable: names.join(" or "), because: self.because, hint }
    }
}
