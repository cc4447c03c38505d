//! Memory that several processes see. [`stats`] and [`Stats`] are only here; all else is at the crate's root.

// - `strategy`: how memory is made, and the process's choice of it
// - `tree`: the directories of named memory
// - `segment`: a mapped piece of memory, found by what it is
// - `known`: the segments that this process has mapped, and what they take
// - `arena`: small storages, carved from shared segments
// - `storage`, `options`: bytes without a shape, and how they are to be made
// - `dtype`: the element types
// - `layout`: pure: shape, strides and offset
// - `dyn_tensor`, `tensor`: a layout over a storage, without and with a type known to the compiler
// - `access`: the elements of a tensor
// - `frozen`: tensors that nobody can change any more
// - `shard`: the exclusive parts of a tensor
// - `shared`: records of atomics, of which locks and queues are made
// - `refused`: what could not be done, with what it was to be done to
// - `descriptor`: open files that travel beside values
// - `passing`, `arrivals`: how memory and descriptors leave and enter a process beside serialised bytes
// - `formats`: other people's, each a feature that is off by default

mod access;
mod arena;
mod arrivals;
mod descriptor;
mod dtype;
mod dyn_tensor;
mod formats;
mod frozen;
mod known;
mod layout;
mod options;
pub(crate) mod passing;
mod refused;
pub(crate) mod segment;
mod shard;
pub(crate) mod shared;
pub(crate) mod storage;
pub(crate) mod strategy;
mod tensor;
pub(crate) mod tree;

pub use descriptor::Descriptor;
pub use dtype::{DType, Element, Number};
pub use dyn_tensor::DynTensor;
#[cfg(feature = "dlpack")]
pub use formats::dlpack;
#[cfg(feature = "safetensors")]
pub use formats::safetensors;
pub use frozen::FrozenTensor;
pub use known::{Stats, stats};
pub use options::{HugePages, StorageOptions};
pub use refused::Refused;
pub use shard::Shard;
pub use storage::{Storage, StorageId};
pub use strategy::{
    SharingStrategy, get_all_sharing_strategies, get_sharing_directory, get_sharing_strategy,
    set_sharing_directory, set_sharing_strategy,
};
pub use tensor::Tensor;
