//! How memory and descriptors leave a process beside serialised bytes, and enter another.

// - `grant`: what a value may do with a part of a segment
// - `context`: what a value has with it, while it is written or read
// - `received`: what has arrived beside the bytes of a value: each is checked when it is asked for
// - `descriptor`: how a descriptor travels
// - `record`: records of atomics, with room beside them: what locks and queues are made of

pub(crate) mod context;
mod descriptor;
pub(crate) mod grant;
pub(crate) mod received;
pub(crate) mod record;
