//! Access to single elements, beside a `Vec`.

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use phalanx::shm::Number;
use phalanx::{MemoryError, Tensor};

use crate::figures::{Extent, row, table, time, timed};
use crate::turns::Turns;

/// Elements on a side of the square that single accesses go over.
const SIDE: usize = 256;

/// Runs an access to each element of a `Vec` and the like of a tensor by turns; tells the time for one element.
fn per_element(
    extent: Extent,
    name: String,
    vec: impl Fn(usize),
    tensor: impl Fn(usize) -> Result<(), MemoryError>,
) -> anyhow::Result<()> {
    at_once(extent, name, vec, || (0..SIDE * SIDE).try_for_each(&tensor))
}

/// As [`per_element`], of a call that goes over all elements of the tensor.
fn at_once(
    extent: Extent,
    name: String,
    vec: impl Fn(usize),
    tensor: impl Fn() -> Result<(), MemoryError>,
) -> anyhow::Result<()> {
    let all = SIDE * SIDE;
    let turns = Turns::run(
        extent.rounds(300),
        || Ok(timed(|| (0..all).for_each(&vec)).0 / all as f64),
        || {
            let (seconds, done) = timed(&tensor);
            Ok(done.map(|()| seconds / all as f64)?)
        },
    )?;
    let [vec, tensor] = [turns.base(), turns.other()].map(time);
    row(&[name, vec, tensor, format!("{:.1}", turns.ratio())]);
    Ok(())
}

/// Where the element at `place` of the transposed square lies in the square.
fn transposed(place: usize) -> usize {
    place % SIDE * SIDE + place / SIDE
}

fn square<T: Number>() -> anyhow::Result<(Vec<Cell<T>>, Tensor<T>)> {
    Ok((vec![Cell::default(); SIDE * SIDE], Tensor::zeros(&[SIDE, SIDE])?))
}

fn contiguous<T: Number + AddAssign>(extent: Extent, one: T) -> anyhow::Result<()> {
    let (vec, tensor) = square::<T>()?;
    let name = |what: &str| format!("`{what}`, {}", T::DTYPE);
    let plain = |place: usize| drop_value(vec[place].get());
    per_element(extent, name("get"), plain, |place| tensor.get(place).map(drop_value))?;
    let by_index = |place| tensor.get(tensor.position(&[place / SIDE, place % SIDE])?).map(drop_value);
    per_element(extent, name("get(position(&[i, j]))"), plain, by_index)?;
    let plain = |place: usize| vec[place].set(black_box(one));
    per_element(extent, name("set"), plain, |place| tensor.set(place, black_box(one)))?;
    let plain = |place: usize| {
        let mut sum = vec[place].get();
        sum += black_box(one);
        vec[place].set(sum);
    };
    per_element(extent, name("fetch_add"), plain, |place| {
        tensor.fetch_add(place, black_box(one)).map(drop_value)
    })
}

/// The same loops over cells, beside the like over the `Vec`: by index, from which both check that it is inside.
fn by_cells<T: Number + AddAssign>(extent: Extent, one: T) -> anyhow::Result<()> {
    let (vec, tensor) = square::<T>()?;
    let (vec, cells) = (&vec[..], tensor.cells()?);
    let name = |what: &str| format!("`cells()?[i].{what}`, {}", T::DTYPE);
    let plain = |place: usize| drop_value(vec[place].get());
    by_slice(extent, name("get()"), plain, |place| drop_value(cells[place].get()))?;
    let plain = |place: usize| vec[place].set(black_box(one));
    by_slice(extent, name("set(x)"), plain, |place| cells[place].set(black_box(one)))?;
    let plain = |place: usize| {
        let mut sum = vec[place].get();
        sum += black_box(one);
        vec[place].set(sum);
    };
    by_slice(extent, name("set(get() + x)"), plain, |place| {
        let mut sum = cells[place].get();
        sum += black_box(one);
        cells[place].set(sum);
    })
}

/// As [`per_element`], of an access that cannot fail.
fn by_slice(extent: Extent, name: String, vec: impl Fn(usize), cells: impl Fn(usize)) -> anyhow::Result<()> {
    at_once(extent, name, vec, || {
        (0..SIDE * SIDE).for_each(&cells);
        Ok(())
    })
}

