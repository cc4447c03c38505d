//! Values from process to process while these run.
//!
//! - `error`: what can go wrong
//! - `pipe`: connections of two ends
//! - `end`: one of these, which one process has at a time

mod end;
mod error;
mod pipe;

pub use error::QueueError;
pub use pipe::{Connection, Never, one_way, pipe};
