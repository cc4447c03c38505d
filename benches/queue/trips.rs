//! From one process to another and back: while both are busy, and when both sleep.

use ipc_channel::ipc::{IpcOneShotServer, IpcReceiver, IpcSender, channel};
use nix::poll::{PollTimeout, poll};
use phalanx::{Connection, Descriptor, Options, ProcessContext, Queue, pipe, start_processes};

use crate::bare::{Side, Words};
use crate::common;
use crate::figures::{Extent, median, time, timed};
use crate::rows::Column::{Bare, IpcChannel, Phalanx};
use crate::rows::Group;
use crate::some;

/// Milliseconds that both sides sleep.
const PAUSE: u16 = 2;
/// Trips that are timed together while both are busy.
const BATCH: usize = 100;

/// How a worker is asked.
#[derive(Clone, Copy, Debug)]
struct Plan {
    trips: usize,
    /// Whether both sleep before each trip.
    sleepy: bool,
}

pub(crate) fn trips(extent: Extent) -> anyhow::Result<()> {
    let busy = Plan { trips: some(extent, 20_000), sleepy: false };
    let sleepy = Plan { trips: some(extent, 60), sleepy: true };
    let title = "round trip of a `u64`, both sides";
    let group = Group::default().line(format!("{title} busy"), "≤ 2 µs", time);
    measure(group, busy, "two words, spinning", &[busy.trips / 10, 0], extent)?;
    let group = Group::default().line_over_bare(format!("{title} asleep before it"), "≤ 1.3 × bare");
    measure(group, sleepy, "two futexes", &[sleepy.trips, PAUSE.into()], extent)
}

fn measure<'a>(
    group: Group<'a>,
    plan: Plan,
    bare: &'static str,
    pythons: &'a [usize],
    extent: Extent,
) -> anyhow::Result<()> {
    group
        // These two are compared: nothing comes between them.
        .way(Bare, bare, move || plan.through_words())
        .way(Phalanx, "`Queue`", move || plan.through_queues())
        .way(Phalanx, "`pipe`", move || plan.through_connection())
        .python("`Queue`", "trip", pythons)
        .python("`Pipe`", "trip", pythons)
        .way(IpcChannel, "", move || plan.through_ipc_channel())
        .print(extent.rounds(5))
}

/// The worker answers so many.
fn echo(trips: usize, mut answer: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    (0..trips).try_for_each(|_| answer())
}

/// Waits until a process has slept for a while, as this one does.
pub(crate) fn both_sleep(worker: u32) -> anyhow::Result<()> {
    poll(&mut [], PollTimeout::from(PAUSE))?;
    common::await_that(|| common::state_of(worker) == Some('S'));
    Ok(())
}

impl Plan {
    /// The median of all trips, or of the batches' means.
    fn measure(
        self,
        context: ProcessContext<()>,
        mut ask: impl FnMut(u64) -> anyhow::Result<u64>,
    ) -> anyhow::Result<f64> {
        let worker = context.pids()[0];
        let batch = if self.sleepy { 1 } else { BATCH };
        let mut ask_all = |first: u64| {
            (first..first + batch as u64).try_for_each(|number| {
                anyhow::ensure!(ask(number)? == number, "another answer");
                Ok(())
            })
        };
        let mut times = Vec::new();
        for first in (0..self.trips as u64).step_by(batch) {
            if self.sleepy {
                both_sleep(worker)?;
            }
            let (seconds, done) = timed(|| ask_all(first));
            done?;
            times.push(seconds / batch as f64);
        }
        context.join()?;
        Ok(median(times))
    }

    fn through_queues(self) -> anyhow::Result<f64> {
        let work = |_, (there, back, trips): (Queue<u64>, Queue<u64>, usize)| {
            echo(trips, || Ok(back.put(there.get()?)?))
        };
        let (there, back) = (Queue::bounded(1024)?, Queue::bounded(1024)?);
        let arguments = (there.clone(), back.clone(), self.trips);
        self.measure(start_processes(work, arguments, Options::new(1))?, |number| {
            there.put(number)?;
            Ok(back.get()?)
        })
    }

    fn through_connection(self) -> anyhow::Result<f64> {
        let work = |_, (launcher, trips): (Connection<u64, u64>, usize)| {
            echo(trips, || Ok(launcher.send(launcher.recv()?)?))
        };
        let (ours, theirs) = pipe()?;
        let context = start_processes(work, (theirs, self.trips), Options::new(1))?;
        self.measure(context, |number| {
            ours.send(number)?;
            Ok(ours.recv()?)
        })
    }

    /// The worker learns a channel's name, and sends the ends of two through it.
    fn through_ipc_channel(self) -> anyhow::Result<f64> {
        let work = |_, (name, trips): (String, usize)| {
            let ((there, ours), (back, launchers)) = (channel::<u64>()?, channel::<u64>()?);
            IpcSender::connect(name)?.send((there, launchers))?;
            echo(trips, || Ok(back.send(ours.recv()?)?))
        };
        let (server, name) = IpcOneShotServer::<(IpcSender<u64>, IpcReceiver<u64>)>::new()?;
        let context = start_processes(work, (name, self.trips), Options::new(1))?;
        let (_server, (there, back)) = server.accept()?;
        self.measure(context, |number| {
            there.send(number)?;
            Ok(back.recv()?)
        })
    }

    fn through_words(self) -> anyhow::Result<f64> {
        let work = |_, (memory, plan): (Descriptor, (usize, bool))| {
            let side = Side::new(Words::open(&memory)?, [1, 0], plan.1);
            (1..=plan.0 as u32).for_each(|number| {
                side.await_other(number);
                side.tell(number);
            });
            anyhow::Ok(())
        };
        let memory = Words::make()?;
        let side = Side::new(Words::open(&memory)?, [0, 1], self.sleepy);
        let context = start_processes(work, (memory, (self.trips, self.sleepy)), Options::new(1))?;
        self.measure(context, |number| {
            side.tell(number as u32 + 1);
            side.await_other(number as u32 + 1);
            Ok(number)
        })
    }
}
