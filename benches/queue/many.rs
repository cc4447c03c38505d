//! Small messages, from several workers to several.

use phalanx::{Queue, Tensor};

use crate::common;
use crate::figures::Extent;
use crate::fleet::{Span, at_once, run};
use crate::rows::Column::Phalanx;
use crate::rows::{Group, millions};
use crate::some;

/// Producers, and as many consumers.
const SIDE: usize = 4;
/// Where the board says how many producers have finished, and how many messages have come.
const DONE: usize = 1;
const TAKEN: usize = 2;

pub(crate) fn many_to_many(extent: Extent) -> anyhow::Result<()> {
    let (ours, pythons) = (some(extent, 200_000), [SIDE, some(extent, 10_000)]);
    Group::default()
        .line("the same, 4 producers to 4 consumers, in all", "≥ 2", millions)
        .way(Phalanx, "`Queue` of 65,536", || through_queue(65_536, ours))
        .way(Phalanx, "of 1,024", || through_queue(1024, ours))
        .python("`Queue`", "many", &pythons)
        .python("`SimpleQueue`", "many", &pythons)
        .print(extent.rounds(5))
}

type Arguments = (Queue<u64>, Tensor<i64>, usize);

/// So many messages of each producer.
fn through_queue(room: usize, each: usize) -> anyhow::Result<f64> {
    let board = common::board(3);
    let seconds = run(take_part, (Queue::bounded(room)?, board.clone(), each), 2 * SIDE)?;
    anyhow::ensure!(board.get(TAKEN)? == (SIDE * each) as i64, "not the messages that were sent");
    Ok((SIDE * each) as f64 / seconds)
}

fn take_part(rank: usize, (queue, board, each): Arguments) -> anyhow::Result<Span> {
    at_once(&board, 2 * SIDE, || match rank {
        ..SIDE => produce(&queue, &board, each),
        _ => consume(&queue, &board),
    })
}

/// The last one closes the queue.
fn produce(queue: &Queue<u64>, board: &Tensor<i64>, each: usize) -> anyhow::Result<()> {
    (0..each as u64).try_for_each(|number| queue.put(number))?;
    if board.fetch_add(DONE, 1)? + 1 == SIDE as i64 {
        queue.close()?;
    }
    Ok(())
}

fn consume(queue: &Queue<u64>, board: &Tensor<i64>) -> anyhow::Result<()> {
    let taken = queue.iter().try_fold(0, |taken, message| message.map(|_| taken + 1))?;
    board.fetch_add(TAKEN, taken)?;
    Ok(())
}
