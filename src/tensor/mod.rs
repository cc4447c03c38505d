//! Arrays of numbers over shared memory.

// - `element`: what an element can be
// - `layout`, `rows`: pure: shape, strides and offset; the elements one after the other
// - `dyn_tensor`, `typed`: a layout over a storage, without and with a type known to the compiler
// - `views`: other shapes over the same memory
// - `bytes`: where elements lie, and copies of their bytes
// - `access`: the elements of a tensor, as values
// - `cells`: the same in place, at the speed of memory
// - `frozen`: tensors in sealed memory
// - `shard`, `divide`: the exclusive parts of a tensor, and how it is divided
// - `recycled`: tensors whose memory is used again
// - `refused`: what could not be done, with what it was to be done to
// - `formats`: other people's, each a feature that is off by default

mod access;
mod bytes;
pub(crate) mod cells;
mod divide;
pub(crate) mod dyn_tensor;
pub(crate) mod element;
pub(crate) mod formats;
pub(crate) mod frozen;
mod layout;
pub(crate) mod recycled;
pub(crate) mod refused;
mod rows;
pub(crate) mod shard;
pub(crate) mod typed;
mod views;
