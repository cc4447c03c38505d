//! The records of functions that a pool's workers call, again and again: tasks, and what makes the values that tasks have beside their
//! arguments.

use std::any::{Any, type_name};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Entry, MAGIC, beside_of, read_arguments, write_result, zero_sized_function};
use crate::error::WorkerError;
use crate::transfer::received::Received;
use crate::wire::codec::Encoded;

/// The record of a function that has nothing beside its arguments.
pub(crate) fn of_plain<F, A, R, E>() -> &'static Entry
where
    F: Fn(A) -> Result<R, E> + Copy + Send + 'static,
    A: DeserializeOwned,
    R: Serialize,
    E: WorkerError,
{
    const { &Entry { magic: MAGIC, name: type_name::<F>, call: call_plain::<F, A, R, E> } }
}

/// The record of a function that has the state of its worker.
pub(crate) fn of_stateful<F, S, A, R, E>() -> &'static Entry
where
    F: Fn(&mut S, A) -> Result<R, E> + Copy + Send + 'static,
    S: 'static,
    A: DeserializeOwned,
    R: Serialize,
    E: WorkerError,
{
    const { &Entry { magic: MAGIC, name: type_name::<F>, call: call_stateful::<F, S, A, R, E> } }
}

/// The record of a function that has the environment of its map.
pub(crate) fn of_environed<F, V, A, R, E>() -> &'static Entry
where
    F: Fn(&V, A) -> Result<R, E> + Copy + Send + 'static,
    V: 'static,
    A: DeserializeOwned,
    R: Serialize,
    E: WorkerError,
{
    const { &Entry { magic: MAGIC, name: type_name::<F>, call: call_environed::<F, V, A, R, E> } }
}

/// The record of what reads an environment: it leaves the value in what it has beside its arguments, an `Option<Box<dyn Any>>`.
pub(crate) fn of_environment<V: DeserializeOwned + 'static>() -> &'static Entry {
    const { &Entry { magic: MAGIC, name: type_name::<V>, call: read_environment::<V> } }
}

// Each of these decodes the arguments, calls the function, and encodes its result. In a traceback the frames below are the library's.

#[inline(never)]
fn call_plain<F, A, R, E>(
    _: &mut dyn Any,
    arguments: &[u8],
    received: Received,
    into: Vec<u8>,
) -> anyhow::Result<Encoded>
where
    F: Fn(A) -> Result<R, E> + Copy + Send + 'static,
    A: DeserializeOwned,
    R: Serialize,
    E: WorkerError,
{
    let arguments = read_arguments(arguments, received)?;
    write_result(&zero_sized_function::<F>()(arguments).map_err(Into::into)?, into)
}

#[inline(never)]
fn call_stateful<F, S, A, R, E>(
    state: &mut dyn Any,
    arguments: &[u8],
    received: Received,
    into: Vec<u8>,
) -> anyhow::Result<Encoded>
where
    F: Fn(&mut S, A) -> Result<R, E> + Copy + Send + 'static,
    S: 'static,
    A: DeserializeOwned,
    R: Serialize,
    E: WorkerError,
{
    let (state, arguments) = (beside_of::<S>(state)?, read_arguments(arguments, received)?);
    write_result(&zero_sized_function::<F>()(state, arguments).map_err(Into::into)?, into)
}

#[inline(never)]
fn call_environed<F, V, A, R, E>(
    environment: &mut dyn Any,
    arguments: &[u8],
    received: Received,
    into: Vec<u8>,
) -> anyhow::Result<Encoded>
where
    F: Fn(&V, A) -> Result<R, E> + Copy + Send + 'static,
    V: 'static,
    A: DeserializeOwned,
    R: Serialize,
    E: WorkerError,
{
    let (environment, arguments) = (&*beside_of::<V>(environment)?, read_arguments(arguments, received)?);
    write_result(&zero_sized_function::<F>()(environment, arguments).map_err(Into::into)?, into)
}

#[inline(never)]
fn read_environment<V: DeserializeOwned + 'static>(
    place: &mut dyn Any,
    bytes: &[u8],
    received: Received,
    into: Vec<u8>,
) -> anyhow::Result<Encoded> {
    let place = beside_of::<Option<Box<dyn Any>>>(place)?;
    *place = Some(Box::new(read_arguments::<V>(bytes, received)?));
    write_result(&(), into)
}