/// All elements of a transposed view by its iterator, beside an index that is computed for each.
fn by_iterator<T: Number>(extent: Extent, one: T) -> anyhow::Result<()> {
    let (vec, tensor) = square::<T>()?;
    let view = tensor.transpose(0, 1)?;
    let name = |what: &str| format!("`iter_cells()?`, {what}, {}, transposed", T::DTYPE);
    let plain = |place| drop_value(vec[transposed(place)].get());
    at_once(extent, name("`get`"), plain, || {
        view.iter_cells()?.for_each(|cell| drop_value(cell.get()));
        Ok(())
    })?;
    let plain = |place| vec[transposed(place)].set(black_box(one));
    at_once(extent, name("`set`"), plain, || {
        view.iter_cells()?.for_each(|cell| cell.set(black_box(one)));
        Ok(())
    })
}

fn of_a_transposed_view<T: Number>(extent: Extent, one: T) -> anyhow::Result<()> {
    let (vec, tensor) = square::<T>()?;
    let view = tensor.transpose(0, 1)?;
    let name = |what: &str| format!("`{what}`, {}, transposed", T::DTYPE);
    let plain = |place| drop_value(vec[transposed(place)].get());
    per_element(extent, name("get"), plain, |place| view.get(place).map(drop_value))?;
    let plain = |place| vec[transposed(place)].set(black_box(one));
    per_element(extent, name("set"), plain, |place| view.set(place, black_box(one)))?;
    let target = RefCell::new(vec![T::default(); SIDE * SIDE]);
    let plain = |place| target.borrow_mut()[place] = black_box(vec[transposed(place)].get());
    at_once(extent, name("read_into"), plain, || view.read_into(&mut target.borrow_mut()))
}

/// What an addition to a float costs that loses none, wherever it is.
fn atomic_additions(extent: Extent) -> anyhow::Result<()> {
    let (narrow, tensor) = (atomics::<AtomicU32>(), Tensor::<f32>::zeros(&[SIDE, SIDE])?);
    let add = |bits| Some((f32::from_bits(bits) + black_box(1.0)).to_bits());
    let plain = |place: usize| drop_value(narrow[place].fetch_update(Relaxed, Relaxed, add));
    let name = |dtype| format!("`fetch_add`, {dtype}, beside atomics in the `Vec`");
    per_element(extent, name("f32"), plain, |place| tensor.fetch_add(place, black_box(1.0)).map(drop_value))?;
    let (by_cells, cells) = ("`cells()?[i].fetch_add(x)`, f32, beside atomics in the `Vec`", tensor.cells()?);
    by_slice(extent, by_cells.to_owned(), plain, |place| drop_value(cells[place].fetch_add(black_box(1.0))))?;
    let (wide, tensor) = (atomics::<AtomicU64>(), Tensor::<f64>::zeros(&[SIDE, SIDE])?);
    let add = |bits| Some((f64::from_bits(bits) + black_box(1.0)).to_bits());
    let plain = |place: usize| drop_value(wide[place].fetch_update(Relaxed, Relaxed, add));
    per_element(extent, name("f64"), plain, |place| tensor.fetch_add(place, black_box(1.0)).map(drop_value))
}

fn atomics<T: Default>() -> Vec<T> {
    std::iter::repeat_with(T::default).take(SIDE * SIDE).collect()
}

/// So that the compiler has to get it.
fn drop_value<T>(value: T) {
    black_box(value);
}

pub(crate) fn elements(extent: Extent) -> anyhow::Result<()> {
    let columns = ["access", "plain `Vec`", "tensor", "tensor / `Vec`"];
    table(&format!("One element of {SIDE} × {SIDE}, each in turn"), &columns);
    contiguous::<f32>(extent, 1.0)?;
    contiguous::<f64>(extent, 1.0)?;
    atomic_additions(extent)?;
    by_cells::<f32>(extent, 1.0)?;
    by_cells::<f64>(extent, 1.0)?;
    of_a_transposed_view::<f32>(extent, 1.0)?;
    of_a_transposed_view::<f64>(extent, 1.0)?;
    by_iterator::<f32>(extent, 1.0)?;
    by_iterator::<f64>(extent, 1.0)
}
