//! Figures, and the tables they are printed in.

use std::time::Instant;

pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64(), result)
}

pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median of what so many calls return; a call before them only warms up.
pub(crate) fn median_of(rounds: usize, mut work: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<f64> {
    work()?;
    Ok(median((0..rounds).map(|_| work()).collect::<anyhow::Result<Vec<_>>>()?))
}

pub(crate) fn time(seconds: f64) -> String {
    match seconds.abs() {
        none if none.is_nan() => "-".to_owned(),
        size if size < 1e-6 => format!("{:.0} ns", seconds * 1e9),
        size if size < 1e-3 => format!("{:.1} µs", seconds * 1e6),
        size if size < 1.0 => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

pub(crate) fn ratio(value: f64) -> String {
    match value {
        none if none.is_nan() => "-".to_owned(),
        large if large >= 20.0 => format!("{large:.0}"),
        _ => format!("{value:.2}"),
    }
}

pub(crate) fn table(title: &str, columns: &[&str]) {
    println!("\n{title}\n\n| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len()));
}

pub(crate) fn row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}
