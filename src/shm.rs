//! What belongs to shared memory and has no name at the crate's root: how a [`Storage`](crate::Storage) is made, the elements of
//! a [`Tensor`](crate::Tensor), other people's formats, and what this process has mapped.

pub use crate::dtype::DType;
pub use crate::memory::named::set_sharing_directory;
pub use crate::memory::options::{HugePages, StorageOptions};
pub use crate::memory::stats::{Stats, stats};
pub use crate::memory::storage::StorageId;
pub use crate::memory::strategy::get_sharing_directory;
pub use crate::tensor::cells::{Cells, SharedCell};
pub use crate::tensor::element::{Element, Number};
#[cfg(feature = "dlpack")]
pub use crate::tensor::formats::dlpack;
#[cfg(feature = "safetensors")]
pub use crate::tensor::formats::safetensors;
pub use crate::tensor::refused::Refused;
#[doc(no_inline)]
pub use half::{bf16, f16};
