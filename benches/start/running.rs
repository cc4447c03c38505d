//! While workers run: what asking costs, and how soon a death is an error.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SIGKILL, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use phalanx::{Options, ProcessContext, StartMethod, Tensor, start_processes};

use crate::common;
use crate::figures::{Extent, median, row, table, time, timed};
use crate::raw::bare_spawn;

/// The median of what so many calls return; a call before them only warms up.
pub(crate) fn median_of(rounds: usize, mut work: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<f64> {
    work()?;
    Ok(median((0..rounds).map(|_| work()).collect::<anyhow::Result<Vec<_>>>()?))
}

/// Workers that have come to their function, and wait there until they are killed, which dropping this does.
pub(crate) fn idle(method: StartMethod, nprocs: usize) -> anyhow::Result<ProcessContext<()>> {
    let ready = common::board(1);
    let work = |_, ready: Tensor<i64>| -> anyhow::Result<()> {
        ready.fetch_add(0, 1)?;
        common::wait_for_ever()
    };
    let options = Options::new(nprocs).start_method(method).daemon(true);
    let context = start_processes(work, ready.clone(), options)?;
    common::await_that(|| ready.get(0).is_ok_and(|count| count == nprocs as i64));
    Ok(context)
}

pub(crate) fn polling(extent: Extent) -> anyhow::Result<()> {
    const BATCH: usize = 100;
    table("`join_timeout` of zero while all run", &["workers", "start method", "one poll"]);
    let (spawn, served) = (StartMethod::Spawn, StartMethod::ForkServer);
    for (method, nprocs) in [(spawn, 10), (served, 10), (spawn, 100), (served, 100), (served, 1000)] {
        let mut context = idle(method, nprocs)?;
        let seconds = median_of(extent.rounds(200), || {
            let (seconds, done) = timed(|| {
                (0..BATCH)
                    .try_for_each(|_| context.join_timeout(Duration::ZERO).map(|finished| assert!(!finished)))
            });
            done?;
            Ok(seconds / BATCH as f64)
        })?;
        row(&[nprocs.to_string(), format!("{method:?}"), time(seconds)]);
    }
    Ok(())
}

pub(crate) fn deaths(extent: Extent) -> anyhow::Result<()> {
    let rounds = extent.rounds(100);
    table("From a worker's SIGKILL to the error, when the others have ended too", &["", "time", "over bare"]);
    let bare = median_of(rounds, bare_death)?;
    row(&["bare process: poll on its pidfd, then waitid".to_owned(), time(bare), String::new()]);
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        for nprocs in [1, 4] {
            let seconds = median_of(rounds, || death_of_one_of(method, nprocs))?;
            row(&[format!("{method:?}, {nprocs}: `join`"), time(seconds), time(seconds - bare)]);
        }
    }
    Ok(())
}

fn bare_death() -> anyhow::Result<f64> {
    let child = bare_spawn("stay", 1)?.remove(0);
    let pid = child.as_raw().unsigned_abs();
    let pidfd = common::pidfd(pid).ok_or_else(|| anyhow::anyhow!("pidfd_open"))?;
    common::await_that(|| common::state_of(pid) == Some('S'));
    let (seconds, done) = timed(|| -> anyhow::Result<()> {
        kill(child, SIGKILL)?;
        poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED)?;
        Ok(())
    });
    done.map(|()| seconds)
}

fn death_of_one_of(method: StartMethod, nprocs: usize) -> anyhow::Result<f64> {
    let context = idle(method, nprocs)?;
    let victim = context.pids()[0];
    let (seconds, joined) = timed(|| {
        common::send(victim, SIGKILL);
        context.join()
    });
    anyhow::ensure!(joined.is_err(), "one was killed");
    Ok(seconds)
}
