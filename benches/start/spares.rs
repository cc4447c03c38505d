//! Starting and joining a few workers that the fork server has forked before.

use phalanx::{ForkServer, StartMethod};

use crate::figures::{Extent, median, row, table, time, timed};
use crate::raw::Forker;
use crate::ways::with_phalanx;

pub(crate) fn spares(extent: Extent) -> anyhow::Result<()> {
    let columns = ["workers", "raw fork", "ForkServer", "from spares", "from spares / raw fork"];
    table("Starting and joining workers that do nothing, forked before (`ForkServer::spares`)", &columns);
    let mut forker = Forker::start()?;
    let served = |nprocs| {
        let (seconds, done) = timed(|| with_phalanx(StartMethod::ForkServer, nprocs));
        done.map(|()| seconds)
    };
    for nprocs in [1, 4, 16] {
        let mut turns: [Vec<f64>; 3] = Default::default();
        // The first turn only warms up.
        for turn in 0..=extent.rounds(60) {
            let raw = forker.fork(nprocs)?;
            ForkServer::spares(0)?;
            let forked = served(nprocs)?;
            // Returns when they are there.
            ForkServer::spares(nprocs)?;
            let seconds = [raw, forked, served(nprocs)?];
            if turn > 0 {
                turns.iter_mut().zip(seconds).for_each(|(turns, seconds)| turns.push(seconds));
            }
        }
        let ratio = median(turns[2].iter().zip(&turns[0]).map(|(own, raw)| own / raw));
        let times = turns.map(|turns| time(median(turns)));
        row(&[vec![nprocs.to_string()], times.to_vec(), vec![format!("{ratio:.2}")]].concat());
    }
    ForkServer::spares(0)?;
    Ok(())
}
