//! How memory and descriptors leave a process beside serialised bytes, and enter another.

// - `grant`: a part of a segment, and how a value may use it
// - `attachments`: what travels beside the bytes of a value
// - `context`: the attachments of a value while it is written or read
// - `received`: attachments that have arrived, each of which is checked when a value asks for it
// - `descriptor`: how a descriptor travels
// - `record`: records of atomics, with room beside them: what locks and queues are made of

pub(crate) mod attachments;
pub(crate) mod context;
mod descriptor;
pub(crate) mod grant;
pub(crate) mod received;
pub(crate) mod record;
