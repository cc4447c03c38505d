//! What the launcher's memory costs a start, and what an idle worker costs in memory.

use std::hint::black_box;

use phalanx::StartMethod;

use crate::figures::{Extent, median, row, table, time, timed};
use crate::raw::fork_here;
use crate::running::{idle, median_of};
use crate::ways::with_phalanx;

const GIB: usize = 1 << 30;

pub(crate) fn with_ballast(extent: Extent) -> anyhow::Result<()> {
    let title = "Starting and joining 4 while the launcher has touched so much memory";
    table(title, &["memory", "raw fork of the launcher", "Spawn", "ForkServer"]);
    let room = kib_in("/proc/meminfo", "MemAvailable")? << 10;
    for gibibytes in [0, 2, 8] {
        // That the machine does not begin to swap.
        if gibibytes * GIB + 4 * GIB > room || (extent.quick && gibibytes > 2) {
            continue;
        }
        let ballast = black_box(vec![1_u8; gibibytes * GIB]);
        let rounds = extent.rounds(60);
        let seconds = |start: &dyn Fn() -> anyhow::Result<()>| {
            median_of(rounds, || {
                let (seconds, done) = timed(start);
                done.map(|()| seconds)
            })
        };
        let times = [
            seconds(&|| fork_here(4))?,
            seconds(&|| with_phalanx(StartMethod::Spawn, 4))?,
            seconds(&|| with_phalanx(StartMethod::ForkServer, 4))?,
        ];
        let [fork, spawn, served] = times.map(time);
        row(&[format!("{gibibytes} GiB"), fork, spawn, served]);
        drop(ballast);
    }
    Ok(())
}

/// A line of a file of the kernel's, such as "Pss:  12 kB".
fn kib_in(path: &str, name: &str) -> anyhow::Result<usize> {
    let text = std::fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or_else(|| anyhow::anyhow!("no {name} in {path}"))?.parse()?)
}

pub(crate) fn memory(_: Extent) -> anyhow::Result<()> {
    const WORKERS: usize = 8;
    let columns = ["start method", "proportional (PSS)", "private", "aim"];
    table("Memory of an idle worker, of 8 that run (/proc/PID/smaps_rollup)", &columns);
    for (method, aim) in [(StartMethod::ForkServer, "1 MiB"), (StartMethod::Spawn, "2 MiB")] {
        let context = idle(method, WORKERS)?;
        let (mut proportional, mut private) = (Vec::new(), Vec::new());
        for pid in context.pids() {
            let path = format!("/proc/{pid}/smaps_rollup");
            let kib = |name| kib_in(&path, name).map(|kib| kib as f64);
            proportional.push(kib("Pss")?);
            private.push(kib("Private_Clean")? + kib("Private_Dirty")?);
        }
        let kib = |values| format!("{:.0} KiB", median(values));
        row(&[format!("{method:?}"), kib(proportional), kib(private), aim.to_owned()]);
    }
    Ok(())
}
