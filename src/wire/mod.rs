//! What crosses between processes, and how.
//!
//! - `names`: environment variables, exit codes, the protocol version
//! - `marker`: the line by which a worker knows that it is one
//! - `message`: the vocabulary
//! - `abort`: a word by which a launcher ends its workers' waiting
//! - `codec`: values to bytes and back, with storages riding beside them
//! - `job`: a job in a sealed memfd
//! - `lifeline`: the second way in which a worker dies with its launcher
//! - `freight`: what goes beside the bytes, as descriptors that are sent
//! - `packet`: an encoded value as one message
//! - `returns`: results with memory beside them
//! - `setup`: what a worker knows of itself, has of its own and does before its function
//! - `slot`: the report slot, a memfd that a worker fills and the launcher reads

pub(crate) mod abort;
pub(crate) mod codec;
pub(crate) mod freight;
pub(crate) mod job;
pub(crate) mod ledger;
pub(crate) mod letter;
pub(crate) mod lifeline;
pub(crate) mod marker;
pub(crate) mod message;
pub(crate) mod names;
pub(crate) mod packet;
pub(crate) mod returns;
pub(crate) mod roster;
pub(crate) mod service;
pub(crate) mod setup;
pub(crate) mod slot;
