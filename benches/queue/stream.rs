//! Small messages, one after the other, from one worker to the launcher.

use std::os::fd::AsFd;

use ipc_channel::ipc::{IpcOneShotServer, IpcSender};
use nix::unistd::{pipe, read, write};
use phalanx::{Connection, Descriptor, Never, Options, Queue, one_way, start_processes};

use crate::figures::{Extent, timed};
use crate::rows::Column::{Bare, IpcChannel, Phalanx};
use crate::rows::{Group, millions};
use crate::some;

pub(crate) fn streams(extent: Extent) -> anyhow::Result<()> {
    let (ours, pythons) = (some(extent, 1_000_000), [some(extent, 50_000)]);
    let others = some(extent, 100_000);
    Group::default()
        .line("`u64`s, 1 producer to 1 consumer, millions a second", "≥ 5", millions)
        .way(Phalanx, "`Queue` of 65,536", || through_queue(65_536, ours))
        .way(Phalanx, "of 1,024", || through_queue(1024, ours))
        .way(Phalanx, "`one_way`", || through_connection(others))
        .python("`Queue`", "stream", &pythons)
        .python("`SimpleQueue`", "stream", &pythons)
        .way(IpcChannel, "", || through_ipc_channel(others))
        .way(Bare, "pipe", || through_pipe(ours / 2))
        .print(extent.rounds(5))
}

/// Takes so many, from 0 on; returns how many in a second, from when the first one came.
fn drain(count: usize, mut next: impl FnMut() -> anyhow::Result<u64>) -> anyhow::Result<f64> {
    let mut sum = next()?;
    let (seconds, taken) = timed(|| (1..count).try_for_each(|_| next().map(|number| sum += number)));
    taken?;
    let all = count as u64;
    anyhow::ensure!(sum == all * (all - 1) / 2, "not the numbers that were sent");
    Ok((count - 1) as f64 / seconds)
}

fn produce(count: usize, put: impl FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<()> {
    (0..count as u64).try_for_each(put)
}

fn through_queue(room: usize, count: usize) -> anyhow::Result<f64> {
    let work = |_, (queue, count): (Queue<u64>, usize)| produce(count, |number| Ok(queue.put(number)?));
    let queue = Queue::bounded(room)?;
    let context = start_processes(work, (queue.clone(), count), Options::new(1))?;
    let rate = drain(count, || Ok(queue.get()?))?;
    context.join()?;
    Ok(rate)
}

fn through_connection(count: usize) -> anyhow::Result<f64> {
    let work = |_, (sender, count): (Connection<u64, Never>, usize)| {
        produce(count, |number| Ok(sender.send(number)?))
    };
    let (sender, receiver) = one_way()?;
    let context = start_processes(work, (sender, count), Options::new(1))?;
    let rate = drain(count, || Ok(receiver.recv()?))?;
    context.join()?;
    Ok(rate)
}

/// The worker learns the channel's name.
fn through_ipc_channel(count: usize) -> anyhow::Result<f64> {
    let work = |_, (name, count): (String, usize)| {
        let sender = IpcSender::connect(name)?;
        produce(count, |number| Ok(sender.send(number)?))
    };
    let (server, name) = IpcOneShotServer::<u64>::new()?;
    let context = start_processes(work, (name, count), Options::new(1))?;
    let (receiver, first) = server.accept()?;
    let mut first = Some(first);
    let rate = drain(count, || Ok(first.take().map_or_else(|| receiver.recv(), Ok)?))?;
    context.join()?;
    Ok(rate)
}

/// 8 bytes by each call of write(2) and read(2).
fn through_pipe(count: usize) -> anyhow::Result<f64> {
    let work = |_, (pipe, count): (Descriptor, usize)| {
        produce(count, |number| {
            write(pipe.as_fd(), &number.to_ne_bytes())?;
            Ok(())
        })
    };
    let (into, from) = pipe().map(|(from, into)| (Descriptor::from(into), from))?;
    let context = start_processes(work, (into, count), Options::new(1))?;
    let mut bytes = [0; 8];
    let rate = drain(count, || {
        anyhow::ensure!(read(&from, &mut bytes)? == bytes.len(), "a part of a message");
        Ok(u64::from_ne_bytes(bytes))
    })?;
    context.join()?;
    Ok(rate)
}
