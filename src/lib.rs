//! phalanx

mod context;
mod error;
mod init;
mod shm;
mod start;
mod supervise;
mod sys;
mod wire;
mod worker;

#[expect(deprecated, reason = "the old name is exported for those who know it")]
pub use context::SpawnContext;
pub use context::{Options, ProcessContext, spawn, start_processes, start_processes_with};
pub use error::{
    Cause, Error, Frame, MemoryError, Outcome, ProcessExitedException, ProcessRaisedException, RaisedError,
    ResourceUsage, Status, Traceback,
};
pub use init::init;
#[doc(hidden)]
pub use init::init_before_main;
pub use shm::{DType, Element, Storage, Tensor};
pub use start::StartMethod;
pub use sys::signal::Signal;
