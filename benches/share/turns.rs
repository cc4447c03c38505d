//! Two things that are compared.

use crate::figures::median;
use crate::{GIB, KIB, MIB};

/// Two things that ran by turns: the seconds of each turn.
#[derive(Default)]
pub(crate) struct Turns(Vec<(f64, f64)>);

impl Turns {
    /// `base` and `other` return their seconds.
    pub(crate) fn run(
        rounds: usize,
        mut base: impl FnMut() -> anyhow::Result<f64>,
        mut other: impl FnMut() -> anyhow::Result<f64>,
    ) -> anyhow::Result<Self> {
        let mut turns = Self::default();
        // The first turn only warms up.
        for turn in 0..=rounds {
            let pair = (base()?, other()?);
            turns.0.extend((turn > 0).then_some(pair));
        }
        Ok(turns)
    }

    pub(crate) fn base(&self) -> f64 {
        median(self.0.iter().map(|turn| turn.0))
    }

    pub(crate) fn other(&self) -> f64 {
        median(self.0.iter().map(|turn| turn.1))
    }

    pub(crate) fn difference(&self) -> f64 {
        median(self.0.iter().map(|turn| turn.1 - turn.0))
    }

    pub(crate) fn ratio(&self) -> f64 {
        median(self.0.iter().map(|turn| turn.1 / turn.0))
    }
}

pub(crate) fn size(bytes: usize) -> String {
    match bytes {
        GIB.. => format!("{} GiB", bytes / GIB),
        MIB.. => format!("{} MiB", bytes / MIB),
        KIB.. => format!("{} KiB", bytes / KIB),
        _ => format!("{bytes} B"),
    }
}
