//! What the benches that print tables stand on: how much is measured, the figures, and the tables.

use std::time::Instant;

/// How much is measured.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) quick: bool,
}

pub(crate) type Part = fn(Extent) -> anyhow::Result<()>;

/// Runs the parts that are named on the command line, or all.
pub(crate) fn run_parts(parts: &[(&str, Part)]) -> anyhow::Result<()> {
    // Without --bench it is `cargo test` that runs this, to see that it works.
    let asked_quick = std::env::var_os("PHALANX_BENCH_QUICK").is_some_and(|value| value != "0");
    let quick = asked_quick || !std::env::args().any(|argument| argument == "--bench");
    let extent = Extent { quick };
    extent.print()?;
    let chosen: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, run) in parts {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == name) {
            run(extent)?;
        }
    }
    Ok(())
}

impl Extent {
    pub(crate) fn rounds(self, all: usize) -> usize {
        if self.quick { (all / 20).clamp(1, 3) } else { all }
    }

    /// Says on what, too.
    fn print(self) -> anyhow::Result<()> {
        let cores = std::thread::available_parallelism()?;
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let quick = if self.quick { "; quick: few rounds, figures mean little" } else { "" };
        println!("{cores} cores, {}, Linux {}{quick}", std::env::consts::ARCH, kernel.trim());
        Ok(())
    }
}

/// Seconds of one call, and what it returned.
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

pub(crate) fn time(seconds: f64) -> String {
    match seconds.abs() {
        none if none.is_nan() => "-".to_owned(),
        size if size < 1e-7 => format!("{:.2} ns", seconds * 1e9),
        size if size < 1e-6 => format!("{:.0} ns", seconds * 1e9),
        size if size < 1e-3 => format!("{:.1} µs", seconds * 1e6),
        size if size < 1.0 => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

pub(crate) fn table(title: &str, columns: &[&str]) {
    println!("\n{title}:\n\n| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len()));
}

pub(crate) fn row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}
