//! The how-to pages, whose code is compiled and run as doctests.

// rustdoc allows what is unused and shows no warnings of doctests: a reader who copies the code sees both.
#![doc(test(attr(deny(warnings))))]

#[doc = include_str!("../../../docs/howto/checkpoint.md")]
pub mod checkpoint {}
#[doc = include_str!("../../../docs/howto/ctrl-c.md")]
pub mod ctrl_c {}
#[doc = include_str!("../../../docs/howto/pipelines.md")]
pub mod pipelines {}
#[doc = include_str!("../../../docs/howto/start.md")]
pub mod start {}
#[doc = include_str!("../../../docs/howto/testing.md")]
pub mod testing {}
#[doc = include_str!("../../../docs/howto/tokio.md")]
pub mod tokio {}
#[doc = include_str!("../../../docs/howto/tracing.md")]
pub mod tracing {}
