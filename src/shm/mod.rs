//! Memory that several processes see.
//!
//! - `storage`: counted bytes in a sealed memfd
//! - `dtype`: the element types
//! - `tensor`: a shape over a storage
//! - `passing`: how storages leave and enter a process beside serialised bytes

mod dtype;
pub(crate) mod passing;
mod storage;
mod tensor;

pub use dtype::{DType, Element};
pub use storage::Storage;
pub use tensor::Tensor;
