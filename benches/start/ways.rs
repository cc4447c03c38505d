//! The ways to start workers that run in this process, ours and those of other crates.

use std::process::Command;

use ipc_channel::ipc::IpcOneShotServer;
use phalanx::{Options, StartMethod, start_processes};

use crate::ROLE;
use crate::figures::timed;
use crate::raw::{Forker, bare_spawn, reap_all};

fn nothing(_: usize, (): ()) -> anyhow::Result<()> {
    Ok(())
}

pub(crate) fn with_phalanx(method: StartMethod, nprocs: usize) -> anyhow::Result<()> {
    start_processes(nothing, (), Options::new(nprocs).start_method(method))?.join()?;
    Ok(())
}

fn with_procspawn(nprocs: usize) -> anyhow::Result<()> {
    let handles: Vec<_> = (0..nprocs).map(|_| procspawn::spawn((), |()| ())).collect();
    handles.into_iter().try_for_each(|handle| Ok(handle.join()?))
}

/// Each worker connects and sends one message; there is nothing in that crate that starts or joins one.
fn with_ipc_channel(nprocs: usize) -> anyhow::Result<()> {
    let start = |_| -> anyhow::Result<_> {
        let (server, name) = IpcOneShotServer::<()>::new()?;
        Ok((server, Command::new("/proc/self/exe").env(ROLE, format!("ipc:{name}")).spawn()?))
    };
    let started = (0..nprocs).map(start).collect::<anyhow::Result<Vec<_>>>()?;
    for (server, mut child) in started {
        let (_receiver, ()) = server.accept()?;
        child.wait()?;
    }
    Ok(())
}

/// A way to start workers that do nothing and to wait for their end.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    /// The most workers it is asked for.
    pub(crate) most: usize,
    /// Starts and joins so many; returns the seconds.
    pub(crate) run: Box<dyn FnMut(usize) -> anyhow::Result<f64>>,
}

// The ways' places in `ways` and in the columns of the table.
pub(crate) const RAW_FORK: usize = 0;
pub(crate) const RAW_SPAWN: usize = 1;
pub(crate) const SPAWN: usize = 2;
pub(crate) const SERVED: usize = 4;
pub(crate) const OWN_WAYS: usize = 5;

pub(crate) fn ways() -> anyhow::Result<Vec<Way>> {
    fn way(
        name: &'static str,
        most: usize,
        mut run: impl FnMut(usize) -> anyhow::Result<()> + 'static,
    ) -> Way {
        let run = move |nprocs| {
            let (seconds, done) = timed(|| run(nprocs));
            done.map(|()| seconds)
        };
        Way { name, most, run: Box::new(run) }
    }
    let mut forker = Forker::start()?;
    let all = usize::MAX;
    Ok(vec![
        Way { name: "raw fork", most: all, run: Box::new(move |nprocs| forker.fork(nprocs)) },
        way("raw posix_spawn", all, |nprocs| reap_all(bare_spawn("leave", nprocs)?)),
        way("Spawn", all, |nprocs| with_phalanx(StartMethod::Spawn, nprocs)),
        way("Fork", all, |nprocs| with_phalanx(StartMethod::Fork, nprocs)),
        way("ForkServer", all, |nprocs| with_phalanx(StartMethod::ForkServer, nprocs)),
        way("procspawn", 64, with_procspawn),
        way("ipc-channel", 64, with_ipc_channel),
    ])
}
