//! What a fault point costs that no plan names.

use std::hint::black_box;

use phalanx::fault;

use crate::figures::{Extent, time, timed};
use crate::rows::Column::Phalanx;
use crate::rows::Group;
use crate::some;

pub(crate) fn points(extent: Extent) -> anyhow::Result<()> {
    let all = some(extent, 100_000_000);
    Group::default()
        .line("a `fault::point!` that no plan names", "≤ 0.5 ns", time)
        .way(Phalanx, "", || Ok(one_of_ten(all)))
        .print(extent.rounds(5))
}

/// Seconds of one point: by how much a loop takes longer with ten of them in each turn.
fn one_of_ten(turns: usize) -> f64 {
    macro_rules! ten {
        ($($name:literal)*) => { $(fault::point!($name);)* };
    }
    let (without, ()) = timed(|| {
        for turn in 0..turns {
            black_box(turn);
        }
    });
    let (with, ()) = timed(|| {
        for turn in 0..turns {
            black_box(turn);
            ten!("t.0" "t.1" "t.2" "t.3" "t.4" "t.5" "t.6" "t.7" "t.8" "t.9");
        }
    });
    (with - without) / (10 * turns) as f64
}
