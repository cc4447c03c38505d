//! Memory that several processes have mapped: segments, the storages in them, and how either is made.

// - `strategy`: how memory is made, and the process's choice of it
// - `named`, `worker_dir`: the directories of named memory
// - `descriptor`: an open file that travels beside values
// - `segment`: a mapped piece of memory, and those of this process, each found by what it is
// - `create`: how segments come to be
// - `arena`: small storages, carved from shared segments
// - `storage`: bytes without a shape
// - `options`, `allocate`: how storages come to be
// - `recycler`: storages whose memory is used again
// - `stats`: what this process has mapped

mod allocate;
pub(crate) mod arena;
pub(crate) mod create;
pub(crate) mod descriptor;
pub(crate) mod named;
pub(crate) mod options;
pub(crate) mod recycler;
pub(crate) mod segment;
pub(crate) mod stats;
pub(crate) mod storage;
pub(crate) mod strategy;
pub(crate) mod worker_dir;
