//! How soon a failure of the user's function is an error: an `Err` beside a panic.

use phalanx::sync::{Barrier, Event};
use phalanx::{StartMethod, start_processes};

use crate::common;
use crate::figures::{Extent, median, row, table, time, timed};

pub(crate) fn failures(extent: Extent) -> anyhow::Result<()> {
    let rounds = extent.rounds(60);
    table(
        "From the word to fail, which all workers obey, to the error of `join`, and until its text is there",
        &["start method, workers", "panic", "returned `Err`", "`Err` / panic", "first text", "next text"],
    );
    let mut first_text = None;
    for (method, nprocs) in [(StartMethod::Spawn, 1), (StartMethod::Spawn, 8), (StartMethod::ForkServer, 8)] {
        let mut seen = Vec::new();
        for _ in 0..=rounds {
            let (panic, told) = failure(method, nprocs, true)?;
            let (returned, _) = failure(method, nprocs, false)?;
            let text = timed(|| told.to_string()).0;
            seen.push([panic, returned, text]);
        }
        // The first turn only warms up, and reads the debug information.
        first_text = first_text.or(seen.first().map(|turn| turn[2]));
        let of = |column: usize| median(seen[1..].iter().map(|turn| turn[column]));
        let ratio = median(seen[1..].iter().map(|turn| turn[1] / turn[0]));
        row(&[
            format!("{method:?}, {nprocs}"),
            time(of(0)),
            time(of(1)),
            format!("{ratio:.2}"),
            time(first_text.unwrap_or(f64::NAN)),
            time(of(2)),
        ]);
    }
    Ok(())
}

/// Seconds until the error, and the error.
fn failure(method: StartMethod, nprocs: usize, panics: bool) -> anyhow::Result<(f64, phalanx::Error)> {
    let (ready, word) = (Barrier::new(nprocs + 1)?, Event::new()?);
    let work = |_, (ready, word, panics): (Barrier, Event, bool)| -> anyhow::Result<()> {
        ready.wait()?;
        word.wait()?;
        assert!(!panics, "as was asked");
        anyhow::bail!("as was asked")
    };
    let arguments = (ready.clone(), word.clone(), panics);
    let context = start_processes(work, arguments, common::by(method, nprocs))?;
    ready.wait()?;
    let (seconds, joined) = timed(|| {
        word.set();
        context.join()
    });
    match joined {
        Err(error) => Ok((seconds, error)),
        Ok(_) => anyhow::bail!("all workers were to fail"),
    }
}
