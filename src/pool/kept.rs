//! What a worker keeps for the functions that it calls: its state, and the environments of maps.
//!
//! All of it lives in the worker's process, on its one thread. Types are gone here: a task names an environment by its number, and its entry
//! record knows the type, which it gets by a downcast.

use std::any::Any;
use std::collections::HashMap;

use super::errands::NEXT;
use crate::error::WorkerError;

/// What functions have beside their arguments.
///
/// Environments are read when an item first needs them, and stay until the pool says that their map is gone; the state is made before the first call.
pub(super) struct Beside {
    /// `None`: the pool was made without one.
    state: Option<Box<dyn State>>,
    /// By number; of one that cannot be read, why. Items of its map fail with that.
    environments: HashMap<u32, Result<Box<dyn Any>, String>>,
    nothing: (),
}

impl Beside {
    pub(super) fn new(state: Option<Box<dyn State>>) -> Self {
        Self { state, environments: HashMap::new(), nothing: () }
    }

    pub(super) fn into_state(self) -> Option<Box<dyn State>> {
        self.state
    }

    /// What the function of a task has beside its arguments. `read` gets an environment that is not here.
    ///
    /// The error goes to the item, as one of its arguments that could not be read.
    pub(super) fn of(
        &mut self,
        environment: u32,
        read: impl FnOnce() -> Result<Box<dyn Any>, String>,
    ) -> Result<&mut dyn Any, String> {
        if environment != NEXT {
            let known = self.environments.entry(environment).or_insert_with(read);
            return known.as_mut().map(|value| &mut **value).map_err(|reason| reason.clone());
        }
        match &mut self.state {
            Some(state) => state.value().ok_or_else(|| "the state of the worker is not there".to_owned()),
            None => Ok(&mut self.nothing),
        }
    }

    /// Makes the state, where there is to be one and there is none.
    pub(super) fn restore_state(&mut self) -> anyhow::Result<()> {
        self.state.as_mut().map_or(Ok(()), |state| state.restore())
    }

    /// Drops the state, which a panic may have left half changed.
    pub(super) fn lose_state(&mut self) {
        self.state.iter_mut().for_each(|state| state.lose());
    }

    /// Drops an environment: with it go the tensors and descriptors that only its map has needed.
    pub(super) fn forget(&mut self, environment: u32) {
        self.environments.remove(&environment);
    }
}

/// The state of a worker, whatever its type is.
pub(super) trait State {
    /// Makes the value, unless it is there.
    fn restore(&mut self) -> anyhow::Result<()>;

    /// The value; `None`: it was lost in a panic, or not made yet.
    fn value(&mut self) -> Option<&mut dyn Any>;

    /// Drops the value, which a panic may have left half changed.
    fn lose(&mut self);

    /// Gives the value up, at the worker's end.
    fn retire(self: Box<Self>) -> anyhow::Result<()>;
}

/// A state, with what it is made of and what gives it up.
///
/// The arguments are kept, too, since the state is made again after a panic.
pub(super) struct Kept<F, G, S, I> {
    args: I,
    init: F,
    retire: G,
    value: Option<S>,
}

impl<F, G, S, I> Kept<F, G, S, I> {
    pub(super) fn new(args: I, init: F, retire: G) -> Self {
        Self { args, init, retire, value: None }
    }
}

impl<F, G, S, I, E, E2> State for Kept<F, G, S, I>
where
    F: Fn(&I) -> Result<S, E>,
    G: Fn(S) -> Result<(), E2>,
    S: 'static,
    E: WorkerError,
    E2: WorkerError,
{
    fn restore(&mut self) -> anyhow::Result<()> {
        if self.value.is_none() {
            self.value = Some((self.init)(&self.args).map_err(Into::into)?);
        }
        Ok(())
    }

    fn value(&mut self) -> Option<&mut dyn Any> {
        self.value.as_mut().map(|value| value as &mut dyn Any)
    }

    fn lose(&mut self) {
        self.value = None;
    }

    fn retire(self: Box<Self>) -> anyhow::Result<()> {
        let Self { value, retire, .. } = *self;
        value.map_or(Ok(()), |value| retire(value).map_err(Into::into))
    }
}
