//! How many instructions single operations take, by callgrind (valgrind): figures that hardly depend on what else the machine does.
//!
//! Each operation runs in a process of its own, once a few times and once many times more often; what lies between the two
//! counts is what those calls have taken. All is uncontended, in one thread: what wakes another process is for the other parts. Where
//! `valgrind` is not there the table has no figures.

use std::process::{Command, Stdio};

use phalanx::sync::{Event, Lock, Semaphore};
use phalanx::{Queue, Tensor, fault, pipe};

use crate::bare::Words;
use crate::figures::{Extent, row, table};
use crate::robust::RobustMutex;

/// Before the number of an operation and how often it is to be done: the arguments of such a process.
const MARK: &str = "--operation";
const FEW: u64 = 1000;
const MANY: u64 = 11_000;

/// Does an operation as often as it is told.
type Operation = fn(u64) -> anyhow::Result<()>;

const OPERATIONS: [(&str, Operation); 10] = [
    ("a robust pthread mutex, taken and given back", pthread_mutex),
    ("`Lock`, taken and given back", lock),
    ("`Semaphore`, acquired and released", semaphore),
    ("`Event`, found set", event),
    ("`Queue<u64>`, put and got", queue),
    ("`Queue<(String, Vec<u32>)>`, put and got", queue_of_structs),
    ("`Connection<u64>`, sent and received", connection),
    ("`Tensor::set` and `get` of an element", tensor),
    ("the same through `Tensor::cells`", cells),
    ("ten `fault::point!` that no plan names, and a turn of a loop", points),
];

/// Does an operation, where the command line asks for one. False: it does not.
pub(crate) fn is_asked() -> anyhow::Result<bool> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [mark, number, count] = &arguments[..] else { return Ok(false) };
    if mark != MARK {
        return Ok(false);
    }
    OPERATIONS[number.parse::<usize>()?].1(count.parse()?).map(|()| true)
}

pub(crate) fn instructions(_: Extent) -> anyhow::Result<()> {
    table("Instructions of one operation, uncontended", &["operation", "instructions"]);
    for (number, (name, _)) in OPERATIONS.iter().enumerate() {
        let (few, many) = (counted(number, FEW)?, counted(number, MANY)?);
        let each = few.zip(many).map(|(few, many)| (many.saturating_sub(few)) / (MANY - FEW));
        row(&[(*name).to_owned(), each.map_or("-".to_owned(), |each| each.to_string())]);
    }
    Ok(())
}

/// The instructions of a process that does an operation `count` times. `None`: there is no valgrind.
fn counted(number: usize, count: u64) -> anyhow::Result<Option<u64>> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(std::env::current_exe()?);
    command.args([MARK, &number.to_string(), &count.to_string()]).stdin(Stdio::null());
    let Ok(output) = command.output() else { return Ok(None) };
    let told = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "valgrind: {}: {told}", output.status);
    let line = told.lines().find_map(|line| line.split_once("Collected : "));
    let (_, counts) = line.ok_or_else(|| anyhow::anyhow!("valgrind says no count: {told}"))?;
    Ok(Some(counts.trim().parse()?))
}

fn times(count: u64, work: impl FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<()> {
    (0..count).try_for_each(work)
}

fn pthread_mutex(count: u64) -> anyhow::Result<()> {
    let mutex = RobustMutex::make(Words::open(&Words::make()?)?)?;
    times(count, |_| mutex.count())
}

fn lock(count: u64) -> anyhow::Result<()> {
    let lock = Lock::new(0_u64)?;
    times(count, |x| {
        *lock.lock()? += x;
        Ok(())
    })
}

fn semaphore(count: u64) -> anyhow::Result<()> {
    let semaphore = Semaphore::new(1)?;
    times(count, |_| {
        drop(semaphore.acquire()?);
        Ok(())
    })
}

fn event(count: u64) -> anyhow::Result<()> {
    let event = Event::new()?;
    event.set();
    times(count, |_| Ok(event.wait()?))
}

fn queue(count: u64) -> anyhow::Result<()> {
    let queue = Queue::bounded(64)?;
    times(count, |x| {
        queue.put(x)?;
        anyhow::ensure!(queue.get()? == x, "another value");
        Ok(())
    })
}

fn queue_of_structs(count: u64) -> anyhow::Result<()> {
    let queue = Queue::bounded(64)?;
    times(count, |_| {
        queue.put(("a name".to_owned(), vec![1_u32; 16]))?;
        anyhow::ensure!(queue.get()?.1.len() == 16, "another value");
        Ok(())
    })
}

fn connection(count: u64) -> anyhow::Result<()> {
    let (one, other) = pipe::<u64, u64>()?;
    times(count, |x| {
        one.send(x)?;
        anyhow::ensure!(other.recv()? == x, "another value");
        Ok(())
    })
}

fn tensor(count: u64) -> anyhow::Result<()> {
    let tensor = Tensor::<u64>::zeros(&[64])?;
    times(count, |x| {
        let index = (x % 64) as usize;
        tensor.set(index, x)?;
        anyhow::ensure!(tensor.get(index)? == x, "another value");
        Ok(())
    })
}

fn cells(count: u64) -> anyhow::Result<()> {
    let tensor = Tensor::<u64>::zeros(&[64])?;
    let cells = tensor.cells()?;
    times(count, |x| {
        let cell = &cells[(x % 64) as usize];
        cell.set(x);
        anyhow::ensure!(cell.get() == x, "another value");
        Ok(())
    })
}

fn points(count: u64) -> anyhow::Result<()> {
    macro_rules! ten {
        ($($name:literal)*) => { $(fault::point!($name);)* };
    }
    times(count, |_| {
        ten!("p.0" "p.1" "p.2" "p.3" "p.4" "p.5" "p.6" "p.7" "p.8" "p.9");
        Ok(())
    })
}
