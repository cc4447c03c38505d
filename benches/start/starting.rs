//! Starting and joining, each way.

use crate::chart::chart;
use crate::figures::{Extent, median, row, table, time};
use crate::python::python;
use crate::ways::{OWN_WAYS, RAW_FORK, RAW_SPAWN, SERVED, SPAWN, ways};

/// What one way took, by number of workers: the seconds of each turn.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) turns: Vec<(usize, Vec<f64>)>,
}

impl Series {
    fn turns(&self, nprocs: usize) -> &[f64] {
        self.turns.iter().find(|(known, _)| *known == nprocs).map_or(&[], |(_, turns)| turns)
    }

    pub(crate) fn seconds(&self, nprocs: usize) -> f64 {
        median(self.turns(nprocs).iter().copied())
    }

    /// Beside another that ran by turns with it.
    fn over(&self, base: &Self, nprocs: usize) -> f64 {
        let pairs = self.turns(nprocs).iter().zip(base.turns(nprocs));
        median(pairs.map(|(own, base)| own / base))
    }
}

/// The numbers of workers, with the rounds of each.
pub(crate) const NUMBERS: [(usize, usize); 4] = [(4, 60), (64, 40), (256, 15), (1000, 7)];

pub(crate) fn starting(extent: Extent) -> anyhow::Result<()> {
    let mut ways = ways()?;
    let mut all: Vec<_> =
        ways.iter().map(|way| Series { name: way.name.to_owned(), turns: Vec::new() }).collect();
    for (nprocs, rounds) in NUMBERS {
        let mut turns = vec![Vec::new(); ways.len()];
        // The first turn only warms up, and starts the server.
        for turn in 0..=extent.rounds(rounds) {
            for (way, turns) in ways.iter_mut().zip(&mut turns).filter(|(way, _)| nprocs <= way.most) {
                let seconds = (way.run)(nprocs)?;
                turns.extend((turn > 0).then_some(seconds));
            }
        }
        let measured = all.iter_mut().zip(turns).filter(|(_, turns)| !turns.is_empty());
        measured.for_each(|(series, turns)| series.turns.push((nprocs, turns)));
    }
    print_own(&all);
    all.extend(python(extent)?);
    print_rivals(&all);
    if let Some(path) = std::env::var_os("PHALANX_BENCH_CHART") {
        std::fs::write(path, chart(&all)?)?;
    }
    Ok(())
}

fn ratio(value: f64) -> String {
    match value {
        none if none.is_nan() => "-".to_owned(),
        large if large >= 20.0 => format!("{large:.0}"),
        _ => format!("{value:.2}"),
    }
}

fn print_own(all: &[Series]) {
    let names = all[..OWN_WAYS].iter().map(|series| series.name.as_str());
    let ratios = ["Spawn / raw posix_spawn", "ForkServer / raw fork", "ForkServer, each"];
    let columns: Vec<_> = ["workers"].into_iter().chain(names).chain(ratios).collect();
    table("Starting and joining workers that do nothing", &columns);
    for (nprocs, _) in NUMBERS {
        let times = all[..OWN_WAYS].iter().map(|series| time(series.seconds(nprocs)));
        let ratios = [(SPAWN, RAW_SPAWN), (SERVED, RAW_FORK)];
        let ratios = ratios.map(|(own, base)| ratio(all[own].over(&all[base], nprocs)));
        let each = time(all[SERVED].seconds(nprocs) / nprocs as f64);
        let cells = [nprocs.to_string()].into_iter().chain(times).chain(ratios).chain([each]);
        row(&cells.collect::<Vec<_>>());
    }
}

fn print_rivals(all: &[Series]) {
    let columns = ["other", "workers", "time", "other / Spawn", "other / ForkServer"];
    table("The same with others, where they are there", &columns);
    for series in &all[OWN_WAYS..] {
        for &(nprocs, _) in &series.turns {
            let seconds = series.seconds(nprocs);
            let ratios = [SPAWN, SERVED].map(|own| ratio(seconds / all[own].seconds(nprocs)));
            let cells = [series.name.clone(), nprocs.to_string(), time(seconds)].into_iter().chain(ratios);
            row(&cells.collect::<Vec<_>>());
        }
    }
}
