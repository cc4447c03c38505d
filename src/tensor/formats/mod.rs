//! Other people's formats, each a feature that is off by default.
//!
//! - `safetensors`: a file's tensors in one storage, and back into a file
//! - `ndarray`: views and copies as arrays of the ndarray crate
//! - `dlpack`: the C structs of DLPack, and the owner of one
//! - `exchange`: tensors to DLPack's form and back

#[cfg(feature = "dlpack")]
pub mod dlpack;
#[cfg(feature = "dlpack")]
mod exchange;
#[cfg(feature = "ndarray")]
mod ndarray;
#[cfg(feature = "safetensors")]
pub mod safetensors;
