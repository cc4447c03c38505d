//! What waiting costs who waits.

use std::fs;

use ipc_channel::ipc::{IpcOneShotServer, IpcSender, channel};
use nix::poll::{PollTimeout, poll};
use phalanx::{Connection, Descriptor, Never, Options, ProcessContext, Queue, one_way, start_processes};
use serde::de::DeserializeOwned;

use crate::bare::{Side, Words};
use crate::figures::{Extent, time};
use crate::rows::Column::{Bare, IpcChannel, Phalanx};
use crate::rows::Group;
use crate::trips::both_sleep;

/// Milliseconds until a worker is taken to have come to rest.
const SETTLE: u16 = 100;

pub(crate) fn idle(extent: Extent) -> anyhow::Result<()> {
    let pause = if extent.quick { 100 } else { 2000 };
    let what = format!("a consumer that waits for {:.1} s: its CPU time", f64::from(pause) / 1e3);
    let numbers = [SETTLE.into(), pause.into()];
    Group::default()
        .line(what, "0", |seconds| if seconds > 0.0 { time(seconds) } else { "0".to_owned() })
        .line("and how often it began to run (both from /proc/PID/task/*/schedstat)", "0", |n| {
            format!("{n:.0}")
        })
        .ways(Phalanx, "`Queue`", || in_queue(pause))
        .ways(Phalanx, "`pipe`", || in_connection(pause))
        .python("`Queue`", "idle", &numbers)
        .ways(IpcChannel, "", || in_ipc_channel(pause))
        .ways(Bare, "futex", || in_futex(pause))
        .print(1)
}

/// CPU time of all threads of a process, in seconds, and how often they began to run.
fn used(pid: u32) -> anyhow::Result<[f64; 2]> {
    let mut used = [0.0; 2];
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(task?.path().join("schedstat"))?;
        let numbers = stat.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
        let &[run, _, begun] = &numbers[..] else { anyhow::bail!("another schedstat: {stat}") };
        used = [used[0] + run / 1e9, used[1] + begun];
    }
    Ok(used)
}

/// Lets a worker wait for so many milliseconds before `call` ends that.
fn measure<R: DeserializeOwned>(
    context: ProcessContext<R>,
    pause: u16,
    call: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<f64>> {
    let worker = context.pids()[0];
    poll(&mut [], PollTimeout::from(SETTLE))?;
    both_sleep(worker)?;
    let before = used(worker)?;
    poll(&mut [], PollTimeout::from(pause))?;
    let after = used(worker)?;
    call()?;
    context.join()?;
    Ok(vec![after[0] - before[0], after[1] - before[1]])
}

fn in_queue(pause: u16) -> anyhow::Result<Vec<f64>> {
    let queue = Queue::bounded(1024)?;
    let work = |_, queue: Queue<u64>| anyhow::Ok(queue.get()?);
    let context = start_processes(work, queue.clone(), Options::new(1))?;
    measure(context, pause, || Ok(queue.put(1)?))
}

fn in_connection(pause: u16) -> anyhow::Result<Vec<f64>> {
    let (sender, receiver) = one_way::<u64>()?;
    let work = |_, receiver: Connection<Never, u64>| anyhow::Ok(receiver.recv()?);
    let context = start_processes(work, receiver, Options::new(1))?;
    measure(context, pause, || Ok(sender.send(1)?))
}

fn in_ipc_channel(pause: u16) -> anyhow::Result<Vec<f64>> {
    let work = |_, name| {
        let (there, ours) = channel::<u64>()?;
        IpcSender::connect(name)?.send(there)?;
        anyhow::Ok(ours.recv()?)
    };
    let (server, name) = IpcOneShotServer::<IpcSender<u64>>::new()?;
    let context = start_processes(work, name, Options::new(1))?;
    let (_server, there) = server.accept()?;
    measure(context, pause, || Ok(there.send(1)?))
}

fn in_futex(pause: u16) -> anyhow::Result<Vec<f64>> {
    let work = |_, memory: Descriptor| {
        Side::new(Words::open(&memory)?, [1, 0], true).await_other(1);
        anyhow::Ok(())
    };
    let memory = Words::make()?;
    let side = Side::new(Words::open(&memory)?, [0, 1], true);
    let context = start_processes(work, memory, Options::new(1))?;
    measure(context, pause, || {
        side.tell(1);
        Ok(())
    })
}
