//! The pages of `docs/`: how to do common things, and how it works below.
//!
//! Links between the pages are references, which each page defines for readers of the files. `links.md` comes first and so
//! takes precedence here.

/// How to do it: each page has code that is compiled and run.
// The code needs tokio and the like, so it is tested in a package of its own: examples/howto.
#[cfg(not(doctest))]
pub mod howto {
    #[doc = include_str!("../../docs/howto/checkpoint.md")]
    pub mod checkpoint {}
    #[doc = include_str!("../../docs/howto/ctrl-c.md")]
    pub mod ctrl_c {}
    #[doc = include_str!("../../docs/howto/pipelines.md")]
    pub mod pipelines {}
    #[doc = include_str!("../../docs/howto/start.md")]
    pub mod start {}
    #[doc = include_str!("../../docs/howto/testing.md")]
    pub mod testing {}
    #[doc = include_str!("../../docs/howto/tokio.md")]
    pub mod tokio {}
    #[doc = include_str!("../../docs/howto/tracing.md")]
    pub mod tracing {}
}

#[doc = include_str!("links.md")]
#[doc = include_str!("../../docs/architecture.md")]
pub mod architecture {}
#[doc = include_str!("links.md")]
#[doc = include_str!("../../docs/collective.md")]
pub mod collective {}
#[doc = include_str!("links.md")]
#[doc = include_str!("../../docs/differences.md")]
pub mod differences {}
#[doc = include_str!("links.md")]
#[doc = include_str!("../../docs/faults.md")]
pub mod faults {}
#[doc = include_str!("links.md")]
#[doc = include_str!("../../docs/launcher.md")]
pub mod launcher {}
#[doc = include_str!("links.md")]
#[doc = include_str!("../../docs/lifecycle.md")]
pub mod lifecycle {}
#[doc = include_str!("links.md")]
#[doc = include_str!("../../docs/memory.md")]
pub mod memory {}
#[doc = include_str!("links.md")]
#[doc = include_str!("../../docs/multiprocessing.md")]
pub mod multiprocessing {}
#[doc = include_str!("links.md")]
#[doc = include_str!("../../docs/performance.md")]
#[doc = "<div id=\"chart\">"]
#[doc = include_str!("../../docs/start.svg")]
#[doc = "</div>"]
pub mod performance {}
#[doc = include_str!("links.md")]
#[doc = include_str!("../../docs/pool.md")]
pub mod pool {}
#[doc = include_str!("links.md")]
#[doc = include_str!("../../docs/queues.md")]
pub mod queues {}
