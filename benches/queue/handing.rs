//! Handing a tensor to a worker that waits for it.

use std::mem;

use ipc_channel::ipc::{IpcOneShotServer, IpcReceiver, IpcSender, IpcSharedMemory, channel};
use phalanx::{Options, Queue, Tensor, start_processes};

use crate::figures::{Extent, median, time, timed};
use crate::rows::Column::{IpcChannel, Phalanx};
use crate::rows::Group;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Round trips of a small message before each tensor: the first of them wake both sides, the others are timed.
const FEW: usize = 100;

pub(crate) fn tensors(extent: Extent) -> anyhow::Result<()> {
    let rounds = extent.rounds(8);
    for (bytes, size, pythons) in [(KIB, "1 KiB", rounds), (64 * MIB, "64 MiB", 1)] {
        let pythons = [bytes, pythons];
        Group::default()
            .line(format!("tensor of {size}, from `put` to the answer"), "–", time)
            .line("less the round trip of a small message", "≤ 100 µs, at any size", time)
            .ways(Phalanx, "", || through_queue(bytes, rounds))
            .python("`Queue`", "hand", &pythons)
            .ways(IpcChannel, "`IpcSharedMemory`", || through_ipc_channel(bytes, rounds))
            .print(extent.rounds(5))?;
    }
    Ok(())
}

/// Hands over what `make` makes. The medians: of all of it, and of what it takes longer than `small` does.
///
/// All is made before, and kept until the end: to fill 64 MiB leaves nothing else in the caches, and handing over whatever
/// comes right after that would take several times as long.
fn measure<M>(
    rounds: usize,
    mut make: impl FnMut() -> anyhow::Result<M>,
    mut small: impl FnMut() -> anyhow::Result<()>,
    mut hand: impl FnMut(&mut M) -> anyhow::Result<u8>,
) -> anyhow::Result<Vec<f64>> {
    let (mut whole, mut over) = (Vec::new(), Vec::new());
    let mut all = (0..rounds).map(|_| make()).collect::<anyhow::Result<Vec<_>>>()?;
    for made in &mut all {
        let mut some = || (0..FEW).try_for_each(|_| small());
        some()?;
        let (base, done) = timed(some);
        done?;
        let (seconds, answer) = timed(|| hand(made));
        anyhow::ensure!(answer? == 1, "another tensor");
        whole.push(seconds);
        over.push(seconds - base / FEW as f64);
    }
    Ok(vec![median(whole), median(over)])
}

type Queues = (Queue<Option<Tensor<u8>>>, Queue<u8>);

/// The worker answers with the first element.
fn answer(_: usize, (there, back): Queues) -> anyhow::Result<()> {
    for message in there {
        let message = message?;
        back.put(message.as_ref().map_or(Ok(0), |tensor| tensor.get(0))?)?;
    }
    Ok(())
}

fn through_queue(bytes: usize, rounds: usize) -> anyhow::Result<Vec<f64>> {
    let (there, back) = (Queue::bounded(16)?, Queue::bounded(16)?);
    let context = start_processes(answer, (there.clone(), back.clone()), Options::new(1))?;
    let ones = vec![1; bytes];
    let ask = |message: &Option<Tensor<u8>>| {
        there.put(message)?;
        anyhow::Ok(back.get()?)
    };
    let make = || Ok(Some(Tensor::from_slice(&ones, &[bytes])?));
    let times = measure(rounds, make, || ask(&None).map(drop), |tensor| ask(tensor))?;
    there.close()?;
    context.join()?;
    Ok(times)
}

type Ends = (IpcSender<Option<IpcSharedMemory>>, IpcReceiver<u8>);

/// The worker sends the ends of two channels, and answers until the launcher's is gone.
fn answer_by_ipc_channel(_: usize, name: String) -> anyhow::Result<()> {
    let ((there, ours), (back, launchers)) = (channel::<Option<IpcSharedMemory>>()?, channel()?);
    IpcSender::connect(name)?.send((there, launchers))?;
    while let Ok(message) = ours.recv() {
        back.send(message.as_ref().map_or(0, |memory| memory[0]))?;
    }
    Ok(())
}

fn through_ipc_channel(bytes: usize, rounds: usize) -> anyhow::Result<Vec<f64>> {
    let (server, name) = IpcOneShotServer::<Ends>::new()?;
    let context = start_processes(answer_by_ipc_channel, name, Options::new(1))?;
    let (_server, (there, back)) = server.accept()?;
    let ask = |message: Option<IpcSharedMemory>| {
        there.send(message)?;
        anyhow::Ok(back.recv()?)
    };
    // What is sent is gone, and its pages with it: so it is a second handle, to which none belong.
    let make = || {
        let memory = IpcSharedMemory::from_byte(1, bytes);
        Ok((Some(memory.clone()), memory))
    };
    let times = measure(rounds, make, || ask(None).map(drop), |made| ask(mem::take(&mut made.0)))?;
    drop(there);
    context.join()?;
    Ok(times)
}
